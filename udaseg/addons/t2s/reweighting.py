"""Dynamic class weights on the pseudo-labels themselves, T2S-DA's Table 9 (eq. 17)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from udaseg.addons.t2s.contrast import dynamic_weights
from udaseg.plugin import (
    TARGET,
    Assumption,
    BuildContext,
    ConfidenceShare,
    NotNegative,
    PseudoLabelRule,
    PseudoLabels,
    Share,
    StepContext,
)


class ReweightedShare(PseudoLabelRule):
    """``ConfidenceShare`` times T2S-DA's dynamic class weights (eq. 17, exponent ``beta``) of the pseudo-labels.

    Times the number of classes, so that the mean class weight is 1. Table 9 tells against it.
    """

    needs = TARGET

    def __init__(
        self,
        context: BuildContext,
        *,
        threshold: Share = 0.968,
        share: Literal["batch", "image"] = "batch",
        beta: NotNegative = 0.5,
    ) -> None:
        self.share = ConfidenceShare(context, threshold=threshold, share=share)
        self.beta = beta

    def __call__(self, logits: Tensor, context: StepContext) -> PseudoLabels:
        pseudo, classes = self.share(logits, context), logits.shape[1]
        weights = classes * dynamic_weights(pseudo, classes, self.beta, context.reduce)
        return pseudo._replace(weight=pseudo.weight * weights[pseudo.label])

    assumptions = (
        Assumption(
            'Table 9, "L_target"',
            "`pseudo_labels=reweighted_share`: the pseudo-label weights are multiplied by K times the class weight, so "
            "their mean is 1",
            "scale: silent",
            ("beta",),
        ),
        Assumption(
            "Share r of eq. 3",
            "one number for the batch; the default rule has the key, too: `pseudo_labels.share=image`",
            "DAFormer's code, on which the paper builds; eq. 3 prints that of each image",
            ("share",),
        ),
    )
