"""The scene grammar: which things stand where in a street. Shared by both domains; only its statistics differ."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import NamedTuple

from udaseg.data.streets import things
from udaseg.data.streets.canvas import FARTHEST, Canvas, shade
from udaseg.data.streets.palette import (
    BUILDING,
    EGO,
    ROAD,
    SIDEWALK,
    SKY,
    TERRAIN,
    VEGETATION,
    Colour,
    Layout,
)

FACADES, TRACKS, STREET = 0, 1, 2
"""Painting order of what is drawn after the ground: facades are behind tracks, tracks behind the street."""


class Item(NamedTuple):
    """Something to draw: by layer, and within it the far ones first."""

    layer: int
    z: float
    draw: Callable[[], None]


class Side(NamedTuple):
    """One side of the street; metres."""

    kerb: float  # x of the road's edge
    outward: int  # -1 left, +1 right
    sidewalk: float  # width
    setback: float  # from the sidewalk to the facades
    tracks: bool

    def beyond(self, distance: float) -> float:
        """The x at a distance outward of the kerb."""
        return self.kerb + self.outward * distance


class Street(NamedTuple):
    """The plan of a street."""

    sides: tuple[Side, Side]
    lanes: int
    colour: Colour

    @property
    def left(self) -> float:
        return self.sides[0].kerb

    @property
    def right(self) -> float:
        return self.sides[1].kerb

    def lane_middles(self) -> list[float]:
        """The x of every lane's middle."""
        return [middle for middle, _ in things.spans(self.left, self.right, self.lanes, (0.5, 1.0))]


def paint_scene(canvas: Canvas, layout: Layout) -> None:
    """Draw a whole street scene: sky, ground, everything that stands on it, and the own car's bonnet."""
    street = _plan(canvas, layout)
    _sky(canvas)
    _skyline(canvas)
    _ground(canvas, street)
    _marks(canvas, street)
    items = [item for side in street.sides for item in _beside(canvas, layout, street, side)]
    items += _traffic(canvas, layout, street) + _cycles(canvas, layout, street)
    for item in sorted(items, key=lambda item: (item.layer, -item.z)):
        item.draw()
    _bonnet(canvas, layout)


def _plan(canvas: Canvas, layout: Layout) -> Street:
    random = canvas.random
    half = random.uniform(*layout.half_road)
    shift = random.uniform(-0.35, 0.15) * half
    tracks = random.choice((-1, 1)) if random.random() < layout.train else 0
    left, right = (
        Side(
            kerb=shift + outward * half,
            outward=outward,
            sidewalk=random.uniform(*layout.sidewalk),
            setback=random.uniform(*layout.setback) + (3.2 if outward == tracks else 0.0),
            tracks=outward == tracks,
        )
        for outward in (-1, 1)
    )
    return Street((left, right), random.randint(*layout.lanes), canvas.paint("road"))


# ---- background and ground ----


def _sky(canvas: Canvas) -> None:
    random, pen = canvas.random, canvas.pen(SKY, FARTHEST)
    colour, cloud = canvas.paint("sky"), canvas.paint("cloud")
    width, horizon = canvas.width, canvas.camera.horizon
    for line in range(int(horizon) + 1):
        pen.box(0, line, width, line, shade(colour, 0.88 + 0.17 * line / horizon))
    for _ in range(random.randrange(4)):
        column, row = random.uniform(0, width), random.uniform(0, 0.6) * horizon
        for _ in range(3):
            radii = (random.uniform(0.08, 0.25) * canvas.height, random.uniform(0.02, 0.05) * canvas.height)
            pen.ellipse(column, row, *radii, cloud)
            column, row = column + random.uniform(-0.8, 0.8) * radii[0], row + random.uniform(-0.8, 0.8) * radii[1]


def _skyline(canvas: Canvas) -> None:
    """The ground up to the horizon, and distant houses and trees on it."""
    random, unit = canvas.random, canvas.height / 128
    horizon, foot = canvas.camera.horizon, canvas.camera.project(0, 0, FARTHEST)[1]
    canvas.pen(TERRAIN).box(0, horizon, canvas.width, canvas.height, canvas.paint("terrain"))
    houses, woods = canvas.pen(BUILDING, FARTHEST), canvas.pen(VEGETATION, FARTHEST)
    woods.box(0, horizon - unit, canvas.width, foot, canvas.paint("vegetation"))
    column = -10.0 * unit
    while column < canvas.width:
        width, kind = random.uniform(10, 40) * unit, random.random()
        if kind < 0.5:
            houses.box(column, horizon - random.uniform(3, 16) * unit, column + width, foot, canvas.paint("building"))
        elif kind < 0.85:
            height = random.uniform(3, 9) * unit
            woods.ellipse(column + width / 2, horizon, 0.6 * width, height, canvas.paint("vegetation"))
            canvas.pen(TERRAIN).box(column - width, foot, column + 2 * width, foot + height, canvas.paint("terrain"))
        column += 0.8 * width


def _ground(canvas: Canvas, street: Street) -> None:
    random, pen, colour = canvas.random, canvas.pen(SIDEWALK), canvas.paint("sidewalk")
    for side in street.sides:
        paved, square = random.random() < 0.9, random.random() < 0.35 and not side.tracks
        width = side.sidewalk + (8 if square else 0)
        if paved or square:
            pen.ground(side.kerb, side.beyond(width), 2, FARTHEST, colour, 9)
        if paved:
            pen.ground(side.kerb, side.beyond(0.25), 2, FARTHEST, shade(colour, 0.85), 9)
        if side.tracks:
            for distance in (1.0, 2.4):
                rail = side.sidewalk + distance
                canvas.pen(TERRAIN).ground(side.beyond(rail), side.beyond(rail + 0.15), 2, 90, (92, 90, 92), 9)
    canvas.pen(ROAD).ground(street.left, street.right, 2, FARTHEST, street.colour, 9)


def _marks(canvas: Canvas, street: Street) -> None:
    """Lane lines, sometimes a zebra crossing and a patch of other asphalt."""
    random, pen = canvas.random, canvas.pen(ROAD)
    if random.random() < 0.3:
        z, middle = random.uniform(4, 25), random.uniform(street.left, street.right)
        pen.ground(middle, street.right, z, z + 4, shade(street.colour, 0.88))
    mark, centre = canvas.paint("mark"), canvas.paint("centre mark")
    for lane in range(1, street.lanes):
        x = street.left + (street.right - street.left) * lane / street.lanes
        if lane == street.lanes // 2 and random.random() < 0.5:
            pen.ground(x - 0.08, x + 0.08, 2.2, 90, centre, 9)
            continue
        z = random.uniform(2.2, 6)
        while z < 60:
            pen.ground(x - 0.09, x + 0.09, z, z + 2.5, mark)
            z += 6
    if random.random() < 0.25:
        z = random.uniform(6, 16)
        for start, end in things.spans(street.left, street.right, int(street.right - street.left), (0.25, 0.75)):
            pen.ground(start, end, z, z + 3, mark)


def _bonnet(canvas: Canvas, layout: Layout) -> None:
    random, colour = canvas.random, canvas.paint("ego")
    visible, rise = random.random() < layout.ego, random.uniform(0.05, 0.075)
    if visible:
        half, middle = 0.8 * canvas.height, canvas.width / 2
        canvas.pen(EGO).ellipse(middle, canvas.height * (1.1 - rise), half, 0.1 * canvas.height, colour)


# ---- what stands beside the road ----


def _beside(canvas: Canvas, layout: Layout, street: Street, side: Side) -> list[Item]:
    items = _facades(canvas, layout, side) + _street_trees(canvas, side) + _poles(canvas, layout, side)
    items += _pedestrians(canvas, layout, street, side) + _parked(canvas, street, side)
    if side.tracks:
        z = canvas.random.uniform(8, 22)
        items.append(Item(TRACKS, z, partial(things.train, canvas, side.beyond(side.sidewalk + 1.7), z)))
    return items


def _facades(canvas: Canvas, layout: Layout, side: Side) -> list[Item]:
    """Houses, walls, fences, trees and gaps one after the other along the street."""
    random, items = canvas.random, list[Item]()
    kinds, weights = list(layout.segments), list(layout.segments.values())
    near = random.uniform(1.8, 5)
    while near < 75:
        kind, length = random.choices(kinds, weights)[0], random.uniform(8, 22)
        items += _segment(canvas, layout, side, kind, near, near + 0.97 * length)
        near += length
    return items


def _segment(canvas: Canvas, layout: Layout, side: Side, kind: str, near: float, far: float) -> list[Item]:
    random, tall = canvas.random, layout.building_height
    x = side.beyond(side.sidewalk + side.setback)

    def house(distance: float) -> Item:
        at = x + side.outward * distance
        return Item(FACADES, far + 0.1, partial(things.building, canvas, at, side.outward, near, far, tall))

    def bushes(distance: float) -> Item:
        at = x + side.outward * distance
        return Item(FACADES, far, partial(things.hedge, canvas, at, side.outward, near, far))

    if kind == "building":
        return [house(0)]
    if kind == "wall":
        return [Item(FACADES, far, partial(things.wall, canvas, x, near, far)), *([house(6)] * (random.random() < 0.5))]
    if kind == "fence":
        behind = random.choice(([house(6)], [bushes(4)], []))
        return [*behind, Item(FACADES, far, partial(things.fence, canvas, x, near, far))]
    if kind == "trees":
        items = [bushes(0)] * (random.random() < 0.6)
        for _ in range(random.randint(1, 3)):
            z, at = random.uniform(max(near, 3.5), far), x + side.outward * random.uniform(0, 3)
            items.append(Item(FACADES, z, partial(things.tree, canvas, at, z)))
        return items
    return []


def _street_trees(canvas: Canvas, side: Side) -> list[Item]:
    random, x = canvas.random, side.beyond(0.8 * side.sidewalk)
    if random.random() >= 0.25:
        return []
    places = [6 + place * random.uniform(7, 10) for place in range(4)]
    return [Item(STREET, z, partial(things.tree, canvas, x, z)) for z in places]


def _poles(canvas: Canvas, layout: Layout, side: Side) -> list[Item]:
    random, items = canvas.random, list[Item]()
    kinds: tuple[things.PoleKind, ...] = ("lamp", "light", "sign")
    for _ in range(random.randint(1, layout.most_poles)):
        z, x = 4 + 50 * random.random() ** 2.2, side.beyond(random.uniform(0.3, 1.0))
        kind = random.choices(kinds, (0.4, 0.25, 0.35))[0]
        items.append(Item(STREET, z, partial(things.pole, canvas, x, z, kind)))
    return items


def _pedestrians(canvas: Canvas, layout: Layout, street: Street, side: Side) -> list[Item]:
    random, items = canvas.random, list[Item]()
    for _ in range(_count(random, 0.7 * layout.persons, 0.4, 12)):
        z = 4.5 + 26 * random.random() ** 1.9
        x = side.beyond(random.uniform(0.3, side.sidewalk + 0.3))
        if random.random() < 0.15:
            x = random.uniform(street.left, street.right)
        items.append(Item(STREET, z, partial(things.pedestrian, canvas, x, z)))
    return items


def _parked(canvas: Canvas, street: Street, side: Side) -> list[Item]:
    random, items = canvas.random, list[Item]()
    if random.random() >= 0.55:
        return items
    z, x = random.uniform(5, 14), side.beyond(-1.2)
    for _ in range(random.randint(1, 4)):
        items.append(Item(STREET, z, partial(things.car, canvas, x, z, side.outward > 0, street.colour)))
        z += random.uniform(5.5, 8)
    return items


# ---- what moves on the road ----


def _count(random: Random, mean: float, extra: float, most: int) -> int:
    """A number of things: exponentially distributed, plus `extra`, rounded down, at most `most`."""
    return min(most, int(random.expovariate(1 / mean) + extra))


def _traffic(canvas: Canvas, layout: Layout, street: Street) -> list[Item]:
    """Cars, lorries and buses, one after the other in their lanes."""
    random, items, lanes = canvas.random, list[Item](), street.lane_middles()
    free_from = dict.fromkeys(lanes, 5.0)
    wanted = [(things.truck, 9.0)] * (random.random() < layout.truck) + [(things.bus, 12.0)] * (
        random.random() < layout.bus
    )
    wanted += [(things.car, 5.0)] * _count(random, 0.6 * layout.cars, 0.5, 6)
    random.shuffle(wanted)
    for thing, length in wanted:
        lane = random.choice(lanes)
        z = max(free_from[lane], 5.0 + 40 * random.random() ** 1.6) + (0.0 if thing is things.car else 2.0)
        free_from[lane] = z + length + 1
        x = lane + random.uniform(-0.3, 0.3)
        away = x > canvas.camera.offset - 0.5
        items.append(Item(STREET, z, partial(thing, canvas, x, z, away, street.colour)))
    return items


def _cycles(canvas: Canvas, layout: Layout, street: Street) -> list[Item]:
    random, items = canvas.random, list[Item]()
    for _ in range(_count(random, layout.cycles, 0.45, 8)):
        z = 4.2 + 14 * random.random() ** 1.5
        motor, ridden = random.random() < 0.4, random.random() < 0.7
        parked_at = random.choice((street.left - 0.8, street.right + 0.8))
        riding_at = random.uniform(street.left + 0.5, street.right - 0.5)
        x = riding_at if ridden else parked_at
        items.append(Item(STREET, z, partial(things.cycle, canvas, x, z, motor, ridden)))
    return items
