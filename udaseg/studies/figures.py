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
