"""ClassMix as DACS and its descendants use it (docs/fidelity.md, "Class mix and colour augmentation").

B images, H x W pixels, K classes; slot K stands for the ignore label, which counts as a class.

Kept on purpose: the classes to choose from are those of the *whole batch*, not of the image, and half of them, rounded
up, are drawn for each image. What differs: presence is a (K + 1,) vector on the device instead of ``unique`` on the
host, so the shapes are static and nothing waits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from udaseg.core.context import IGNORE, PseudoLabels, Reduce, View, alone


def class_slots(label: Tensor, classes: int) -> Tensor:
    """Train ids with 255 moved to slot K: (B, H, W) int64 in 0..K."""
    return torch.where(label == IGNORE, classes, label)


def present_classes(slots: Tensor, classes: int, reduce: Reduce = alone) -> Tensor:
    """(K + 1,) bool: which slots occur anywhere in the batch (over all ranks)."""
    seen = torch.zeros(classes + 1, device=slots.device).scatter_(0, slots.flatten(), 1.0)
    return reduce(seen, "max") > 0


def choose_classes(present: Tensor, scores: Tensor) -> Tensor:
    """Half of the present classes, rounded up: those with the highest score. scores (B, K + 1) -> bool (B, K + 1)."""
    take = (present.sum() + 1) // 2
    order = scores.masked_fill(~present, -1.0).argsort(dim=1, descending=True)
    return order.argsort(dim=1) < take


def class_mask(slots: Tensor, chosen: Tensor) -> Tensor:
    """(B, H, W) bool: True where the source pixel's class was chosen for that image, i.e. where it is pasted."""
    return chosen.gather(1, slots.flatten(1)).view_as(slots)


def mix(mask: Tensor, source: View, target: Tensor, pseudo: PseudoLabels) -> View:
    """Source where the mask is True, target with its pseudo-labels elsewhere; pasted pixels weigh 1 everywhere."""
    image = torch.where(mask[:, None], source.image, target)
    label = torch.where(mask, source.label, pseudo.label)
    weight = torch.where(mask, 1.0, pseudo.weight)
    return View(image, label, weight)
