"""The scene grammar: which things stand where in a street. Shared by both domains; only its statistics differ."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from udaseg.data.streets import things
from udaseg.data.streets.canvas import FARTHEST, Canvas, shade, spans
from udaseg.data.streets.palette import SEGMENTS
from udaseg.data.streets.things import Plot

FACADES, TRACKS, STREET = 0, 1, 2
"""Painting order of what is drawn after the ground: facades are behind tracks, tracks behind the street."""


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


class Scene:
    """A street: its plan, and the things in it that are still to be drawn."""

    def __init__(self, canvas: Canvas) -> None:
        self.canvas, self.random, self.layout = canvas, canvas.random, canvas.layout
        self.things: list[tuple[int, float, Callable[[], None]]] = []
        half = canvas.between("half road")
        middle = self.random.uniform(-0.35, 0.15) * half
        tracks, self.sides = self.random.choice((-1, 1)) if canvas.chance("train") else 0, list[Side]()
        for outward in (-1, 1):
            sidewalk, setback = canvas.between("sidewalk"), canvas.between("setback")
            setback += 3.2 if outward == tracks else 0.0
            self.sides.append(Side(middle + outward * half, outward, sidewalk, setback, outward == tracks))
        self.left, self.right = self.sides[0].kerb, self.sides[1].kerb
        self.lanes, self.asphalt = self.random.randint(*self.layout["lanes"]), canvas.paint("road")

    def paint(self) -> None:
        """Draw it all: sky, ground, everything that stands on it, and the own car's bonnet."""
        for paint in (self._sky, self._skyline, self._ground, self._marks):
            paint()
        for side in self.sides:
            for plan in (self._facades, self._kerbside, self._vehicles):
                plan(side)
        self._traffic()
        self._cycles()
        for _, _, draw in sorted(self.things, key=lambda thing: (thing[0], -thing[1])):
            draw()
        self._bonnet()

    def _add(self, layer: int, z: float, thing: Callable[..., None], *details: Any) -> None:
        """Plan to draw a thing: by layer, and within it the far ones first."""
        self.things.append((layer, z, partial(thing, self.canvas, *details)))

    def _count(self, mean: float, extra: float, most: int) -> int:
        """A number of things: exponentially distributed, plus `extra`, rounded down, at most `most`."""
        return min(most, int(self.random.expovariate(1 / mean) + extra))

    def _sky(self) -> None:
        canvas, uniform, pen = self.canvas, self.random.uniform, self.canvas.pen("sky", FARTHEST)
        colour, cloud, horizon = canvas.paint("sky"), canvas.paint("cloud"), canvas.horizon
        for line in range(int(horizon) + 1):
            pen.box(0, line, canvas.width, line, shade(colour, 0.88 + 0.17 * line / horizon))
        for _ in range(self.random.randrange(4)):
            column, row = uniform(0, canvas.width), uniform(0, 0.6) * horizon
            for _ in range(3):
                radius_x, radius_y = uniform(0.08, 0.25) * canvas.height, uniform(0.02, 0.05) * canvas.height
                pen.ellipse(column, row, radius_x, radius_y, cloud)
                column, row = column + uniform(-0.8, 0.8) * radius_x, row + uniform(-0.8, 0.8) * radius_y

    def _skyline(self) -> None:
        """The ground up to the horizon, and distant houses and trees on it."""
        canvas, uniform, unit = self.canvas, self.random.uniform, self.canvas.height / 128
        horizon, foot = canvas.horizon, canvas.project(0, 0, FARTHEST)[1]
        ground, houses, woods = (canvas.pen(label, FARTHEST) for label in ("terrain", "building", "vegetation"))
        ground.box(0, horizon, canvas.width, canvas.height, canvas.paint("terrain"))
        woods.box(0, horizon - unit, canvas.width, foot, canvas.paint("vegetation"))
        column = -10.0 * unit
        while column < canvas.width:
            width, kind = uniform(10, 40) * unit, self.random.random()
            if kind < 0.5:
                houses.box(column, horizon - uniform(3, 16) * unit, column + width, foot, canvas.paint("building"))
            elif kind < 0.85:
                height = uniform(3, 9) * unit
                woods.ellipse(column + width / 2, horizon, 0.6 * width, height, canvas.paint("vegetation"))
                ground.box(column - width, foot, column + 2 * width, foot + height, canvas.paint("terrain"))
            column += 0.8 * width

    def _ground(self) -> None:
        canvas, random, colour = self.canvas, self.random, self.canvas.paint("sidewalk")
        pavement, rails = canvas.pen("sidewalk"), canvas.pen("terrain")
        for side in self.sides:
            paved, square = random.random() < 0.9, random.random() < 0.35 and not side.tracks
            if paved or square:
                width = side.sidewalk + (8 if square else 0)
                pavement.ground(side.kerb, side.beyond(width), 2, FARTHEST, colour, 9)
            if paved:
                pavement.ground(side.kerb, side.beyond(0.25), 2, FARTHEST, shade(colour, 0.85), 9)
            for distance in (side.sidewalk + 1.0, side.sidewalk + 2.4) if side.tracks else ():
                rails.ground(side.beyond(distance), side.beyond(distance + 0.15), 2, 90, (92, 90, 92), 9)
        canvas.pen("road").ground(self.left, self.right, 2, FARTHEST, self.asphalt, 9)

    def _marks(self) -> None:
        """Lane lines, sometimes a zebra crossing and a patch of other asphalt."""
        random, pen = self.random, self.canvas.pen("road")
        if random.random() < 0.3:
            z, middle = random.uniform(4, 25), random.uniform(self.left, self.right)
            pen.ground(middle, self.right, z, z + 4, shade(self.asphalt, 0.88))
        mark, centre = self.canvas.paint("mark"), self.canvas.paint("centre mark")
        for lane, (x, _) in enumerate(spans(self.left, self.right, self.lanes)[1:], 1):
            if lane == self.lanes // 2 and random.random() < 0.5:
                pen.ground(x - 0.08, x + 0.08, 2.2, 90, centre, 9)
                continue
            z = random.uniform(2.2, 6)
            while z < 60:
                pen.ground(x - 0.09, x + 0.09, z, z + 2.5, mark)
                z += 6
        if random.random() < 0.25:
            z = random.uniform(6, 16)
            for left, right in spans(self.left, self.right, int(self.right - self.left), (0.25, 0.75)):
                pen.ground(left, right, z, z + 3, mark)

    def _bonnet(self) -> None:
        canvas, height = self.canvas, self.canvas.height
        if canvas.chance("ego"):
            row = height * (1.1 - self.random.uniform(0.05, 0.075))
            canvas.pen("ego").ellipse(canvas.width / 2, row, 0.8 * height, 0.1 * height, canvas.paint("ego"))

    def _facades(self, side: Side) -> None:
        """Houses, walls, fences, trees and gaps one after the other along the street."""
        random, x = self.random, side.beyond(side.sidewalk + side.setback)
        near = random.uniform(1.8, 5)
        while near < 75:
            kind, length = random.choices(SEGMENTS, self.layout["segments"])[0], random.uniform(8, 22)
            self._segment(kind, Plot(x, side.outward, near, near + 0.97 * length))
            near += length

    def _segment(self, kind: str, plot: Plot) -> None:
        random, add = self.random, partial(self._add, FACADES)
        if kind == "building":
            add(plot.far + 0.1, things.building, plot)
        elif kind == "trees":
            if random.random() < 0.6:
                add(plot.far, things.hedge, plot)
            for _ in range(random.randint(1, 3)):
                z = random.uniform(max(plot.near, 3.5), plot.far)
                add(z, things.tree, plot.behind(random.uniform(0, 3)).x, z)
        elif kind in ("wall", "fence"):
            behind = random.random() < 0.5 if kind == "wall" else random.choice((True, "hedge", False))
            if behind == "hedge":
                add(plot.far, things.hedge, plot.behind(4))
            elif behind:
                add(plot.far + 0.1, things.building, plot.behind(6))
            add(plot.far, things.wall if kind == "wall" else things.fence, plot)

    def _kerbside(self, side: Side) -> None:
        """Perhaps a row of trees; poles; pedestrians, a few of them on the road."""
        random = self.random
        if random.random() < 0.25:
            for z in [6 + place * random.uniform(7, 10) for place in range(4)]:
                self._add(STREET, z, things.tree, side.beyond(0.8 * side.sidewalk), z)
        for _ in range(random.randint(1, self.layout["most poles"])):
            z, x = 4 + 50 * random.random() ** 2.2, side.beyond(random.uniform(0.3, 1.0))
            self._add(STREET, z, things.pole, x, z, random.choices(list(things.POLES), (0.4, 0.25, 0.35))[0])
        for _ in range(self._count(0.7 * self.layout["persons"], 0.4, 12)):
            z, x = 4.5 + 26 * random.random() ** 1.9, side.beyond(random.uniform(0.3, side.sidewalk + 0.3))
            if random.random() < 0.15:
                x = random.uniform(self.left, self.right)
            self._add(STREET, z, things.human, x, z, "person")

    def _vehicles(self, side: Side) -> None:
        """Perhaps parked cars; the tram."""
        random = self.random
        if random.random() < 0.55:
            z = random.uniform(5, 14)
            for _ in range(random.randint(1, 4)):
                self._add(STREET, z, things.car, side.beyond(-1.2), z, side.outward > 0, self.asphalt)
                z += random.uniform(5.5, 8)
        if side.tracks:
            z = random.uniform(8, 22)
            self._add(TRACKS, z, things.train, side.beyond(side.sidewalk + 1.7), z)

    def _traffic(self) -> None:
        """Cars, lorries and buses, one after the other in their lanes."""
        random, canvas = self.random, self.canvas
        lanes = [middle for middle, _ in spans(self.left, self.right, self.lanes, (0.5, 1.0))]
        free_from = dict.fromkeys(lanes, 5.0)
        wanted = [(things.truck, 9.0)] * canvas.chance("truck") + [(things.bus, 12.0)] * canvas.chance("bus")
        wanted += [(things.car, 5.0)] * self._count(0.6 * self.layout["cars"], 0.5, 6)
        random.shuffle(wanted)
        for thing, length in wanted:
            lane = random.choice(lanes)
            z = max(free_from[lane], 5.0 + 40 * random.random() ** 1.6) + (0.0 if thing is things.car else 2.0)
            free_from[lane], x = z + length + 1, lane + random.uniform(-0.3, 0.3)
            self._add(STREET, z, thing, x, z, x > canvas.offset - 0.5, self.asphalt)

    def _cycles(self) -> None:
        random = self.random
        for _ in range(self._count(self.layout["cycles"], 0.45, 8)):
            z = 4.2 + 14 * random.random() ** 1.5
            kind, ridden = "motorcycle" if random.random() < 0.4 else "bicycle", random.random() < 0.7
            parked_at = random.choice((self.left - 0.8, self.right + 0.8))
            riding_at = random.uniform(self.left + 0.5, self.right - 0.5)
            self._add(STREET, z, things.cycle, riding_at if ridden else parked_at, z, kind, ridden)
