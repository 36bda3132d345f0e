"""Read images and label files; nothing is ever misread silently.

`read_image` is strict, as a data set should be: 8 bits a channel, pixels as stored. `as_rgb` takes any picture a person
has, for predictions. Every failure is a UserError that names its file. What differs from the public code: the bit depth
is checked in the PNG header (Pillow opens 16-bit RGB PNGs without an error and returns only the high bytes), colour
copies of labels are inverted, polygons are drawn when they are read, checksums are checked when a label is counted.

Shapes: H, W pixels.
"""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFile, ImageOps, UnidentifiedImageError

from udaseg.data.classes import CITYSCAPES_COLOURS, CITYSCAPES_NAMES, UNKNOWN_COLOUR
from udaseg.errors import UserError
from udaseg.files import refuse_special

Bytes = npt.NDArray[np.uint8]
Colours = tuple[tuple[tuple[int, int, int], int], ...]
"""(RGB colour, raw label value) rows."""


@dataclass(frozen=True)
class Pixels:
    """How a label file holds its raw values.

    `index`: palette index or gray level; a file that was expanded to colours is inverted with `colours`, if there are
    any. `colour`: colours, whatever the format. `red`: the red channel in 8 or 16 bits. `polygons`: Cityscapes JSON.
    """

    kind: Literal["index", "colour", "red", "polygons"] = "index"
    colours: Colours = ()


STREET_PIXELS = Pixels(colours=tuple(CITYSCAPES_COLOURS.items()))

_PNG = b"\x89PNG\r\n\x1a\n"
_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, EOFError, RecursionError),
    *(struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
)
"""What Pillow and json raise for damaged files."""


# ------------------------------------------------------------------------------------------------------- any picture


def as_rgb(image: Image.Image | Bytes | str | Path) -> Bytes:
    """(H,W,3) uint8 RGB of a file, a Pillow image, or such an array; UserError for anything else.

    Grey, palette and CMYK images become RGB, transparency is dropped, EXIF rotation is applied, of 16 bits the high
    eight are kept (no stretching: equal values stay equal from image to image). Of several frames the first is read.
    """
    if isinstance(image, (str, Path)):
        refuse_special(image)
        with _reading_picture(image), Image.open(image) as picture:
            return _from_pillow(picture)
    if isinstance(image, Image.Image):
        with _reading_picture(getattr(image, "filename", "") or "the image"):
            return _from_pillow(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"an image is a path, a Pillow image or a uint8 RGB array (H, W, 3), not {what}")
    if not image.size:
        raise UserError(f"an image without pixels: {image.shape}")
    return image


@contextmanager
def _reading_picture(name: str | Path) -> Iterator[None]:
    """Failures become UserErrors. Damaged tags and up to 179 MP are no reason to refuse a person's picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnidentifiedImageError:
        raise UserError(f"{name}: not an image, or in a format that Pillow does not know") from None
    except _DAMAGE as error:
        raise UserError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _from_pillow(picture: Image.Image) -> Bytes:
    upright = ImageOps.exif_transpose(picture)
    if upright.mode == "F":
        raise UserError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    if not upright.mode.startswith("I"):
        return np.array(upright.convert("RGB"))
    values = np.asarray(upright)
    if values.min() < 0 or values.max() > 65535:
        raise UserError("its pixels have more than 16 bits; save it with 8 or 16")
    return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)


# --------------------------------------------------------------------------------------------- images of a data set


def read_image(path: Path) -> Bytes:
    """(H,W,3) RGB. Raises UserError for a missing, truncated, corrupt or 16-bit file."""
    with _opened(path) as picture:
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))  # no copies: decoding is slow


def image_size(path: Path) -> tuple[int, int]:
    """(w, h) from the header; UserError if the file does not end as its format must (cut off while downloading).

    No pixels are decoded where it does: damage in the middle of a file shows when it is read.
    """
    with _opened(path) as picture, path.open("rb") as file:
        if not picture.tile:
            raise UserError(f"{path} has no image data; download or unpack it again.")
        end, pixels = _ENDS.get(picture.format or "", b""), picture.fp.tell() if picture.fp else 0
        for start in (path.stat().st_size - 64, pixels):  # telephones put a film or notes behind a photo
            file.seek(max(start, 0))
            if end in file.read():
                return picture.size
    raise UserError(f"{path} is cut off before its end; download or unpack it again.")


@contextmanager
def _opened(path: Path, *, deep: bool = False) -> Iterator[ImageFile.ImageFile]:
    """An opened 8-bit image (`deep`: or 16-bit).

    Pillow warns of 89 megapixels, which is an error here (street images have 2): a small file that expands to gigabytes
    is refused.
    """
    refuse_special(path)
    with _reading(path), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as picture:
            # Pillow reads the high byte only of a 16-bit RGB PNG: a label of small ids would become all zeros
            if not deep and (_png_depth(path) == 16 or picture.mode.startswith(("I", "F"))):
                bits = 32 if picture.mode in ("I", "F") and _png_depth(path) == 8 else 16
                raise UserError(f"{path} has {bits} bits per channel, not 8: use the official files, or convert it.")
            yield picture


@contextmanager
def _reading(path: Path, how: str = "") -> Iterator[None]:
    """Every failure becomes a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; was the data set moved? Run its `udaseg prepare` again.") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is too large to be an image of this data set ({error}).") from None
    except _DAMAGE as error:
        raise UserError(f"{path} cannot be read{how} ({error}); download or unpack it again.") from None


def _png_depth(path: Path) -> int:
    """Bits per channel as the PNG header states it; 8 for other formats."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[24] if head[:8] == _PNG and len(head) == 26 else 8


# ------------------------------------------------------------------------------------------------------------ labels


def count_values(path: Path, pixels: Pixels = STREET_PIXELS) -> tuple[npt.NDArray[np.int64], tuple[int, int]]:
    """((256,) pixels of each raw label value, (w, h)) of a label file, without an array where Pillow can count.

    Checks the checksums of a PNG, which Pillow does not: damage in the middle of a label would be other classes.
    """
    _check_png(path)
    if pixels.kind == "index":
        with _label_picture(path) as picture:
            if picture.mode in ("P", "L"):
                return np.array(picture.histogram(), dtype=np.int64), picture.size
    values = read_label(path, pixels)
    return np.bincount(values.ravel(), minlength=256), (values.shape[1], values.shape[0])


def read_label(path: Path, pixels: Pixels = STREET_PIXELS) -> Bytes:
    """(H,W) raw label values; 254 is a colour that no table lists. Raises UserError as `read_image`."""
    if pixels.kind == "polygons":
        return _polygons(path)
    if pixels.kind == "red":
        return _red(path)
    with _label_picture(path) as picture:
        return _values(path, picture, pixels)


def unknown_colours(path: Path, pixels: Pixels) -> str:
    """The commonest colours of a label file that no table lists, as "r,g,b", at most three; empty if it has values."""
    with _label_picture(path) as picture:
        if pixels.kind != "colour" and picture.mode not in ("RGB", "RGBA"):
            return ""
        rgb = np.array(picture.convert("RGB"))
    strange, pixel_counts = np.unique(rgb[read_label(path, pixels) == UNKNOWN_COLOUR], axis=0, return_counts=True)
    return " and ".join(",".join(map(str, strange[i])) for i in np.argsort(-pixel_counts, kind="stable")[:3])


def _check_png(path: Path) -> None:
    try:
        data = path.read_bytes()
    except OSError:
        return  # reading it as an image says what is wrong
    at = len(_PNG)
    while data.startswith(_PNG) and at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big") or end + 4 > len(data):
            raise UserError(f"{path} is damaged (wrong checksum); download or unpack it again.")
        if data[at + 4 : at + 8] == b"IEND":
            return
        at = end + 4


@contextmanager
def _label_picture(path: Path) -> Iterator[Image.Image]:
    with _opened(path) as picture:
        if picture.mode not in ("P", "L", "1", "RGB", "RGBA"):
            raise UserError(f"{path} has pixel format {picture.mode}; labels are 8-bit palette, gray or RGB files.")
        yield picture


def _values(path: Path, picture: Image.Image, pixels: Pixels) -> Bytes:
    if pixels.kind == "index" and picture.mode not in ("RGB", "RGBA"):
        return np.array(picture, dtype=np.uint8)  # palette: the index, never the colour
    if not pixels.colours:
        raise UserError(
            f"{path} holds colours; labels of this data set are 8-bit palette or gray files (colours are read where a "
            "YAML file of your own says `kind: colour`)."
        )
    return _from_colours(np.array(picture.convert("RGB")), pixels.colours)


def _from_colours(rgb: Bytes, colours: Colours) -> Bytes:
    """(H,W,3) colours -> (H,W) raw values."""
    keys, values = _colour_table(colours)
    code = (rgb[..., 0].astype(np.int32) << 16) + (rgb[..., 1].astype(np.int32) << 8) + rgb[..., 2]
    at = np.minimum(np.searchsorted(keys, code), len(keys) - 1)
    return np.where(keys[at] == code, values[at], np.uint8(UNKNOWN_COLOUR))


@cache
def _colour_table(colours: Colours) -> tuple[npt.NDArray[np.int32], Bytes]:
    codes = {(r << 16) + (g << 8) + b: value for (r, g, b), value in colours}
    keys = sorted(codes)
    return np.array(keys, dtype=np.int32), np.array([codes[k] for k in keys], dtype=np.uint8)


def _red(path: Path) -> Bytes:
    """The red channel (SYNTHIA's class; the others number instances), or a gray copy of it.

    A file of zeros only is an error: that is what a program leaves behind that reads 8 of the 16 bits.
    """
    if _png_depth(path) == 16:
        if _one_byte(path, "B").any():
            raise UserError(f"{path} has values above 255 in its red channel; that is no label of this data set.")
        values = _one_byte(path, "L")
    else:
        with _label_picture(path) as picture:
            array = np.array(picture, dtype=np.uint8)
        values = array if array.ndim == 2 else array[..., 0]
    if not values.any():
        raise UserError(f"{path} is all zeros: it was copied by a program that cannot read 16-bit files.")
    return values


def _one_byte(path: Path, order: Literal["B", "L"]) -> Bytes:
    """(H,W) the high ("B") or low ("L") byte of each red value in a 16-bit colour PNG.

    Pillow decodes all of it and then keeps one byte a value: the first as for big-endian (PNG) files, the second if
    told that the file is little-endian.
    """
    with _opened(path, deep=True) as picture:
        tiles, mode = picture.tile, picture.mode
        if mode not in ("RGB", "RGBA") or picture.info.get("interlace") or [t[3] for t in tiles] != [f"{mode};16B"]:
            raise UserError(f"{path} is no plain 16-bit colour PNG (not interlaced, RGB); use the official file.")
        picture.tile = [(*tiles[0][:3], f"{mode};16{order}")]  # type: ignore[list-item]
        return np.array(picture)[..., 0]


def _polygons(path: Path) -> Bytes:
    """Cityscapes label ids, drawn as the official tool does: in the order of the file, deleted objects and license
    plates not at all, a group ("cargroup") as its class, what nothing covers as 0 (unlabelled)."""
    with _reading(path, " as polygons"):
        scene = json.loads(path.read_bytes())
        width, height = int(scene["imgWidth"]), int(scene["imgHeight"])
        if not 0 < width * height <= 2**26:
            raise ValueError(f"{width}x{height} pixels")
        picture = Image.new("L", (width, height), 0)
        pen = ImageDraw.Draw(picture)
        for item in scene["objects"]:
            name = item["label"]
            name = name if name in CITYSCAPES_NAMES else name.removesuffix("group")
            if name not in CITYSCAPES_NAMES:
                raise ValueError(f"unknown label {item['label']!r}")
            if not item.get("deleted") and CITYSCAPES_NAMES[name] >= 0:
                pen.polygon([(x, y) for x, y in item["polygon"]], fill=CITYSCAPES_NAMES[name])
        return np.array(picture)
