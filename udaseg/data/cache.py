"""A copy of a split at training size: every pixel as the resize would give it, without decoding a file.

Two raw files (images RGB, labels as stored in the data set, resized) lie one image after the other under the data home,
read through a memory map, so a crop touches only its own pages. Labels keep their raw values: which class a value
means is looked up when it is read, so another class table needs no other copy.

N images; sizes (w, h).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from udaseg.data.images import Bytes
from udaseg.data.index import Index, index_path
from udaseg.data.layouts import data_home, dataset_spec
from udaseg.data.parallel import Progress, results
from udaseg.data.transforms import Size, keep_ratio_size
from udaseg.errors import UserError
from udaseg.files import check_room, write_json

FORMAT = 1  # raise when files are read or resized to other pixels
IMAGES, LABELS, STATE = "images.bin", "labels.bin", "state.json"

Load = Callable[[int], tuple[Bytes, Bytes | None]]
"""Image number -> (H,W,3) and (H,W) at training size."""


@dataclass(frozen=True)
class Cached:
    """A whole copy. It opens its files for each read, so it costs nothing to send to another process."""

    folder: Path
    sizes: tuple[Size, ...]
    starts: npt.NDArray[np.int64]  # (N+1,) first pixel of each image
    labelled: bool

    @property
    def files(self) -> dict[str, int]:
        """File -> bytes a pixel."""
        return {IMAGES: 3, **({LABELS: 1} if self.labelled else {})}

    def image(self, i: int) -> Bytes:
        """(H,W,3), read only."""
        w, h = self.sizes[i]
        return np.asarray(np.memmap(self.folder / IMAGES, np.uint8, "r", 3 * int(self.starts[i]), (h, w, 3)))

    def label(self, i: int) -> Bytes | None:
        """(H,W) raw label values, read only; None where the split has no labels."""
        w, h = self.sizes[i]
        if not self.labelled:
            return None
        return np.asarray(np.memmap(self.folder / LABELS, np.uint8, "r", int(self.starts[i]), (h, w)))


def find(index: Index, size: Size | None) -> Cached | None:
    """The copy of a split, if it is whole and made of these very files."""
    if size is None or not (cached := layout(index, size)).folder.is_dir():
        return None
    return cached if _done(cached, index) == len(index) else None


def layout(index: Index, size: Size) -> Cached:
    """Where everything lies in the copy of a split in a box of `size`, there or not."""
    sizes = tuple(keep_ratio_size((int(w), int(h)), size) for w, h in index.sizes)
    starts = np.cumsum([0, *(w * h for w, h in sizes)], dtype=np.int64)
    place = index_path(dataset_spec(index.dataset), index.split, index.root)
    return Cached(place.parent / "cache" / f"{place.stem}-{size[0]}x{size[1]}", sizes, starts, index.labelled)


def build(index: Index, size: Size, load: Load, *, workers: int | None = 0, progress: Progress | None = None) -> Cached:
    """Write what is missing of the copy. UserError, before anything is written, when the disk is too small."""
    cached = layout(index, size)
    check_disk(room_needed(index, size))
    first = done = _done(cached, index)
    key = _key(index)

    def record() -> None:
        """The pixels first, then the number: a record never promises what is not on the disk."""
        for name in cached.files:
            with (cached.folder / name).open("r+b") as file:
                os.fsync(file.fileno())
        write_json(cached.folder / STATE, {"key": key, "done": done})

    write_json(cached.folder / STATE, {"key": key, "done": done})  # before a lost file is there again, full of zeros
    for name, channels in cached.files.items():
        with (cached.folder / name).open("ab") as file:
            file.truncate(channels * int(cached.starts[-1]))
    copy, jobs = partial(_copy, cached, load), range(first, len(index))
    try:
        for _ in results(copy, jobs, workers, progress=progress, done=first, save=record):
            done += 1
    finally:
        record()
    return cached


def missing_bytes(index: Index, size: Size) -> int:
    """Disk that `build` will still take."""
    cached = layout(index, size)
    return int(cached.starts[-1] - cached.starts[_done(cached, index)]) * sum(cached.files.values())


def room_needed(index: Index, size: Size) -> int:
    """Disk that must be free for `build`, which writes over a stale copy."""
    cached = layout(index, size)
    if _done(cached, index):
        return missing_bytes(index, size)
    files = [cached.folder / name for name in cached.files if (cached.folder / name).is_file()]
    stale = sum(getattr(path.stat(), "st_blocks", 0) * 512 for path in files)
    return max(missing_bytes(index, size) - stale, 0)


def check_disk(need: int) -> None:
    """UserError when the data home has no room for so many bytes."""
    check_room(data_home(), need, "make room or set UDASEG_DATA to a larger disk.")


def _copy(cached: Cached, load: Load, i: int) -> None:
    """Write image i to its place; any process may write any image."""
    image, label = load(i)
    w, h = cached.sizes[i]
    if image.shape != (h, w, 3):
        raise UserError(f"image {i} is {image.shape[1]}x{image.shape[0]}, not {w}x{h}; prepare the data set again.")
    for (name, channels), array in zip(cached.files.items(), (image, label), strict=False):
        with (cached.folder / name).open("r+b") as file:
            file.seek(channels * int(cached.starts[i]))
            file.write(np.ascontiguousarray(array).data)


def _done(cached: Cached, index: Index) -> int:
    """Images that the copy holds already; 0 when it was made of other files or one of its own is damaged."""
    lengths = {cached.folder / name: channels * int(cached.starts[-1]) for name, channels in cached.files.items()}
    try:
        if any(path.stat().st_size != length for path, length in lengths.items()):
            return 0
        state = json.loads((cached.folder / STATE).read_text())
        return min(int(state["done"]), len(index)) if state["key"] == _key(index) else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _key(index: Index) -> str:
    """Changes with the names, sizes and times of the files, and with how they are read."""
    digest = hashlib.sha256(f"{FORMAT} {index.encoding} {index.format.pixels}".encode())
    for pair in index.pairs:
        for name in (pair.image, pair.label):
            status = (index.root / name).stat() if name is not None else None
            stamp = (status.st_size, status.st_mtime_ns) if status else ()
            digest.update(f"{name}\0{stamp}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
