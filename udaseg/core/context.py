"""The nouns of a training step.

Shapes: B images of this rank, H x W pixels of the crop, K classes. Labels are train ids 0..K-1, or 255 = ignore.
Everything here is free of gradients: only what a view's single student pass produces has a graph, and it lives for one
view (architecture.md, "The training step").
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from udaseg.errors import UserError
from udaseg.models.segmentor import InferencePass, Output, Segmentor

IGNORE = 255
Needs = bool | Callable[[Mapping[str, Any]], bool]
"""Does a part need a target domain? By itself, or with these settings."""


@dataclass(frozen=True)
class Batch:
    """Normalised float images (B, 3, H, W) and int64 labels (B, H, W); the target has no labels.

    ``target_valid``: (B, H, W), 1 where the target can be trusted, 0 in its unreliable margins; None means everywhere.
    ``source_translated``: the source crop from a folder of translated images, where a recipe names one.
    """

    source_image: Tensor
    source_label: Tensor
    target_image: Tensor | None = None
    target_valid: Tensor | None = None
    source_translated: Tensor | None = None

    @property
    def target(self) -> Tensor:
        """The target images; recipes that need them and have none are refused when they are loaded."""
        assert self.target_image is not None
        return self.target_image


class PseudoLabels(NamedTuple):
    """What the teacher says of the target crop, each (B, H, W): class, its probability 0..1, and weight in the loss."""

    label: Tensor
    confidence: Tensor
    weight: Tensor


class View(NamedTuple):
    """What the student looks at once: image (B, 3, H, W), label (B, H, W), pixel weight (B, H, W) or None for 1."""

    image: Tensor
    label: Tensor
    weight: Tensor | None = None


class Loss(NamedTuple):
    """A term's scalar, and whether it had anything to measure.

    ``present``: () bool on the device; where False the value is 0 with zero gradient and the log says n/a. None:
    always.
    """

    value: Tensor
    present: Tensor | None = None


class Term(Protocol):
    """A loss on one view. Owns its parameters and buffers; ``needs_target`` lets a recipe without target be refused.

    Optional: ``reads_predictions`` False (features of the context are enough), ``teacher_passes`` (settings -> passes
    of the teacher's encoder that it adds to a step), ``twins()`` ((average, student) modules that follow the teacher's
    rule).
    """

    @property
    def needs_target(self) -> Needs: ...

    def __call__(self, view: View, output: Output, iteration: Iteration) -> Loss: ...


class ViewBuilder(Protocol):
    """Makes a view from the batch, without gradient."""

    @property
    def needs_target(self) -> Needs: ...

    def __call__(self, iteration: Iteration) -> View: ...


class PseudoLabelRule(Protocol):
    """The weighting rule: the teacher's logits on the target -> pseudo-labels with their weights."""

    def __call__(self, logits: Tensor, iteration: Iteration) -> PseudoLabels: ...


class Draws:
    """The random numbers of one iteration: a function of (seed, iteration) alone.

    Numbers for single images are drawn for the whole batch over all ranks and then cut, so that a run gives the same
    numbers on one device and on eight. Nothing is carried from one iteration to the next: resuming is exact.
    """

    def __init__(self, seed: int, iteration: int, device: torch.device, *, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self.host = random.Random(f"{seed}/{iteration}")
        self.generator = torch.Generator(device).manual_seed(self.host.getrandbits(62))
        torch.manual_seed(self.host.getrandbits(62) + rank)  # dropout and drop path have no generator of their own

    def decide(self, probability: float) -> bool:
        """One decision for the whole batch, on the host."""
        return self.host.random() < probability

    def choices(self, images: int, numbers: int) -> list[list[float]]:
        """``numbers`` uniform [0, 1) for every image, on the host."""
        drawn = [[self.host.random() for _ in range(numbers)] for _ in range(self.world * images)]
        return drawn[self.rank * images : (self.rank + 1) * images]

    def per_image(self, images: int, *shape: int) -> Tensor:
        """Uniform [0, 1) of shape (images, *shape), on the device."""
        drawn = torch.rand((self.world * images, *shape), generator=self.generator, device=self.generator.device)
        return drawn[self.rank * images : (self.rank + 1) * images]


class Reduce(Protocol):
    """Sum or maximum of a detached tensor over all ranks; the identity on one."""

    def __call__(self, value: Tensor, operation: str = "sum") -> Tensor: ...


def alone(value: Tensor, operation: str = "sum") -> Tensor:
    """``Reduce`` for a single process."""
    return value


def untimed(phase: str) -> AbstractContextManager[None]:
    """A phase that nobody times."""
    return nullcontext()


@dataclass
class Iteration:
    """One step's data, random numbers and shared gradient-free products, each computed at most once.

    ``notes``: detached device scalars a part wants in the log. ``phase``: context manager around a named piece of work
    (profiling, and the word in an out-of-memory message).
    """

    index: int
    batch: Batch
    draws: Draws
    segmentor: Segmentor
    predict_target: Callable[[Tensor], InferencePass] | None = None
    labeller: PseudoLabelRule | None = None
    reduce: Reduce = alone
    world: int = 1
    phase: Callable[[str], AbstractContextManager[None]] = untimed
    encode_by_teacher: Callable[[Tensor], tuple[Tensor, ...]] | None = None
    notes: dict[str, Tensor] = field(default_factory=dict)
    _reference: tuple[Tensor, Tensor] | None = None
    _encoded: list[tuple[Tensor, tuple[Tensor, ...]]] = field(default_factory=list)

    def reference_features(self, reference: Callable[[Tensor], Sequence[Tensor]], image: Tensor) -> Tensor:
        """The frozen encoder's last map (B, C, h, w) of ``image`` (the same tensor, not equal numbers), in float32.

        Looked at once, however many terms of a view ask.
        """
        if self._reference is None or self._reference[0] is not image:
            with torch.no_grad():
                self._reference = image, reference(image)[-1].float()
        return self._reference[1]

    @cached_property
    def _target(self) -> tuple[PseudoLabels, Tensor]:
        """The teacher's only look at the target crop in this step."""
        assert self.predict_target is not None and self.labeller is not None
        with self.phase("teacher"), torch.no_grad():
            look = self.predict_target(self.batch.target)
            return self.labeller(look.logits, self), look.context.features[-1]

    @cached_property
    def pseudo_labels(self) -> PseudoLabels:
        """What the teacher says of the target crop."""
        return self._target[0]

    @property
    def target_features(self) -> Tensor:
        """The teacher's last map (B, C, h, w) of the target's context, from the pass that gave the pseudo-labels."""
        return self._target[1]

    @cached_property
    def source_features(self) -> Tensor:
        """The teacher's last map (B, C, h, w) of the source's context."""
        return self.teacher_features(self.segmentor.context(self.batch.source_image))[-1]

    def teacher_features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The teacher's maps of exactly these pixels (an ``Encoded.image``), finest first; at most one pass an image.

        UserError where there is no teacher because no view looks at the target.
        """
        if self.encode_by_teacher is None:
            raise UserError("features of the teacher: the recipe has none, as no view needs a target")
        for seen, features in self._encoded:
            if seen is image:
                return features
        with self.phase("teacher"), torch.no_grad():
            self._encoded.append((image, self.encode_by_teacher(image)))
        return self._encoded[-1][1]
