"""Read images and label files; nothing is ever misread silently.

Shapes: H, W pixels. Source: baselines (GTA5 palette PNGs hold label ids as palette indices; Pillow opens 16-bit RGB
PNGs without an error and returns only the high bytes). What differs from the public code: the bit depth is checked in
the PNG header, colour copies of labels are inverted, and every failure names its file.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from udaseg.data.classes import CITYSCAPES_COLOURS, UNKNOWN_COLOUR
from udaseg.errors import UserError

Bytes = npt.NDArray[np.uint8]

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An opened 8-bit image, every failure turned into a UserError that names the file.

    Pillow's limit on the number of pixels is kept (89 MP warn, 179 MP fail; street images have 2 MP), the warning is
    an error here: a small file that expands to gigabytes is refused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                _refuse_16_bit(path, picture)
                yield picture
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; was the data set moved? Run its `udaseg prepare` again.") from None
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise UserError(f"{path} cannot be read ({error}); download or unpack it again.") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is too large to be an image of this data set ({error}).") from None


def _png_depth(path: Path) -> int:
    """Bits per channel as the PNG header states it; 8 for other formats."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[24] if head[:8] == _PNG and len(head) == 26 else 8


def _refuse_16_bit(path: Path, picture: Image.Image) -> None:
    """Pillow reads the high byte only of a 16-bit RGB PNG: a label of small ids would become all zeros."""
    if _png_depth(path) == 16 or picture.mode.startswith("I;16"):
        raise UserError(f"{path} has 16 bits per channel; this data set has 8-bit files. Download its official files.")


def read_image(path: Path) -> Bytes:
    """(H,W,3) RGB. Raises UserError for a missing, truncated, corrupt or 16-bit file."""
    with _opened(path) as picture:
        return np.array(picture.convert("RGB"))


def read_label(path: Path) -> Bytes:
    """(H,W) raw label values: palette index, gray level, or the label id of an official colour (254: unknown)."""
    with _label_picture(path) as picture:
        return _values(picture)


def count_values(path: Path) -> tuple[npt.NDArray[np.int64], tuple[int, int]]:
    """((256,) pixels of each raw label value, (w, h)) of a label file, without an array where Pillow can count."""
    with _label_picture(path) as picture:
        if picture.mode in ("P", "L"):
            return np.array(picture.histogram(), dtype=np.int64), picture.size
        return np.bincount(_values(picture).ravel(), minlength=256), picture.size


@contextmanager
def _label_picture(path: Path) -> Iterator[Image.Image]:
    with _opened(path) as picture:
        if picture.mode not in ("P", "L", "1", "RGB", "RGBA"):
            raise UserError(f"{path} has pixel format {picture.mode}; labels are 8-bit palette, gray or RGB files.")
        yield picture


def _values(picture: Image.Image) -> Bytes:
    if picture.mode in ("RGB", "RGBA"):
        return _from_colours(np.array(picture.convert("RGB")))
    return np.array(picture, dtype=np.uint8)  # palette: the index, never the colour


@cache
def _colour_table() -> tuple[npt.NDArray[np.int32], Bytes]:
    codes = {(r << 16) + (g << 8) + b: value for (r, g, b), value in CITYSCAPES_COLOURS.items()}
    keys = sorted(codes)
    return np.array(keys, dtype=np.int32), np.array([codes[k] for k in keys], dtype=np.uint8)


def _from_colours(rgb: Bytes) -> Bytes:
    """(H,W,3) official colours -> (H,W) label ids."""
    keys, values = _colour_table()
    code = (rgb[..., 0].astype(np.int32) << 16) + (rgb[..., 1].astype(np.int32) << 8) + rgb[..., 2]
    at = np.minimum(np.searchsorted(keys, code), len(keys) - 1)
    return np.where(keys[at] == code, values[at], np.uint8(UNKNOWN_COLOUR))


def image_size(path: Path) -> tuple[int, int]:
    """(w, h) from the header; UserError if the file does not end as its format must (cut off while downloading).

    No pixels are decoded: damage in the middle of a file shows when it is read.
    """
    with _opened(path) as picture:
        size, kind = picture.size, picture.format
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(file.tell() - 64, 0))
        tail = file.read()
    if (kind == "PNG" and _PNG_END not in tail) or (kind == "JPEG" and _JPEG_END not in tail):
        raise UserError(f"{path} is cut off before its end; download or unpack it again.")
    return size
