"""Feature distance to the frozen ImageNet encoder (DAFormer eq. 8-11; docs/fidelity.md, "Losses").

B images, K classes, C channels, h x w cells of the last feature map. The student's features are those of the view's one
pass; the frozen encoder looks at exactly the pixels that pass saw, so a multi-resolution segmentor needs no special
case (its first branch is the reduced image). Kept on purpose: the ignore label is a class of its own in the majority
vote of a cell. What differs: no cell of a wanted class gives 0 with zero gradient and is logged as n/a (the public code
logs NaN).
"""

from __future__ import annotations

import torch
from torch import Tensor

from udaseg.component import Needs
from udaseg.core.base import Term
from udaseg.core.context import IGNORE, BuildContext, Loss, StepContext, View
from udaseg.models.segmentor import Output
from udaseg.ranges import ClassNames, Share


class FeatureDistance(Term):
    """Mean L2 distance over the cells in which a class of ``class_names`` covers at least ``min_ratio``.

    ``class_names`` None: all cells (the variant without a class list).
    """

    needs = Needs(pretrained_encoder=True)
    wanted: Tensor

    def __init__(
        self, context: BuildContext, *, class_names: ClassNames | None = None, min_ratio: Share = 0.75
    ) -> None:
        super().__init__(context)
        names = context.classes
        if class_names and not set(class_names) & set(names):
            raise ValueError(f"class_names {list(class_names)}: no class is called so; there are {', '.join(names)}")
        self.min_ratio = min_ratio
        wanted = [class_names is None or name in class_names for name in names]
        self.register_buffer("wanted", torch.tensor([*wanted, class_names is None]), persistent=False)

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        branch = output.branches[0]
        pretrained = context.features("pretrained", branch.image)[-1].float()
        cells = wanted_cells(view.label, pretrained.shape[-2:], self.wanted, self.min_ratio)
        distance = distance_map(branch.features[-1].float(), pretrained)
        count = context.reduce(cells.sum()) / context.world
        return Loss((distance * cells).sum() / count.clamp(min=1), count > 0)


def wanted_cells(label: Tensor, size: torch.Size, wanted: Tensor, min_ratio: float) -> Tensor:
    """(B, h, w) float: 1 where a wanted class covers at least ``min_ratio`` of the cell.

    Label (B, H, W); ``wanted`` (K + 1,) bool, the last for cells without such a class.
    """
    classes = downscale_label(label, label.shape[-1] // size[1], len(wanted) - 1, min_ratio)
    return wanted[torch.where(classes == IGNORE, len(wanted) - 1, classes)].float()


def distance_map(student: Tensor, pretrained: Tensor) -> Tensor:
    """L2 norm over channels, (B, h, w); the gradient at distance 0 is 0, not NaN."""
    return torch.linalg.vector_norm(student - pretrained, dim=1)


def downscale_label(label: Tensor, factor: int, classes: int, min_ratio: float) -> Tensor:
    """Majority class of each factor x factor cell, (B, H, W) -> (B, H // factor, W // factor).

    255 where the ignore label wins or the winner covers less than ``min_ratio``; ties go to the lowest class.
    """
    batch, height, width = label.shape
    rows, columns = height // factor, width // factor
    slots = torch.where(label == IGNORE, classes, label)[:, : rows * factor, : columns * factor]
    cells = slots.reshape(batch, rows, factor, columns, factor).transpose(2, 3).reshape(batch, rows, columns, -1)
    votes = torch.zeros(batch, rows, columns, classes + 1, device=label.device)
    votes.scatter_add_(3, cells, torch.ones_like(cells, dtype=votes.dtype))
    lowest_first = votes * (classes + 2) - torch.arange(classes + 1, device=label.device)
    winner = lowest_first.argmax(dim=3)
    most = votes.amax(dim=3)
    return torch.where((winner == classes) | (most < min_ratio * factor**2), IGNORE, winner)
