"""The pseudo-label rule of DACS: how much a pseudo-label counts (docs/fidelity.md, "Pseudo-labels and teacher").

B images, H x W pixels, K classes. Kept on purpose: q is one number for the *whole batch*, the share of pixels the
teacher is sure of; it weighs every target pixel, sure or not, and no pseudo-label is ever set to ignore. The papers
print one number for each image, which is ``share`` "image". Margins that cannot be trusted (ego car, rectification
border) get weight 0 after q was computed over all pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from udaseg.core.base import TARGET, PseudoLabelRule
from udaseg.core.context import BuildContext, PseudoLabels, StepContext
from udaseg.ranges import Share


class ConfidenceShare(PseudoLabelRule):
    """Weight = share of pixels with confidence >= ``threshold``, 0 in the unreliable margins.

    ``share``: of the batch over all processes, as the public code has it, or of each image, as printed.
    Crop margins are DAFormer's version, right only where the crop is as high as the image. HRDA's version follows the
    image instead and arrives as ``batch.target_valid``.
    """

    needs = TARGET

    def __init__(
        self, context: BuildContext, *, threshold: Share = 0.968, share: Literal["batch", "image"] = "batch"
    ) -> None:
        self.threshold = threshold
        self.of_each_image = share == "image"
        self.crop_margins = context.crop_margins

    def __call__(self, logits: Tensor, context: StepContext) -> PseudoLabels:
        confidence, label = logits.float().softmax(dim=1).max(dim=1)
        sure = (confidence >= self.threshold).float()
        share = context.reduce(sure.mean()) / context.world
        own = sure.mean(dim=(1, 2), keepdim=True) if self.of_each_image else share
        weight = own.expand_as(confidence) * self.reliable(confidence, context.batch.target_valid)
        context.notes["confident"] = share
        context.notes["largest_class"] = largest_share(label, logits.shape[1])
        return PseudoLabels(label, confidence, weight)

    def reliable(self, like: Tensor, valid: Tensor | None) -> Tensor:
        """(B, H, W): 1 where pseudo-labels count, 0 in the margins."""
        top, bottom = self.crop_margins
        mask = torch.ones_like(like) if valid is None else valid.to(like.dtype)
        height = like.shape[1]
        rows = torch.arange(height, device=like.device)
        return mask * ((rows >= top) & (rows < height - bottom))[:, None]


def largest_share(label: Tensor, classes: int) -> Tensor:
    """Share of the most frequent class in a label map, a scalar in 0..1: near 1 means the pseudo-labels collapsed."""
    counts = torch.zeros(classes, device=label.device).scatter_add_(
        0, label.flatten(), torch.ones_like(label.flatten(), dtype=torch.float32)
    )
    return counts.max() / label.numel()
