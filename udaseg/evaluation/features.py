"""Features of a domain, class by class: their centres, how alike those of two domains are, samples of them.

Features are the encoder's last map of the context, labels come to its size by nearest sampling. Everything streams:
what is kept is one mean feature a class, or a fixed number of cells a class.

K classes, D channels, N cells of one image.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.component import Component
from udaseg.evaluation.confusion import IGNORE
from udaseg.evaluation.evaluate import Autocast, evaluating
from udaseg.models.segmentor import Segmentor

Cells = Iterable[tuple[Tensor, Tensor]]
"""Image by image: features (N, D) float32 and train ids (N,) without ignored ones."""


class FeatureMeasure(Component):
    """A number for each class of one domain's features (`udaseg analyze discriminability`)."""

    @abstractmethod
    def __call__(self, cells: Callable[[], Cells], centres: Centres) -> Tensor:
        """(K,) from the features, which ``cells`` streams anew at every call, and their centres."""


def cells_of(
    segmentor: Segmentor,
    images: Iterable[dict[str, Any]],
    normalise: Callable[[Tensor], Tensor],
    *,
    device: torch.device,
    autocast: Autocast = nullcontext,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One encoder pass an image (``image`` uint8 (3, h, w), ``label`` (H, W))."""
    with evaluating(segmentor):
        for item in images:
            with autocast():
                output = segmentor(normalise(item["image"][None].to(device)), context_only=True)
            features = output.branches[0].features[-1][0].float()
            label = F.interpolate(item["label"][None, None].float(), features.shape[-2:]).flatten().long().to(device)
            yield features.flatten(1).T[label != IGNORE], label[label != IGNORE]


@dataclass
class Centres:
    """Of each class: sum of its features (K, D), of their squared lengths (K,), and their number (K,), in float64."""

    total: Tensor
    squares: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """(K, D); NaN for a class that does not occur."""
        return self.total / self.count[:, None]

    @property
    def present(self) -> Tensor:
        """(K,) bool."""
        return self.count > 0


def centres(cells: Cells, classes: int) -> Centres:
    """Mean features of the classes."""
    sums: tuple[Tensor, ...] = ()
    for features, label in cells:
        values, belongs = features.double().cpu(), F.one_hot(label.cpu(), classes).double()
        part = belongs.T @ values, belongs.T @ values.square().sum(dim=1), belongs.sum(dim=0)
        sums = tuple(a + b for a, b in zip(sums, part, strict=True)) if sums else part
    return Centres(*sums)


def similarity(source: Centres, target: Centres) -> Tensor:
    """Cosine of the two domains' mean features of each class, (K,); NaN where a domain lacks it."""
    return F.cosine_similarity(source.mean, target.mean, dim=1)


def sample(cells: Cells, classes: int, number: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (M, D) and labels (M,) of at most ``number`` cells a class, all cells being equally likely."""
    generator = torch.Generator().manual_seed(seed)
    kept: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * classes  # scores, features
    for features, label in cells:
        scores = torch.rand(len(label), generator=generator)
        for c in label.unique().tolist():
            mine = (label == c).cpu()
            score, values = scores[mine], features.cpu()[mine]
            if len(kept[c][0]):
                score, values = torch.cat([kept[c][0], score]), torch.cat([kept[c][1], values])
            best = score.topk(min(number, len(score))).indices
            kept[c] = score[best], values[best]
    label = torch.cat([torch.full((len(score),), c) for c, (score, _) in enumerate(kept)])
    return torch.cat([values for score, values in kept if len(score)]), label
