"""Which image comes next: uniformly, or by Rare Class Sampling.

Source: DAFormer, section 3.3 (Rare Class Sampling), with the constants of the public code (docs/fidelity.md, "Crops and
sampling"). What differs: a class that occurs but in no image with enough pixels is left out of the draw instead of
failing when drawn; a class's frequency is its share of the *labelled* pixels, as in the public code (the paper prints:
of all pixels).

N images, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from udaseg.component import Component
from udaseg.errors import UserError
from udaseg.ranges import NotNegative, Temperature

Counts = npt.NDArray[np.int64]


class LabelStatistics(NamedTuple):
    """What a sampler's constructor gets: pixels of each class in each image, (N, K) at native resolution, the names of
    the classes, and how many pixels make an image count for a class (it needs **more**)."""

    counts: Counts
    classes: tuple[str, ...]
    min_pixels: int


class Choice(NamedTuple):
    """An image; with a wanted class, a crop is good when it holds **more** than `min_pixels` of it."""

    image: int
    wanted: int | None = None
    min_pixels: float = 0.0


class Sampler(Component):
    """Chooses labelled images. The constructor gets `LabelStatistics` and, keyword-only, its settings."""

    def __init__(self, statistics: LabelStatistics) -> None: ...

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Choice:
        """The next image; uses only the given generator: the same state gives the same choice."""


class Uniform(Sampler):
    """Every image alike, with replacement."""

    def __init__(self, statistics: LabelStatistics) -> None:
        self.images = len(statistics.counts)

    def draw(self, rng: np.random.Generator) -> Choice:
        return Choice(int(rng.integers(self.images)))


class ClassThenImage(Sampler):
    """A class by its probability (K,), then one of its images, uniformly; `min_crop_ratio` 0 checks no crop."""

    def __init__(
        self, statistics: LabelStatistics, probabilities: npt.NDArray[np.floating], min_crop_ratio: float
    ) -> None:
        """`probabilities` (K,): 0 for every class that no image has enough pixels of."""
        self.probabilities = probabilities
        self.images = [np.flatnonzero(column > statistics.min_pixels) for column in statistics.counts.T]
        self.wanted_pixels, self.checked = statistics.min_pixels * min_crop_ratio, min_crop_ratio > 0
        self._cumulative = np.cumsum(probabilities, dtype=np.float64)

    def draw(self, rng: np.random.Generator) -> Choice:
        wanted = int(np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right"))
        image = int(rng.choice(self.images[wanted]))
        return Choice(image, wanted, self.wanted_pixels) if self.checked else Choice(image)


class RareClass(ClassThenImage):
    """Draw a class with P(c) = softmax((1 - f_c) / T), then an image that has more than `min_pixels` of it.

    `temperature=inf` draws classes uniformly. UserError when no image has enough pixels of any class.
    """

    def __init__(
        self, statistics: LabelStatistics, *, temperature: Temperature = 0.01, min_crop_ratio: NotNegative = 0.5
    ) -> None:
        if not temperature > 0 or min_crop_ratio < 0:
            raise UserError(
                f"rare_class: temperature is {temperature} (must be > 0), min_crop_ratio {min_crop_ratio} (>= 0)."
            )
        drawable = drawable_classes("rare_class", statistics)
        probabilities = class_probabilities(statistics.counts.sum(axis=0), temperature, drawable)
        super().__init__(statistics, probabilities, min_crop_ratio)


def drawable_classes(sampler: str, statistics: LabelStatistics) -> npt.NDArray[np.bool_]:
    """(K,): has any image more than `min_pixels` of the class? UserError if no class has such an image."""
    drawable = np.any(statistics.counts > statistics.min_pixels, axis=0)
    if not drawable.any():
        raise UserError(
            f"{sampler}: no image has more than {statistics.min_pixels} pixels of any class; "
            "lower min_pixels or check the labels with `udaseg prepare`."
        )
    return drawable


def class_probabilities(pixels: Counts, temperature: float, drawable: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """(K,) float32 softmax of (1 - share of pixels) / T over the drawable classes; shares are of all pixels."""
    share = (pixels / pixels.sum()).astype(np.float32)
    logits = np.where(drawable, (1 - share) / np.float32(temperature), -np.inf).astype(np.float32)
    weights = np.exp(logits - logits.max())
    return (weights / weights.sum(dtype=np.float32)).astype(np.float32)


SAMPLERS = {"uniform": Uniform, "rare_class": RareClass}
