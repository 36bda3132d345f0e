"""Charts as inline SVG in one style: colours, text and lines follow the page's style sheet, light or dark.

Sizes are those of a phone's column; a page scales them by its width. Coordinates are data's until `_Plane` places them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from udaseg.report.figures import COLOURS, ticks
from udaseg.report.tables import clean

WIDTH, HEIGHT = 440, 270
LEFT, TOP, RIGHT, FOOT = 44, 22, WIDTH - 14, HEIGHT - 40  # of the plane in a chart of curves
DARK = ("#79a8ff", "#ff9a5c", "#43c9a8", "#d58be6", "#e3bb4b", "#ff8098", "#9ccc5f", "#a7b2c0")
"""``COLOURS`` on dark pages."""
STYLE = """
svg { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; overflow: visible }
svg text { fill: currentColor; fill-opacity: .72 } svg .grid { stroke: currentColor; stroke-opacity: .13 }
svg .axis { stroke: currentColor; stroke-opacity: .45 }
svg .end { text-anchor: end } svg .middle { text-anchor: middle }
svg .value { fill-opacity: 1; font-size: 10.5px; font-variant-numeric: tabular-nums }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round } svg .thin { stroke-width: 1.4; stroke-opacity: .85 }
svg .dashed { stroke-dasharray: 5 4 } svg .hollow { fill: none; stroke-width: 2 }
""" + "".join(
    f":root {{ --c{i}: {light} }} @media (prefers-color-scheme: dark) {{ :root {{ --c{i}: {dark} }} }}\n"
    f".c{i} {{ stroke: var(--c{i}); border-color: var(--c{i}) }}\n"
    f".f{i} {{ fill: var(--c{i}); background: var(--c{i}) }}\n"
    for i, (light, dark) in enumerate(zip(COLOURS, DARK, strict=True))
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """``points``: (x, y, deviation or None). ``published``: hollow points on a dashed line. One point without an x
    (NaN) is a level, drawn across."""

    name: str
    points: Sequence[tuple[float, float, float | None]]
    colour: int
    published: bool = False
    dots: bool = True


@dataclass(frozen=True)
class _Plane:
    """Data -> drawing."""

    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False

    def across(self, value: float) -> float:
        low, high, value = (math.log10(v) for v in (*self.x, value)) if self.log else (*self.x, value)
        return round(LEFT + (value - low) / ((high - low) or 1) * (RIGHT - LEFT), 1)

    def down(self, value: float) -> float:
        low, high = self.y
        return round(FOOT - (value - low) / (high - low) * (FOOT - TOP), 1)


def lines(series: Sequence[Series], *, x_label: str, y_label: str, title: str) -> str:
    """Curves; a logarithmic x where the values spread over more than a factor of 30 and no log is of iterations."""
    placed = [x for s in series for x, _, _ in s.points if math.isfinite(x)]
    values = [y + side * (dev or 0) for s in series for _, y, dev in s.points for side in (-1, 1)]
    low, high, marks = min(placed), max(placed), sorted({x for s in series if s.dots for x, _, _ in s.points if x == x})
    log = bool(marks) and low > 0 and high / low > 30
    xs, ys = ticks(low, high), ticks(min(values), max(values))
    ends = xs[0], xs[-1]
    if marks:  # a little room on both sides
        room = (high / low) ** 0.06 if log else 0.06 * (high - low) or 1.0
        ends = (low / room, high * room) if log else (low - room, high + room)
        powers = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)] if log else xs
        xs = marks if len(marks) <= 9 else [x for x in powers if ends[0] <= x <= ends[1]]
    plane = _Plane(ends, (ys[0], ys[-1]), log)
    body = [*axes(plane, xs, ys, x_label, y_label), *(drawn(s, plane) for s in series)]
    return svg(title, HEIGHT, body)


def axes(plane: _Plane, xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str) -> list[str]:
    found = []
    for y in ys:
        at = plane.down(y)
        found.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{at}" y2="{at}"/>')
        found.append(f'<text class="end" x="{LEFT - 7}" y="{at + 4}">{y:g}</text>')
    for x in xs:
        at = plane.across(x)
        found.append(f'<line class="axis" x1="{at}" x2="{at}" y1="{FOOT}" y2="{FOOT + 4}"/>')
        found.append(f'<text class="middle" x="{at}" y="{FOOT + 17}">{compact(x)}</text>')
    found.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{FOOT}" y2="{FOOT}"/>')
    found.append(f'<text class="end" x="{RIGHT}" y="{HEIGHT - 4}">{words(x_label)}</text>')
    found.append(f'<text x="{LEFT - 37}" y="10">{words(y_label)}</text>')
    return found


def compact(value: float) -> str:
    """40000 as 40k."""
    return f"{value / 1000:g}k" if value >= 10000 else f"{value:g}"


def drawn(series: Series, plane: _Plane) -> str:
    """One curve with its deviations and points, or a level across."""
    kind = f"c{series.colour % len(COLOURS)}"
    dashes = " dashed" if series.published else ""
    levels = [y for x, y, _ in series.points if not math.isfinite(x)]
    if levels:
        at = plane.down(levels[0])
        return f'<line class="{kind} line thin{dashes}" x1="{LEFT}" x2="{RIGHT}" y1="{at}" y2="{at}"/>'
    spots = [(plane.across(x), plane.down(y)) for x, y, _ in series.points]
    path = " ".join(f"{x},{y}" for x, y in spots)
    found = [f'<polyline class="{kind} line{"" if series.dots else " thin"}{dashes}" points="{path}"/>']
    for (x, y, dev), (at, down) in zip(series.points, spots, strict=True):
        if dev:
            found.append(
                f'<line class="{kind}" x1="{at}" x2="{at}" y1="{plane.down(y - dev)}" y2="{plane.down(y + dev)}"/>'
            )
        if series.dots:
            look = f"hollow {kind}" if series.published else f"f{series.colour % len(COLOURS)}"
            tip = f"{words(series.name)}: {x:g}, {y:.1f}" + (f" ± {dev:.1f}" if dev else "")
            found.append(f'<circle class="{look}" cx="{at}" cy="{down}" r="4"><title>{tip}</title></circle>')
    return "".join(found)


@dataclass(frozen=True)
class Bars:
    """A value (NaN: none) for each class, in percent; ``published`` as a mark across the bar where there is one."""

    name: str
    values: Sequence[float]
    published: Sequence[float | None]
    colour: int


def bars(classes: Sequence[str], methods: Sequence[Bars], *, title: str) -> str:
    """Horizontal bars, one below the other for each class; a single method's have their values beside them."""
    thick = 9 if len(methods) == 1 else 7
    row = thick * len(methods) + 9
    left, room, foot = 104, WIDTH - 104 - 34, 10 + row * len(classes)

    def across(value: float) -> float:
        return round(left + room * value / 100, 1)

    body = []
    for mark in range(0, 101, 25):
        body.append(f'<line class="grid" x1="{across(mark)}" x2="{across(mark)}" y1="6" y2="{foot}"/>')
        body.append(f'<text class="middle" x="{across(mark)}" y="{foot + 16}">{mark}</text>')
    for i, name in enumerate(classes):
        top = 10 + i * row
        body.append(f'<text class="end" x="{left - 8}" y="{top + (row - 9) / 2 + 4}">{words(name)}</text>')
        for j, method in enumerate(methods):
            y, value, printed = top + j * thick, method.values[i], method.published[i]
            if math.isfinite(value):
                tip = f"{words(method.name)}: {value:.1f}" + ("" if printed is None else f", published {printed:.1f}")
                shape = f'x="{left}" y="{y}" width="{across(value) - left:.1f}" height="{thick - 1}" rx="1.5"'
                body.append(f'<rect class="f{method.colour % len(COLOURS)}" {shape}><title>{tip}</title></rect>')
                if len(methods) == 1:
                    beyond = across(max(value, printed or 0)) + 5
                    body.append(f'<text class="value" x="{beyond}" y="{y + thick - 1}">{value:.1f}</text>')
            if printed is not None:
                at = across(printed)
                body.append(f'<line class="axis" stroke-width="2" x1="{at}" x2="{at}" y1="{y - 1}" y2="{y + thick}"/>')
    return svg(title, foot + 22, body)


def svg(title: str, height: float, body: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{words(title)}">{"".join(body)}</svg>'


def words(text: str) -> str:
    return escape(clean(text))
