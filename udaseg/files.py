"""Writing files so that a crash at any moment leaves the old content or the new, never half of it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from udaseg.errors import UserError


@contextmanager
def replacing(path: Path, ending: str = ".tmp") -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it takes its place at the end and is removed after an error.

    Nothing is flushed to disk: faster than ``write_atomic`` for many files, but a power cut may leave half a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{ending}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk, then put it in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_free(path: Path, content: bytes) -> Path:
    """Write under the name or, where that is taken, under the next free one: ``x-2.png``. Gives the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        place = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            with place.open("xb") as file:
                file.write(content)
            return place
        except FileExistsError:
            continue
    raise AssertionError("unreachable")


def user_path(path: str | Path) -> Path:
    """The path with ~ and ~user written out; UserError for a user whom this machine does not know."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no user {Path(path).parts[0][1:]!r} on this machine") from None


def refuse_special(path: str | Path) -> None:
    """UserError for a pipe, socket or device, which would be read for ever; a path where nothing is passes."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise UserError(f"{path}: a pipe, socket or device; a file is expected")


def check_room(folder: Path, need: int, remedy: str) -> None:
    """UserError when the disk of ``folder`` (it need not exist) has no room for ``need`` bytes."""
    place = folder.absolute()
    free = shutil.disk_usage(next(there for there in (place, *place.parents) if there.exists())).free
    if need > free:
        raise UserError(f"{need / 1e9:.2f} GB are needed in {place} and {free / 1e9:.2f} GB are free; {remedy}")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not on every platform
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
