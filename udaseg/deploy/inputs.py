"""From files, folders and globs to a list of pictures and videos, each with the name its outputs get.

Below a folder its structure is kept, below a glob that of the part without wildcards; of several inputs each folder's
name comes first. The suffix is left out of a name, except of images that would share one (a.png, a.jpg).
"""

from __future__ import annotations

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from udaseg.errors import UserError

IMAGES = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".pnm", ".jp2", ".avif", ".tga",
)  # fmt: skip
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv")
RECORD = "predictions.json"
"""The file that marks a folder of predictions."""


@dataclass(frozen=True)
class Source:
    """A picture or video, and under which relative path its outputs are kept."""

    path: Path
    name: Path

    @property
    def video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


def find_sources(inputs: Sequence[str | Path]) -> list[Source]:
    """Everything the inputs mean, once each; UserError for an input that is not there and for none at all."""
    names: dict[Path, Path] = {}
    for text in inputs:
        for path, name in _expand(str(text), several=len(inputs) > 1):
            names.setdefault(Path(os.path.abspath(path)), name)
    if not names:
        raise UserError(
            f"no image or video in {', '.join(map(str, inputs)) or 'an empty list'}; known: {' '.join(IMAGES + VIDEOS)}"
        )
    return _named(names)


def _expand(text: str, *, several: bool) -> Iterator[tuple[Path, Path]]:
    """(file, its path relative to the input) for each file that an input means."""
    if not text:
        raise UserError("an input is an empty text (a variable that is not set?); the folder one is in is .")
    path = Path(os.path.expanduser(text))  # Path.expanduser raises for a user who is not there
    if path.is_dir():
        above = Path(path.resolve().name) if several else Path()
        yield from ((file, above / file.relative_to(path)) for file in _inside(path))
    elif path.exists():
        yield path, Path(path.name)
    elif glob.has_magic(text):
        fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_file()]
        if not matches:
            raise UserError(f"{text}: no file matches")
        yield from ((match, match.relative_to(fixed)) for match in matches)
    else:
        raise UserError(f"{text}: no such file or folder")


def _inside(folder: Path) -> Iterator[Path]:
    """Images and videos below a folder in order, but nothing hidden and no earlier predictions."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})")

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [] if RECORD in files else sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files) if RECORD not in files else ():
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGES + VIDEOS:
                yield Path(place, name)


def _named(paths: dict[Path, Path]) -> list[Source]:
    """Sources under their relative paths; UserError where two would write the same files."""
    times = Counter(path.with_suffix("") for path in paths.values())
    taken: dict[Path, Path] = {}
    for file, path in paths.items():
        name = path if times[path.with_suffix("")] > 1 else path.with_suffix("")
        if name in taken:
            raise UserError(
                f"{taken[name]} and {file} would have the same outputs ({name}); give their common folder, or predict "
                "them with a different --out each"
            )
        taken[name] = file
    return [Source(file, name) for name, file in taken.items()]
