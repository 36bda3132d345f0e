"""Feature distillation masking, FDM (OMUDA eq. 8-12): how the images of a batch lie to one another, on foreground.

A sample is a whole feature map of a source image, and so is the difference of two of them; the mask M keeps its
foreground cells. The frozen ImageNet encoder says how long the differences are, relative to one another, and at which
angles they meet; the student's neck is to agree. Since only relations are compared, neck and frozen encoder may differ
in channels and size.

Nothing of size B x B x C x h x w exists: |f_j - f_k|^2 is summed over channels once for each of the B (B - 1) / 2 pairs
of images, then over the cells of each mask, and the cosines follow from the lengths. Each process relates the images
it has.

Shapes: B images, C channels, h x w cells, P pairs of different images. [i, j, k]: anchor i, images j and k.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.addons.omuda.foreground import FOREGROUND, THINGS, foreground_mask
from udaseg.plugin import (
    Assumption,
    BuildContext,
    ClassNames,
    Loss,
    Needs,
    Output,
    Plan,
    Settings,
    Share,
    StepContext,
    Term,
    View,
    wanted_cells,
)

ANGLE_IMAGES = 3  # a batch with fewer has no triplets


class RelationalDistillation(Term):
    """L_KD = L_D + L_A between neck and frozen encoder on cells that ``foreground`` classes cover by ``min_ratio``.

    ``neck``: the encoder's last map, or the decoder's fused map, for which the decoder runs a second time (and its
    BatchNorm counts those features twice). ``foreground``: unknown names are skipped.
    """

    needs = Needs(pretrained_encoder=True)
    wanted: Tensor

    def __init__(
        self,
        context: BuildContext,
        *,
        foreground: ClassNames = THINGS,
        min_ratio: Share = 0.75,
        neck: Literal["last", "fused"] = "last",
    ) -> None:
        super().__init__(context)
        self.min_ratio = min_ratio
        self.neck = neck
        self.register_buffer(
            "wanted", torch.tensor([*foreground_mask(context.classes, foreground), False]), persistent=False
        )

    @classmethod
    def problems(cls, settings: Settings, plan: Plan) -> list[tuple[str, str]]:
        if settings["neck"] != "fused" or plan.decoder in plan.fusing:
            return []
        return [("neck", f"the decoder fuses no maps; allowed: last, or {', '.join(plan.fusing)} as it")]

    @classmethod
    def warnings(cls, settings: Settings, plan: Plan) -> list[str]:
        if plan.images >= ANGLE_IMAGES:
            return []
        lost = "no angles" if plan.images > 1 else "nothing to compare"
        images = f"{plan.images} image(s) a process"
        return [f"relational_distillation has {lost} with {images}: train.batch is too small"]

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        branch = output.branches[0]
        target = context.features("pretrained", branch.image)[-1].float()
        neck = branch.features[-1] if self.neck == "last" else context.segmentor.decoder.fused(branch.features)
        cells = wanted_cells(view.label, target.shape[-2:], self.wanted, self.min_ratio)
        own = F.interpolate(cells[:, None], neck.shape[-2:])[:, 0]  # nearest
        return Loss(distillation(neck.float(), own, target, cells), cells.any() & (len(cells) > 1))

    assumptions = (
        FOREGROUND,
        Assumption(
            '"Neck" of the student',
            "the encoder's last map; `fused`: the decoder's fused map (the decoder runs a second time, and its "
            "BatchNorm counts those features twice)",
            "silent",
            ("neck",),
        ),
        Assumption('A "sample" of the relations', "a whole map of a source image", "eq. 8 to 11"),
        Assumption(
            "Foreground mask M",
            "that of the anchor image i; a cell counts where foreground covers that share of it",
            "anchor and ratio: silent; the ratio is DAFormer's",
            ("min_ratio",),
        ),
        Assumption("Sums of FDM", "over all ordered pairs and triplets, as printed, not means", "eq. 9, 11"),
        Assumption("L1", "Huber with knee 1", "eq. 9"),
        Assumption(
            "Batches of two",
            "no triplets, so no angles; a warning at the start",
            "the paper trains with batch 3, which what its components are compared with needs, too",
            ("train.batch",),
        ),
        Assumption(
            "DAFormer's feature distance",
            "off where FDM is on",
            "silent",
            ("views.source.terms.feature_distance",),
            "give it back in a recipe that extends ours",
        ),
        Assumption("FDM on HRDA", "reads the context branch", "no results on HRDA in the paper"),
    )


def distillation(student: Tensor, student_mask: Tensor, pretrained: Tensor, mask: Tensor) -> Tensor:
    """eq. 9, 11, 12: features (B, C, h, w) and masks (B, h, w) in {0, 1} of both sides -> scalar."""
    lengths, angles = relations(student, student_mask)
    wanted_lengths, wanted_angles = relations(pretrained, mask)
    apart = F.smooth_l1_loss(lengths, wanted_lengths, reduction="sum")
    return apart + F.smooth_l1_loss(angles, wanted_angles, reduction="sum")


def relations(features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """eq. 8: d[i, j], which sum to 1; eq. 10: cosines a[i, j, k] at i between j and k, by the law of cosines.

    0 where a length is 0 (no foreground, equal images) and in ``a`` where two of the images are one; the gradient is 0
    there, too.
    """
    squares = masked_squares(features, mask)
    own = squares.diagonal(dim1=0, dim2=1).T  # |(f_i - f_j) M_i|^2: i j
    some = own > 0
    length = torch.where(some, torch.where(some, own, 1).sqrt(), 0)
    triplet = some[:, :, None] & some[:, None, :] & ~torch.eye(len(own), dtype=torch.bool, device=own.device)
    product = torch.where(triplet, length[:, :, None] * length[:, None, :], 1)
    cosine = (own[:, :, None] + own[:, None, :] - squares) / (2 * product)
    total = torch.where(some.any(), length.sum(), 1)
    return length / total, torch.where(triplet, cosine, 0)


def masked_squares(features: Tensor, mask: Tensor) -> Tensor:
    """|(f_j - f_k) M_i|^2 over channels and cells as [i, j, k]: (B, C, h, w), (B, h, w) -> (B, B, B)."""
    batch = len(features)
    first, second = torch.triu_indices(batch, batch, 1, device=features.device)
    cells = (features[first] - features[second]).square().sum(dim=1)  # P h w
    pairs = (mask[:, None] * cells).sum(dim=(2, 3))  # i P
    squares = pairs.new_zeros(batch, batch, batch)
    squares[:, first, second] = pairs
    squares[:, second, first] = pairs
    return squares
