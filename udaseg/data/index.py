"""The index of a split: usable pairs, image sizes and pixels per class at native resolution.

It replaces the converted label files and the three JSON files of the public code (same counts). What differs: nothing
is written into the data set (read-only storage works), labels are not rewritten, and every file that is left out has a
reason. Rows are kept by name, size and time of the files, so building again reads only what is new.

N pairs, K classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from udaseg.data.classes import IGNORE, UNKNOWN_COLOUR, lookup, match_classes
from udaseg.data.images import Pixels, count_values, image_size, unknown_colours
from udaseg.data.layouts import data_home, dataset_spec, find_root
from udaseg.data.parallel import Progress, results
from udaseg.data.spec import DataSetSpec, Encoding, Listing, Pair
from udaseg.errors import UserError
from udaseg.files import write_atomic

FORMAT = 1  # raise when the file or the meaning of a row changes


@dataclass(frozen=True, eq=False)
class Index:
    """`counts[n, c]`: pixels of train id c in label n at native size (ignored pixels and missing labels count 0)."""

    dataset: str
    split: str
    root: Path
    encoding: str
    pairs: tuple[Pair, ...]
    sizes: npt.NDArray[np.int32]  # (N,2) width, height of the images
    counts: npt.NDArray[np.int64]  # (N,K)
    left_out: tuple[tuple[str, str], ...] = ()
    unknown: dict[int, tuple[int, str]] = field(default_factory=dict)  # label value -> pixels, first file
    train_ids: tuple[int, ...] | None = None  # of each class of the data set, once `as_classes` chose others

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def labelled(self) -> bool:
        """Whether every pair has a label."""
        return all(pair.label is not None for pair in self.pairs)

    @property
    def format(self) -> Encoding:
        """How the label files of this split are written."""
        return dataset_spec(self.dataset).encodings[self.encoding]

    @property
    def conditions(self) -> tuple[str, ...]:
        """Of each pair, the condition (fog, night, ...) that its folders name; empty where none does."""
        known = dataset_spec(self.dataset).conditions
        return tuple(next((part for part in pair.image.parts if part in known), "") for pair in self.pairs)

    def lut(self) -> npt.NDArray[np.uint8]:
        """(256,) raw label value -> train id for the label files of this split."""
        table = lookup(self.format.ids)
        return table if self.train_ids is None else lookup(dict(enumerate(self.train_ids)))[table]

    def as_classes(self, names: Sequence[str], merge: Mapping[str, str]) -> Index:
        """The same pairs with the classes of another list, matched by name (see `match_classes`)."""
        own = dataset_spec(self.dataset).classes.names
        ids = match_classes(own, names, merge)
        if ids == tuple(range(len(names))):
            return self
        if set(ids) == {IGNORE}:
            raise UserError(f"Data set {self.dataset!r} has none of the classes {', '.join(names)}: {', '.join(own)}.")
        return replace(self, counts=_regrouped(self.counts, ids, len(names)), train_ids=ids)


class _Row(NamedTuple):
    """What is stored of one pair. `stamp` changes with the files; `values` are the nonzero raw label counts."""

    stamp: str
    size: tuple[int, int]
    values: dict[str, int]


_Rows = dict[str, _Row]  # by image name
_Reasons = tuple[tuple[str, str], ...]  # image name, why it is left out


def build_index(
    spec: DataSetSpec,
    split: str,
    root: Path | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    strict: bool = False,
) -> Index:
    """Read the split and write its index into the data home; resumable and idempotent.

    Raises UserError when no pair is usable, when labels are missing that the data set's table promises (a target
    training split needs none), or, with `strict`, when anything would be left out or a label value is unknown.
    """
    place, listing = _locate(spec, split, root)
    path = index_path(spec, split, place)
    rows, bad = _read_rows(spec, place, listing, path, workers=workers, progress=progress)
    index = _assemble(spec, split, place, listing, rows, (*sorted(bad.items()), *listing.unmatched))
    try:
        _check_usable(spec, index, strict=strict)
    except UserError:
        with contextlib.suppress(UserError):
            _save(_partial(path), rows)  # so that trying again reads only what was mended
        raise
    _save(path, rows, **_identity(spec, listing), left_out=index.left_out)
    _partial(path).unlink(missing_ok=True)
    return index


def load_index(name: str, split: str, root: Path | None = None) -> Index:
    """The stored index; UserError with the command when there is none or the files are not those it was built from."""
    spec = dataset_spec(name)
    place, listing = _locate(spec, split, root)
    path, command = index_path(spec, split, place), spec.command(root)
    if not listing.pairs:  # preparing would pass over the split: another remedy
        raise UserError(f"Data set {name!r} ({split}) in {place} has no image. Expected:\n{spec.tree}")
    if not path.is_file():
        raise UserError(f"Data set {name!r} ({split}) in {place} is not prepared. Run: {command}")
    stored, wanted = _load(path), _identity(spec, listing)
    if stored.get("fingerprint") != wanted["fingerprint"]:
        raise UserError(f"The index of {name!r} ({split}) is of another version. Run: {command}")
    if stored["files"] != wanted["files"]:
        raise UserError(f"The files of {name!r} ({split}) in {place} have changed. Run: {command}")
    left_out = tuple((name, reason) for name, reason in stored["left_out"])
    return _assemble(spec, split, place, listing, stored["rows"], left_out)


def index_path(spec: DataSetSpec, split: str, root: Path) -> Path:
    """`<data home>/.udaseg/<data set>-<split>-<hash of the absolute root>.npz`."""
    place = str(root.absolute()) + (f"\0{spec.name}" if spec.title else "")  # two files may describe one folder
    digest = hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:12]
    return data_home() / ".udaseg" / f"{spec.title or spec.name}-{split}-{digest}.npz"


# ---------------------------------------------------------------------------------------------- checks and messages


def _locate(spec: DataSetSpec, split: str, root: Path | None) -> tuple[Path, Listing]:
    """The data set's folder and the files of the split."""
    if split not in spec.splits:
        raise UserError(f"Data set {spec.name!r} has no split {split!r}; it has: {', '.join(spec.splits)}.")
    place = find_root(spec, root)
    return place, spec.find(place, split)


def _check_usable(spec: DataSetSpec, index: Index, *, strict: bool) -> None:
    required = index.split not in spec.unlabelled
    where = f"Data set {spec.name!r} ({index.split}) in {index.root}"
    problems = [f"  {name}: {reason}" for name, reason in index.left_out]
    if not index.pairs:
        raise UserError("\n".join([f"{where} has no usable pair. Expected:", spec.tree, *problems[:10]]))
    if required and not index.labelled:
        raise UserError(f"{where} has {len(index)} images but no labels. Expected:\n{spec.tree}")
    if required and not index.counts.any():
        raise UserError(f"{where}: no label has a pixel of any class; are these the official label files?")
    unknown = [f"  {unknown_name(index, v)}: {n} pixels, first in {first}" for v, (n, first) in index.unknown.items()]
    if unknown and spec.refuse_unknown:
        remedy = "Add each to `encoding`: a class in `map`, or a value of `ignore`; or set `unknown: ignore`."
        raise UserError("\n".join([f"{where} has labels that {spec.name} does not list:", *unknown, remedy]))
    problems += unknown
    if strict and problems:
        more = [f"  ... and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise UserError("\n".join([f"{where} has {len(problems)} problems (--strict):", *problems[:20], *more]))


def unknown_name(index: Index, value: int) -> str:
    """What a person finds in the first label file that has this unknown value: the value or, of colours, those."""
    path, pixels = index.root / index.unknown[value][1], index.format.pixels
    colours = unknown_colours(path, pixels) if value == UNKNOWN_COLOUR and pixels.colours else ""
    return f"colour {colours}" if colours else f"label value {value}"


# ----------------------------------------------------------------------------------------------------------- reading


def _read_rows(
    spec: DataSetSpec, root: Path, listing: Listing, path: Path, *, workers: int | None, progress: Progress | None
) -> tuple[_Rows, dict[str, str]]:
    """(rows, reasons) by image name; stored rows whose files have not changed are not read again."""
    pixels = spec.encodings[listing.encoding].pixels
    stored = {**_load(path).get("rows", {}), **_load(_partial(path)).get("rows", {})}
    rows: _Rows = {}
    bad: dict[str, str] = {}
    pending = []
    for pair in listing.pairs:
        name = pair.image.as_posix()
        if name in stored and stored[name].stamp == _stamp(root, pair, pixels):
            rows[name] = stored[name]
        else:
            pending.append(pair)
    read = results(
        partial(_read_row, root, pixels), pending, workers, progress=progress, done=len(rows),
        save=lambda: _save(_partial(path), rows),
    )  # fmt: skip
    for pair, row in zip(pending, read, strict=True):
        if isinstance(row, str):
            bad[pair.image.as_posix()] = row
        else:
            rows[pair.image.as_posix()] = row
    return rows, bad


def _read_row(root: Path, pixels: Pixels, pair: Pair) -> _Row | str:
    """The row, else the reason why the pair is left out."""
    try:
        stamp, size = _stamp(root, pair, pixels), image_size(root / pair.image)
        values: dict[str, int] = {}
        if pair.label is not None:
            counts, label_size = count_values(root / pair.label, pixels)
            if label_size != size:
                return f"label is {label_size[0]}x{label_size[1]}, image {size[0]}x{size[1]}"
            values = {str(value): int(counts[value]) for value in np.flatnonzero(counts)}
        return _Row(stamp, size, values)
    except UserError as error:
        return str(error)


def _stamp(root: Path, pair: Pair, pixels: Pixels) -> str:
    """Name of the label, how it is read, sizes in bytes and times of both files."""
    parts = [f"{pair.label.as_posix()} {_digest([repr(pixels)])[:8]}" if pair.label else ""]
    for file in (pair.image, pair.label):
        if file is not None and (root / file).exists():
            status = (root / file).stat()
            parts += [str(status.st_size), str(status.st_mtime_ns)]
    return " ".join(parts)


def _assemble(spec: DataSetSpec, split: str, root: Path, listing: Listing, rows: _Rows, left_out: _Reasons) -> Index:
    pairs = tuple(pair for pair in listing.pairs if pair.image.as_posix() in rows)
    kept = [rows[pair.image.as_posix()] for pair in pairs]
    encoding = spec.encodings[listing.encoding]
    raw = np.zeros((len(kept), 256), dtype=np.int64)
    for line, row in zip(raw, kept, strict=True):
        line[[int(v) for v in row.values]] = list(row.values.values())
    sizes = np.array([row.size for row in kept], dtype=np.int32).reshape(-1, 2)
    counts, unknown = fold(raw, encoding, len(spec.classes)), _unknown(encoding, raw, pairs)
    return Index(spec.name, split, root, listing.encoding, pairs, sizes, counts, left_out, unknown)


def fold(raw: npt.NDArray[np.int64], encoding: Encoding, classes: int) -> npt.NDArray[np.int64]:
    """(N,256) pixels of raw label values -> (N,K) pixels of train ids; what has no class is dropped."""
    return _regrouped(raw, lookup(encoding.ids), classes)


def _regrouped(counts: npt.NDArray[np.int64], train_ids: npt.ArrayLike, classes: int) -> npt.NDArray[np.int64]:
    """(N,M) counts -> (N,K) by the train id of each column; those of no class are dropped."""
    return counts @ (np.asarray(train_ids)[:, None] == np.arange(classes)).astype(np.int64)


def _unknown(encoding: Encoding, raw: npt.NDArray[np.int64], pairs: tuple[Pair, ...]) -> dict[int, tuple[int, str]]:
    strange = [v for v in range(256) if v not in encoding.ids and v not in encoding.void and raw[:, v].any()]
    return {v: (int(raw[:, v].sum()), str(pairs[int(np.flatnonzero(raw[:, v])[0])].label)) for v in strange}


# ----------------------------------------------------------------------------------------------------------- storage


def _identity(spec: DataSetSpec, listing: Listing) -> dict[str, str]:
    """What an index depends on: the files, and the tables that turn label values into classes."""
    tables = {name: [sorted(e.ids.items()), sorted(e.void), repr(e.pixels)] for name, e in spec.encodings.items()}
    names = (f"{p.image.as_posix()}\0{p.label.as_posix() if p.label else ''}" for p in listing.pairs)
    return {
        "fingerprint": _digest([json.dumps([FORMAT, spec.classes.names, tables], sort_keys=True)]),
        "files": _digest([listing.encoding, *names, *(name for name, _ in listing.unmatched)]),
    }


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()


def _partial(path: Path) -> Path:
    """Of an interrupted build."""
    return path.with_name(path.stem + ".partial.npz")


def _save(path: Path, rows: _Rows, **content: object) -> None:
    """As compressed JSON, atomically; a folder that cannot be written to is the user's to choose anew."""
    text = np.frombuffer(json.dumps({"format": FORMAT, **content, "rows": rows}).encode(), dtype=np.uint8)
    try:
        write_atomic(path, lambda file: np.savez_compressed(file, meta=text))
    except OSError as error:
        raise UserError(
            f"The index {path} cannot be written ({error.strerror}); set UDASEG_DATA to a folder you can write to."
        ) from None


def _load(path: Path) -> dict:
    """What `_save` wrote; empty if there is no file or this version cannot read it. Never unpickles."""
    try:
        with np.load(path, allow_pickle=False) as data:
            content = json.loads(data["meta"].tobytes())
        rows = {name: _Row(stamp, tuple(size), values) for name, (stamp, size, values) in content["rows"].items()}
        return {**content, "rows": rows} if content["format"] == FORMAT else {}
    except Exception:  # a damaged zip raises half a dozen types; the remedy is the same for all: build again
        return {}
