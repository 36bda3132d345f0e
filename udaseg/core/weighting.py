"""Weighting rules: how much a pseudo-label counts (baselines.md section 4).

B images, H x W pixels, K classes. Kept on purpose: q is one number for the *whole batch*, the share of pixels the
teacher is sure of; it weighs every target pixel, sure or not, and no pseudo-label is ever set to ignore. Margins that
cannot be trusted (ego car, rectification border) get weight 0 after q was computed over all pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from udaseg.addons.t2s.contrast import dynamic_weights
from udaseg.core.context import Iteration, PseudoLabels
from udaseg.ranges import NotNegative, Share


class ConfidenceShare:
    """DACS: weight = share of pixels in the batch with confidence >= threshold, 0 in the unreliable margins.

    ``crop_margins``: (top, bottom) rows of every crop to distrust: DAFormer's version, right only where the crop is as
    high as the image. HRDA's version follows the image instead and arrives as ``batch.target_valid``.
    """

    def __init__(self, *, threshold: Share = 0.968, crop_margins: tuple[int, int] = (0, 0)) -> None:
        self.threshold = threshold
        self.crop_margins = crop_margins

    def __call__(self, logits: Tensor, iteration: Iteration) -> PseudoLabels:
        """Logits (B, K, H, W) at image size -> pseudo-labels."""
        confidence, label = logits.float().softmax(dim=1).max(dim=1)
        share = iteration.reduce((confidence >= self.threshold).float().mean()) / iteration.world
        weight = share.expand_as(confidence) * self.reliable(confidence, iteration.batch.target_valid)
        iteration.notes["confident"] = share
        iteration.notes["largest_class"] = largest_share(label, logits.shape[1])
        return PseudoLabels(label, confidence, weight)

    def reliable(self, like: Tensor, valid: Tensor | None) -> Tensor:
        """(B, H, W): 1 where pseudo-labels count, 0 in the margins."""
        top, bottom = self.crop_margins
        mask = torch.ones_like(like) if valid is None else valid.to(like.dtype)
        height = like.shape[1]
        rows = torch.arange(height, device=like.device)
        return mask * ((rows >= top) & (rows < height - bottom))[:, None]


class ReweightedShare:
    """``ConfidenceShare`` times T2S-DA's dynamic class weights (eq. 17, exponent ``beta``) of the pseudo-labels.

    Times the number of classes, so that the mean class weight is 1 [choice]. Table 9 tells against it.
    """

    def __init__(
        self, *, threshold: Share = 0.968, beta: NotNegative = 0.5, crop_margins: tuple[int, int] = (0, 0)
    ) -> None:
        self.share = ConfidenceShare(threshold=threshold, crop_margins=crop_margins)
        self.beta = beta

    def __call__(self, logits: Tensor, iteration: Iteration) -> PseudoLabels:
        """Logits (B, K, H, W) at image size -> pseudo-labels."""
        pseudo, classes = self.share(logits, iteration), logits.shape[1]
        weights = classes * dynamic_weights(pseudo, classes, self.beta, iteration.reduce)
        return pseudo._replace(weight=pseudo.weight * weights[pseudo.label])


def largest_share(label: Tensor, classes: int) -> Tensor:
    """Share of the most frequent class in a label map, a scalar in 0..1: near 1 means the pseudo-labels collapsed."""
    counts = torch.zeros(classes, device=label.device).scatter_add_(
        0, label.flatten(), torch.ones_like(label.flatten(), dtype=torch.float32)
    )
    return counts.max() / label.numel()


PSEUDO_LABEL_RULES = {"confidence_share": ConfidenceShare, "reweighted_share": ReweightedShare}
