"""A pin-hole camera, the colour box and the pens that the scene is drawn with.

World axes: x to the right of the road's middle, y up from the ground, z ahead of the camera, in metres.
The image is RGBA; its alpha channel is not opacity but a *tag* that says which label and how far away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from udaseg.data.streets.palette import BRIGHTNESS_SPREAD, DETAILS, LABELS, MATERIALS, Colour, Domain, Layout, Span

Point = tuple[float, float]

DISTANCE_LEVELS = 12
NEAREST, FARTHEST = 4.0, 110.0
_LEVEL_RATIO = (FARTHEST / NEAREST) ** (1 / (DISTANCE_LEVELS - 1))
_FIRST_TAG = {label: position * DISTANCE_LEVELS for position, label in enumerate(LABELS)}


def tag_of(label: int, z: float) -> int:
    """Tag (0 to 239) of a label id at a distance in metres."""
    level = round(math.log(max(z, NEAREST) / NEAREST, _LEVEL_RATIO))
    return _FIRST_TAG[label] + min(level, DISTANCE_LEVELS - 1)


def tag_tables() -> tuple[np.ndarray, np.ndarray]:
    """Label id (uint8) and distance in metres (float32) of each of the 256 tags."""
    labels, distances = np.zeros(256, np.uint8), np.full(256, FARTHEST, np.float32)
    levels = NEAREST * _LEVEL_RATIO ** np.arange(DISTANCE_LEVELS)
    for label, first in _FIRST_TAG.items():
        labels[first : first + DISTANCE_LEVELS] = label
        distances[first : first + DISTANCE_LEVELS] = levels
    return labels, distances


def shade(colour: Colour, factor: float) -> Colour:
    """The colour multiplied by a brightness factor, clipped to 0..255."""
    red, green, blue = colour
    return min(255, int(red * factor)), min(255, int(green * factor)), min(255, int(blue * factor))


class Paint:
    """Picks the colours. Draws as many random numbers whatever `gap`, so that `gap` changes colours only."""

    def __init__(self, domain: Domain, random: Random, gap: float) -> None:
        self._random = random
        self._gap, self._detail_gap = (gap, 1.0) if domain == "camera" else (0.0, 0.0)
        self._spread = BRIGHTNESS_SPREAD[domain]

    def __call__(self, material: str) -> Colour:
        """A colour for one more object of this material."""
        swatch, random = MATERIALS[material], self._random
        game, camera = random.choice(swatch.game), random.choice(swatch.camera)
        factor = random.uniform(*self._spread)
        gap = self._detail_gap if material in DETAILS else self._gap
        red, green, blue = (
            min(255, max(0, int((one + gap * (other - one)) * factor + 16 * random.random() - 8)))
            for one, other in zip(game, camera, strict=True)
        )
        return red, green, blue


class Camera(NamedTuple):
    """Pin-hole camera above a street that bends: at distance z the street has moved sideways by bend * z^2."""

    focal: float  # pixels
    centre: float  # pixel column of the vanishing point
    horizon: float  # pixel row
    height: float  # metres above the ground
    offset: float  # metres right of the road's middle
    bend: float  # 1 / metre

    @classmethod
    def sample(cls, layout: Layout, random: Random, size: tuple[int, int]) -> Camera:
        """A random camera for an image of `size` (width, height) pixels."""
        width, height = size
        return cls(
            focal=height * random.uniform(*layout.focal),
            centre=width * random.uniform(0.42, 0.58),
            horizon=height * random.uniform(*layout.horizon),
            height=random.uniform(1.25, 1.6),
            offset=random.uniform(-1.2, 1.2),
            bend=random.gauss(0.0, layout.curvature),
        )

    def project(self, x: float, y: float, z: float) -> Point:
        """Pixel (column, row) of a world point; z must be positive."""
        scale = self.focal / z
        return self.column(x, z), self.horizon + scale * (self.height - y)

    def column(self, x: float, z: float) -> float:
        """Pixel column of everything at x, z."""
        return self.centre + self.focal * ((x - self.offset) / z + self.bend * z)

    def scale(self, z: float) -> float:
        """Pixels per metre at distance z."""
        return self.focal / z


class Pen:
    """Draws shapes of one label at one distance; coordinates in pixels unless said otherwise."""

    __slots__ = ("_camera", "_draw", "_tag", "_width")

    def __init__(self, draw: ImageDraw.ImageDraw, camera: Camera, tag: int, width: int) -> None:
        self._draw, self._camera, self._tag, self._width = draw, camera, tag, width

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self._draw.polygon(points, fill=(*colour, self._tag))

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        corners = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        self._draw.rectangle(corners, fill=(*colour, self._tag))

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, colour: Colour) -> None:
        self._draw.ellipse((x - radius_x, y - radius_y, x + radius_x, y + radius_y), fill=(*colour, self._tag))

    def ring(self, x: float, y: float, radius_x: float, radius_y: float, colour: Colour, width: float) -> None:
        corners = (x - radius_x, y - radius_y, x + radius_x, y + radius_y)
        self._draw.ellipse(corners, outline=(*colour, self._tag), width=max(1, round(width)))

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        self._draw.line(points, fill=(*colour, self._tag), width=max(1, round(width)))

    def panels(self, x: float, z_spans: Sequence[Span], y_spans: Sequence[Span], colour: Colour) -> None:
        """A grid of panels in metres on the plane at x along the street; those out of the image are left out."""
        camera = self._camera
        for near, far in z_spans:
            left, right = camera.column(x, near), camera.column(x, far)
            if max(left, right) < 0 or min(left, right) > self._width:
                continue
            near_scale, far_scale = camera.focal / near, camera.focal / far
            for low, high in y_spans:
                up, down = camera.height - high, camera.height - low
                corners = (
                    *((left, camera.horizon + near_scale * down), (left, camera.horizon + near_scale * up)),
                    *((right, camera.horizon + far_scale * up), (right, camera.horizon + far_scale * down)),
                )
                self._draw.polygon(corners, fill=(*colour, self._tag))

    def ground(self, left: float, right: float, near: float, far: float, colour: Colour, pieces: int = 1) -> None:
        """A strip of the ground in metres; long ones need several pieces to follow the bend."""
        cuts = [near * (far / near) ** (piece / pieces) for piece in range(pieces + 1)]
        edge = [self._camera.project(left, 0.0, z) for z in cuts]
        self.polygon(edge + [self._camera.project(right, 0.0, z) for z in reversed(cuts)], colour)


class Canvas:
    """What an object needs in order to draw itself: camera, pens, colours, random geometry."""

    def __init__(self, size: tuple[int, int], camera: Camera, random: Random, paint: Paint) -> None:
        self.width, self.height = size
        self.camera, self.random, self.paint = camera, random, paint
        self.image = Image.new("RGBA", size)
        self._draw = ImageDraw.Draw(self.image)

    def pen(self, label: int, z: float = NEAREST) -> Pen:
        """A pen for a label id at a distance in metres."""
        return Pen(self._draw, self.camera, tag_of(label, z), self.width)
