"""Which image comes next: uniformly, or by Rare Class Sampling.

Source: DAFormer, section 3.3 (Rare Class Sampling), with the constants of the public code (baselines 2.5). What
differs: a class that occurs but in no image with enough pixels is left out of the draw instead of failing when drawn.

N images, K classes.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from udaseg.errors import UserError
from udaseg.ranges import NotNegative, Temperature

Counts = npt.NDArray[np.int64]


class Choice(NamedTuple):
    """An image; with a wanted class, a crop is good when it holds **more** than `min_pixels` of it."""

    image: int
    wanted: int | None = None
    min_pixels: float = 0.0


class Sampler(Protocol):
    """`draw` uses only the given generator: the same state gives the same choice."""

    def draw(self, rng: np.random.Generator) -> Choice: ...


class Uniform:
    """Every image alike."""

    def __init__(self, *, counts: Counts, min_pixels: int = 0) -> None:
        """`counts` (N,K) gives the number of images; `min_pixels` is not used."""
        self.images = len(counts)

    def draw(self, rng: np.random.Generator) -> Choice:
        """An image, uniform with replacement."""
        return Choice(int(rng.integers(self.images)))


class RareClass:
    """Draw a class with P(c) = softmax((1 - f_c) / T), then an image that has more than `min_pixels` of it."""

    def __init__(
        self, *, counts: Counts, min_pixels: int, temperature: Temperature = 0.01, min_crop_ratio: NotNegative = 0.5
    ) -> None:
        """`counts` (N,K) at native resolution; `temperature=inf` draws classes uniformly, ratio 0 checks no crop.

        Raises UserError for a value out of range and when no image has enough pixels of any class.
        """
        if not temperature > 0 or min_crop_ratio < 0:
            raise UserError(
                f"rare_class: temperature is {temperature} (must be > 0), min_crop_ratio {min_crop_ratio} (>= 0)."
            )
        self.images = [np.flatnonzero(column > min_pixels) for column in counts.T]
        self.wanted_pixels = min_pixels * min_crop_ratio
        self.checked = min_crop_ratio > 0
        drawable = np.array([len(images) > 0 for images in self.images])
        if not drawable.any():
            raise UserError(
                f"rare_class: no image has more than {min_pixels} pixels of any class; "
                "lower min_pixels or check the labels with `udaseg prepare`."
            )
        self.probabilities = class_probabilities(counts.sum(axis=0), temperature, drawable)  # (K,) 0: never drawn
        self._cumulative = np.cumsum(self.probabilities, dtype=np.float64)

    def draw(self, rng: np.random.Generator) -> Choice:
        """A class, then one of its images."""
        wanted = int(np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right"))
        image = int(rng.choice(self.images[wanted]))
        return Choice(image, wanted, self.wanted_pixels) if self.checked else Choice(image)


def class_probabilities(pixels: Counts, temperature: float, drawable: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """(K,) float32 softmax of (1 - share of pixels) / T over the drawable classes; shares are of all pixels."""
    share = (pixels / pixels.sum()).astype(np.float32)
    logits = (1 - share) / np.float32(temperature)
    logits = np.where(drawable, logits, -np.inf).astype(np.float32)
    weights = np.exp(logits - logits.max())
    return (weights / weights.sum(dtype=np.float32)).astype(np.float32)


SAMPLERS: dict[str, type[Uniform] | type[RareClass]] = {"uniform": Uniform, "rare_class": RareClass}
