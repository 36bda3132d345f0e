"""Context-aware masking, CAM: foreground and background are drawn and masked apart (OMUDA section III-B, Tables V, VI).

A sampler for source images (eq. 3 to 5) and a masker for the target (eq. 6, 7), with the rows that the paper compares
them with.

N images of the source, K classes; B images of a step, H x W pixels. Lengths are shares of the crop's height: 32 and 16
pixels at 512 are 0.0625 and 0.03125.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from udaseg.addons.omuda.foreground import FOREGROUND, THINGS, foreground_mask
from udaseg.plugin import (
    Assumption,
    Blocks,
    BuildContext,
    Choice,
    ClassNames,
    ClassThenImage,
    Extent,
    LabelStatistics,
    Masker,
    NotNegative,
    Sampler,
    Share,
    StepRng,
    Temperature,
    UserError,
    class_probabilities,
    drawable_classes,
)


class ContextAwareSampler(ClassThenImage):
    """Foreground or background, then a class by that group's own softmax((1 - f_c) / T), then an image (eq. 3 to 5).

    ``foreground_share`` of the draws are foreground. A group without a class to draw leaves all draws to the other one.
    Crops are checked as by rare class sampling. ``foreground``: names of classes; unknown ones are skipped. UserError
    when no image has enough pixels of any class.
    """

    def __init__(
        self,
        statistics: LabelStatistics,
        *,
        foreground: ClassNames = THINGS,
        foreground_temperature: Temperature = 0.7,
        background_temperature: Temperature = 1.0,
        foreground_share: Share = 0.5,
        min_crop_ratio: NotNegative = 0.5,
    ) -> None:
        group = np.array(foreground_mask(statistics.classes, foreground))
        drawable = drawable_classes("context_aware", statistics)
        pixels = statistics.counts.sum(axis=0)
        probabilities = np.zeros(len(statistics.classes))
        for inside, temperature, share in (
            (group, foreground_temperature, foreground_share),
            (~group, background_temperature, 1 - foreground_share),
        ):
            if (inside & drawable).any():
                within = class_probabilities(pixels, temperature, inside & drawable)
                probabilities += (share if (~inside & drawable).any() else 1.0) * within
        super().__init__(statistics, probabilities, min_crop_ratio)

    assumptions = (
        FOREGROUND,
        Assumption(
            "How are the two distributions P_b and P_f joined?",
            "that share of the draws is foreground, then a class by the group's own distribution",
            "silent (P = {P_b, P_f})",
            ("foreground_share",),
        ),
        Assumption(
            "Class frequency",
            "share of the *labelled* pixels",
            "eq. 3 says of all pixels; DAFormer's code: of the labelled ones",
        ),
        Assumption(
            "From a class to a crop",
            "DAFormer's: an image with enough pixels of it, crops drawn again",
            "silent",
            ("data.min_pixels", "min_crop_ratio"),
            "`min_crop_ratio=0` checks no crop",
        ),
    )


class FixedRatio(Sampler):
    """A fixed share of the draws are images with foreground, all alike; the others are any image (Table V).

    An image has foreground if it holds more than ``min_pixels`` of a class in ``foreground``. UserError when no image
    has.
    """

    def __init__(
        self,
        statistics: LabelStatistics,
        *,
        foreground: ClassNames = THINGS,
        foreground_share: Share = 0.5,
    ) -> None:
        counts, names, min_pixels = statistics
        self.images, self.share = len(counts), foreground_share
        self.foreground = np.flatnonzero((counts[:, foreground_mask(names, foreground)] > min_pixels).any(axis=1))
        if not len(self.foreground):
            raise UserError(
                f"fixed_ratio: no image has more than {min_pixels} pixels of a foreground class; lower min_pixels."
            )

    def draw(self, rng: np.random.Generator) -> Choice:
        """An image, with replacement."""
        if rng.random() < self.share:
            return Choice(int(rng.choice(self.foreground)))
        return Choice(int(rng.integers(self.images)))

    assumptions = (
        FOREGROUND,
        Assumption(
            'Table V, "fixed sampling ratio"',
            "`data.sampler=fixed_ratio`: that share of the draws are images with foreground, all alike; the others any "
            "image",
            "silent",
            ("foreground_share",),
        ),
    )


class ContextAwareMasker(Masker):
    """Blocks of one size over background, of another over foreground, by the pseudo-labels (eq. 6, 7).

    Two independent draws with one ``ratio``, of which the label chooses at every pixel; the ignore label counts as
    background. ``foreground``: names of classes; unknown ones are skipped.
    """

    def __init__(
        self,
        context: BuildContext,
        *,
        foreground: ClassNames = THINGS,
        foreground_block: Extent = 0.03125,
        background_block: Extent = 0.0625,
        ratio: Share = 0.7,
    ) -> None:
        self.foreground = [k for k, inside in enumerate(foreground_mask(context.classes, foreground)) if inside]
        self.fine = Blocks(context, block=foreground_block, ratio=ratio)
        self.coarse = Blocks(context, block=background_block, ratio=ratio)

    def __call__(self, label: Tensor, rng: StepRng) -> Tensor:
        coarse, fine = self.coarse(label, rng), self.fine(label, rng)
        inside = torch.stack([label == k for k in self.foreground]).any(dim=0)  # B H W
        return torch.where(inside[:, None], fine, coarse)

    assumptions = (
        FOREGROUND,
        Assumption("Mask ratio", "MIC's, over foreground and background", "silent", ("ratio",)),
        Assumption(
            "Block sizes",
            "shares of the crop's height: 16 pixels over foreground and 32 over background at crops of 512, twice that "
            "at 1024",
            "Table VI; at 1024: silent",
            ("foreground_block", "background_block"),
            "Table VI: 32 and 64 pixels",
        ),
        Assumption(
            "Two masks and one image",
            "two independent draws; the pseudo-label chooses at every pixel; ignored pixels count as background",
            "eq. 6, 7",
        ),
        Assumption(
            'Table VI, "random"',
            "MIC's blocks of 64 pixels at crops of 512: `views.masked.masker={kind: blocks, block: 0.125}`",
            "sizes not printed",
            ("views.masked.masker",),
        ),
        Assumption("Weight of the masked loss", "1", "eq. 16", ("views.masked.terms.cross_entropy.weight",)),
    )


class GridMasker(Masker):
    """One masked square in each cell of a regular grid, which every image shifts by its own offset (Table VI).

    After GridMask (Chen et al., 2020), without its rotation and with cells of one size: ``unit``, their side. The
    squares have the area ``ratio`` of a cell.
    """

    def __init__(self, context: BuildContext, *, unit: Extent = 0.125, ratio: Share = 0.7) -> None:
        self.unit = unit
        self.ratio = ratio

    def __call__(self, label: Tensor, rng: StepRng) -> Tensor:
        batch, height, width = label.shape
        unit = max(round(self.unit * height), 1)
        square = round(unit * math.sqrt(self.ratio))
        offset = (rng.per_image(batch, 2, 1) * unit).floor()
        rows, columns = (
            (torch.arange(side, device=label.device) + offset[:, axis]) % unit < square  # B side
            for axis, side in enumerate((height, width))
        )
        return 1 - (rows[:, None, :, None] & columns[:, None, None, :]).float()

    assumptions = (
        Assumption(
            'Table VI, "grid"',
            "`views.masked.masker=grid`: GridMask without rotation; one masked square a cell, shifted for each image; "
            "cells of 64 pixels at crops of 512",
            "sizes not printed",
            ("unit", "ratio"),
        ),
    )
