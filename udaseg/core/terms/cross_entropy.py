"""Cross-entropy as the DACS family computes it (docs/fidelity.md, "Losses").

B images, K classes, H x W pixels. Kept on purpose: logits are up-sampled to the label first, and the mean runs over
*all* pixels, ignored ones included (they count as 0).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.core.base import Term
from udaseg.core.context import IGNORE, Loss, StepContext, View
from udaseg.models.segmentor import Box, Decoded, Output, upsample


class CrossEntropy(Term):
    """Pixel-weighted cross-entropy of a view, summed over the segmentor's predictions with their coefficients."""

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        return Loss(segmentation_loss(output.predictions, view))


def segmentation_loss(predictions: tuple[Decoded, ...], view: View) -> Tensor:
    """Scalar: sum over predictions of coefficient x cross-entropy on the prediction's box of the view."""
    losses = [
        p.coefficient
        * cross_entropy(
            p.logits, inside(view.label, p.box), None if view.weight is None else inside(view.weight, p.box)
        )
        for p in predictions
    ]
    return torch.stack(losses).sum()


def cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Logits (B, K, h, w), label (B, H, W), weight (B, H, W) or None -> sum over valid pixels / (B H W)."""
    logits = upsample(logits, label.shape[-2:])
    if weight is None:
        return F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="sum") / label.numel()
    return (F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none") * weight).mean()


def inside(plane: Tensor, box: Box | None) -> Tensor:
    """The part of (B, H, W) in the box; all of it without a box."""
    return plane if box is None else plane[:, box.top : box.bottom, box.left : box.right]
