"""Resize, crop, flip, pad and photometric distortion on numpy arrays, to the pixel as the public pipeline.

Source: ``docs/fidelity.md``, "Data pipeline", with OpenCV's published 8-bit conventions (bilinear interpolation with
half-pixel centres and no anti-aliasing in 11-bit fixed point; hue in 0..179). Sizes are (w, h) as in recipes; arrays
and boxes are rows first: images (H,W,3) uint8 RGB, labels (H,W) uint8 train ids. Torchvision's transforms do not give
the same pixels.

What differs from the public code: only the wanted box of a resized image is computed (the same pixels as resizing all
of it); padding marks the valid mask 0, not 255; a padded image gets the mean colour as uint8, which is within 0.01 of
0 after normalisation because images travel to the device as uint8. Every draw takes a numpy Generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from udaseg.data.classes import IGNORE
from udaseg.data.images import Bytes

Ints = npt.NDArray[np.int32]
Size = tuple[int, int]

MEAN_COLOUR = (124, 116, 104)
"""ImageNet mean (123.675, 116.28, 103.53) as uint8."""


class Integers(Protocol):
    """The one method of a numpy Generator that draws a crop (a test replays recorded draws through it)."""

    def integers(self, low: int, high: int) -> int: ...


class Crop(NamedTuple):
    """A box in an image: rows y1 <= y < y2, columns x1 <= x < x2."""

    y1: int
    y2: int
    x1: int
    x2: int


def keep_ratio_size(size: Size, target: Size) -> Size:
    """Largest (w, h) of the same aspect with long side <= target's long side and short side <= its short side."""
    scale = min(max(target) / max(size), min(target) / min(size))
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


# ------------------------------------------------------------------------------------------------------------ resize


class _Taps(NamedTuple):
    """The two source positions and fixed-point weights (they sum to 2048) of each output position."""

    first: npt.NDArray[np.intp]
    second: npt.NDArray[np.intp]
    weight_first: Ints
    weight_second: Ints


def resize_image(image: Bytes, size: Size, box: Crop | None = None) -> Bytes:
    """(H,W,3) uint8 -> the pixels of `box` (default: all) of the image resized to (w, h); equals cv2.INTER_LINEAR."""
    height, width, _ = image.shape
    box = box or Crop(0, size[1], 0, size[0])
    if (width, height) == size:
        return image[box.y1 : box.y2, box.x1 : box.x2]
    vertical = _taps(height, size[1], False)
    first, second = vertical.first[box.y1 : box.y2], vertical.second[box.y1 : box.y2]
    top = int(first[0])
    rows = _along_rows(image[top : int(second[-1]) + 1], _taps(width, size[0], True), box.x1, box.x2)
    upper, lower = rows[first - top], rows[second - top]
    upper *= vertical.weight_first[box.y1 : box.y2, None]
    lower *= vertical.weight_second[box.y1 : box.y2, None]
    upper >>= 16
    lower >>= 16
    upper += lower
    upper += 2
    upper >>= 2
    return upper.astype(np.uint8).reshape(box.y2 - box.y1, box.x2 - box.x1, 3)


def _along_rows(rows: Bytes, taps: _Taps, x1: int, x2: int) -> Ints:
    """(R,W,3) -> (R,(x2-x1)*3) interpolated along the rows, 15 bits."""
    flat, channel = rows.reshape(len(rows), -1), np.arange(3)
    first, second = (
        flat.take((at[x1:x2, None] * 3 + channel).ravel(), axis=1).astype(np.int32) for at in (taps.first, taps.second)
    )
    first *= taps.weight_first[x1:x2].repeat(3)
    second *= taps.weight_second[x1:x2].repeat(3)
    first += second
    first >>= 4
    return first


@lru_cache(maxsize=64)
def _taps(source: int, out: int, clamp_weights: bool) -> _Taps:
    """OpenCV clamps the weights at the borders along rows (horizontally) and only the positions along columns."""
    at = ((np.arange(out) + 0.5) * (source / out) - 0.5).astype(np.float32)
    floor = np.floor(at)
    below, fraction = floor.astype(np.intp), at - floor
    if clamp_weights:
        fraction = np.where((below < 0) | (below >= source - 1), np.float32(0), fraction)
    weights = (np.rint(share * np.float32(2048)).astype(np.int32) for share in (1 - fraction, fraction))
    return _Taps(below.clip(0, source - 1), (below + 1).clip(0, source - 1), *weights)


def resize_label(label: Bytes, size: Size) -> Bytes:
    """(H,W) -> (h,w) nearest; no value is invented."""
    height, width = label.shape
    if (width, height) == size:
        return label
    return label[nearest(height, size[1])].take(nearest(width, size[0]), axis=1)


# -------------------------------------------------------------------------------------------------------------- crop


def nearest(source: int, out: int) -> npt.NDArray[np.intp]:
    """(out,) source position of each output position: floor(i * source / out), in integers."""
    return np.arange(out) * source // out


def draw_crop(
    size: Size, crop: tuple[int, int], rng: Integers, *, label: Bytes | None = None, cat_max_ratio: float = 1.0
) -> Crop:
    """A random box of crop (h, w) in an image of size (w, h).

    With a label and cat_max_ratio < 1, a box that is not `varied` is redrawn at most 10 times; the 11th is not checked.
    """
    if label is not None and cat_max_ratio < 1.0:
        for _ in range(10):
            box = random_box(size, crop, rng)
            if varied(cut(label, box), cat_max_ratio):
                return box
    return random_box(size, crop, rng)


def varied(label: Bytes, cat_max_ratio: float) -> bool:
    """Whether there are two classes or more and the largest covers less than the ratio; ignored pixels do not count."""
    counts = np.bincount(label.ravel(), minlength=256)[:IGNORE]
    return bool(np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio)


def random_box(size: Size, crop: tuple[int, int], rng: Integers) -> Crop:
    """A box of crop (h, w), or of the image's side where that is shorter; offsets uniform, both ends included."""
    y = int(rng.integers(0, max(size[1] - crop[0], 0) + 1))
    x = int(rng.integers(0, max(size[0] - crop[1], 0) + 1))
    return Crop(y, min(y + crop[0], size[1]), x, min(x + crop[1], size[0]))


def cut(array: Bytes, box: Crop) -> Bytes:
    """The box of an (H,W) or (H,W,3) array (a view)."""
    return array[box.y1 : box.y2, box.x1 : box.x2]


def flip(array: Bytes) -> Bytes:
    """Left and right exchanged (a view)."""
    return array[:, ::-1]


def pad(array: Bytes, crop: tuple[int, int], value: int | tuple[int, int, int]) -> Bytes:
    """Fill up to at least (h, w) at the bottom and the right."""
    height, width = array.shape[:2]
    if height >= crop[0] and width >= crop[1]:
        return array
    shape = (max(height, crop[0]), max(width, crop[1]), *array.shape[2:])
    padded = np.full(shape, value, dtype=np.uint8)
    padded[:height, :width] = array
    return padded


@dataclass(frozen=True)
class Margins:
    """Unreliable borders in pixels of an image of size `at` (w, h), e.g. the bonnet of the Cityscapes car."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0
    at: Size = (2048, 1024)

    def valid(self, size: Size, box: Crop) -> Bytes:
        """The box of the mask (1 = reliable) nearest-resized to (w, h); from its two profiles, never the whole mask."""
        rows = _profile(self.top, self.bottom, self.at[1])[nearest(self.at[1], size[1])[box.y1 : box.y2]]
        columns = _profile(self.left, self.right, self.at[0])[nearest(self.at[0], size[0])[box.x1 : box.x2]]
        return rows[:, None] * columns


def _profile(before: int, after: int, length: int) -> Bytes:
    line = np.zeros(length, dtype=np.uint8)
    line[before : max(length - after, 0)] = 1
    return line


# ------------------------------------------------------------------------------------------------------------ colour


def photometric_distortion(image: Bytes, rng: np.random.Generator) -> Bytes:
    """Brightness +-32, contrast x 0.5..1.5 (before or after the next two), saturation x 0.5..1.5, hue +-18 (of 180).

    Each with probability 1/2, clipped and truncated to uint8 after each, as the public source-only runs do.
    """
    image = _linear(image, 1.0, rng.uniform(-32, 32)) if rng.random() < 0.5 else image
    contrast_first = rng.random() < 0.5
    image = _contrast(image, rng) if contrast_first else image
    image = _saturation(image, rng) if rng.random() < 0.5 else image
    image = _hue(image, rng) if rng.random() < 0.5 else image
    return image if contrast_first else _contrast(image, rng)


def _linear(values: Bytes, factor: float, offset: float) -> Bytes:
    return (values.astype(np.float32) * np.float32(factor) + np.float32(offset)).clip(0, 255).astype(np.uint8)


def _contrast(image: Bytes, rng: np.random.Generator) -> Bytes:
    return _linear(image, rng.uniform(0.5, 1.5), 0.0) if rng.random() < 0.5 else image


def _saturation(image: Bytes, rng: np.random.Generator) -> Bytes:
    hsv = rgb_to_hsv(image)
    hsv[..., 1] = _linear(hsv[..., 1], rng.uniform(0.5, 1.5), 0.0)
    return hsv_to_rgb(hsv)


def _hue(image: Bytes, rng: np.random.Generator) -> Bytes:
    hsv = rgb_to_hsv(image)
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + rng.integers(-18, 18)) % 180
    return hsv_to_rgb(hsv)


def rgb_to_hsv(image: Bytes) -> Bytes:
    """(H,W,3) RGB -> hue 0..179, saturation and value 0..255."""
    red, green, blue = (image[..., c].astype(np.int32) for c in range(3))
    value = image.max(axis=2)
    spread = value - image.min(axis=2)
    by_value, by_spread = _divisors()
    saturation = (spread * by_value[value] + (1 << 11)) >> 12
    wide = spread.astype(np.int32)
    sector = np.where(value == green, blue - red + 2 * wide, red - green + 4 * wide)
    sector = np.where(value == red, green - blue, sector)
    hue = ((sector * by_spread[spread] + (1 << 11)) >> 12) % 180
    return np.stack([hue, saturation, value], axis=2).astype(np.uint8)


@lru_cache(maxsize=1)
def _divisors() -> tuple[Ints, Ints]:
    """12-bit fixed-point tables 255/i and 30/i; 0 at i = 0."""
    i = np.maximum(np.arange(256), 1)
    tables = (np.rint((255 << 12) / i).astype(np.int32), np.rint((180 << 12) / (6 * i)).astype(np.int32))
    for table in tables:
        table[0] = 0
    return tables


def hsv_to_rgb(hsv: Bytes) -> Bytes:
    """Inverse of `rgb_to_hsv`, rounded to uint8."""
    hue = hsv[..., 0].astype(np.float32) / 30
    value = hsv[..., 2].astype(np.float32)
    chroma = value * (hsv[..., 1].astype(np.float32) / 255)
    channels = []
    for shift in (5.0, 3.0, 1.0):  # red, green, blue: value - chroma * clip(min(k, 4 - k), 0, 1), k = hue + shift mod 6
        k = (hue + np.float32(shift)) % 6
        channels.append(value - chroma * np.minimum(k, 4 - k).clip(0, 1))
    return np.rint(np.stack(channels, axis=2)).astype(np.uint8)
