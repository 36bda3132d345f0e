"""Prepare a data set for training: index every split that is there, and summarise it.

What differs from the public conversion scripts: nothing is converted or written into the data set.
"""

from __future__ import annotations

from pathlib import Path

from udaseg.data.index import Index, build_index, unknown_name
from udaseg.data.layouts import GROUPS, dataset_spec, find_root
from udaseg.data.parallel import Progress
from udaseg.errors import UserError


def prepare(
    name: str,
    *,
    root: Path | None = None,
    workers: int | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> list[Index]:
    """Index the splits of a data set, or of each member of a group such as `streets`, that are there or declared.

    Raises UserError when the data set is missing or, once the other splits are indexed, for those that are not usable.
    """
    if name in GROUPS and root is not None:
        raise UserError(f"{name!r} stands for {' and '.join(GROUPS[name])}: prepare them one by one to give a root.")
    indices, problems = [], []
    for spec in map(dataset_spec, GROUPS.get(name, (name,))):
        place = find_root(spec, root)
        # of a data set with a file each split, which somebody wrote there; else the first, so that its error is shown
        there = [split for split in spec.splits if spec.title or spec.find(place, split).pairs]
        for split in there or spec.splits[:1]:
            try:
                indices.append(build_index(spec, split, root, workers=workers, progress=progress, strict=strict))
            except UserError as error:
                problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return indices


def summary(index: Index, most: int = 20) -> list[tuple[str, str]]:
    """Rows (what, value) to print: pairs found and expected, what was left out and why, unknown label values.

    At most `most` files are named.
    """
    spec = dataset_spec(index.dataset)
    expected = spec.expected.get(index.split)
    rows = [("root", str(index.root)), ("usable pairs", str(len(index)))]
    if expected is not None:
        rows.append(("expected", str(expected) + (f" ({spec.notes})" if spec.notes and expected != len(index) else "")))
    rows += [("labels", _labels(index)), ("left out", str(len(index.left_out)))]
    rows += [(f"left out: {name}", reason) for name, reason in index.left_out[:most]]
    if len(index.left_out) > most:
        rows.append(("left out: ...", f"and {len(index.left_out) - most} more"))
    rows += [
        (f"unknown {unknown_name(index, value)}", f"{pixels} pixels ignored, first in {first}")
        for value, (pixels, first) in index.unknown.items()
    ]
    return rows


def _labels(index: Index) -> str:
    if not index.labelled:
        return "none (of use as a target only)"
    names = dataset_spec(index.dataset).classes.names
    absent = [name for name, pixels in zip(names, index.counts.sum(0), strict=True) if pixels == 0]
    return index.encoding + (f"; without a pixel: {', '.join(absent)}" if absent else "; every class occurs")
