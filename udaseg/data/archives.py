"""Unpack the official archives of a data set into its root, without trusting them.

What differs from `unzip`: a name that leaves the root, a link, a special file or an implausible size stops everything
before a byte is written; the disk is checked first; files appear whole or not at all, and what is there with the right
size is not written again, so an interrupted run goes on where it stopped. A file of other content is left as it is.
"""

from __future__ import annotations

import itertools
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from udaseg.data.layouts import places_of
from udaseg.data.parallel import Progress
from udaseg.data.spec import DataSetSpec
from udaseg.errors import UserError
from udaseg.files import check_room, replacing, user_path

MOST_EXPANSION = 200  # bytes unpacked per byte packed; JSON reaches about 20, DEFLATE's limit (a bomb) is 1032
SMALL = 2**20  # a file below this size may compress as it likes


class Unpacked(NamedTuple):
    """Numbers of files, the official archives that were not in the folder, and files with other content than theirs."""

    written: int
    kept: int
    missing: tuple[str, ...]
    others: tuple[Path, ...] = ()


class _Member(NamedTuple):
    archive: Path
    info: zipfile.ZipInfo
    target: Path


def unpack(spec: DataSetSpec, folder: Path, root: Path | None = None, *, progress: Progress | None = None) -> Unpacked:
    """Unpack the archives that are in `folder`; UserError, with nothing written, if one of them cannot be trusted."""
    place = places_of(spec, root)[0]
    archives, missing = _archives(spec, folder, place)
    members = [member for archive in archives for member in _members(spec, archive, place)]
    there = [member for member in members if member.target.exists()]
    others = tuple(member.target for member in there if not _is_written(member) and not _is_begun(member))
    pending = [member for member in members if not _is_written(member) and member.target not in others]
    kept = len(members) - len(pending)
    need = sum(member.info.file_size for member in pending)
    check_room(place, need, "make room or give --root DIR on another disk.")
    for done, _ in enumerate(_written(pending), kept + 1):
        if progress is not None:
            progress(done, len(members))
    return Unpacked(len(pending), kept, missing, others)


def _archives(spec: DataSetSpec, folder: Path, place: Path) -> tuple[list[Path], tuple[str, ...]]:
    names = archive_names(spec)
    if not names:
        raise UserError(f"{spec.name} has no official archives; leave out --archives.")
    folder = user_path(folder)
    if not folder.is_dir():
        raise UserError(f"--archives {folder}: no such folder")
    zips = {name: (folder / name).with_suffix(".zip") for name in names}  # a .rar may have been packed again
    there = [path for path in zips.values() if path.is_file()]
    packed = [name for name in names if name.endswith(".rar") and (folder / name).is_file() and zips[name] not in there]
    if packed:
        raise UserError(f"{folder / packed[0]} is a RAR file, which Python cannot read. Unpack it into {place} first.")
    if not there:
        wanted = ", ".join(names)
        raise UserError(f"--archives {folder} has none of the archives of {spec.name}: {wanted}. Get them: {spec.page}")
    return there, tuple(name for name, path in zips.items() if path not in there)


def archive_names(spec: DataSetSpec) -> list[str]:
    """File names in the data set's table row; `01_images.zip ... 10_images.zip` stands for ten."""
    names: list[str] = []
    for line in spec.files:
        if several := re.match(r"(\d+)(\S+) \.\.\. (\d+)\2", line):
            first, rest, last = several.groups()
            names += [f"{n:0{len(first)}}{rest}" for n in range(int(first), int(last) + 1)]
        else:
            names += re.findall(r"[\w-]+\.(?:zip|rar)\b", line)
    return names


def _members(spec: DataSetSpec, archive: Path, place: Path) -> list[_Member]:
    """The files of an archive and where they go. Raises UserError for one that is unsafe or damaged."""
    try:
        with zipfile.ZipFile(archive) as file:
            infos = file.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{archive} is not a whole zip file ({error}); download it again.") from None
    for info in infos:
        _refuse_unsafe(archive, info)
    names = {info: info.filename.replace("\\", "/") for info in infos}  # old programs for Windows write backslashes
    names = {info: name for info, name in names.items() if not name.endswith("/") and not name.startswith("__MACOSX/")}
    paths = _without_wrapper([PurePosixPath(name) for name in names.values()], spec.needs)
    if len(set(paths)) != len(paths):
        raise UserError(f"{archive} holds one name twice; it is not an official file. Nothing was unpacked.")
    return [_Member(archive, info, place.joinpath(*path.parts)) for info, path in zip(names, paths, strict=True)]


def _refuse_unsafe(archive: Path, info: zipfile.ZipInfo) -> None:
    name, kind = info.orig_filename.replace("\\", "/"), stat.S_IFMT(info.external_attr >> 16)
    problem = ""
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or "\0" in name or ".." in name.split("/"):
        problem = "leads out of the data set's folder"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        problem = "is a link or a special file"
    elif info.flag_bits & 1:
        problem = "is encrypted"
    elif info.file_size > max(SMALL, MOST_EXPANSION * info.compress_size):
        problem = f"claims to grow {info.file_size / max(info.compress_size, 1):.0f}-fold"
    if problem:
        raise UserError(f"{archive}: {info.orig_filename!r} {problem}. Nothing was unpacked; is it the official file?")


def _without_wrapper(paths: list[PurePosixPath], needs: tuple[str, ...]) -> list[PurePosixPath]:
    """Without the one folder around everything, where the data set's own folders lie below it."""
    wanted = {need.split("/")[0] for need in needs}
    tops, seconds = {path.parts[0] for path in paths}, {path.parts[1] for path in paths if len(path.parts) > 2}
    if len(tops) == 1 and not tops & wanted and seconds & wanted:
        return [PurePosixPath(*path.parts[1:]) for path in paths]
    return paths


def _is_written(member: _Member) -> bool:
    return member.target.is_file() and member.target.stat().st_size == member.info.file_size


def _is_begun(member: _Member) -> bool:
    """Is the file there the beginning of the member (or empty), as a power cut leaves it?"""
    if not member.target.is_file() or (size := member.target.stat().st_size) > member.info.file_size:
        return False
    with zipfile.ZipFile(member.archive) as archive, archive.open(member.info) as source:
        try:
            return source.read(size) == member.target.read_bytes()
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
            return False


def _written(members: list[_Member]) -> Iterator[Path]:
    """Write each file. A damaged one raises UserError and keeps what was written before it."""
    for path, inside in itertools.groupby(members, lambda member: member.archive):
        with zipfile.ZipFile(path) as archive:
            for member in inside:
                try:
                    # half a file of a power cut has the wrong size: it is written again; reads the stated size at most
                    with (
                        replacing(member.target) as temporary,
                        archive.open(member.info) as source,
                        temporary.open("wb") as file,
                    ):
                        shutil.copyfileobj(source, file, 2**20)
                except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                    remedy = "download the archive again and run the same command."
                    raise UserError(f"{path}: {member.info.filename} is damaged ({error}); {remedy}") from None
                yield member.target
