"""Where each data set keeps its files: one finder function and one table row per data set.

Source: the official archives of each data set and the folders the public DAFormer repository documents. Both are read
as they are; the `_labelTrainIds.png` files that DAFormer writes beside the originals are used only where the original
labels are missing. What differs: the order of files is sorted, never the directory order of the file system, so sample
indices mean the same on every machine.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from udaseg.data.classes import CITYSCAPES, CITYSCAPES_IDS, CITYSCAPES_VOID, IGNORE, TRAIN_IDS, ClassSet
from udaseg.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Pair:
    """One image and its label file (None when there is none); relative to the root of the data set."""

    image: Path
    label: Path | None


@dataclass(frozen=True)
class Found:
    """What a finder saw: pairs sorted by image path, names it could not pair with the reason, and the encoding."""

    pairs: tuple[Pair, ...]
    unmatched: tuple[tuple[str, str], ...] = ()
    encoding: str = "ids"


@dataclass(frozen=True)
class Encoding:
    """Raw label value -> train id, and the values known to have no class (anything else is reported as unknown)."""

    ids: Mapping[int, int]
    void: frozenset[int] = frozenset({IGNORE})


@dataclass(frozen=True)
class DataSetSpec:
    """Everything the program knows about a data set; `find(root, split)` raises nothing for missing folders."""

    name: str
    classes: ClassSet
    find: Callable[[Path, str], Found]
    encodings: Mapping[str, Encoding]
    folders: tuple[str, ...]  # tried in this order under the data home
    needs: tuple[str, ...]  # sub-folders without which a folder is not this data set
    splits: tuple[str, ...]
    tree: str
    unlabelled: frozenset[str] = frozenset()  # splits that are of use without labels
    expected: Mapping[str, int] = field(default_factory=dict)
    page: str = ""
    files: tuple[str, ...] = ()
    command: str = ""
    notes: str = ""  # known irregularities, shown in the summary

    @property
    def ids(self) -> Mapping[int, int]:
        """Raw label value -> train id of the data set's main encoding."""
        return self.encodings["ids"].ids


def _walk(folder: Path, suffixes: tuple[str, ...] = PICTURES) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(parent, name)


def _keyed(root: Path, folder: str, ending: str = "", suffixes: tuple[str, ...] = PICTURES) -> dict[str, Path]:
    """Path below `folder` without suffix and ending -> path relative to `root`."""
    base = root / folder
    found = {p.relative_to(base).with_suffix("").as_posix(): p.relative_to(root) for p in _walk(base, suffixes)}
    return {key.removesuffix(ending): path for key, path in found.items() if key.endswith(ending)}


def match(images: Mapping[str, Path], labels: Mapping[str, Path], *, encoding: str = "ids") -> Found:
    """Pair by key. An image without a label stays only if the whole split has none (a target); the rest is listed."""
    if not labels:
        return Found(tuple(Pair(images[k], None) for k in sorted(images)), (), encoding)
    alone = [(str(images[k]), "image without a label") for k in sorted(images.keys() - labels.keys())]
    alone += [(str(labels[k]), "label without an image") for k in sorted(labels.keys() - images.keys())]
    both = sorted(images.keys() & labels.keys())
    return Found(tuple(Pair(images[k], labels[k]) for k in both), tuple(alone), encoding)


def find_gta5(root: Path, split: str) -> Found:
    """All images are training data. A label's stem ends in a digit (so `00001_labelTrainIds.png` is not one)."""
    if split != "train":
        return Found(())
    labels = {k: p for k, p in _keyed(root, "labels", suffixes=(".png",)).items() if k[-1].isdigit()}
    return match(_keyed(root, "images"), labels)


def find_cityscapes(root: Path, split: str) -> Found:
    """`labelIds` files, or `labelTrainIds` where those cover more images. The test split has no public labels."""
    images = _keyed(root, f"leftImg8bit/{split}", "_leftImg8bit")
    if split == "test":
        return match(images, {})
    folder = f"gtFine/{split}"
    ids = _keyed(root, folder, "_gtFine_labelIds", (".png",))
    train_ids = _keyed(root, folder, "_gtFine_labelTrainIds", (".png",))
    if len(images.keys() & train_ids.keys()) > len(images.keys() & ids.keys()):
        return match(images, train_ids, encoding="train_ids")
    return match(images, ids)


_STREET_ENCODINGS = {"ids": Encoding(CITYSCAPES_IDS, CITYSCAPES_VOID), "train_ids": Encoding(TRAIN_IDS)}
_GTA5_TREE = """\
gta5/
  images/00001.png ... 24966.png
  labels/00001.png ... 24966.png   (palette PNG: the index is the label id)"""
_CITYSCAPES_TREE = """\
cityscapes/
  leftImg8bit/{train,val,test}/<city>/<city>_000000_000019_leftImg8bit.png
  gtFine/{train,val}/<city>/<city>_000000_000019_gtFine_labelIds.png   (or _gtFine_labelTrainIds.png)"""


def _gta5(name: str, folders: tuple[str, ...], **rest: object) -> DataSetSpec:
    values: dict = {
        "classes": CITYSCAPES,
        "find": find_gta5,
        "encodings": _STREET_ENCODINGS,
        "needs": ("images", "labels"),
        "splits": ("train",),
        "tree": _GTA5_TREE,
    }
    return DataSetSpec(name, folders=folders, **{**values, **rest})


def _cityscapes(name: str, folders: tuple[str, ...], **rest: object) -> DataSetSpec:
    values: dict = {
        "classes": CITYSCAPES,
        "find": find_cityscapes,
        "encodings": _STREET_ENCODINGS,
        "needs": ("leftImg8bit",),
        "splits": ("train", "val"),
        "tree": _CITYSCAPES_TREE,
        "unlabelled": frozenset({"train"}),
    }
    return DataSetSpec(name, folders=folders, **{**values, **rest})


_ROWS = (
    _gta5(
        "gta5",
        ("gta5", "gta"),
        expected={"train": 24966},
        page="https://download.visinf.tu-darmstadt.de/data/from_games/",
        files=("01_images.zip ... 10_images.zip (57 GB)", "01_labels.zip ... 10_labels.zip"),
        command="udaseg prepare gta5",
        notes="the common mirror has 24941 images; a few labels differ in size from their image",
    ),
    _cityscapes(
        "cityscapes",
        ("cityscapes",),
        splits=("train", "val", "test"),
        unlabelled=frozenset({"train", "test"}),
        expected={"train": 2975, "val": 500, "test": 1525},
        page="https://www.cityscapes-dataset.com/downloads/ (free account needed)",
        files=("leftImg8bit_trainvaltest.zip (11 GB)", "gtFine_trainvaltest.zip (241 MB)"),
        command="udaseg prepare cityscapes",
    ),
    _gta5("streets_source", ("streets/gta5",), command="udaseg prepare streets"),
    _cityscapes("streets_target", ("streets/cityscapes",), command="udaseg prepare streets"),
)
DATASETS: dict[str, DataSetSpec] = {row.name: row for row in _ROWS}
GROUPS: dict[str, tuple[str, ...]] = {"streets": ("streets_source", "streets_target")}
"""Names that stand for several data sets."""


def dataset_spec(name: str) -> DataSetSpec:
    """The row of a data set; UserError with the nearest name and the list."""
    if name in DATASETS:
        return DATASETS[name]
    known = [*DATASETS, *GROUPS]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"No data set is called {name!r}.{hint} There are: {', '.join(known)}.")


def data_home() -> Path:
    """`$UDASEG_DATA`, else `data` in the working folder: holds the data sets and, in `.udaseg`, their indices."""
    return Path(os.environ.get("UDASEG_DATA") or "data").expanduser()


def find_root(spec: DataSetSpec, root: Path | None = None) -> Path:
    """Absolute folder of the data set: `root` if given, else the first default folder there is.

    Raises UserError with the expected tree, where to download it and the command.
    """
    places = [Path(root).expanduser()] if root is not None else [data_home() / f for f in spec.folders]
    for place in places:
        if all((place / need).is_dir() for need in spec.needs):
            return place.resolve()
    raise UserError(_missing(spec, places, explicit=root is not None))


def _missing(spec: DataSetSpec, places: list[Path], *, explicit: bool) -> str:
    lines = [f"Data set {spec.name!r} was not found in {' or '.join(str(p.absolute()) for p in places)}"]
    lines[0] += f" (needs the folders {' and '.join(spec.needs)})."
    lines += ["Expected:", *("  " + line for line in spec.tree.splitlines())]
    if spec.page:
        lines += [f"Download: {spec.page}", *("  " + f for f in spec.files)]
    lines.append(f"Then run: {spec.command}" + (" --root DIR" if explicit else ""))
    if not explicit:
        lines.append(
            "Other places: set UDASEG_DATA, or give `udaseg prepare` --root DIR and the recipe data.<domain>.root=DIR."
        )
    return "\n".join(lines)
