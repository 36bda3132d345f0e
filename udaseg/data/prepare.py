"""Prepare a data set for training: index every split that is there, and say what was found.

What differs from the public conversion scripts: nothing is converted or written into the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from udaseg.data.index import Index, build_index
from udaseg.data.layouts import GROUPS, DataSetSpec, dataset_spec, find_root
from udaseg.errors import UserError


def prepare(
    name: str,
    *,
    root: Path | None = None,
    splits: Sequence[str] | None = None,
    workers: int | None = None,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Index]:
    """Index the splits of a data set (or of each member of a group such as `streets`); `splits=None`: those present.

    Raises UserError when the data set, a split that was asked for, or every usable pair is missing.
    """
    if name in GROUPS and root is not None:
        raise UserError(f"{name!r} stands for {' and '.join(GROUPS[name])}: prepare them one by one to give a root.")
    indices = []
    for spec in map(dataset_spec, GROUPS.get(name, (name,))):
        for split in splits if splits is not None else _present(spec, root):
            indices.append(build_index(spec, split, root, workers=workers, progress=progress, strict=strict))
    return indices


def _present(spec: DataSetSpec, root: Path | None) -> list[str]:
    """Splits with at least one image; the first split when there is none, so that its error is shown."""
    place = find_root(spec, root)
    return [split for split in spec.splits if spec.find(place, split).pairs] or [spec.splits[0]]


def summary(index: Index, most: int = 20) -> list[tuple[str, str]]:
    """Rows (what, value) to print: pairs found and expected, what was left out and why, unknown label values.

    At most `most` files are named.
    """
    spec = dataset_spec(index.dataset)
    expected = spec.expected.get(index.split)
    rows = [
        ("data set", f"{index.dataset} {index.split}"),
        ("root", str(index.root)),
        ("usable pairs", str(len(index))),
    ]
    if expected is not None:
        rows.append(("expected", str(expected) + (f" ({spec.notes})" if spec.notes and expected != len(index) else "")))
    rows.append(("labels", _labels(index)))
    rows.append(("left out", str(len(index.left_out))))
    rows += [(f"left out: {name}", reason) for name, reason in index.left_out[:most]]
    if len(index.left_out) > most:
        rows.append(("left out: ...", f"and {len(index.left_out) - most} more"))
    rows += [
        (f"unknown label value {value}", f"{pixels} pixels ignored, first in {first}")
        for value, (pixels, first) in index.unknown.items()
    ]
    return rows


def _labels(index: Index) -> str:
    if not index.labelled:
        return "none (of use as a target only)"
    names = dataset_spec(index.dataset).classes.names
    absent = [name for name, pixels in zip(names, index.counts.sum(0), strict=True) if pixels == 0]
    return index.encoding + (f"; without a pixel: {', '.join(absent)}" if absent else "; every class occurs")
