"""The things that stand in a street, each a function that draws one of them on a canvas.

Positions and lengths are metres (x right, z ahead); `outward` is -1 on the left and +1 on the right of the street.
Geometry comes from `canvas.random`, colours from `canvas.paint`.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from udaseg.data.streets.canvas import Canvas, Pen, Point, shade
from udaseg.data.streets.palette import (
    BICYCLE,
    BUILDING,
    BUS,
    CAR,
    FENCE,
    LIGHT,
    MOTORCYCLE,
    PERSON,
    POLE,
    RIDER,
    ROAD,
    SIGN,
    TRAIN,
    TRUCK,
    VEGETATION,
    WALL,
    Colour,
    Span,
)

PoleKind = Literal["lamp", "light", "sign"]
RUBBER: Colour = (25, 25, 28)
RED_LAMP: Colour = (226, 30, 20)
HEADLIGHT: Colour = (255, 250, 214)
SIGNALS: tuple[Colour, ...] = ((240, 40, 30), (250, 190, 40), (40, 230, 90))


def spans(start: float, end: float, count: int, fill: Span = (0.0, 1.0)) -> list[Span]:
    """Divide start..end into `count` equal cells and return the part `fill` (fractions) of each."""
    step = (end - start) / count
    return [(start + step * (cell + fill[0]), start + step * (cell + fill[1])) for cell in range(count)]


# ---- along the street ----


def building(canvas: Canvas, x: float, outward: int, near: float, far: float, tallest: Span) -> None:
    """A house: the facade along the street, the side wall that faces the camera, windows in both."""
    random, camera = canvas.random, canvas.camera
    height, depth = random.uniform(*tallest), outward * random.uniform(6, 16)
    lit, shop = random.random() < 0.3, random.random() < 0.3
    colour, pen = canvas.paint("building"), canvas.pen(BUILDING, (near + far) / 2)
    pane = shade(colour, 1.35 if lit else 0.45)
    floors, columns = min(7, max(2, int(height / 3.2))), min(6, max(2, int((far - near) / 3)))
    storeys = spans(0, height, floors, (0.3, 0.8))

    left, ground = camera.project(x, 0, near)
    right, top = camera.project(x + depth, height, near)
    pen.box(left, top, right, ground, shade(colour, 0.82))
    pen.panels(x, [(near, far)], [(0, height)], colour)
    pen.panels(x, spans(near, far, columns, (0.25, 0.75)), storeys, pane)
    if near > 5:
        for start, end in spans(left, right, 3, (0.3, 0.7)):
            for low, high in storeys:
                pen.box(
                    start, camera.project(x, high, near)[1], end, camera.project(x, low, near)[1], shade(pane, 0.85)
                )
    if shop:
        pen.panels(x, [(near, far)], [(0, min(3.0, height / 4))], shade(colour, 0.6))


def wall(canvas: Canvas, x: float, near: float, far: float) -> None:
    """A garden wall of large blocks with a coping."""
    height = canvas.random.uniform(2.6, 4.4)
    colour, pen = canvas.paint("wall"), canvas.pen(WALL, (near + far) / 2)
    pen.panels(x, [(near, far)], [(0, height)], colour)
    courses, blocks = spans(0, height * 0.92, 4), max(3, round((far - near) / 1.8))
    pen.panels(x, spans(near, far, blocks, (0.0, 0.5)), courses[::2], shade(colour, 0.84))
    pen.panels(x, spans(near, far, blocks, (0.5, 1.0)), courses[1::2], shade(colour, 0.84))
    pen.panels(x, [(near, far)], [(height * 0.92, height)], shade(colour, 1.2))


def fence(canvas: Canvas, x: float, near: float, far: float) -> None:
    """A dense fence: bright pickets and two rails before a dark ground."""
    height = canvas.random.uniform(2.2, 3.4)
    colour, pen = canvas.paint("fence"), canvas.pen(FENCE, (near + far) / 2)
    bright = shade(colour, 1.6)
    pen.panels(x, [(near, far)], [(0, height * 0.95)], shade(colour, 0.65))
    pen.panels(x, spans(near, far, max(4, round((far - near) / 1.1)), (0.0, 0.45)), [(0, height)], bright)
    rails = spans(0.15 * height, 0.95 * height, 2, (0.3, 0.48))
    pen.panels(x, [(near, far)], rails, shade(bright, 0.9))


def tree(canvas: Canvas, x: float, z: float) -> None:
    """A trunk (vegetation, as in Cityscapes) and a crown of leaf clusters."""
    random, metre = canvas.random, canvas.camera.scale(z)
    height = random.uniform(4, 9) * metre
    colour, pen = canvas.paint("vegetation"), canvas.pen(VEGETATION, z)
    column, row = canvas.camera.project(x, 0, z)
    pen.box(column - 0.15 * metre, row - 0.5 * height, column + 0.15 * metre, row, canvas.paint("trunk"))
    for _ in range(9):
        middle = (column + random.uniform(-0.28, 0.28) * height, row - random.uniform(0.45, 0.95) * height)
        radii = (random.uniform(0.12, 0.22) * height, random.uniform(0.10, 0.20) * height)
        pen.ellipse(*middle, *radii, shade(colour, random.uniform(0.75, 1.25)))


def hedge(canvas: Canvas, x: float, outward: int, near: float, far: float) -> None:
    """A row of bushes, the far ones first."""
    random, colour = canvas.random, canvas.paint("vegetation")
    pen = canvas.pen(VEGETATION, (near + far) / 2)
    for z, _ in reversed(spans(near, far, int((far - near) / 1.3) + 2, (0.5, 1.0))):
        column, row = canvas.camera.project(x + outward * random.uniform(0, 1.5), 0, z)
        size = random.uniform(0.8, 2.2) * canvas.camera.scale(z)
        pen.ellipse(column, row - 0.4 * size, 0.8 * size, 0.6 * size, shade(colour, random.uniform(0.75, 1.25)))


def pole(canvas: Canvas, x: float, z: float, kind: PoleKind) -> None:
    """A pole with a lamp, a traffic light or a traffic sign."""
    metre, pen = canvas.camera.scale(z), canvas.pen(POLE, z)
    height = {"lamp": 6.5, "light": 3.6, "sign": 2.8}[kind] * canvas.random.uniform(0.9, 1.15)
    half = max(canvas.height / 160, 0.11 * metre)
    colour = canvas.paint("pole")
    column, row = canvas.camera.project(x, 0, z)
    top = row - height * metre
    pen.box(column - half, top, column + half, row, colour)
    if kind == "lamp":
        arm = -math.copysign(1.6, x) * metre
        pen.line([(column, top), (column + arm, top - 0.2 * metre)], colour, 1.6 * half)
    elif kind == "light":
        _traffic_light(canvas, (column, top), metre, z)
    else:
        _traffic_sign(canvas, (column, top + 0.1 * metre), 0.5 * metre, z)


def _traffic_light(canvas: Canvas, top: Point, metre: float, z: float) -> None:
    column, row = top
    pen, burning = canvas.pen(LIGHT, z), canvas.random.randrange(3)
    pen.box(column - 0.3 * metre, row - 0.3 * metre, column + 0.3 * metre, row + metre, canvas.paint("light"))
    for place, signal in enumerate(SIGNALS):
        colour = signal if place == burning else shade(signal, 0.3)
        pen.ellipse(column, row + (0.38 * place - 0.05) * metre, 0.15 * metre, 0.15 * metre, colour)


def _traffic_sign(canvas: Canvas, middle: Point, size: float, z: float) -> None:
    column, row = middle
    pen, shape = canvas.pen(SIGN, z), canvas.random.randrange(3)
    colour, face = canvas.paint("sign"), canvas.paint("sign face")
    for scale, fill in ((1.0, colour), (0.58, face)):
        half = size * scale
        if shape == 0:
            pen.ellipse(column, row, half, half, fill)
        elif shape == 1:
            low, high = row + 0.2 * size + 0.6 * half, row + 0.2 * size - 1.2 * half
            pen.polygon([(column - 1.1 * half, low), (column + 1.1 * half, low), (column, high)], fill)
        else:
            pen.box(column - half, row - half, column + half, row + 0.8 * half, fill)


# ---- vehicles ----


class Block(NamedTuple):
    """A vehicle's box: middle of its rear at x, z; metres."""

    x: float
    z: float
    width: float
    length: float
    height: float


class Face(NamedTuple):
    """The rear or front of a vehicle, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def part(self, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        """The part given as fractions of the face, in pixels."""
        width, height = self.right - self.left, self.bottom - self.top
        return self.left + left * width, self.top + top * height, self.left + right * width, self.top + bottom * height


def _visible_side(canvas: Canvas, block: Block) -> float:
    """The x of the side wall that the camera sees."""
    return block.x - math.copysign(block.width / 2, block.x - canvas.camera.offset)


def _shadow(canvas: Canvas, block: Block, road: Colour) -> None:
    metre, (column, row) = canvas.camera.scale(block.z), canvas.camera.project(block.x, 0, block.z)
    reach = (block.width / 2 + 0.1) * metre
    canvas.pen(ROAD).ellipse(column, row - 0.02 * metre, reach, 0.2 * metre, shade(road, 0.5))


def _wheels(canvas: Canvas, pen: Pen, block: Block, radius: float) -> None:
    """Two wheels on the visible side, two seen from behind."""
    side, metre = _visible_side(canvas, block), canvas.camera.scale(block.z)
    for z in (block.z + 0.2 * block.length, block.z + 0.8 * block.length):
        size = canvas.camera.scale(z) * radius
        pen.ellipse(*canvas.camera.project(side, radius, z), 0.55 * size, size, RUBBER)
    for share in (-0.4, 0.4):
        column, row = canvas.camera.project(block.x + share * block.width, 0, block.z)
        pen.box(column - 0.12 * metre, row - 0.5 * metre, column + 0.12 * metre, row, RUBBER)


def _body(canvas: Canvas, pen: Pen, block: Block, base: float, colour: Colour) -> Face:
    """Draw the visible side and the face of a box standing `base` metres above the ground."""
    far = block.z + block.length
    pen.panels(_visible_side(canvas, block), [(block.z, far)], [(base, block.height)], shade(colour, 0.75))
    left, bottom = canvas.camera.project(block.x - block.width / 2, base, block.z)
    right, top = canvas.camera.project(block.x + block.width / 2, block.height, block.z)
    pen.box(left, top, right, bottom, colour)
    return Face(left, top, right, bottom)


def car(canvas: Canvas, x: float, z: float, away: bool, road: Colour) -> None:
    """A car seen from behind (`away`) or from the front."""
    random, camera, pen = canvas.random, canvas.camera, canvas.pen(CAR, z)
    block = Block(x, z, random.uniform(1.7, 1.95), random.uniform(3.8, 4.7), random.uniform(1.4, 1.75))
    colour, glass, waist = canvas.paint("car"), canvas.paint("glass"), 0.58 * block.height
    _shadow(canvas, block, road)
    _wheels(canvas, pen, block, 0.36)
    side = _visible_side(canvas, block)
    inner = side + math.copysign(0.12 * block.width, x - side)
    outline = ((side, waist, 0.1), (inner, block.height, 0.25), (inner, block.height, 0.65), (side, waist, 0.85))
    pen.polygon([camera.project(at, y, z + share * block.length) for at, y, share in outline], shade(glass, 0.8))

    face = _body(canvas, pen, block._replace(height=waist), 0.28, colour)
    roof = camera.project(x, block.height, z + 0.25 * block.length)[1]
    metre, inset = camera.scale(z), 0.12 * (face.right - face.left)
    for rim, low, high, fill in (
        (0.0, face.top, roof, shade(colour, 0.9)),
        (0.6, face.top, roof + 0.12 * metre, glass),
    ):
        slant, low = inset * (1 + 0.4 * rim), low - 0.08 * rim * metre
        corners = (face.left + rim * inset, low), (face.left + slant, high), (face.right - slant, high)
        pen.polygon([*corners, (face.right - rim * inset, low)], fill)
    lamp = RED_LAMP if away else HEADLIGHT
    pen.box(*face.part(0.01, 0.2, 0.16, 0.42), lamp)
    pen.box(*face.part(0.84, 0.2, 0.99, 0.42), lamp)
    pen.box(*face.part(0.36, 0.55, 0.64, 0.72), (235, 235, 220))


def truck(canvas: Canvas, x: float, z: float, away: bool, road: Colour) -> None:
    """A lorry with a tall box body."""
    random, pen = canvas.random, canvas.pen(TRUCK, z)
    block = Block(x, z, 2.4, random.uniform(5, 9), random.uniform(3.0, 3.8))
    colour, glass = canvas.paint("truck"), canvas.paint("glass")
    _shadow(canvas, block, road)
    _wheels(canvas, pen, block, 0.5)
    face = _body(canvas, pen, block, 0.9, colour)
    pen.box(*face.part(0.0, 1.0, 1.0, 1.17), (50, 50, 54))
    if away:
        pen.line([face.part(0.5, 0, 1, 1)[:2], face.part(0.5, 1, 1, 1)[:2]], shade(colour, 0.55), canvas.height / 128)
        pen.box(*face.part(0.0, 1.04, 0.12, 1.11), RED_LAMP)
        pen.box(*face.part(0.88, 1.04, 1.0, 1.11), RED_LAMP)
    else:
        pen.box(*face.part(0.05, 0.45, 0.95, 0.72), glass)
        pen.box(*face.part(0.0, 0.0, 1.0, 0.35), shade(colour, 1.12))


def bus(canvas: Canvas, x: float, z: float, away: bool, road: Colour) -> None:
    """A city bus: large windows, a line display, stripes of side windows."""
    random, pen = canvas.random, canvas.pen(BUS, z)
    block = Block(x, z, 2.5, random.uniform(9, 12), random.uniform(2.9, 3.4))
    colour, glass = canvas.paint("bus"), canvas.paint("glass")
    _shadow(canvas, block, road)
    face, far = _body(canvas, pen, block, 0.3, colour), z + block.length
    windows = [(0.5 * block.height, 0.85 * block.height)]
    pen.panels(_visible_side(canvas, block), spans(z, far, 7, (0.12, 0.88)), windows, glass)
    pen.box(*face.part(0.04, 0.16, 0.96, 0.55), glass)
    pen.box(*face.part(0.16, 0.04, 0.84, 0.12), (240, 164, 50))
    for start in (0.03, 0.85):
        pen.box(*face.part(start, 0.74, start + 0.12, 0.82), RED_LAMP if away else HEADLIGHT)
    _wheels(canvas, pen, block, 0.5)


def train(canvas: Canvas, x: float, z: float) -> None:
    """A tram beside the road: a long band of glass, bright doors, a dark roof line."""
    random, pen = canvas.random, canvas.pen(TRAIN, z)
    block = Block(x, z, 2.6, random.uniform(22, 40), random.uniform(3.4, 3.9))
    colour, glass = canvas.paint("train"), canvas.paint("glass")
    height, far, side = block.height, z + block.length, _visible_side(canvas, block)
    face = _body(canvas, pen, block, 0.2, colour)
    pen.panels(side, [(z, far)], [(0.46 * height, 0.84 * height)], glass)
    pen.panels(side, spans(z, far, 4, (0.03, 0.17)), [(0.3, 0.86 * height)], shade(colour, 1.15))
    pen.panels(side, [(z, far)], [(0.93 * height, height)], shade(colour, 0.5))
    pen.box(*face.part(0.08, 0.12, 0.92, 0.5), glass)
    metre = canvas.camera.scale(z)
    for share in (0.15, 0.85):
        column, row = face.part(share, 0.7, 1, 1)[:2]
        pen.ellipse(column, row, 0.14 * metre, 0.14 * metre, HEADLIGHT)


# ---- people and two-wheelers ----


def pedestrian(canvas: Canvas, x: float, z: float) -> None:
    """A walking person."""
    height = canvas.random.uniform(1.5, 1.9) * canvas.camera.scale(z)
    _human(canvas, canvas.camera.project(x, 0, z), height, PERSON, z)


def _human(canvas: Canvas, foot: Point, height: float, label: int, z: float) -> None:
    """A person (walking) or rider (sitting) with the feet at `foot`; `height` in pixels."""
    random, (column, row), pen = canvas.random, foot, canvas.pen(label, z)
    material = "rider" if label == RIDER else "person"
    shirt, trousers, skin = canvas.paint(material), shade(canvas.paint(material), 0.6), canvas.paint("skin")
    half = 0.16 * height * random.uniform(0.85, 1.15)
    stride, hip = random.uniform(0.2, 0.9) * half, row - 0.48 * height
    if label == RIDER:
        knee = row - 0.05 * height
        legs = [(column - 0.7 * half, hip), (column + 0.7 * half, hip), (column + 0.9 * half, knee)]
        pen.polygon([*legs, (column - 0.2 * half, knee)], trousers)
    else:
        for way in (-1, 1):
            legs = [(column + 0.6 * way * half, hip), (column, hip), (column + 0.3 * way * stride, row)]
            pen.polygon([*legs, (column + way * (stride + 0.2 * half), row)], trousers)
    pen.box(column - 0.72 * half, row - 0.84 * height, column + 0.72 * half, hip + 0.03 * height, shirt)
    pen.ellipse(column, row - 0.91 * height, 0.085 * height, 0.10 * height, skin)
    if label == RIDER and random.random() < 0.6:
        pen.ellipse(column, row - 0.955 * height, 0.09 * height, 0.06 * height, canvas.paint("rider"))


def cycle(canvas: Canvas, x: float, z: float, motor: bool, ridden: bool) -> None:
    """A motorcycle or bicycle, seen from the side or foreshortened, with or without its rider."""
    metre, turned = canvas.camera.scale(z), canvas.random.choice((1.0, 1.0, 0.5))
    foot = canvas.camera.project(x, 0, z)
    if ridden:
        _human(canvas, (foot[0], foot[1] - 0.38 * metre), 1.55 * metre, RIDER, z)
    (_motorcycle if motor else _bicycle)(canvas, foot, metre, turned, z)


def _motorcycle(canvas: Canvas, foot: Point, metre: float, turned: float, z: float) -> None:
    (column, row), pen, colour = foot, canvas.pen(MOTORCYCLE, z), canvas.paint("motorcycle")
    length, radius = 1.15 * metre * turned, 0.33 * metre
    for way in (-0.5, 0.5):
        pen.ellipse(column + way * length, row - radius, radius * turned, radius, RUBBER)
        pen.ellipse(column + way * length, row - radius, 0.45 * radius * turned, 0.45 * radius, (96, 96, 100))
    tank = ((-0.6, 0.55), (-0.1, 0.9), (0.5, 0.85), (0.35, 0.3), (-0.35, 0.3))
    pen.polygon([(column + along * length, row - up * metre) for along, up in tank], colour)
    bar = [(column + 0.35 * length, row - 0.8 * metre), (column + 0.55 * length, row - 1.1 * metre)]
    pen.line(bar, RUBBER, 0.07 * metre)


def _bicycle(canvas: Canvas, foot: Point, metre: float, turned: float, z: float) -> None:
    (column, row), pen, colour = foot, canvas.pen(BICYCLE, z), canvas.paint("bicycle")
    length, radius = metre * turned, 0.34 * metre
    distant = metre < 0.11 * canvas.height
    for way in (-0.5, 0.5):
        hub = (column + way * length, row - radius)
        if distant:
            pen.ellipse(*hub, radius * turned, radius, shade(colour, 0.5))
        pen.ring(*hub, radius * turned, radius, RUBBER, 0.09 * metre)
    rear, saddle, head, pedals, front = (
        (column + along * length, row - up * metre)
        for along, up in ((-0.5, 0.34), (-0.1, 0.75), (0.4, 0.75), (0.0, 0.27), (0.5, 0.34))
    )
    for tube in ([rear, saddle, head, pedals, rear], [head, front], [pedals, saddle]):
        pen.line(tube, colour, 0.1 * metre)
    bar = [(column + 0.36 * length, row - 0.98 * metre), (column + 0.45 * length, row - 0.7 * metre)]
    pen.line(bar, RUBBER, 0.1 * metre)
