"""What a training step works with: its data, its random numbers and what its networks say.

Shapes: B images of this process, H x W pixels of the crop, K classes. Labels are train ids 0..K-1, or 255 = ignore.
Everything here is free of gradients: only what a view's single student pass produces has a graph, and that graph lives
for one view.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from udaseg.errors import UserError
from udaseg.models.segmentor import Encoded, FeatureMaps, InferencePass, Segmentor

IGNORE = 255
Product = TypeVar("Product")


@dataclass(frozen=True)
class Batch:
    """Normalised float images (B, 3, H, W) and int64 labels (B, H, W); the target has no labels.

    ``target_valid``: (B, H, W), 1 where the target can be trusted, 0 in its unreliable margins; None means everywhere.
    ``extras``: what the loader adds for single components (``Needs.extras``), uint8 (B, 3, H, W), not normalised.
    """

    source_image: Tensor
    source_label: Tensor
    target_image: Tensor | None = None
    target_valid: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def target(self) -> Tensor:
        """The target images; recipes that need them and have none are refused when they are loaded."""
        assert self.target_image is not None
        return self.target_image


class View(NamedTuple):
    """What the student sees at once: image (B, 3, H, W), label (B, H, W), pixel weight (B, H, W) or None for 1."""

    image: Tensor
    label: Tensor
    weight: Tensor | None = None


class PseudoLabels(NamedTuple):
    """What the teacher says of the target crop, each (B, H, W): class, its probability 0..1, and weight in the loss."""

    label: Tensor
    confidence: Tensor
    weight: Tensor


class Loss(NamedTuple):
    """A term's scalar, and whether it had anything to measure.

    ``present``: () bool on the device; where False the value is 0 with zero gradient and the log says n/a. None:
    always.
    """

    value: Tensor
    present: Tensor | None = None


class Normalisation(Protocol):
    """Normalises images; ``undo`` and ``redo`` go between normalised images and RGB in [0, 1]."""

    def __call__(self, image: Tensor) -> Tensor: ...

    def undo(self, image: Tensor) -> Tensor: ...

    def redo(self, image: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class BuildContext:
    """What a component's constructor gets: the run that it is built for.

    ``classes``: names in the order of their train ids. ``feature_maps``: of the student at training size.
    ``synthetic_source``: the source images are rendered. ``crop_margins``: (top, bottom) rows of every target crop in
    which pseudo-labels do not count.
    """

    classes: tuple[str, ...]
    normalise: Normalisation
    feature_maps: FeatureMaps | None = None
    synthetic_source: bool = True
    crop_margins: tuple[int, int] = (0, 0)

    @property
    def maps(self) -> FeatureMaps:
        """The student's feature maps, for components built to their measure."""
        assert self.feature_maps is not None
        return self.feature_maps


class Reduce(Protocol):
    """Sum or maximum of a detached tensor over all processes; the identity on one."""

    def __call__(self, value: Tensor, operation: str = "sum") -> Tensor: ...


def alone(value: Tensor, operation: str = "sum") -> Tensor:
    """``Reduce`` for a single process."""
    return value


def untimed(phase: str) -> AbstractContextManager[None]:
    """A phase that nobody times."""
    return nullcontext()


class StepRng:
    """The random numbers of one iteration: a function of (seed, iteration) alone.

    Numbers for single images are drawn for the whole batch over all processes and then cut, so that a run gives the
    same numbers on one device and on eight. Nothing is carried from one iteration to the next: resuming is exact.
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
        return self._everywhere(images, *shape)[self.rank * images : (self.rank + 1) * images]

    def shared(self, images: int, *shape: int) -> Tensor:
        """``per_image``, with the numbers of the very first image for all."""
        return self._everywhere(images, *shape)[:1].expand(images, *shape)

    def _everywhere(self, images: int, *shape: int) -> Tensor:
        return torch.rand((self.world * images, *shape), generator=self.generator, device=self.generator.device)


class TeacherNetwork(Protocol):
    """The teacher, as a step uses it: an inference pass; the encoder's maps, finest first; what its decoder fuses."""

    def infer(self, image: Tensor) -> InferencePass: ...

    def encode(self, image: Tensor) -> tuple[Tensor, ...]: ...

    def fuse(self, features: tuple[Tensor, ...]) -> Tensor: ...


@dataclass
class StepContext:
    """One step's data, random numbers and networks; their gradient-free products are computed at most once.

    ``notes``: detached device scalars that a component wants in the log. ``phase``: context manager around a named
    piece of work (profiling, and the word in an out-of-memory message).
    """

    iteration: int
    batch: Batch
    rng: StepRng
    segmentor: Segmentor
    teacher: TeacherNetwork | None = None
    pseudo_label_rule: Callable[[Tensor, StepContext], PseudoLabels] | None = None
    pretrained_encoder: nn.Module | None = None
    reduce: Reduce = alone
    world: int = 1
    phase: Callable[[str], AbstractContextManager[None]] = untimed
    notes: dict[str, Tensor] = field(default_factory=dict)
    _products: dict[tuple[str, int], tuple[Tensor, object]] = field(default_factory=dict)

    @property
    def pseudo_labels(self) -> PseudoLabels:
        """What the teacher says of the target crop."""
        return self._labelling[0]

    def teacher_features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The teacher's maps (B, C, h, w) of an image's context; of the target, from the pass that labelled it."""
        if image is self.batch.target_image:
            return self._labelling[1].features
        return self.features("teacher", self.once("context", image, self.segmentor.context))

    def teacher_fused(self, image: Tensor) -> Tensor:
        """``teacher_features`` as the teacher's decoder fuses them into one map (B, C, h, w); the decoder must fuse.

        The decoder's BatchNorm counts this pass, too.
        """
        features = self.teacher_features(image)
        assert self.teacher is not None, "it has made the features"
        fuse = self.teacher.fuse
        with self.phase("teacher"):
            return self.once("fused", image, lambda _: fuse(features))

    def features(self, network: str, image: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, C, h, w) of exactly these pixels, finest first, by the "teacher" or the "pretrained" encoder.

        UserError where there is no teacher because no view looks at the target.
        """
        teacher = self.teacher.encode if self.teacher else None
        encode = {"pretrained": self.pretrained_encoder, "teacher": teacher}[network]
        if encode is None:
            raise UserError(f"features of the {network}: the recipe has none, as no view needs a target")
        with self.phase(network):
            return self.once(network, image, encode)

    def once(self, network: str, image: Tensor, compute: Callable[[Tensor], Product]) -> Product:
        """``compute(image)`` without gradient, once in a step for each network and image (the same tensor)."""
        key = network, id(image)
        if key not in self._products:
            with torch.no_grad():
                self._products[key] = image, compute(image)  # the image is kept, so that its id stays its own
        return self._products[key][1]  # type: ignore[return-value]

    @cached_property
    def _labelling(self) -> tuple[PseudoLabels, Encoded]:
        """The teacher's only pass over the target crop in this step."""
        assert self.teacher is not None and self.pseudo_label_rule is not None
        with self.phase("teacher"), torch.no_grad():
            inference = self.teacher.infer(self.batch.target)
            return self.pseudo_label_rule(inference.logits, self), inference.context
