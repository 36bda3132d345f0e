"""Writing files so that a crash at any moment leaves the old content or the new, never half of it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from udaseg.errors import UserError


def read_bytes(path: Path) -> bytes:
    """A file's content; OSError for what is no file: to open a FIFO would wait for ever."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a file", str(path))
    return path.read_bytes()


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
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a folder or a device; give the name of a file")
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


def put_aside(path: Path) -> Path:
    """Give a damaged file another name, a free one: ``x.damaged``, ``x.damaged-2``. Gives the new path."""
    for number in itertools.count(1):
        place = path.with_name(f"{path.name}.damaged" + (f"-{number}" if number > 1 else ""))
        if not os.path.lexists(place):
            return path.rename(place)
    raise AssertionError("unreachable")


def is_leftover(path: Path, names: re.Pattern[str]) -> bool:
    """Is it a temporary file of ``write_atomic``, of a file with one of these names?"""
    match = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}\.tmp", path.name)
    return bool(match and names.fullmatch(match[1]) and path.is_file() and not path.is_symlink())


def refuse_no_folder(path: Path, option: str) -> None:
    """UserError for a place where no folder can be: a file, a device, or below one."""
    there = next(there for there in (path, *path.absolute().parents) if os.path.lexists(there))
    if not there.is_dir():
        raise UserError(f"{option} {path}: {there} is not a folder; choose another place")


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
