"""Components that each break one contract, as people do."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from udaseg.plugin import (
    TARGET,
    BuildContext,
    Choice,
    CrossEntropy,
    Decoder,
    Encoder,
    Loss,
    Masker,
    Output,
    PseudoLabelRule,
    PseudoLabels,
    Sampler,
    Source,
    StepContext,
    StepRng,
    Target,
    Term,
    TranslationEngine,
    View,
    ViewBuilder,
    segmentation_loss,
)


class Good(CrossEntropy):
    """Nothing is wrong with it."""


class Reads(Term):
    """Looks at a value."""

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        loss = segmentation_loss(output.predictions, view)
        return Loss(loss if loss.item() < 100 else 0 * loss)


class Lists(Term):
    """Brings a tensor to the host."""

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        return Loss(segmentation_loss(output.predictions, view) * (1 + 0 * len(view.label[0, 0].tolist())))


class OnTheCpu(Term):
    """Makes class weights without a device."""

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        weights = torch.linspace(0, 1, 19)[:, None, None]
        return Loss((output.predictions[0].logits.float() * weights).square().mean())


class TrainsTheTeacher(Term):
    """Asks the teacher's own encoder, having thawed it."""

    needs = TARGET

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        teacher = context.teacher.segmentor.encoder.requires_grad_(True)  # type: ignore[union-attr]
        theirs = teacher(output.branches[0].image)[-1]
        return Loss((output.branches[0].features[-1].float() - theirs.float()).square().mean())


class Remembers(Term):
    """Grows from step to step, by an attribute."""

    steps = 0

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        self.steps += 1
        return Loss(self.steps * segmentation_loss(output.predictions, view))


class OwnDice(Term):
    """Draws from the process's generator."""

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        drawn = torch.rand(view.label.shape, device=view.label.device)
        return Loss(segmentation_loss(output.predictions, view._replace(weight=drawn)))


class OnePerImage(Term):
    """Forgets the mean."""

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        return Loss(output.predictions[0].logits.float().square().mean(dim=(1, 2, 3)))


class Plain(Term):
    """Returns a tensor instead of a loss."""

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        return segmentation_loss(output.predictions, view)  # type: ignore[return-value]


class Detached(Term):
    """Loses the graph to the student and keeps its own."""

    def __init__(self, context: BuildContext) -> None:
        super().__init__(context)
        self.head = nn.Conv2d(len(context.classes), 1, 1)

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        return Loss(self.head(output.predictions[0].logits.detach()).float().square().mean())


class Unused(CrossEntropy):
    """Has a layer that nothing runs through."""

    def __init__(self, context: BuildContext) -> None:
        super().__init__(context)
        self.head = nn.Conv2d(3, 1, 1)


class Half(Term):
    """Computes in what autocast left."""

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        return Loss(output.branches[0].features[-1].mean() + 0 * output.predictions[0].logits.mean())


class DividesByNothing(Term):
    """A mean over labelled pixels without a guard."""

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        known = (view.label != 255).float()
        return Loss(segmentation_loss(output.predictions, view) * known.numel() / known.sum())


class NeverPresent(Term):
    """Has nothing to measure, and says a number."""

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        known = (view.label != 255).sum()
        return Loss(output.predictions[0].logits.float().square().mean(), known > 0)


class SumsItsOwn(Term):
    """Divides by what this process counts."""

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        loss = segmentation_loss(output.predictions, view)
        return Loss(loss * view.label.numel() / 4096)


class ReducesSometimes(Term):
    """Only the first process reduces."""

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        loss = segmentation_loss(output.predictions, view)
        return Loss(loss + 0 * context.reduce(loss.detach()) if context.rng.rank == 0 else loss)


class NeedsNoTarget(Term):
    """Reads pseudo-labels and does not say so."""

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        share = context.pseudo_labels.weight.mean().detach()
        return Loss(segmentation_loss(output.predictions, view) * (1 + 0 * share))


class Positional(Term):
    """A setting that is not keyword-only."""

    def __init__(self, context: BuildContext, width: int = 3) -> None:
        super().__init__(context)

    forward = CrossEntropy.forward


class ByRank(Masker):
    """Every process draws for itself."""

    def __call__(self, label: Tensor, rng: StepRng) -> Tensor:
        drawn = torch.rand((len(label), 1, *label.shape[1:]), generator=rng.generator, device=label.device)
        return (drawn > 0.5).float()


class OneImageMask(Masker):
    """One mask for all images."""

    def __call__(self, label: Tensor, rng: StepRng) -> Tensor:
        return (rng.per_image(len(label), *label.shape[1:]) > 0.5).float()


class SoftMask(Masker):
    """Neither kept nor masked."""

    def __call__(self, label: Tensor, rng: StepRng) -> Tensor:
        return rng.per_image(len(label), 1, *label.shape[1:])


class Overwrites(ViewBuilder):
    """Darkens the batch itself."""

    def __call__(self, context: StepContext) -> View:
        return View(context.batch.source_image.mul_(0.5), context.batch.source_label)


class FloatLabels(Source):
    """Labels as floats."""

    def __call__(self, context: StepContext) -> View:
        view = super().__call__(context)
        return view._replace(label=view.label.float())


class Coin(Source):
    """Flips with Python's own generator."""

    def __call__(self, context: StepContext) -> View:
        view = super().__call__(context)
        shifted = view.image + random.random()
        return view._replace(image=shifted)


class QuietTarget(Target):
    """Needs a target, as its parent says."""


class Small(TranslationEngine):
    """Halves the image."""

    def __call__(self, context: StepContext) -> Tensor:
        return context.batch.source_image[..., ::2, ::2]


class Ignores(PseudoLabelRule):
    """Pseudo-labels of 255."""

    def __call__(self, logits: Tensor, context: StepContext) -> PseudoLabels:
        confidence, label = logits.softmax(dim=1).max(dim=1)
        return PseudoLabels(torch.full_like(label, 255), confidence, confidence)


class InTurn(Sampler):
    """Remembers where it was."""

    turn = 0

    def draw(self, rng: np.random.Generator) -> Choice:
        self.turn += 1
        return Choice(self.turn % 10)


class Outside(Sampler):
    """An image too many."""

    def draw(self, rng: np.random.Generator) -> Choice:
        return Choice(1000)


class WrongStrides(Encoder):
    """Claims maps that it has not."""

    channels: tuple[int, ...] = (8,)
    strides: tuple[int, ...] = (8,)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (self.stem(image),)


class LooksAround(WrongStrides):
    """Normalises by the batch in eval mode, too."""

    strides = (4,)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.stem(image)
        return (maps - maps.mean(dim=(0, 2, 3), keepdim=True),)


class ReadsMore(Decoder):
    """Reads the first map, having declared the last."""

    reads = (-1,)

    def __init__(self, channels: Sequence[int], strides: Sequence[int], classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(channels[0], classes, 1)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.classifier(features[0])
