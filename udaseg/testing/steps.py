"""What components are built with and called with, without a recipe: a build context, a teacher, a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from udaseg.core.context import Batch, BuildContext, PseudoLabels, StepContext, StepRng
from udaseg.data.loading import Normalise
from udaseg.models.segmentor import IMAGENET_MEAN, IMAGENET_STD, Encoded, InferencePass, Segmentor

CPU = torch.device("cpu")
NORMALISE = Normalise(IMAGENET_MEAN, IMAGENET_STD)


def build_context(*classes: str, **more: Any) -> BuildContext:
    """For classes of these names."""
    return BuildContext(classes or ("road", "car"), NORMALISE, **more)


def rng(t: int = 0, *, rank: int = 0, world: int = 1) -> StepRng:
    return StepRng(0, t, CPU, rank=rank, world=world)


class StubTeacher:
    """Images are their own logits and features, unless there is another encoder. ``seen``: what it was shown."""

    def __init__(self, encoder: Callable[[Tensor], tuple[Tensor, ...]] = lambda image: (image,)) -> None:
        self.encoder = encoder
        self.seen: list[Tensor] = []

    def infer(self, image: Tensor) -> InferencePass:
        return InferencePass(image, Encoded(self.encode(image), image))

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        self.seen.append(image)
        return tuple(self.encoder(image))


def step(
    batch: Batch | None = None, *, t: int = 0, rank: int = 0, pseudo: PseudoLabels | None = None, **more: Any
) -> StepContext:
    """A step; ``pseudo``: what its teacher says of the target."""
    nothing = torch.zeros(1)
    context = StepContext(
        t, batch or Batch(nothing, nothing), rng(t, rank=rank, world=more.get("world", 1)),
        more.pop("segmentor", None) or Segmentor(nn.Identity(), nn.Identity()), **more,  # type: ignore[arg-type]
    )  # fmt: skip
    if pseudo is not None:
        context.pseudo_label_rule = lambda logits, step: pseudo
    return context
