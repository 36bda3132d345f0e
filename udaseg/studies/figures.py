"""Pictures: coloured label maps and panels of images side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]


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


SERIES = ("#3b6ea8", "#d97b29", "#4f9a4b", "#b04a4a", "#7d5ba6", "#8a6d5a", "#c46fa9", "#777777")


def bars(labels: Sequence[str], values: npt.NDArray[np.float64], names: Sequence[str], *, title: str) -> Image.Image:
    """One group of bars a label, one bar a series: values (series, labels); NaN is left out."""
    font, left, top, height, bottom = ImageFont.load_default(size=14), 60, 40 + 20 * len(names), 260, 120
    slot = max(10 * len(names) + 12, 40)
    canvas = Image.new("RGB", (left + slot * len(labels) + 20, top + height + bottom), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((left, 8), title, fill="black", font=ImageFont.load_default(size=18))
    finite = values[np.isfinite(values)]
    low, high = min(0.0, *finite), max(0.0, *finite) or 1.0

    def y(value: float) -> float:
        return top + height * (high - value) / (high - low)

    for tick in np.linspace(low, high, 5):
        draw.line((left, y(tick), canvas.width - 20, y(tick)), fill="#dddddd")
        draw.text((left - 6, y(tick)), f"{tick:.2g}", fill="black", font=font, anchor="rm")
    for series, name in enumerate(names):
        fill = SERIES[series % len(SERIES)]
        draw.rectangle((left, 38 + 20 * series, left + 12, 50 + 20 * series), fill=fill)
        draw.text((left + 18, 44 + 20 * series), name, fill="black", font=font, anchor="lm")
        for place, value in enumerate(values[series]):
            x = left + place * slot + 6 + 10 * series
            if np.isfinite(value):
                draw.rectangle((x, min(y(value), y(0)), x + 8, max(y(value), y(0))), fill=fill)
    for place, text in enumerate(labels):
        canvas.paste(upright(text, font), (left + place * slot + slot // 2 - 9, top + height + 6))
    return canvas


def upright(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    """Text that reads from bottom to top."""
    tile = Image.new("RGB", (110, 18), "white")
    ImageDraw.Draw(tile).text((110, 9), text, fill="black", font=font, anchor="rm")
    return tile.rotate(90, expand=True)


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
