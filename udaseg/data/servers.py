"""What benchmark servers want of a submission: how many files, their names, sizes and pixel values.

Confirmed in public sources, 2026-11:
- Cityscapes: label ids, one file an image, found as `<city>_<seq>_<frame>*.png` in any folder (cityscapesScripts,
  evalPixelLevelSemanticLabeling.py); images by city (HRNet's test.lst).
- ACDC: train ids, 1920x1080 (its submission page, as DTBS's README quotes it); a folder `labelTrainIds` of files with
  the images' own names (DAFormer's tools/test.py with its README's options; VBLC's README zips that folder).
- Dark Zurich: train ids; folders `labelTrainIds`, `labelTrainIds_invalid` and `confidence` at the top of the zip, a
  file of every image in each (SePiCo's README, DANNet's issues 4 and 11); confidences of 16 bits, 65535 = 1 (CIConv).
Not confirmed, for nothing was sent to a server: which other layouts are taken, the limits of an upload, and what Dark
Zurich's server makes of constant confidences.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from udaseg.data.classes import CITYSCAPES_IDS, TRAIN_IDS
from udaseg.data.images import Bytes, Pixels, count_values
from udaseg.data.index import Index
from udaseg.errors import UserError
from udaseg.files import write_atomic


@dataclass(frozen=True)
class Server:
    """One benchmark's rules. `images`: folder that test images lie in -> how many there are.

    `folders` of the zip hold the predictions (copies of one another), `confidence` a constant 16-bit map of each.
    """

    dataset: str
    images: Mapping[str, int]
    size: tuple[int, int]  # (w, h) of every file
    values: tuple[int, ...]  # pixel value of each train id
    name: str  # what an image's file name must match; group 1 is kept
    ending: str  # follows group 1 in a prediction's name
    page: str
    folders: tuple[str, ...] = ("",)
    confidence: str = ""
    note: str = ""


_ANONYMOUS = r"(.+_frame_\d{6})_rgb_anon\.\w+"
SERVERS: dict[str, Server] = {
    "cityscapes": Server(
        "cityscapes",
        {"berlin": 544, "bielefeld": 181, "bonn": 46, "leverkusen": 58, "mainz": 298, "munich": 398},
        size=(2048, 1024),
        values=tuple(CITYSCAPES_IDS),
        name=r"([a-z-]+_\d{6}_\d{6})_leftImg8bit\.\w+",
        ending="_labelIds.png",
        page="https://www.cityscapes-dataset.com/submit/",
    ),
    "acdc": Server(
        "acdc",
        {"fog": 500, "night": 500, "rain": 500, "snow": 500},
        size=(1920, 1080),
        values=tuple(TRAIN_IDS),
        name=_ANONYMOUS,
        ending="_rgb_anon.png",
        page="https://acdc.vision.ee.ethz.ch/submit",
        folders=("labelTrainIds/",),
    ),
    "dark_zurich": Server(
        "dark_zurich",
        {"test": 151},
        size=(1920, 1080),
        values=tuple(TRAIN_IDS),
        name=_ANONYMOUS,
        ending="_rgb_anon.png",
        page="https://codalab.lisn.upsaclay.fr/competitions/3783",
        folders=("labelTrainIds/", "labelTrainIds_invalid/"),
        confidence="confidence/",
        note="No pixel is called invalid and all confidences are 1: of the server's scores only the IoU has a meaning.",
    ),
}
"""By name; `dark-zurich` is `dark_zurich`."""
_OFFICIAL = "the server knows its own images only; use the official test archive and prepare the data set again."


def prediction_names(server: Server, index: Index) -> list[str]:
    """The file name of each image's prediction; UserError unless the images are exactly those the server counts."""
    _check_number(server, index)
    for pair, size in zip(index.pairs, index.sizes.tolist(), strict=True):
        if tuple(size) != server.size:
            raise UserError(f"{index.root / pair.image} is {size[0]}x{size[1]}, not {_by(server.size)}: {_OFFICIAL}")
    names = []
    for pair in index.pairs:
        match = re.fullmatch(server.name, pair.image.name)
        if match is None or match[1] + server.ending in names:
            problem = "is no official file name" if match is None else "has the name of another image"
            raise UserError(f"{index.root / pair.image} {problem}: {_OFFICIAL}")
        names.append(match[1] + server.ending)
    return names


def _check_number(server: Server, index: Index) -> None:
    """By folder, or in all where folders do not tell (ACDC as DAFormer flattens it)."""
    total = sum(server.images.values())
    counts = Counter(next((part for part in pair.image.parts if part in server.images), "") for pair in index.pairs)
    if counts in (server.images, {"": total}):
        return
    wanted = {"": total} if set(counts) == {""} else {**dict.fromkeys(counts, 0), **server.images}
    lines = [f"  {k or 'other folders'}: {counts[k]} of {n}" for k, n in wanted.items() if counts[k] != n]
    lines += [f"  {name}: {reason}" for name, reason in index.left_out[:10]]
    head = f"The server expects {total} images of {server.dataset} test and {index.root} has {len(index)}:"
    raise UserError("\n".join([head, *lines, "Complete them, run `udaseg prepare` again, then the same command."]))


def encode(server: Server, prediction: Bytes) -> bytes:
    """(H,W) train ids -> 8-bit gray PNG of the server's values."""
    return _png(np.array(server.values, dtype=np.uint8)[prediction])


def check_prediction(server: Server, file: Path) -> None:
    """UserError unless it is a whole 8-bit PNG of the right size with allowed values only."""
    try:
        pixels, size = count_values(file, Pixels())
        strange = sorted(set(np.flatnonzero(pixels).tolist()) - set(server.values))
        if size != server.size:
            raise UserError(f"{file} is {_by(size)}, not {_by(server.size)}")
        if strange:
            raise UserError(f"{file} has the values {strange}, which {server.dataset} does not allow")
    except UserError as error:
        raise UserError(f"{error}\nDelete {file}; the same command predicts it again.") from None


def pack(server: Server, files: Sequence[Path], target: Path) -> None:
    """The zip of all predictions, whole or not at all, then read back. PNGs are stored: they are compressed already."""
    members = [(folder + file.name, file) for folder in server.folders for file in files]
    confident = [server.confidence + file.name for file in files if server.confidence]
    ones = _png(np.full(server.size[::-1], 65535, dtype=np.uint16))

    def write(handle: io.BufferedIOBase) -> None:
        with zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
            for name, file in members:
                archive.write(file, name)
            for name in confident:
                archive.writestr(name, ones)

    write_atomic(target, write)  # type: ignore[arg-type]
    with zipfile.ZipFile(target) as archive:
        if archive.testzip() or archive.namelist() != [*(name for name, _ in members), *confident]:
            raise UserError(f"{target} does not read back as it was written; delete it and give --out on another disk.")


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
