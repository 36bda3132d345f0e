"""How well features tell classes apart (T2S-DA section 5, figure 7).

C, the number of classes in the equations, counts those that occur. K classes, D channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.plugin import Cells, Centres, FeatureMeasure


class ClassCentreDistance(FeatureMeasure):
    """CCD (K,), eq. 19: spread of a class over its squared distance to another's centre, mean over the others."""

    def __call__(self, cells: Callable[[], Cells], centres: Centres) -> Tensor:
        spread = centres.squares / centres.count - centres.mean.square().sum(dim=1)
        apart = torch.cdist(centres.mean.nan_to_num(), centres.mean.nan_to_num()).square()
        ratio = spread[:, None] / apart
        others = centres.present & ~torch.eye(len(spread), dtype=torch.bool)
        return torch.where(others, ratio, 0.0).sum(dim=1) / others.sum(dim=1)


class PixelDistance(FeatureMeasure):
    """PDD (K,), eq. 20: 1 - mean over the class's cells of cos(x, its centre) / sum of cos(x, other centres)."""

    def __call__(self, cells: Callable[[], Cells], centres: Centres) -> Tensor:
        directions = F.normalize(centres.mean.nan_to_num(), dim=1)
        total = torch.zeros_like(centres.count)
        for features, label in cells():
            cosine = F.normalize(features.double().cpu(), dim=1) @ directions.T  # 0 for classes that do not occur
            own = cosine.gather(1, label.cpu()[:, None])[:, 0]
            total.index_add_(0, label.cpu(), own / (cosine.sum(dim=1) - own))
        return 1 - total / centres.count
