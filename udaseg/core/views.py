"""View builders: what the student sees. Each runs without gradient."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from udaseg.component import Default
from udaseg.core.augment import ColourAugment
from udaseg.core.base import TARGET, Masker, ViewBuilder
from udaseg.core.context import BuildContext, PseudoLabels, StepContext, View
from udaseg.core.mixing import choose_classes, class_mask, class_slots, mix, present_classes
from udaseg.ranges import NotNegative, Share


class Source(ViewBuilder):
    """The labelled crop as it is: the clean source is not colour augmented."""

    def __call__(self, context: StepContext) -> View:
        return View(context.batch.source_image, context.batch.source_label)


class Target(ViewBuilder):
    """The weakly augmented target crop with the teacher's pseudo-labels."""

    needs = TARGET

    def __call__(self, context: StepContext) -> View:
        pseudo = context.pseudo_labels
        return View(context.batch.target, pseudo.label, pseudo.weight)


class Mixed(ViewBuilder):
    """Half of the source's classes pasted on the target, then jitter, then blur (DACS; docs/fidelity.md, "Class mix").

    ``jitter``: strength s of the colour factors. The probabilities are decisions for the whole batch: 0.8 and 0.5 are
    the public code's ``u > 0.2`` and ``u > 0.5``.
    """

    needs = TARGET

    def __init__(
        self,
        context: BuildContext,
        *,
        jitter: NotNegative = 0.2,
        jitter_probability: Share = 0.8,
        blur_probability: Share = 0.5,
    ) -> None:
        self.classes = len(context.classes)
        self.augment = ColourAugment(
            context.normalise, jitter=jitter, jitter_probability=jitter_probability, blur_probability=blur_probability
        )

    def __call__(self, context: StepContext) -> View:
        batch, rng = context.batch, context.rng
        slots = class_slots(batch.source_label, self.classes)
        present = present_classes(slots, self.classes, context.reduce)
        chosen = choose_classes(present, rng.per_image(slots.shape[0], self.classes + 1))
        source = View(batch.source_image, batch.source_label)
        mixed = mix(class_mask(slots, chosen), source, batch.target, context.pseudo_labels)
        return mixed._replace(image=self.augment(mixed.image, rng))


class Masked(ViewBuilder):
    """Blocks of the target are hidden; the loss still asks for all of it (MIC eq. 2-6; docs/fidelity.md, "MIC").

    The pseudo-labels are the step's own, never computed again. The mask comes after colour augmentation and
    normalisation, so hidden pixels have the mean colour. ``images``: "target" is MIC from synthetic sources, both
    target images, augmented together (one order and one sigma for the batch); "pair" is MIC for adverse weather: the
    first half of the batch are source images with their labels, the second target images, none augmented; "auto"
    takes "target" where the source is synthetic, which the benchmark knows.
    """

    needs = TARGET

    def __init__(
        self,
        context: BuildContext,
        *,
        images: Literal["auto", "target", "pair"] = "auto",
        jitter: NotNegative = 0.2,
        jitter_probability: Share = 0.8,
        blur_probability: Share = 0.5,
        masker: Annotated[Masker, Default("blocks")],
    ) -> None:
        self.masker = masker
        self.pair = images == "pair" or (images == "auto" and not context.synthetic_source)
        self.augment = ColourAugment(
            context.normalise, jitter=jitter, jitter_probability=jitter_probability, blur_probability=blur_probability
        )

    def __call__(self, context: StepContext) -> View:
        batch, rng, pseudo = context.batch, context.rng, context.pseudo_labels
        if self.pair:
            image, label, weight = half_source(View(batch.source_image, batch.source_label), batch.target, pseudo)
        else:
            image, label, weight = self.augment(batch.target, rng, together=True), pseudo.label, pseudo.weight
        return View(image * self.masker(label, rng), label, weight)


def half_source(source: View, target: Tensor, pseudo: PseudoLabels) -> tuple[Tensor, Tensor, Tensor]:
    """Image, label and weight of a batch whose first half (rounded down) is source, the rest target."""
    count = target.shape[0] // 2
    rest = target.shape[0] - count
    image = torch.cat([source.image[:count], target[:rest]])
    label = torch.cat([source.label[:count], pseudo.label[:rest]])
    return image, label, torch.cat([torch.ones_like(pseudo.weight[:count]), pseudo.weight[:rest]])
