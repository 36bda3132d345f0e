"""Pictures: coloured label maps and panels of images side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]
COLOURS = ("#2563c9", "#d2601a", "#14866d", "#a03cb4", "#b8860b", "#c2314f", "#4b7f1d", "#5f6b7a")
"""Of series in charts of any kind."""


def colour(label: Pixels, palette: Sequence[tuple[int, int, int]]) -> Pixels:
    """Train ids (H, W) -> RGB (H, W, 3); ignored pixels are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table[label]


def panel(rows: Sequence[Sequence[Pixels]], headers: Sequence[str], *, width: int = 384, gap: int = 6) -> Image.Image:
    """A grid of RGB images of one shape, each shown ``width`` pixels wide, under column headers."""
    height = round(width * rows[0][0].shape[0] / rows[0][0].shape[1])
    font = ImageFont.load_default(size=18)
    top = 34
    size = (len(headers) * (width + gap) + gap, top + len(rows) * (height + gap))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, text in enumerate(headers):
        draw.text((gap + column * (width + gap) + width / 2, top / 2), text, fill="black", font=font, anchor="mm")
        for row, images in enumerate(rows):
            tile = Image.fromarray(images[column]).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(tile, (gap + column * (width + gap), top + row * (height + gap)))
    return canvas


def legend(names: Sequence[str], palette: Sequence[tuple[int, int, int]], *, width: int) -> Image.Image:
    """The classes' colours with their names, in as many lines as it takes."""
    font = ImageFont.load_default(size=15)
    canvas = Image.new("RGB", (width, 24 * len(names)), "white")
    draw = ImageDraw.Draw(canvas)
    x, y = 8, 4
    for name, colour_ in zip(names, palette, strict=True):
        step = 28 + int(draw.textlength(name, font=font))
        if x + step > width:
            x, y = 8, y + 24
        draw.rectangle((x, y + 2, x + 14, y + 16), fill=tuple(colour_), outline="gray")
        draw.text((x + 19, y), name, fill="black", font=font)
        x += step
    return canvas.crop((0, 0, width, y + 26))


def stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Images under one another on white."""
    canvas = Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images)), "white")
    y = 0
    for image in images:
        canvas.paste(image, (0, y))
        y += image.height
    return canvas


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover the range."""
    step = max(high - low, 1e-9) / about
    unit = 10.0 ** math.floor(math.log10(step))
    step = unit * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * unit >= step * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def bars(labels: Sequence[str], values: npt.NDArray[np.float64], names: Sequence[str], *, title: str) -> Image.Image:
    """One group of horizontal bars a label, one bar a series: values (series, labels); NaN is left out."""
    font, left, width, thick = ImageFont.load_default(size=14), 130, 520, 10
    row, top = thick * len(names) + 12, 36
    palette = [ImageColor.getrgb(COLOURS[i % len(COLOURS)])[:3] for i in range(len(names))]
    foot = top + row * len(labels)
    canvas = Image.new("RGB", (left + width + 30, foot + 30), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 8), title, fill="black", font=ImageFont.load_default(size=18))
    finite = values[np.isfinite(values)]
    marks = ticks(min(0.0, *finite), max(0.0, *finite))

    def x(value: float) -> float:
        return left + width * (value - marks[0]) / (marks[-1] - marks[0])

    for mark in marks:
        draw.line((x(mark), top, x(mark), foot), fill="#dddddd")
        draw.text((x(mark), foot + 12), f"{mark:g}", fill="black", font=font, anchor="mm")
    for place, text in enumerate(labels):
        y = top + row * place + 6
        draw.text((left - 8, y + (row - 12) / 2), text, fill="black", font=font, anchor="rm")
        for value, fill in zip(values[:, place], palette, strict=True):
            if np.isfinite(value):
                draw.rectangle((min(x(value), x(0)), y, max(x(value), x(0)), y + thick - 2), fill=fill)
            y += thick
    return stacked([canvas, legend(names, palette, width=canvas.width)])


def scatter(
    points: npt.NDArray[np.floating],
    label: npt.NDArray[np.int64],
    filled: npt.NDArray[np.bool_],
    palette: Sequence[tuple[int, int, int]],
    *,
    title: str,
    side: int = 640,
) -> Image.Image:
    """Points (N, 2) in the colours of their classes: filled dots (target) and rings (source)."""
    canvas = Image.new("RGB", (side, side + 30), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 6), f"{title}: dots target, rings source", fill="black", font=ImageFont.load_default(size=15))
    spread = np.maximum(points.max(0) - points.min(0), 1e-9)
    places = (points - points.min(0)) / spread * (side - 20) + 10
    for (x, y), c, dot in zip(places, label, filled, strict=True):
        box = (x - 3, y + 27, x + 3, y + 33)
        draw.ellipse(box, fill=tuple(palette[c]) if dot else None, outline=tuple(palette[c]))
    return canvas
