"""Class decoupling masking, CDM (OMUDA eq. 13-15): cross-entropy averaged by class, classes weighed by reliability.

It needs the student's prediction on the view, which a weighting rule for pseudo-labels never sees; so it is a term that
takes the place of ``cross_entropy`` on a view, whichever it is. In a mixed image pasted pixels count like all others.

Eq. 14 prints beta as one minus the agreement, so hard classes weigh *more*, and section III-D says so, too: "assigns
higher weights to the pseudo-label errors of difficult-to-adapt classes". Only the introduction and section III-E say
that they are weighed down; that reading is ``beta: agreement``.

Shapes: B images, K classes, H x W pixels of the view. Counts are over all ranks.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from udaseg.plugin import (
    IGNORE,
    Assumption,
    BuildContext,
    Loss,
    Momentum,
    Output,
    StepContext,
    Term,
    View,
    cross_entropy,
    inside,
    upsample,
)


class ClassDecoupledCrossEntropy(Term):
    """Sum over classes k of beta_k / sum(beta) x mean cross-entropy of the pixels labelled k.

    agreement_k: share of those pixels that the student predicts as k, too (by its final prediction), a running mean
    with ``momentum`` over the iterations in which k occurs; 0: this batch alone. ``beta``: disagreement (1 - agreement,
    as printed) or agreement. Where all beta are 0 the loss is 0.
    """

    total: Tensor
    seen: Tensor

    def __init__(
        self,
        context: BuildContext,
        *,
        beta: Literal["disagreement", "agreement"] = "disagreement",
        momentum: Momentum = 0.99,
    ) -> None:
        super().__init__(context)
        self.reading = beta
        self.momentum = momentum
        self.register_buffer("total", torch.zeros(len(context.classes)))  # decayed sum of agreements
        self.register_buffer("seen", torch.zeros(len(context.classes)))  # decayed number of iterations with the class

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        losses, beta = [], None
        for p in output.predictions:
            label = inside(view.label, p.box)
            logits = upsample(p.logits, label.shape[-2:])
            pixels = context.reduce(class_counts(label, len(self.seen)))
            if beta is None:
                beta = self.update(logits.detach(), label, pixels, context)
            share = class_shares(beta, pixels) * context.world * label.numel()
            weight = per_pixel(share, label)
            if view.weight is not None:
                weight = weight * inside(view.weight, p.box)
            losses.append(p.coefficient * cross_entropy(logits, label, weight))
        return Loss(torch.stack(losses).sum())

    @torch.no_grad()
    def update(self, logits: Tensor, label: Tensor, pixels: Tensor, context: StepContext) -> Tensor:
        """Book this iteration's agreement; beta (K,) in 0..1 of the classes with ``pixels``."""
        agreed = torch.where(logits.argmax(dim=1) == label, label, IGNORE)
        agreement = context.reduce(class_counts(agreed, len(pixels))) / pixels.clamp(min=1)
        rate = torch.where(pixels > 0, self.momentum, 1.0)
        self.total.mul_(rate).add_((1 - rate) * agreement)
        self.seen.mul_(rate).add_(1 - rate)
        mean = self.total / torch.where(self.seen > 0, self.seen, 1)
        return mean if self.reading == "agreement" else 1 - mean

    assumptions = (
        Assumption(
            "beta of CDM",
            "one minus the agreement of student and pseudo-label: hard classes weigh **more**; `agreement`: they weigh "
            "less",
            'eq. 14 as printed, and section III-D: "assigns higher weights to the pseudo-label errors of '
            'difficult-to-adapt classes"; only the introduction ("down-weighting unreliable pseudo-labels") and '
            "section III-E say the opposite",
            ("beta",),
        ),
        Assumption(
            "Which pixels beta is a mean of",
            "a running mean over the iterations in which the class occurs",
            "silent (eq. 14 sums over samples)",
            ("momentum",),
            "0: this batch alone",
        ),
        Assumption(
            "Size of the class-wise loss, eq. 15",
            "the sum over the classes present is divided by the sum of their beta, so that it has the size of a plain "
            "cross-entropy",
            "silent",
        ),
        Assumption("Pasted source pixels in the mixed view", "count like all others", "silent"),
        Assumption(
            "Pixel weights (confidence, margins)",
            "multiply as in the plain cross-entropy; they do not change what is divided by",
            "silent",
        ),
        Assumption("CDM on HRDA", "the agreement is that of the fused prediction", "no results on HRDA in the paper"),
        Assumption(
            'L_T "on original target images"',
            "the mixed view, as in DAFormer",
            "section III-E",
            ("views.mixed.terms.class_decoupled_cross_entropy",),
            "`views.target.terms.class_decoupled_cross_entropy={}` adds the unmixed target",
        ),
    )


def class_counts(label: Tensor, classes: int) -> Tensor:
    """Pixels of each class in (B, H, W): (K,) int64."""
    slots = torch.where(label == IGNORE, classes, label).flatten()
    counts = torch.zeros(classes + 1, dtype=torch.int64, device=label.device)
    return counts.scatter_add_(0, slots, torch.ones_like(slots))[:classes]


def class_shares(beta: Tensor, pixels: Tensor) -> Tensor:
    """(K,): what one pixel of each class weighs, so that the classes present together weigh 1 (or 0 if beta is 0)."""
    present = torch.where(pixels > 0, beta, 0)
    total = present.sum()
    return present / pixels.clamp(min=1) / torch.where(total > 0, total, 1)


def per_pixel(share: Tensor, label: Tensor) -> Tensor:
    """(B, H, W): each pixel's class's share, 0 where it is ignored."""
    return torch.cat([share, share.new_zeros(1)])[torch.where(label == IGNORE, len(share), label)]
