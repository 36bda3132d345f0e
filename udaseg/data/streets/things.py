"""The things that stand in a street, each a function that draws one of them on a canvas.

Positions and lengths are metres (x right, y up, z ahead). Geometry comes from `canvas.random`, colours from
`canvas.paint`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from udaseg.data.streets.canvas import Canvas, Pen, shade, spans
from udaseg.data.streets.palette import Colour

RUBBER, HUB = (25, 25, 28), (96, 96, 100)
RED_LAMP, HEADLIGHT = (226, 30, 20), (255, 250, 214)
NUMBER_PLATE, LINE_DISPLAY, BUMPER = (235, 235, 220), (240, 164, 50), (50, 50, 54)
SIGNALS = ((240, 40, 30), (250, 190, 40), (40, 230, 90))

POLES = {"lamp": 6.5, "traffic light": 3.6, "traffic sign": 2.8}
"""The height of a pole by what is on it."""

# ---- along the street ----


class Plot(NamedTuple):
    """A stretch of land along the street, its front at x; `outward` is -1 on the left and +1 on the right."""

    x: float
    outward: int
    near: float
    far: float

    def behind(self, distance: float) -> Plot:
        return self._replace(x=self.x + self.outward * distance)

    def pen(self, canvas: Canvas, label: str) -> Pen:
        return canvas.pen(label, (self.near + self.far) / 2)


def building(canvas: Canvas, plot: Plot) -> None:
    """A house: the facade along the street, the side wall that faces the camera, windows in both."""
    random, (x, outward, near, far) = canvas.random, plot
    height, depth = canvas.between("building height"), random.uniform(6, 16)
    lit, shop = random.random() < 0.3, random.random() < 0.3
    colour, pen = canvas.paint("building"), plot.pen(canvas, "building")
    pane = shade(colour, 1.35 if lit else 0.45)
    floors, columns = min(7, max(2, int(height / 3.2))), min(6, max(2, int((far - near) / 3)))
    storeys = spans(0, height, floors, (0.3, 0.8))

    gable = pen.at(min(x, x + outward * depth), 0, near, wide=depth)
    gable.box(0, height, 1, 0, shade(colour, 0.82))
    pen.panels(x, [(near, far)], [(0, height)], colour)
    pen.panels(x, spans(near, far, columns, (0.25, 0.75)), storeys, pane)
    if near > 5:
        for left, right in spans(0, 1, 3, (0.3, 0.7)):
            for low, high in storeys:
                gable.box(left, high, right, low, shade(pane, 0.85))
    if shop:
        pen.panels(x, [(near, far)], [(0, min(3.0, height / 4))], shade(colour, 0.6))


def wall(canvas: Canvas, plot: Plot) -> None:
    """A garden wall of large blocks with a coping."""
    x, _, near, far = plot
    height = canvas.random.uniform(2.6, 4.4)
    colour, pen = canvas.paint("wall"), plot.pen(canvas, "wall")
    pen.panels(x, [(near, far)], [(0, height)], colour)
    courses, blocks = spans(0, height * 0.92, 4), max(3, round((far - near) / 1.8))
    for start in (0, 1):
        shifted = spans(near, far, blocks, (0.5 * start, 0.5 * start + 0.5))
        pen.panels(x, shifted, courses[start::2], shade(colour, 0.84))
    pen.panels(x, [(near, far)], [(height * 0.92, height)], shade(colour, 1.2))


def fence(canvas: Canvas, plot: Plot) -> None:
    """A dense fence: bright pickets and two rails before a dark ground."""
    x, _, near, far = plot
    height = canvas.random.uniform(2.2, 3.4)
    colour, pen = canvas.paint("fence"), plot.pen(canvas, "fence")
    bright, pickets = shade(colour, 1.6), max(4, round((far - near) / 1.1))
    pen.panels(x, [(near, far)], [(0, height * 0.95)], shade(colour, 0.65))
    pen.panels(x, spans(near, far, pickets, (0.0, 0.45)), [(0, height)], bright)
    pen.panels(x, [(near, far)], spans(0.15 * height, 0.95 * height, 2, (0.3, 0.48)), shade(bright, 0.9))


def hedge(canvas: Canvas, plot: Plot) -> None:
    """A row of bushes, the far ones first."""
    uniform, colour, pen = canvas.random.uniform, canvas.paint("vegetation"), plot.pen(canvas, "vegetation")
    for z, _ in reversed(spans(plot.near, plot.far, int((plot.far - plot.near) / 1.3) + 2, (0.5, 1.0))):
        x, size = plot.x + plot.outward * uniform(0, 1.5), uniform(0.8, 2.2)
        pen.at(x, 0, z, size, size).ellipse(0, 0.4, 0.8, 0.6, shade(colour, uniform(0.75, 1.25)))


def tree(canvas: Canvas, x: float, z: float) -> None:
    """A trunk (vegetation, as in Cityscapes) and a crown of leaf clusters."""
    uniform = canvas.random.uniform
    height, colour = uniform(4, 9), canvas.paint("vegetation")
    pen = canvas.pen("vegetation", z).at(x, 0, z, height, height)
    pen.box(-0.15 / height, 0.5, 0.15 / height, 0, canvas.paint("trunk"))
    for _ in range(9):
        middle, radii = (uniform(-0.28, 0.28), uniform(0.45, 0.95)), (uniform(0.12, 0.22), uniform(0.10, 0.20))
        pen.ellipse(*middle, *radii, shade(colour, uniform(0.75, 1.25)))


def pole(canvas: Canvas, x: float, z: float, kind: str) -> None:
    """A pole with a lamp, a traffic light or a traffic sign."""
    metre, pen = canvas.focal / z, canvas.pen("pole", z).at(x, 0, z)
    height, half = POLES[kind] * canvas.random.uniform(0.9, 1.15), max(canvas.height / 160 / metre, 0.11)
    colour = canvas.paint("pole")
    pen.box(-half, height, half, 0, colour)
    if kind == "lamp":
        pen.line([(0, height), (-math.copysign(1.6, x), height + 0.2)], colour, 1.6 * half * metre)
    elif kind == "traffic light":
        pen, burning = canvas.pen(kind, z).at(x, height, z), canvas.random.randrange(3)
        pen.box(-0.3, 0.3, 0.3, -1, canvas.paint(kind))
        for place, signal in enumerate(SIGNALS):
            pen.ellipse(0, 0.05 - 0.38 * place, 0.15, 0.15, signal if place == burning else shade(signal, 0.3))
    else:
        _traffic_sign(canvas, canvas.pen(kind, z).at(x, height - 0.1, z, 0.5, 0.5))


def _traffic_sign(canvas: Canvas, pen: Pen) -> None:
    shape = canvas.random.randrange(3)
    for half, colour in ((1.0, canvas.paint("traffic sign")), (0.58, canvas.paint("sign face"))):
        if shape == 0:
            pen.ellipse(0, 0, half, half, colour)
        elif shape == 1:
            low, high = -0.2 - 0.6 * half, -0.2 + 1.2 * half
            pen.polygon([(-1.1 * half, low), (1.1 * half, low), (0, high)], colour)
        else:
            pen.box(-half, half, half, -0.8 * half, colour)


# ---- vehicles ----


class Vehicle:
    """A vehicle's box in the making; x, z is the middle of its nearer end."""

    def __init__(
        self, canvas: Canvas, kind: str, x: float, z: float, box: tuple[float, float, float], road: Colour | None = None
    ) -> None:
        self.x, self.z, (self.width, self.length, self.height) = x, z, box
        self.pen, self.colour, self.glass = canvas.pen(kind, z), canvas.paint(kind), canvas.paint("glass")
        self.inward = -math.copysign(1, x - canvas.offset)
        self.side = x + self.inward * self.width / 2  # x of the side wall that the camera sees
        self.whole = [(z, z + self.length)]
        if road:
            canvas.pen("road").at(x, 0, z).ellipse(0, 0.02, self.width / 2 + 0.1, 0.2, shade(road, 0.5))

    def wheels(self, radius: float) -> None:
        """Two wheels on the visible side, two seen from behind."""
        for share in (0.2, 0.8):
            self.pen.at(self.side, 0, self.z + share * self.length).ellipse(0, radius, 0.55 * radius, radius, RUBBER)
        for share in (-0.4, 0.4):
            self.pen.at(self.x + share * self.width, 0, self.z).box(-0.12, 0.5, 0.12, 0, RUBBER)

    def body(self, low: float, high: float) -> Pen:
        """The visible side and the face between two heights; returns a pen in fractions of the face, y down."""
        self.pen.panels(self.side, self.whole, [(low, high)], shade(self.colour, 0.75))
        face = self.pen.at(self.x - self.width / 2, high, self.z, self.width, low - high)
        face.box(0, 0, 1, 1, self.colour)
        return face


def car(canvas: Canvas, x: float, z: float, away: bool, road: Colour) -> None:
    """A car seen from behind (`away`) or from the front."""
    uniform = canvas.random.uniform
    it = Vehicle(canvas, "car", x, z, (uniform(1.7, 1.95), uniform(3.8, 4.7), uniform(1.4, 1.75)), road)
    it.wheels(0.36)
    waist, roof_z, inner = 0.58 * it.height, z + 0.25 * it.length, it.side - it.inward * 0.12 * it.width
    corners = ((it.side, waist, 0.1), (inner, it.height, 0.25), (inner, it.height, 0.65), (it.side, waist, 0.85))
    outline = [canvas.project(at, y, z + share * it.length) for at, y, share in corners]
    it.pen.polygon(outline, shade(it.glass, 0.8))

    face = it.body(0.28, waist)
    roof = canvas.eye - (canvas.eye - it.height) * z / roof_z  # as high as it looks from here
    rear = it.pen.at(x, 0, z, wide=it.width)
    rear.polygon([(-0.5, waist), (-0.38, roof), (0.38, roof), (0.5, waist)], shade(it.colour, 0.9))
    low, high = waist + 0.048, roof - 0.12
    rear.polygon([(-0.428, low), (-0.3512, high), (0.3512, high), (0.428, low)], it.glass)
    for left in (0.01, 0.84):
        face.box(left, 0.2, left + 0.15, 0.42, RED_LAMP if away else HEADLIGHT)
    face.box(0.36, 0.55, 0.64, 0.72, NUMBER_PLATE)


def truck(canvas: Canvas, x: float, z: float, away: bool, road: Colour) -> None:
    it = Vehicle(canvas, "truck", x, z, (2.4, canvas.random.uniform(5, 9), canvas.random.uniform(3.0, 3.8)), road)
    it.wheels(0.5)
    face = it.body(0.9, it.height)
    face.box(0, 1, 1, 1.17, BUMPER)
    if away:
        face.line([(0.5, 0), (0.5, 1)], shade(it.colour, 0.55), canvas.height / 128)
        for left in (0, 0.88):
            face.box(left, 1.04, left + 0.12, 1.11, RED_LAMP)
    else:
        face.box(0.05, 0.45, 0.95, 0.72, it.glass)
        face.box(0, 0, 1, 0.35, shade(it.colour, 1.12))


def bus(canvas: Canvas, x: float, z: float, away: bool, road: Colour) -> None:
    it = Vehicle(canvas, "bus", x, z, (2.5, canvas.random.uniform(9, 12), canvas.random.uniform(2.9, 3.4)), road)
    face = it.body(0.3, it.height)
    panes = spans(z, z + it.length, 7, (0.12, 0.88))
    it.pen.panels(it.side, panes, [(0.5 * it.height, 0.85 * it.height)], it.glass)
    face.box(0.04, 0.16, 0.96, 0.55, it.glass)
    face.box(0.16, 0.04, 0.84, 0.12, LINE_DISPLAY)
    for left in (0.03, 0.85):
        face.box(left, 0.74, left + 0.12, 0.82, RED_LAMP if away else HEADLIGHT)
    it.wheels(0.5)


def train(canvas: Canvas, x: float, z: float) -> None:
    """A tram beside the road: a long band of glass, bright doors, a dark roof line."""
    it = Vehicle(canvas, "train", x, z, (2.6, canvas.random.uniform(22, 40), canvas.random.uniform(3.4, 3.9)))
    height, doors = it.height, spans(z, z + it.length, 4, (0.03, 0.17))
    face = it.body(0.2, height)
    it.pen.panels(it.side, it.whole, [(0.46 * height, 0.84 * height)], it.glass)
    it.pen.panels(it.side, doors, [(0.3, 0.86 * height)], shade(it.colour, 1.15))
    it.pen.panels(it.side, it.whole, [(0.93 * height, height)], shade(it.colour, 0.5))
    face.box(0.08, 0.12, 0.92, 0.5, it.glass)
    for share in (0.15, 0.85):
        face.ellipse(share, 0.7, 0.14 / it.width, 0.14 / (height - 0.2), HEADLIGHT)


# ---- people and two-wheelers ----


def cycle(canvas: Canvas, x: float, z: float, kind: str, ridden: bool) -> None:
    """A motorcycle or bicycle, seen from the side or foreshortened, with or without its rider."""
    turned = canvas.random.choice((1.0, 1.0, 0.5))
    if ridden:
        human(canvas, x, z, "rider")
    pen, colour, metre = canvas.pen(kind, z).at(x, 0, z, wide=turned), canvas.paint(kind), canvas.focal / z
    if kind == "motorcycle":
        for hub in (-0.575, 0.575):
            pen.ellipse(hub, 0.33, 0.33, 0.33, RUBBER)
            pen.ellipse(hub, 0.33, 0.1485, 0.1485, HUB)
        pen.polygon([(-0.69, 0.55), (-0.115, 0.9), (0.575, 0.85), (0.4025, 0.3), (-0.4025, 0.3)], colour)
        pen.line([(0.4025, 0.8), (0.6325, 1.1)], RUBBER, 0.07 * metre)
        return
    rear, saddle, head, pedals, front = (-0.5, 0.34), (-0.1, 0.75), (0.4, 0.75), (0.0, 0.27), (0.5, 0.34)
    for hub in (-0.5, 0.5):
        if metre < 0.11 * canvas.height:  # too far for thin wheels
            pen.ellipse(hub, 0.34, 0.34, 0.34, shade(colour, 0.5))
        pen.ellipse(hub, 0.34, 0.34, 0.34, RUBBER, ring=0.09 * metre)
    for tube in ([rear, saddle, head, pedals, rear], [head, front], [pedals, saddle]):
        pen.line(tube, colour, 0.1 * metre)
    pen.line([(0.36, 0.98), (0.45, 0.7)], RUBBER, 0.1 * metre)


def human(canvas: Canvas, x: float, z: float, label: str) -> None:
    """A person (walking) or rider (sitting)."""
    random, rides = canvas.random, label == "rider"
    height = 1.55 if rides else random.uniform(1.5, 1.9)
    pen = canvas.pen(label, z).at(x, 0.38 if rides else 0, z, height, height)
    shirt, trousers, skin = canvas.paint(label), shade(canvas.paint(label), 0.6), canvas.paint("skin")
    half, hip = 0.16 * random.uniform(0.85, 1.15), 0.48
    stride = random.uniform(0.2, 0.9) * half
    if rides:
        pen.polygon([(-0.7 * half, hip), (0.7 * half, hip), (0.9 * half, 0.05), (-0.2 * half, 0.05)], trousers)
    for way in () if rides else (-1, 1):
        foot = [(0.3 * way * stride, 0), (way * (stride + 0.2 * half), 0)]
        pen.polygon([(0.6 * way * half, hip), (0, hip), *foot], trousers)
    pen.box(-0.72 * half, 0.84, 0.72 * half, hip - 0.03, shirt)
    pen.ellipse(0, 0.91, 0.085, 0.10, skin)
    if rides and random.random() < 0.6:
        pen.ellipse(0, 0.955, 0.09, 0.06, canvas.paint("rider"))
