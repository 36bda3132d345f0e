"""The index of a split: usable pairs, image sizes and pixels per class at native resolution.

It replaces the converted label files and the three JSON files of the public code (same counts; see convert.json of the
parity fixtures). What differs: nothing is written into the data set (read-only storage works), labels are not
rewritten, and every file that is left out has a reason. Rows are kept by name, size and time of the files, so building
again after an interruption, or after a download was completed, reads only what is new.

N pairs, K classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from udaseg.data.classes import IGNORE, UNKNOWN_COLOUR, lookup, match_classes
from udaseg.data.images import Pixels, count_values, image_size, unknown_colours
from udaseg.data.layouts import DataSetSpec, Encoding, Found, Pair, data_home, dataset_spec, find_root
from udaseg.errors import UserError
from udaseg.files import write_atomic

FORMAT = 1  # raise when the file or the meaning of a row changes
Progress = Callable[[int, int], None]
"""Called with (files done, files in all)."""


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
        if self.train_ids is None:
            return table
        return np.array([*self.train_ids, *[IGNORE] * (256 - len(self.train_ids))], dtype=np.uint8)[table]

    def as_classes(self, names: Sequence[str], merge: Mapping[str, str]) -> Index:
        """The same pairs with the classes of another list, matched by name (see `match_classes`)."""
        own = dataset_spec(self.dataset).classes.names
        ids = match_classes(own, names, merge)
        if ids == tuple(range(len(names))):
            return self
        if set(ids) == {IGNORE}:
            raise UserError(f"Data set {self.dataset!r} has none of the classes {', '.join(names)}: {', '.join(own)}.")
        counts = np.zeros((len(self), len(names)), dtype=np.int64)
        for train_id, column in zip(ids, self.counts.T, strict=True):
            if train_id != IGNORE:
                counts[:, train_id] += column
        return replace(self, counts=counts, train_ids=ids)


class _Row(NamedTuple):
    """What is remembered of one pair. `stamp` changes with the files; `values` are the nonzero raw label counts."""

    stamp: str
    size: tuple[int, int]
    values: dict[str, int]


_Job = tuple[Path, Pair, Pixels]
_Outcome = tuple[str, _Row | None, str]  # image name, row, else the reason why it is left out


def build_index(
    spec: DataSetSpec,
    split: str,
    root: Path | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    strict: bool = False,
    labels_required: bool | None = None,
) -> Index:
    """Read the split and write its index into the data home; resumable and idempotent.

    `labels_required=None` follows the data set's table (a target training split needs none). Raises UserError when no
    pair is usable or, with `strict`, when anything would be left out or a label value is unknown.
    """
    _check_split(spec, split)
    place = find_root(spec, root)
    found = spec.find(place, split)
    required = split not in spec.unlabelled if labels_required is None else labels_required
    path = index_path(spec, split, place)
    pixels = spec.encodings[found.encoding].pixels
    workers = usable_workers(workers, len(found.pairs))
    rows, bad = _read_rows(place, found, pixels, path, workers=workers, progress=progress)
    index = _assemble(spec, split, place, found, rows, bad)
    try:
        _check_usable(spec, index, required=required, strict=strict)
    except UserError:
        with contextlib.suppress(UserError):
            _save_rows(_partial(path), rows)  # so that trying again reads only what was mended
        raise
    _save(path, index, found, rows, _fingerprint(spec))
    _partial(path).unlink(missing_ok=True)
    return index


def load_index(name: str, split: str, root: Path | None = None) -> Index:
    """The stored index; UserError with the command when there is none or the files are not those it was built from."""
    spec = dataset_spec(name)
    _check_split(spec, split)
    place = find_root(spec, root)
    path, found = index_path(spec, split, place), spec.find(place, split)
    if not found.pairs:  # preparing would pass over the split: another remedy
        raise UserError(f"Data set {name!r} ({split}) in {place} has no image. Expected:\n{spec.tree}")
    if not path.is_file():
        raise UserError(f"Data set {name!r} ({split}) in {place} is not prepared. Run: {_command(spec, root)}")
    meta, sizes, counts = _load(path)
    if meta is None or meta["fingerprint"] != _fingerprint(spec):
        raise UserError(f"The index of {name!r} ({split}) is of another version. Run: {_command(spec, root)}")
    if meta["files"] != _files_hash(found):
        raise UserError(f"The files of {name!r} ({split}) in {place} have changed. Run: {_command(spec, root)}")
    return _from_meta(meta, place, sizes, counts)


def index_path(spec: DataSetSpec, split: str, root: Path) -> Path:
    """`<data home>/.udaseg/<data set>-<split>-<hash of the absolute root>.npz`."""
    place = str(root.absolute()) + (f"\0{spec.name}" if spec.title else "")  # two files may describe one folder
    digest = hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:12]
    return data_home() / ".udaseg" / f"{spec.title or spec.name}-{split}-{digest}.npz"


# ---------------------------------------------------------------------------------------------- checks and messages


def _check_split(spec: DataSetSpec, split: str) -> None:
    if split not in spec.splits:
        raise UserError(f"Data set {spec.name!r} has no split {split!r}; it has: {', '.join(spec.splits)}.")


def _command(spec: DataSetSpec, root: Path | None) -> str:
    return spec.command if root is None else f"udaseg prepare {spec.name} --root {shlex.quote(str(root))}"


def _check_usable(spec: DataSetSpec, index: Index, *, required: bool, strict: bool) -> None:
    where = f"Data set {spec.name!r} ({index.split}) in {index.root}"
    problems = [f"  {name}: {reason}" for name, reason in index.left_out]
    if not index.pairs:
        raise UserError("\n".join([f"{where} has no usable pair. Expected:", spec.tree, *problems[:10]]))
    if required and not index.labelled:
        raise UserError(f"{where} has {len(index)} images but no labels. Expected:\n{spec.tree}")
    if required and not index.counts.any():
        raise UserError(f"{where}: no label has a pixel of any class; are these the official label files?")
    unknown = [_unknown_line(index, value) for value in index.unknown]
    if unknown and spec.refuse_unknown:
        remedy = "Add each to `encoding`: a class in `map`, or a value of `ignore`; or set `unknown: ignore`."
        raise UserError("\n".join([f"{where} has labels that {spec.name} does not list:", *unknown, remedy]))
    problems += unknown
    if strict and problems:
        more = [f"  ... and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise UserError("\n".join([f"{where} has {len(problems)} problems (--strict):", *problems[:20], *more]))


def _unknown_line(index: Index, value: int) -> str:
    pixels, name = index.unknown[value]
    colours = value == UNKNOWN_COLOUR and index.format.pixels.kind == "colour"
    what = f"colour {unknown_colours(index.root / name, index.format.pixels)}" if colours else f"label value {value}"
    return f"  {what}: {pixels} pixels, first in {name}"


# ----------------------------------------------------------------------------------------------------------- reading


def usable_workers(asked: int | None, files: int) -> int:
    """Processes to use; 0 = none but this one (a pool costs more than a few dozen files)."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 16) if files > 64 and cores > 1 else 0


def _read_rows(
    root: Path, found: Found, pixels: Pixels, path: Path, *, workers: int, progress: Progress | None
) -> tuple[dict[str, _Row], dict[str, str]]:
    """(rows by image name, reasons by image name); stored rows whose files have not changed are not read again."""
    known = {**_stored_rows(path), **_stored_rows(_partial(path))}
    rows: dict[str, _Row] = {}
    todo: list[_Job] = []
    for pair in found.pairs:
        row = known.get(pair.image.as_posix())
        if row is not None and row.stamp == _stamp(root, pair, pixels):
            rows[pair.image.as_posix()] = row
        else:
            todo.append((root, pair, pixels))
    bad: dict[str, str] = {}
    flushed = time.monotonic()
    for name, new, reason in _outcomes(todo, workers):
        if new is None:
            bad[name] = reason
        else:
            rows[name] = new
        if progress is not None:
            progress(len(rows) + len(bad), len(found.pairs))
        if time.monotonic() - flushed > 10:
            _save_rows(_partial(path), rows)
            flushed = time.monotonic()
    return rows, bad


def _outcomes(todo: list[_Job], workers: int) -> Iterator[_Outcome]:
    if workers == 0 or len(todo) < 2:
        yield from map(_read_row, todo)
        return
    # spawn: the caller may hold threads (torch, progress bar) that a forked child would inherit in a bad state
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(_read_row, todo, chunksize=max(1, min(16, len(todo) // (4 * workers))))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read_row(job: _Job) -> _Outcome:
    root, pair, pixels = job
    name = pair.image.as_posix()
    try:
        size = image_size(root / pair.image)
        values = _label_values(root, pair, pixels, size)
        return name, _Row(_stamp(root, pair, pixels), size, values), ""
    except UserError as error:
        return name, None, str(error)


def _label_values(root: Path, pair: Pair, pixels: Pixels, size: tuple[int, int]) -> dict[str, int]:
    if pair.label is None:
        return {}
    values, label_size = count_values(root / pair.label, pixels)
    if label_size != size:
        raise UserError(f"label is {label_size[0]}x{label_size[1]}, image {size[0]}x{size[1]}")
    return {str(value): int(values[value]) for value in np.flatnonzero(values)}


def _stamp(root: Path, pair: Pair, pixels: Pixels) -> str:
    """Name of the label, how it is read, sizes in bytes and times of both files."""
    parts = [f"{pair.label.as_posix()} {_digest([repr(pixels)])[:8]}" if pair.label else ""]
    for file in (pair.image, pair.label):
        if file is not None and (root / file).exists():
            status = (root / file).stat()
            parts += [str(status.st_size), str(status.st_mtime_ns)]
    return " ".join(parts)


def _assemble(
    spec: DataSetSpec, split: str, root: Path, found: Found, rows: dict[str, _Row], bad: dict[str, str]
) -> Index:
    pairs = tuple(p for p in found.pairs if p.image.as_posix() in rows)
    kept = [rows[p.image.as_posix()] for p in pairs]
    encoding = spec.encodings[found.encoding]
    raw = np.zeros((len(kept), 256), dtype=np.int64)
    for line, row in zip(raw, kept, strict=True):
        line[[int(v) for v in row.values]] = list(row.values.values())
    sizes = np.array([row.size for row in kept], dtype=np.int32).reshape(-1, 2)
    left_out = (*sorted(bad.items()), *found.unmatched)
    unknown = _unknown(encoding, raw, pairs)
    return Index(
        spec.name, split, root, found.encoding, pairs, sizes, fold(raw, encoding, len(spec.classes)), left_out, unknown
    )


def fold(raw: npt.NDArray[np.int64], encoding: Encoding, classes: int) -> npt.NDArray[np.int64]:
    """(N,256) pixels of raw label values -> (N,K) pixels of train ids; what has no class is dropped."""
    counts = np.zeros((len(raw), classes), dtype=np.int64)
    for value, train_id in encoding.ids.items():
        counts[:, train_id] += raw[:, value]
    return counts


def _unknown(encoding: Encoding, raw: npt.NDArray[np.int64], pairs: tuple[Pair, ...]) -> dict[int, tuple[int, str]]:
    strange = [v for v in range(256) if v not in encoding.ids and v not in encoding.void and raw[:, v].any()]
    return {v: (int(raw[:, v].sum()), str(pairs[int(np.flatnonzero(raw[:, v])[0])].label)) for v in strange}


# ----------------------------------------------------------------------------------------------------------- storage


def _fingerprint(spec: DataSetSpec) -> str:
    """Changes with the file format and with the tables that turn label values into classes."""
    tables = {name: [sorted(e.ids.items()), sorted(e.void), repr(e.pixels)] for name, e in spec.encodings.items()}
    return _digest([json.dumps([FORMAT, spec.classes.names, tables], sort_keys=True)])


def _files_hash(found: Found) -> str:
    names = (f"{p.image.as_posix()}\0{p.label.as_posix() if p.label else ''}" for p in found.pairs)
    return _digest([found.encoding, *names, *(name for name, _ in found.unmatched)])


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()


def _partial(path: Path) -> Path:
    return path.with_name(path.stem + ".partial.json")


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Atomic; a folder that cannot be written to is the user's to choose anew."""
    try:
        write_atomic(path, write)
    except OSError as error:
        raise UserError(
            f"The index {path} cannot be written ({error.strerror}); set UDASEG_DATA to a folder you can write to."
        ) from None


def _save_rows(path: Path, rows: dict[str, _Row]) -> None:
    text = json.dumps({"format": FORMAT, "rows": rows})
    _write(path, lambda file: file.write(text.encode()))


def _save(path: Path, index: Index, found: Found, rows: dict[str, _Row], fingerprint: str) -> None:
    meta = {
        "format": FORMAT,
        "dataset": index.dataset,
        "split": index.split,
        "encoding": index.encoding,
        "pairs": [[p.image.as_posix(), p.label.as_posix() if p.label else None] for p in index.pairs],
        "left_out": index.left_out,
        "unknown": list(index.unknown.items()),
        "files": _files_hash(found),
        "fingerprint": fingerprint,
        "rows": rows,
    }
    text = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    _write(path, lambda file: np.savez_compressed(file, meta=text, sizes=index.sizes, counts=index.counts))


def _load(path: Path) -> tuple[dict | None, npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """(contents, sizes, counts); contents is None for a file that this version cannot read. Never unpickles."""
    try:
        with np.load(path, allow_pickle=False) as data:
            meta = json.loads(data["meta"].tobytes())
            sizes, counts = data["sizes"], data["counts"]
        if meta["format"] == FORMAT and len(sizes) == len(counts) == len(meta["pairs"]):
            return meta, sizes, counts
    except Exception:  # a damaged zip raises half a dozen types; the remedy is the same for all: build again
        pass
    return None, np.zeros((0, 2), np.int32), np.zeros((0, 0), np.int64)


def _stored_rows(path: Path) -> dict[str, _Row]:
    """Rows of a finished (.npz) or interrupted (.json) build; none if there is no readable one."""
    if not path.is_file():
        return {}
    if path.suffix == ".npz":
        meta = _load(path)[0] or {}
    else:
        try:
            meta = json.loads(path.read_text())
        except (OSError, ValueError):
            return {}
    rows = meta.get("rows", {}) if meta.get("format") == FORMAT else {}
    return {name: _Row(stamp, (size[0], size[1]), values) for name, (stamp, size, values) in rows.items()}


def _from_meta(meta: dict, root: Path, sizes: npt.NDArray[np.int32], counts: npt.NDArray[np.int64]) -> Index:
    return Index(
        meta["dataset"],
        meta["split"],
        root,
        meta["encoding"],
        tuple(Pair(Path(image), Path(label) if label else None) for image, label in meta["pairs"]),
        sizes,
        counts,
        tuple((name, reason) for name, reason in meta["left_out"]),
        {int(value): (pixels, first) for value, (pixels, first) in meta["unknown"]},
    )
