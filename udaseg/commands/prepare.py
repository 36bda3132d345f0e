"""`udaseg prepare`: unpack, index and copy a data set, or draw the generated one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from udaseg.console import Counting, out, table
from udaseg.data import archives, cache
from udaseg.data import prepare as preparation
from udaseg.data.dataset import Domain
from udaseg.data.index import Index
from udaseg.data.layouts import GROUPS, data_home, dataset_spec, places_of
from udaseg.errors import UserError
from udaseg.ranges import parse_size

RAW = np.arange(256, dtype=np.uint8)
"""Table that leaves label values as they are."""


def prepare_streets(
    root: Path | None, *, size: str, gap: float, seed: int, workers: int | None, copy: tuple[int, int] | None = None
) -> None:
    """Draw `streets` into ``root`` (default: the data home) in the formats of GTA5 and Cityscapes, and index it."""
    from udaseg.data.streets import write_streets
    from udaseg.data.streets.render import LARGEST, SMALLEST

    place = root or data_home() / "streets"
    with Counting("drawing street scenes") as progress:
        write_streets(
            place,
            size=parse_size(size, SMALLEST, "--size", LARGEST),
            gap=gap,
            seed=seed,
            workers=workers,
            progress=progress,
        )
    for name, folder in (("streets_source", "gta5"), ("streets_target", "cityscapes")):
        prepare_dataset(name, place / folder if root else None, workers=workers, strict=True, size=copy)


def prepare_dataset(
    name: str,
    root: Path | None,
    *,
    workers: int | None,
    strict: bool,
    packed: Path | None = None,
    size: tuple[int, int] | None = None,
) -> None:
    """Unpack if asked to, index all splits, print what is there, expected and left out, copy at `size` if given."""
    if packed is not None:
        root = unpacked(name, packed, root)
    with Counting(f"reading {name}") as progress:
        indices = preparation.prepare(name, root=root, workers=workers, strict=strict, progress=progress)
    for index in indices:
        rows = [list(row) for row in preparation.summary(index)]
        table(("", ""), rows, title=f"{index.dataset} {index.split}", left=2)
        out.print()
    if size is not None:
        copied([i for i in indices if not i.split.startswith(("val", "test"))] or indices, size, workers)


def copied(indices: list[Index], size: tuple[int, int], workers: int | None) -> None:
    """Copy splits at training size; all of the disk this takes is said and checked first."""
    need = sum(cache.missing_bytes(index, size) for index in indices)
    if need == 0:
        out.print(f"copy at {size[0]}x{size[1]}: nothing to do")
        return
    out.print(f"copy at {size[0]}x{size[1]}: {need / 1e9:.2f} GB in {data_home() / '.udaseg' / 'cache'}")
    cache.check_disk(sum(cache.room_needed(index, size) for index in indices))
    for index in indices:
        load = Domain(index, lut=RAW, size=size, labels=index.labelled).load
        with Counting(f"copying {index.dataset} {index.split}") as progress:
            cache.build(index, size, load, workers=workers, progress=progress)
    out.print(f"used from now on by every recipe whose size is [{size[0]}, {size[1]}] (data.scale counted)")


def unpacked(name: str, folder: Path, root: Path | None) -> Path | None:
    """Unpack the official archives in `folder` and say what was done; the root to go on with."""
    if name in GROUPS:
        raise UserError(f"{name} has no official archives; leave out --archives.")
    spec = dataset_spec(name)
    place = places_of(spec, root)[0]
    with Counting(f"unpacking {name} into {place}") as progress:
        done = archives.unpack(spec, folder, place, progress=progress)
    out.print(f"unpacked {done.written} files into {place}; {done.kept} were there already")
    if done.others:
        names = ", ".join(str(path) for path in done.others[:5]) + (", ..." if len(done.others) > 5 else "")
        out.print(f"kept, though the archives have other content ({len(done.others)} files): {names}", style="yellow")
    if done.missing:
        out.print(f"not in {folder}: {', '.join(done.missing)}", style="yellow")
    return root and place
