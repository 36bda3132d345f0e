"""View builders: what the student looks at (architecture.md, "Nouns"). Each runs without gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from udaseg.addons.t2s.engines import Engine, engine_needs_target
from udaseg.core.augment import ColourAugment, Normalisation
from udaseg.core.context import Iteration, PseudoLabels, View, ViewBuilder
from udaseg.core.masking import Masker
from udaseg.core.mixing import choose_classes, class_mask, class_slots, mix, present_classes
from udaseg.ranges import NotNegative, Share


class Source:
    """The labelled crop as it is (baselines.md 3.3: the clean source is not colour augmented)."""

    needs_target = False

    def __call__(self, iteration: Iteration) -> View:
        return View(iteration.batch.source_image, iteration.batch.source_label)


class Target:
    """The weakly augmented target crop with the teacher's pseudo-labels."""

    needs_target = True

    def __call__(self, iteration: Iteration) -> View:
        pseudo = iteration.pseudo_labels
        return View(iteration.batch.target, pseudo.label, pseudo.weight)


class Mixed:
    """Half of the source's classes pasted on the target, then jitter, then blur (DACS; baselines.md section 3).

    ``jitter``: strength s of the colour factors. The probabilities are decisions for the whole batch: 0.8 and 0.5 are
    the public code's ``u > 0.2`` and ``u > 0.5``.
    """

    needs_target = True

    def __init__(
        self,
        *,
        normalise: Normalisation,
        classes: int,
        jitter: NotNegative = 0.2,
        jitter_probability: Share = 0.8,
        blur_probability: Share = 0.5,
    ) -> None:
        self.classes = classes
        self.augment = ColourAugment(
            normalise, jitter=jitter, jitter_probability=jitter_probability, blur_probability=blur_probability
        )

    def __call__(self, iteration: Iteration) -> View:
        batch, draws = iteration.batch, iteration.draws
        slots = class_slots(batch.source_label, self.classes)
        present = present_classes(slots, self.classes, iteration.reduce)
        chosen = choose_classes(present, draws.per_image(slots.shape[0], self.classes + 1))
        source = View(batch.source_image, batch.source_label)
        mixed = mix(class_mask(slots, chosen), source, batch.target, iteration.pseudo_labels)
        return mixed._replace(image=self.augment(mixed.image, draws))


class Masked:
    """Blocks of the target are hidden; the loss still asks for all of it (MIC eq. 2-6; baselines.md 5.4).

    The pseudo-labels are the step's own, never computed again. The mask comes after colour augmentation and
    normalisation, so hidden pixels have the mean colour. ``images``: "target" is MIC from synthetic sources, both
    target images, augmented together (one order and one sigma for the batch); "pair" is MIC for adverse weather: the
    first half of the batch are source images with their labels, the second target images, none augmented; "auto" goes
    by ``synthetic_source``, which the benchmark knows.
    """

    needs_target = True

    def __init__(
        self,
        *,
        normalise: Normalisation,
        masker: Masker,
        synthetic_source: bool = True,
        images: Literal["auto", "target", "pair"] = "auto",
        jitter: NotNegative = 0.2,
        jitter_probability: Share = 0.8,
        blur_probability: Share = 0.5,
    ) -> None:
        self.masker = masker
        self.pair = images == "pair" or (images == "auto" and not synthetic_source)
        self.augment = ColourAugment(
            normalise, jitter=jitter, jitter_probability=jitter_probability, blur_probability=blur_probability
        )

    def __call__(self, iteration: Iteration) -> View:
        batch, draws, pseudo = iteration.batch, iteration.draws, iteration.pseudo_labels
        if self.pair:
            image, label, weight = half_source(View(batch.source_image, batch.source_label), batch.target, pseudo)
        else:
            image, label, weight = self.augment(batch.target, draws, together=True), pseudo.label, pseudo.weight
        return View(image * self.masker(label, draws), label, weight)


def half_source(source: View, target: Tensor, pseudo: PseudoLabels) -> tuple[Tensor, Tensor, Tensor]:
    """Image, label and weight of a batch whose first half (rounded down) is source, the rest target."""
    count = target.shape[0] // 2
    rest = target.shape[0] - count
    image = torch.cat([source.image[:count], target[:rest]])
    label = torch.cat([source.label[:count], pseudo.label[:rest]])
    return image, label, torch.cat([torch.ones_like(pseudo.weight[:count]), pseudo.weight[:rest]])


class Stylised:
    """The source crop in another look, with its own label (T2S-DA's pseudo-target)."""

    def __init__(self, *, engine: Engine) -> None:
        self.engine = engine

    @staticmethod
    def needs_target(settings: Mapping[str, Any]) -> bool:
        return engine_needs_target(settings["engine"])

    def __call__(self, iteration: Iteration) -> View:
        return View(self.engine(iteration), iteration.batch.source_label)


VIEWS: dict[str, type[ViewBuilder]] = {
    "source": Source,
    "target": Target,
    "mixed": Mixed,
    "masked": Masked,
    "stylised": Stylised,
}
