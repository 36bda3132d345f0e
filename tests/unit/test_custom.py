"""Data sets described by a YAML file: reading, training samples, and everything that can be wrong with the file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from unit.data_files import photo, save, statistics

from udaseg.data import index as index_module
from udaseg.data.classes import IGNORE
from udaseg.data.dataset import Domain, TrainingPairs
from udaseg.data.index import Index, build_index, load_index
from udaseg.data.layouts import dataset_spec
from udaseg.data.prepare import prepare
from udaseg.data.sampling import Uniform
from udaseg.errors import UserError

FIELD = """\
name: fieldB
root: ${FIELDS}/b
classes: [soil, crop, weed]
splits:
  train: {images: "frames/**/*.png"}
  val: {images: "val/img/**/*.png", masks: "val/lab/{folder}/{stem}_mask.png"}
encoding: {kind: index, map: {0: soil, 1: crop, 7: weed}, ignore: [255], unknown: error}
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UDASEG_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("FIELDS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def field(place: Path, text: str = FIELD) -> Path:
    """The file, and the data set it describes, with masks of 0, 1, 7 and 255."""
    rng = np.random.default_rng(0)
    for i in range(3):
        save(place / f"b/frames/day{i}/{i}.png", photo(rng, (40, 30)))
        for folder in ("", "far/"):
            save(place / f"b/val/img/{folder}{i}.png", photo(rng, (40, 30)))
            save(place / f"b/val/lab/{folder}{i}_mask.png", np.array([0, 1, 7, 255], np.uint8)[draw(rng)])
    (place / "field.yaml").write_text(text)
    return place / "field.yaml"


def draw(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 4, (30, 40))


def problems(place: Path, text: str) -> str:
    with pytest.raises(UserError) as error:
        dataset_spec(str(field(place, text)))
    return str(error.value)


def test_a_described_folder(home: Path) -> None:
    path = field(home)
    train, val = prepare("field.yaml")
    assert (len(train), train.labelled, len(val), val.labelled) == (3, False, 6, True)
    assert not val.left_out and not val.unknown and val.counts.shape == (6, 3) and val.counts.all()
    stored = load_index(str(path), "val")
    assert stored.dataset == str(path) and np.array_equal(stored.counts, val.counts)
    assert next((home / "home/.udaseg").glob("fieldB-val-*.npz"))
    pairs = TrainingPairs(
        Domain(val), Domain(train, labels=False), sampler=Uniform(statistics(val)), crop=(16, 16), seed=0, length=4
    )
    assert set(np.unique(pairs[0]["source_label"].numpy())) == {0, 1, 2, IGNORE}
    with pytest.raises(UserError, match=r"(?s)field\.yaml.*has no image.*frames/\*\*/\*\.png"):
        load_index(str(path), "train", home / "b/val")
    with pytest.raises(UserError, match=r"prepare '.*my field\.yaml' --root .*/c$"):
        load_index(str(shutil.copy(path, home / "my field.yaml")), "val", shutil.copytree(home / "b", home / "c"))
    with pytest.raises(UserError, match=r"has no split 'test'"):
        build_index(dataset_spec(str(path)), "test")


def test_missing_root_and_masks(home: Path) -> None:
    path = field(home)
    (home / "b/val/lab/1_mask.png").rename(home / "b/val/lab/x_mask.png")
    _, val = prepare(str(path))
    assert dict(val.left_out) == {
        "val/img/1.png": "image without a label: there is no val/lab/1_mask.png",
        "val/lab/x_mask.png": "label without an image",
    }
    (home / "b").rename(home / "c")
    with pytest.raises(UserError, match=r"(?s)not found in .*/b\..*val/img/\*\*/\*\.png.*udaseg prepare .*field\.yaml"):
        prepare(str(path))
    assert len(prepare(str(path), root=home / "c")[1]) == 5


@pytest.mark.parametrize(
    ("images", "masks", "image", "mask"),
    [
        ("*_image.jpg", "{match}_label.png", "903127_image.jpg", "903127_label.png"),
        ("x/**/*_left.png", "y/{folder}/{match}_gt_{match}.png", "x/ulm/a/3_left.png", "y/ulm/a/3_gt_3.png"),
        ("x/*/*.png", "y/{folder}/{match}.png", "x/ulm/a_b.png", "y/ulm/a_b.png"),
    ],
)
def test_masks_named_by_a_part_of_the_images_name(home: Path, images: str, masks: str, image: str, mask: str) -> None:
    text = f"name: own\nroot: o\nclasses: [a]\nsplits: {{all: {{images: '{images}', masks: '{masks}'}}}}\n"
    (home / "own.yaml").write_text(text)
    save(home / "o" / image, photo(np.random.default_rng(0), (8, 8)))
    save(home / "o" / mask, np.zeros((8, 8), np.uint8))
    (index,) = prepare("own.yaml")
    assert [(pair.image, pair.label) for pair in index.pairs] == [(Path(image), Path(mask))] and not index.left_out
    (home / "o" / mask).rename(home / "o" / "other.png")
    with pytest.raises(UserError, match=f"(?s)images but no labels.*{re.escape(masks)}"):
        prepare("own.yaml")


@pytest.mark.parametrize("folder", ["val/lab", "val/img"])
def test_a_declared_split_without_a_pair(home: Path, folder: str) -> None:
    path = field(home)
    shutil.rmtree(home / "b" / folder)
    with pytest.raises(UserError) as error:
        prepare(str(path))
    assert "(val)" in str(error.value) and "val: val/img/**/*.png with val/lab/{folder}/{stem}_mask.png" in str(
        error.value
    )
    assert len(load_index(str(path), "train")) == 3


def test_linked_folders_are_searched_and_cycles_left(home: Path) -> None:
    path = field(home)
    shutil.move(home / "b/frames/day1", home / "elsewhere")
    (home / "b/frames/day1").symlink_to(home / "elsewhere")
    (home / "b/frames/day0/again").symlink_to(home / "b")
    (home / "elsewhere/back").symlink_to(home / "b/frames")
    train, _ = prepare(str(path))
    names = [pair.image.as_posix() for pair in train.pairs]
    assert {"frames/day0/0.png", "frames/day1/1.png", "frames/day2/2.png"} <= set(names) and len(names) < 30


def test_two_images_with_one_mask(home: Path) -> None:
    path = field(home, FIELD.replace("{folder}/", ""))
    _, val = prepare(str(path))
    assert len(val) == 3
    assert dict(val.left_out)["val/img/far/1.png"] == "shares its mask val/lab/1_mask.png with val/img/1.png"


def test_masks_among_the_images(home: Path) -> None:
    path = field(home, FIELD.replace("val/lab/{folder}/{stem}_mask.png", "val/img/{folder}/{stem}_mask.png"))
    for mask in (home / "b/val/lab").rglob("*.png"):
        mask.rename(home / "b/val/img" / mask.relative_to(home / "b/val/lab"))
    assert len(prepare(str(path))[1]) == 6 and not prepare(str(path), strict=True)[1].left_out
    (home / "b/val/img/1.png").unlink()
    assert dict(prepare(str(path))[1].left_out) == {
        "val/img/1_mask.png": "image without a label: there is no val/img/1_mask_mask.png"
    }


def test_another_spelling_of_the_file_is_the_same_data_set(home: Path) -> None:
    prepare(str(field(home)))
    assert len(load_index("b/../field.yaml", "val")) == len(load_index("field.yaml", "val")) == 6


def test_unknown_label_values(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = field(home)
    save(home / "b/val/lab/2_mask.png", np.full((30, 40), 9, np.uint8))
    with pytest.raises(UserError, match=r"(?s)label value 9: 1200 pixels, first in val/lab/2_mask\.png.*ignore"):
        prepare(str(path))
    path.write_text(FIELD.replace("unknown: error", "unknown: ignore"))
    read: list[str] = []
    original = index_module._read_row
    monkeypatch.setattr(index_module, "_read_row", lambda *job: read.append(job[-1].image.name) or original(*job))
    assert prepare(str(path))[1].unknown == {9: (1200, "val/lab/2_mask.png")}
    assert read == []  # what was read before the error is kept
    path.write_text(FIELD.replace("ignore: [255]", "ignore: [255, 9]"))
    assert prepare(str(path))[1].unknown == {}


COLOURS = """\
name: tiles
root: b
classes: [low, high]
splits: {val: {images: val/img/*.png, masks: "val/lab/{stem}.png"}}
encoding:
  kind: colour
  map: {"0,255,255": low, "#FF00ff": high, "255, 255, 0": high}
  ignore: ["0,0,0"]
"""


def test_colour_masks(home: Path) -> None:
    path = field(home, COLOURS)
    table = np.array([[0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0]], np.uint8)
    drawn = [draw(np.random.default_rng(i)) for i in range(3)]
    for i in range(3):
        save(home / f"b/val/lab/{i}.png", table[drawn[i]])
    (index,) = prepare(str(path))
    assert [c.tolist() for c in index.counts] == [[(d == 0).sum(), ((d == 1) | (d == 2)).sum()] for d in drawn]
    label = Domain(index).native_label(1)
    assert np.array_equal(label, np.array([0, 1, 1, IGNORE])[drawn[1]])
    assert dataset_spec(str(path)).classes.palette == ((0, 255, 255), (255, 0, 255))
    save(home / "b/val/lab/1.png", np.array([*table, [1, 2, 3]], np.uint8)[np.where(drawn[1] == 0, 4, drawn[1])])
    with pytest.raises(UserError, match=r"colour 1,2,3: \d+ pixels, first in val/lab/1\.png"):
        prepare(str(path))


def test_changed_description_is_noticed(home: Path) -> None:
    path = field(home, COLOURS)
    for i in range(3):
        save(home / f"b/val/lab/{i}.png", np.full((30, 40, 3), (0, 255, 255), np.uint8))
    before = prepare(str(path))[0]
    path.write_text(COLOURS.replace("255,255", "9,9").replace("#FF00ff", "#00ffff"))
    with pytest.raises(UserError, match="another version"):
        load_index(str(path), "val")
    after = prepare(str(path))[0]
    assert (before.counts[:, 0] == 1200).all() and (after.counts[:, 1] == 1200).all()


def test_all_problems_at_once(home: Path) -> None:
    message = problems(home, """\
name: "../x"
root: ${NO_SUCH_VARIABLE}/b
classes: [soil, crop, crop]
clases: [weed]
splits:
  train: {images: "/etc/*.png"}
  other: {images: "a**/x.png", mask: x}
  val: {images: "../*.png", masks: "lab/{name}.png"}
encoding: {kind: indx}
palette: {soil: [0, 0, 300], sail: [0, 0, 0]}
scale: 2
""")  # fmt: skip
    for words in (
        "problem(s)",
        "name: '../x'",
        "clases: unknown key 'clases'; did you mean 'classes'?",
        "root: '${NO_SUCH_VARIABLE}/b': there is no environment variable 'NO_SUCH_VARIABLE'",
        "classes: 'crop' occurs 2 times",
        "splits.other.mask: unknown key 'mask'; did you mean 'masks'?",
        "encoding.kind: 'indx'",
        "palette.soil.2: 300",
        "scale: 2",
    ):
        assert words in message, words


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"frames/**/*.png"', '"/etc/*.png"', "splits.train.images: '/etc/*.png' is not allowed: a path below"),
        ('"frames/**/*.png"', '"../*.png"', "path below the root"),
        ('"frames/**/*.png"', '""', "path below the root"),
        ('"frames/**/*.png"', '"fr**/*.png"', "whole folders"),
        ("{stem}_mask", "{name}_mask", "{name} is not allowed; allowed: folder, match, stem"),
        ("{stem}_mask", "{stem.__class__}", "{stem.__class__} is not allowed"),
        ("{stem}_mask", "{stem!r}", "{stem} is not allowed"),
        ("{stem}_mask", "mask", "needs {stem}"),
        (
            'img/**/*.png", masks: "val/lab/{folder}/{stem}',
            'img/*.*", masks: "val/lab/{match}',
            "{match}, the file name",
        ),
        (
            'img/**/*.png", masks: "val/lab/{folder}/{stem}',
            'img/?*", masks: "val/lab/{match}',
            "{match}, the file name",
        ),
        ("{stem}_mask", "{stem", "is not allowed: expected '}'"),
        ("{folder}/", "x{folder}/", "{folder} stands for whole folders"),
        ("  val:", "  ../val:", "splits.../val"),
        ("val/lab", "../lab", "path below the root"),
        ("{stem}_mask", "*{stem}", "one mask of each image is expected"),
        ("map: {0: soil, 1: crop, 7: weed}, ignore: [255]", "ignore: [0]", "encoding.ignore: 0 is class 'soil'"),
        ("7: weed", "7: wead", "encoding.map.7: no class 'wead'; did you mean 'weed'?"),
        ("7: weed", "256: weed", "256 is not allowed: a number from 0 to 255"),
        ("7: weed", "0.5: weed", "key 0.5 is not text"),
        ("7: weed", "0: weed", "key 0 occurs twice"),
        ("7: weed", '"7": weed', "'7' is not allowed: a number"),
        ("[255]", "[7]", "encoding.ignore: 7 is listed twice"),
        ("kind: index", "kind: colour", '0 is not allowed: a colour such as "255,255,255"'),
        ("root: ${FIELDS}/b", "root: ", "root: None is not allowed"),
        ("classes: [soil, crop, weed]", "classes: []", "classes: [] is not allowed"),
        ("classes: [soil, crop, weed]", "classes: [soil, no, weed]", "classes.1: False is not allowed"),
        ("name: fieldB", "", "name: is missing"),
        ("name: fieldB", "name: fieldB\nchannels: 4", "channels: 4"),
        ("name: fieldB", "name: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("name: fieldB", "name: fieldB\npalette: {sail: [0, 0, 0]}", "no class 'sail'; did you mean 'soil'?"),
    ],
)
def test_problems(old: str, new: str, words: str, home: Path) -> None:
    assert old in FIELD and words in problems(home, FIELD.replace(old, new))


def test_no_file(home: Path) -> None:
    with pytest.raises(UserError, match=r"nosuch\.yaml: cannot be read: No such file"):
        dataset_spec("nosuch.yaml")
    (home / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="a data set is a map of keys"):
        dataset_spec("list.yaml")


def test_without_encoding_value_i_is_class_i(home: Path) -> None:
    path = field(home, COLOURS[: COLOURS.index("encoding")])
    for i in range(3):
        save(home / f"b/val/lab/{i}.png", (draw(np.random.default_rng(i)) % 2).astype(np.uint8))
    index: Index = prepare(str(path))[0]
    assert (index.counts.sum(1) == 1200).all() and len(set(dataset_spec(str(path)).classes.palette)) == 2
