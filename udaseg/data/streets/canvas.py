"""A pin-hole camera, the colour box and the pens that a scene is drawn with.

World axes: x to the right of the road's middle, y up from the ground, z ahead of the camera, in metres.
The image is RGBA; its alpha channel is not opacity but a *tag* that says which label and how far away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from PIL import Image, ImageDraw

from udaseg.data.streets.palette import DETAILS, LABEL_IDS, LAYOUT, MATERIALS, Colour, Domain, Span

Point = tuple[float, float]

NEAREST, FARTHEST = 4.0, 110.0
LEVELS = 12
LEVEL_RATIO = (FARTHEST / NEAREST) ** (1 / (LEVELS - 1))
"""Tags tell LEVELS distances from NEAREST to FARTHEST (metres) apart, each this many times the one before."""

_FIRST_TAG = {label: position * LEVELS for position, label in enumerate(LABEL_IDS)}
_SWATCHES = {name: tuple([*map(bytes.fromhex, codes.split())] for codes in both) for name, both in MATERIALS.items()}


def shade(colour: Colour, factor: float) -> Colour:
    """The colour multiplied by a brightness factor, clipped to 0..255."""
    red, green, blue = colour
    return min(255, int(red * factor)), min(255, int(green * factor)), min(255, int(blue * factor))


def spans(start: float, end: float, count: int, fill: Span = (0.0, 1.0)) -> list[Span]:
    """Divide start..end into `count` equal cells and return the part `fill` (fractions) of each."""
    step = (end - start) / count
    return [(start + step * (cell + fill[0]), start + step * (cell + fill[1])) for cell in range(count)]


class Canvas:
    """What an object needs in order to draw itself: a pin-hole camera, pens, colours, random geometry."""

    def __init__(self, domain: Domain, size: tuple[int, int], gap: float, geometry: Random, colours: Random) -> None:
        self.random, self._colours = geometry, colours
        self.layout = {name: values[domain == "camera"] for name, values in LAYOUT.items()}
        self._gap, self._detail_gap = (gap, 1.0) if domain == "camera" else (0.0, 0.0)
        self.image = Image.new("RGBA", size)
        self.draw = ImageDraw.Draw(self.image)
        self.width, self.height = size
        self.focal = self.height * self.between("focal")  # pixels
        self.centre = self.width * geometry.uniform(0.42, 0.58)  # pixel column of the vanishing point
        self.horizon = self.height * self.between("horizon")  # pixel row
        self.eye = geometry.uniform(1.25, 1.6)  # metres above the ground
        self.offset = geometry.uniform(-1.2, 1.2)  # metres right of the road's middle
        self.bend = geometry.gauss(0.0, self.layout["curvature"])  # at z the street has moved by bend * z^2

    def between(self, name: str) -> float:
        """A random number from a range in the layout."""
        return self.random.uniform(*self.layout[name])

    def chance(self, name: str) -> bool:
        """True with a probability in the layout."""
        return self.random.random() < self.layout[name]

    def column(self, x: float, z: float) -> float:
        return self.centre + self.focal * ((x - self.offset) / z + self.bend * z)

    def project(self, x: float, y: float, z: float) -> Point:
        """Pixel (column, row) of a world point; z must be positive."""
        return self.column(x, z), self.horizon + self.focal / z * (self.eye - y)

    def pen(self, label: str, z: float = NEAREST) -> Pen:
        """A pen for a label at a distance in metres."""
        level = round(math.log(max(z, NEAREST) / NEAREST, LEVEL_RATIO))
        return Pen(self, _FIRST_TAG[label] + min(level, LEVELS - 1))

    def paint(self, material: str) -> Colour:
        """A colour for one more object. Draws as many random numbers whatever the gap, which changes colours only."""
        random, (games, cameras) = self._colours, _SWATCHES[material]
        game, camera, factor = random.choice(games), random.choice(cameras), random.uniform(*self.layout["brightness"])
        gap = self._detail_gap if material in DETAILS else self._gap
        mixed = [one + gap * (other - one) for one, other in zip(game, camera, strict=True)]
        return tuple([min(255, max(0, int(part * factor + 16 * random.random() - 8))) for part in mixed])


class Pen:
    """Draws shapes of one label at one distance, in pixels from the image's top left corner until moved (`at`)."""

    def __init__(self, canvas: Canvas, tag: int, origin: Point = (0.0, 0.0), unit: Point = (1.0, 1.0)) -> None:
        self._canvas, self._draw, self._tag, self._frame = canvas, canvas.draw, tag, (*origin, *unit)

    def at(self, x: float, y: float, z: float, wide: float = 1.0, tall: float = 1.0) -> Pen:
        """This pen with its origin at a world point and units of `wide` metres to the right and `tall` metres up."""
        canvas, scale = self._canvas, self._canvas.focal / z
        return Pen(canvas, self._tag, canvas.project(x, y, z), (wide * scale, -tall * scale))

    def _pixels(self, *points: Point) -> list[Point]:
        column, row, right, down = self._frame
        return [(column + x * right, row + y * down) for x, y in points]

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self._draw.polygon(self._pixels(*points), fill=(*colour, self._tag))

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self._draw.rectangle(self._pixels((left, top), (right, bottom)), fill=(*colour, self._tag))

    def line(self, points: Sequence[Point], colour: Colour, pixels: float) -> None:
        self._draw.line(self._pixels(*points), fill=(*colour, self._tag), width=max(1, round(pixels)))

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, colour: Colour, ring: float = 0) -> None:
        """An ellipse, or a ring of so many pixels."""
        (left, top), (right, bottom) = self._pixels((x - radius_x, y - radius_y), (x + radius_x, y + radius_y))
        corners, ink = (left, min(top, bottom), right, max(top, bottom)), (*colour, self._tag)
        if ring:
            self._draw.ellipse(corners, outline=ink, width=max(1, round(ring)))
        else:
            self._draw.ellipse(corners, fill=ink)

    def panels(self, x: float, z_spans: Sequence[Span], y_spans: Sequence[Span], colour: Colour) -> None:
        """A grid of panels in metres on the plane at x along the street; those out of the image are left out."""
        canvas, ink = self._canvas, (*colour, self._tag)
        for near, far in z_spans:
            left, right = canvas.column(x, near), canvas.column(x, far)
            if max(left, right) < 0 or min(left, right) > canvas.width:
                continue
            near_scale, far_scale, horizon = canvas.focal / near, canvas.focal / far, canvas.horizon
            for low, high in y_spans:
                up, down = canvas.eye - high, canvas.eye - low
                near_edge = (left, horizon + near_scale * down), (left, horizon + near_scale * up)
                far_edge = (right, horizon + far_scale * up), (right, horizon + far_scale * down)
                self._draw.polygon((*near_edge, *far_edge), fill=ink)

    def ground(self, left: float, right: float, near: float, far: float, colour: Colour, pieces: int = 1) -> None:
        """A strip of the ground in metres; long ones need several pieces to follow the bend."""
        cuts = [near * (far / near) ** (piece / pieces) for piece in range(pieces + 1)]
        edge = [self._canvas.project(left, 0.0, z) for z in cuts]
        edge += [self._canvas.project(right, 0.0, z) for z in reversed(cuts)]
        self._draw.polygon(edge, fill=(*colour, self._tag))
