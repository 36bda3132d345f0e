"""Any picture a person has, as (H, W, 3) uint8 RGB.

Grey, palette and CMYK images become RGB, transparency is dropped, EXIF rotation is applied, of 16 bits the high eight
are kept (no stretching: equal values stay equal from image to image). Of several frames the first is read.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from udaseg.data.images import Bytes
from udaseg.errors import UserError


def as_rgb(image: Image.Image | Bytes | str | Path) -> Bytes:
    """(H, W, 3) uint8 RGB of a Pillow image, such an array, or a file; UserError for anything else."""
    if isinstance(image, (str, Path)):
        with _readable(image), Image.open(image) as picture:
            return _from_pillow(picture)
    if isinstance(image, Image.Image):
        with _readable(getattr(image, "filename", "") or "the image"):
            return _from_pillow(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"an image is a path, a Pillow image or a uint8 RGB array (H, W, 3), not {what}")
    if not image.size:
        raise UserError(f"an image without pixels: {image.shape}")
    return image


@contextmanager
def _readable(name: str | Path) -> Iterator[None]:
    """UserError that names the picture and the reason for whatever cannot be read; no warnings about damaged tags."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of too many pixels, too: twice as many are still refused
            yield
    except UnidentifiedImageError:
        raise UserError(f"{name}: not an image, or in a format that Pillow does not know") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
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
