"""What the program knows about a data set, and the helpers that pair its images with its labels.

What differs from the public code: the order of files is sorted, never the directory order of the file system, so sample
indices mean the same on every machine.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from udaseg.data.classes import IGNORE, ClassSet
from udaseg.data.images import STREET_PIXELS, Pixels

PICTURES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Pair:
    """One image and its label file (None when there is none); relative to the root of the data set."""

    image: Path
    label: Path | None


@dataclass(frozen=True)
class Listing:
    """The files of a split: pairs sorted by image path, names without a partner and why, and the labels' encoding."""

    pairs: tuple[Pair, ...]
    unmatched: tuple[tuple[str, str], ...] = ()
    encoding: str = "ids"


@dataclass(frozen=True)
class Encoding:
    """Raw label value -> train id, and the values known to have no class (anything else is reported as unknown)."""

    ids: Mapping[int, int]
    void: frozenset[int] = frozenset({IGNORE})
    pixels: Pixels = STREET_PIXELS


@dataclass(frozen=True)
class DataSetSpec:
    """Everything the program knows about a data set; `find(root, split)` raises nothing for missing folders."""

    name: str
    classes: ClassSet
    find: Callable[[Path, str], Listing]
    encodings: Mapping[str, Encoding]
    folders: tuple[str, ...]  # tried in this order under the data home
    needs: tuple[str, ...]  # sub-folders without which a folder is not this data set
    splits: tuple[str, ...]
    tree: str
    unlabelled: frozenset[str] = frozenset()  # splits that are of use without labels
    expected: Mapping[str, int] = field(default_factory=dict)
    page: str = ""
    files: tuple[str, ...] = ()
    notes: str = ""  # known irregularities, shown in the summary
    conditions: tuple[str, ...] = ()  # weather or light: folders that say which one an image belongs to
    group: str = ""  # prepared together under this name, where no root is given
    title: str = ""  # of a data set that a file describes; its `name` is the path of that file
    refuse_unknown: bool = False  # unknown label values are an error, not a line of the summary

    def command(self, root: Path | None = None) -> str:
        """What prepares it."""
        if root is None:
            return shlex.join(["udaseg", "prepare", self.group or self.name])
        return shlex.join(["udaseg", "prepare", self.name, "--root", str(root)])


def keyed(root: Path, folder: str, ending: str = "", suffixes: tuple[str, ...] = PICTURES) -> dict[str, Path]:
    """Path below `folder` without suffix and ending -> path relative to `root`."""
    base = root / folder
    files = {p.relative_to(base).with_suffix("").as_posix(): p.relative_to(root) for p in walk(base, suffixes)}
    return {key.removesuffix(ending): path for key, path in files.items() if key.endswith(ending)}


def walk(folder: Path, suffixes: tuple[str, ...] = PICTURES) -> Iterator[Path]:
    """Files below a folder that are not hidden; also those in linked folders."""
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in sorted(names):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(parent, name)


def best(images: Mapping[str, Path], **labels: Mapping[str, Path]) -> Listing:
    """Pair with the encoding whose label files cover most images; the first of those that cover as many."""
    encoding = max(labels, key=lambda name: len(images.keys() & labels[name].keys()))
    return match(images, labels[encoding], encoding=encoding)


def match(images: Mapping[str, Path], labels: Mapping[str, Path], *, encoding: str = "ids") -> Listing:
    """Pair by key. An image without a label stays only if the whole split has none (a target); the rest is listed."""
    if not labels:
        return Listing(tuple(Pair(images[k], None) for k in sorted(images)), (), encoding)
    alone = [(str(images[k]), "image without a label") for k in sorted(images.keys() - labels.keys())]
    alone += [(str(labels[k]), "label without an image") for k in sorted(labels.keys() - images.keys())]
    both = sorted(images.keys() & labels.keys())
    return Listing(tuple(Pair(images[k], labels[k]) for k in both), tuple(alone), encoding)
