"""Which image comes next: uniformly, by Rare Class Sampling, or with foreground and background apart.

Source: DAFormer, section 3.3 (Rare Class Sampling), with the constants of the public code (baselines 2.5); OMUDA, eq. 3
to 5 and Table V (`context_aware`, `fixed_ratio`). What differs: a class that occurs but in no image with enough pixels
is left out of the draw instead of failing when drawn; a class's frequency is its share of the *labelled* pixels, as in
the public code of Rare Class Sampling (both papers print: of all pixels).

N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from udaseg.addons.omuda.foreground import THINGS, is_foreground
from udaseg.errors import UserError
from udaseg.ranges import NotNegative, Share, Temperature

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
    """Every image alike, with replacement; `counts` (N,K) gives their number, `min_pixels` is not used."""

    def __init__(self, *, counts: Counts, min_pixels: int = 0) -> None:
        self.images = len(counts)

    def draw(self, rng: np.random.Generator) -> Choice:
        return Choice(int(rng.integers(self.images)))


class ClassThenImage:
    """A class by its probability (K,), then one of its images, uniformly."""

    def __init__(
        self,
        probabilities: npt.NDArray[np.floating],
        images: list[npt.NDArray[np.intp]],
        min_pixels: int,
        min_crop_ratio: float,
    ) -> None:
        """`images` of each class; ratio 0 checks no crop."""
        self.probabilities, self.images = probabilities, images
        self.wanted_pixels, self.checked = min_pixels * min_crop_ratio, min_crop_ratio > 0
        self._cumulative = np.cumsum(probabilities, dtype=np.float64)

    def draw(self, rng: np.random.Generator) -> Choice:
        wanted = int(np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right"))
        image = int(rng.choice(self.images[wanted]))
        return Choice(image, wanted, self.wanted_pixels) if self.checked else Choice(image)


def rare_class(
    *, counts: Counts, min_pixels: int, temperature: Temperature = 0.01, min_crop_ratio: NotNegative = 0.5
) -> ClassThenImage:
    """Draw a class with P(c) = softmax((1 - f_c) / T), then an image that has more than `min_pixels` of it.

    `counts` (N,K) at native resolution; `temperature=inf` draws classes uniformly, ratio 0 checks no crop. Raises
    UserError for a value out of range and when no image has enough pixels of any class.
    """
    if not temperature > 0 or min_crop_ratio < 0:
        raise UserError(
            f"rare_class: temperature is {temperature} (must be > 0), min_crop_ratio {min_crop_ratio} (>= 0)."
        )
    images, drawable = images_of_classes("rare_class", counts, min_pixels)
    probabilities = class_probabilities(counts.sum(axis=0), temperature, drawable)
    return ClassThenImage(probabilities, images, min_pixels, min_crop_ratio)


def context_aware(
    *,
    counts: Counts,
    min_pixels: int,
    names: tuple[str, ...],
    foreground: tuple[str, ...] = THINGS,
    foreground_temperature: Temperature = 0.7,
    background_temperature: Temperature = 1.0,
    foreground_share: Share = 0.5,
    min_crop_ratio: NotNegative = 0.5,
) -> ClassThenImage:
    """OMUDA: foreground or background, then a class by that group's own softmax((1 - f_c) / T), then an image.

    The paper has two distributions and does not say how they are joined: ``foreground_share`` of the draws are
    foreground. A group without a class to draw leaves all draws to the other one. Crops are checked as by
    `rare_class`. ``foreground``: names of classes; those that do not exist here mean nothing. `counts` (N,K) at native
    resolution, `names` K. UserError when no image has enough pixels of any class.
    """
    group = np.array(is_foreground(names, foreground))
    images, drawable = images_of_classes("context_aware", counts, min_pixels)
    probabilities = np.zeros(len(names))
    for inside, temperature, share in (
        (group, foreground_temperature, foreground_share),
        (~group, background_temperature, 1 - foreground_share),
    ):
        if (inside & drawable).any():
            within = class_probabilities(counts.sum(axis=0), temperature, inside & drawable)
            probabilities += (share if (~inside & drawable).any() else 1.0) * within
    return ClassThenImage(probabilities, images, min_pixels, min_crop_ratio)


class FixedRatio:
    """A fixed share of the draws are images with foreground, all alike; the others are any image (OMUDA, Table V).

    An image has foreground if it holds more than `min_pixels` of a class in ``foreground``. The paper does not define
    its "fixed sampling ratio".
    """

    def __init__(
        self,
        *,
        counts: Counts,
        min_pixels: int,
        names: tuple[str, ...],
        foreground: tuple[str, ...] = THINGS,
        foreground_share: Share = 0.5,
    ) -> None:
        """`counts` (N,K), `names` K. UserError when no image has foreground."""
        self.images, self.share = len(counts), foreground_share
        self.foreground = np.flatnonzero((counts[:, is_foreground(names, foreground)] > min_pixels).any(axis=1))
        if not len(self.foreground):
            raise UserError(
                f"fixed_ratio: no image has more than {min_pixels} pixels of a foreground class; lower min_pixels."
            )

    def draw(self, rng: np.random.Generator) -> Choice:
        """An image, with replacement."""
        if rng.random() < self.share:
            return Choice(int(rng.choice(self.foreground)))
        return Choice(int(rng.integers(self.images)))


def images_of_classes(
    sampler: str, counts: Counts, min_pixels: int
) -> tuple[list[npt.NDArray[np.intp]], npt.NDArray[np.bool_]]:
    """For each class the images with more than `min_pixels` of it, and whether there are any; UserError if nowhere."""
    images = [np.flatnonzero(column > min_pixels) for column in counts.T]
    drawable = np.array([len(some) > 0 for some in images])
    if not drawable.any():
        raise UserError(
            f"{sampler}: no image has more than {min_pixels} pixels of any class; "
            "lower min_pixels or check the labels with `udaseg prepare`."
        )
    return images, drawable


def class_probabilities(pixels: Counts, temperature: float, drawable: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """(K,) float32 softmax of (1 - share of pixels) / T over the drawable classes; shares are of all pixels."""
    share = (pixels / pixels.sum()).astype(np.float32)
    logits = np.where(drawable, (1 - share) / np.float32(temperature), -np.inf).astype(np.float32)
    weights = np.exp(logits - logits.max())
    return (weights / weights.sum(dtype=np.float32)).astype(np.float32)


SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "uniform": Uniform,
    "rare_class": rare_class,
    "context_aware": context_aware,
    "fixed_ratio": FixedRatio,
}
