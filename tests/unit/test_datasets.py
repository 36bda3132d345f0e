"""Each data set in its official format through `prepare`, the index and the training samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from unit.data_files import (
    anonymous,
    camvid,
    cityscapes,
    gta5,
    labels,
    photo,
    png,
    polygons,
    save,
    save_palette,
    statistics,
    synthia,
    synthia_label,
    truncate,
)

from udaseg.data.classes import CITYSCAPES_COLOURS, CITYSCAPES_NAMES, IGNORE, SYNTHIA_IDS, lookup
from udaseg.data.dataset import Domain, EvaluationImages, TrainingPairs
from udaseg.data.images import Pixels, count_values, read_label
from udaseg.data.index import Index, build_index, load_index
from udaseg.data.layouts import DATASETS, dataset_spec
from udaseg.data.prepare import prepare, summary
from udaseg.data.sampling import Uniform
from udaseg.errors import UserError

RED, POLYGONS = Pixels("red"), Pixels("polygons")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UDASEG_DATA", str(tmp_path))
    return tmp_path


def sample_values(index: Index) -> set[int]:
    """Train ids in a few training samples, which must show the very labels."""
    domain = Domain(index)
    pairs = TrainingPairs(domain, sampler=Uniform(statistics(index)), crop=(24, 24), seed=0, length=8)
    values = {int(v) for k in range(8) for v in np.unique(pairs[k]["source_label"].numpy())}
    assert all(np.array_equal(domain.load(i)[1], domain.native_label(i)) for i in range(len(index)))
    return values


# ---------------------------------------------------------------------------------------------------------- SYNTHIA


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 41)])
@pytest.mark.parametrize("channels", [3, 4])
def test_red_of_16_bit_files_with_every_filter(size: tuple[int, int], channels: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (*size[::-1], channels), dtype=np.uint16)
    values[..., 0] %= 255
    values[..., 0] += 1
    path = tmp_path / "x.png"
    path.write_bytes(png(values))
    assert np.array_equal(read_label(path, RED), values[..., 0])
    counts, found = count_values(path, RED)
    assert found == size and np.array_equal(counts, np.bincount(values[..., 0].ravel(), minlength=256))


def test_synthia(home: Path) -> None:
    root = synthia(home / "synthia")
    (index,) = prepare("synthia")
    with Image.open(root / "GT/LABELS/0000000.png") as picture:
        assert not np.array(picture)[..., 0].any()  # what Pillow makes of it
    for i, pair in enumerate(index.pairs):
        train_ids = lookup(SYNTHIA_IDS)[read_label(root / pair.label, RED)]
        assert index.counts[i].tolist() == [(train_ids == c).sum() for c in range(19)] and index.counts[i].any()
    assert not index.unknown and not index.left_out and sample_values(index) > {0, 2, 10, IGNORE}


def test_synthia_labels_written_by_other_programs(home: Path) -> None:
    root = synthia(home / "synthia", n=5, size=(64, 40))
    ids = labels(np.random.default_rng(5), (64, 40), 23)
    three = np.stack([ids, 0 * ids, 0 * ids], -1)
    save(root / "GT/LABELS/0000000.png", three)  # 8-bit colour copy with the ids
    save(root / "GT/LABELS/0000001.png", ids)  # 8-bit gray copy
    with Image.open(root / "GT/LABELS/0000002.png") as picture:
        copy = np.array(picture)
    copy[..., 0] = 0
    save(root / "GT/LABELS/0000002.png", copy)  # Pillow's 8-bit copy: zeros in red
    (root / "GT/LABELS/0000003.png").write_bytes(png(three.astype(np.uint16) * 256))
    (index,) = prepare("synthia")
    assert [p.image.stem for p in index.pairs] == ["0000000", "0000001", "0000004"]
    assert np.array_equal(index.counts[0], index.counts[1]) and index.counts[0].any()
    reasons = dict(index.left_out)
    assert "0000002.png is all zeros" in reasons["RGB/0000002.png"]
    assert "above 255" in reasons["RGB/0000003.png"]


def test_synthia_of_zeros_only_is_an_error_in_training_too(home: Path) -> None:
    root = synthia(home / "synthia", n=2, size=(64, 40))
    build_index(DATASETS["synthia"], "train")
    index = load_index("synthia", "train")
    for path in (root / "GT/LABELS").iterdir():
        path.write_bytes(png(np.zeros((40, 64, 3), np.uint16)))
    with pytest.raises(UserError, match="all zeros"):
        Domain(index).load(0)
    with pytest.raises(UserError, match=r"(?s)no usable pair.*all zeros"):
        build_index(DATASETS["synthia"], "train")


def test_an_unknown_value_of_a_16_bit_file_is_named(home: Path) -> None:
    root = synthia(home / "synthia", n=2, size=(64, 40))
    (root / "GT/LABELS/0000001.png").write_bytes(synthia_label(np.full((40, 64), 254)))
    assert "unknown label value 254" in dict(summary(prepare("synthia")[0]))


def test_damaged_16_bit_files(home: Path) -> None:
    root = synthia(home / "synthia", n=5, size=(64, 40))
    files = [root / f"GT/LABELS/{i:07d}.png" for i in range(5)]
    truncate(files[0])
    data = bytearray(files[1].read_bytes())
    data[len(data) // 2] ^= 0x10
    files[1].write_bytes(bytes(data))
    files[2].write_bytes(png(np.ones((40, 64, 3), np.uint16), interlace=1))
    files[3].write_bytes(files[3].read_bytes()[:40])
    (index,) = prepare("synthia")
    reasons = dict(index.left_out)
    assert [p.image.stem for p in index.pairs] == ["0000004"]
    assert "wrong checksum" in reasons["RGB/0000000.png"] and "wrong checksum" in reasons["RGB/0000001.png"]
    assert "not interlaced" in reasons["RGB/0000002.png"] and "0000003.png" in reasons["RGB/0000003.png"]


def test_labels_that_daformer_wrote_serve_where_originals_are_gone(home: Path) -> None:
    for name, place, folder in (
        ("synthia", synthia(home / "synthia"), "GT/LABELS"),
        ("gta5", gta5(home / "gta"), "labels"),
    ):
        for path in sorted((place / folder).iterdir()):
            ids = read_label(path, RED if name == "synthia" else Pixels())
            save(path.with_name(f"{path.stem}_labelTrainIds.png"), dataset_lut(name)[ids])
        (before,) = prepare(name)
        assert before.encoding == "ids"
        for path in [p for p in (place / folder).iterdir() if "label" not in p.name]:
            path.unlink()
        (after,) = prepare(name)
        assert after.encoding == "train_ids" and np.array_equal(before.counts, after.counts)


def dataset_lut(name: str) -> np.ndarray:
    return lookup(dataset_spec(name).encodings["ids"].ids)


# ------------------------------------------------------------------------------------------------------------- GTA5


def test_gta5_labels_expanded_to_colours(home: Path) -> None:
    root = gta5(home / "gta5")
    (palette,) = prepare("gta5")
    colours = np.zeros((256, 3), np.uint8)
    for colour, value in CITYSCAPES_COLOURS.items():
        colours[value] = colour
    for pair in palette.pairs:
        save(root / pair.label, colours[read_label(root / pair.label)])
    (expanded,) = prepare("gta5")
    assert np.array_equal(palette.counts, expanded.counts) and not expanded.unknown
    save(root / palette.pairs[1].label, np.full((40, 64, 3), (9, 8, 7), np.uint8))
    (odd,) = prepare("gta5")
    assert ("unknown colour 9,8,7", "2560 pixels ignored, first in labels/00002.png") in summary(odd)
    save_palette(root / palette.pairs[1].label, np.full((40, 64), 254, np.uint8))
    assert "unknown label value 254" in dict(summary(prepare("gta5")[0]))


# ------------------------------------------------------------------------------------------------- ACDC, Dark Zurich


def test_acdc_official_layout_and_conditions(home: Path) -> None:
    for condition in ("fog", "night", "rain", "snow"):
        for split in ("train", "val", "train_ref"):
            anonymous(home / "acdc", f"{condition}/{split}", kinds=("labelTrainIds", "labelIds"))
        anonymous(home / "acdc", f"{condition}/test", kinds=())
    train, val, test = prepare("acdc")
    assert [len(i) for i in (train, val, test)] == [8, 8, 8] and not test.labelled
    assert val.encoding == "train_ids" and sorted(val.conditions) == sorted(["fog", "night", "rain", "snow"] * 2)
    assert load_index("acdc", "val").conditions == val.conditions
    names = [item["name"] for item in EvaluationImages(Domain(val))]
    assert [name.split("/")[1] for name in names] == list(val.conditions)
    assert sample_values(val) <= {*range(19)}


def test_acdc_as_daformer_flattens_it(home: Path) -> None:
    root = anonymous(home / "acdc", "train", kinds=())
    anonymous(root, "val", kinds=("labelIds",))
    train, val = prepare("acdc")
    assert (len(train), train.labelled, len(val), val.encoding) == (2, False, 2, "ids")
    assert set(val.conditions) == {""}
    anonymous(root, "fog/train", n=3, kinds=())  # rsync leaves the originals where they are
    assert len(build_index(DATASETS["acdc"], "train")) == 3


def test_acdc_label_missing_in_one_condition(home: Path) -> None:
    root = anonymous(home / "acdc", "fog/val")
    anonymous(root, "rain/val", kinds=())
    (index,) = prepare("acdc")
    assert set(index.conditions) == {"fog"} and index.labelled
    assert {name.split("/")[1] for name, reason in index.left_out if reason == "image without a label"} == {"rain"}


def test_dark_zurich(home: Path) -> None:
    root = home / "dark_zurich"
    for folder in ("train/night", "train/day", "train/twilight", "val_ref/day"):
        anonymous(root, folder, kinds=())
    anonymous(root, "val/night")
    train, val = prepare("dark-zurich")
    assert [p.image.parts[2] for p in train.pairs] == ["night"] * 2 and not train.labelled
    assert (val.dataset, len(val), set(val.conditions), val.labelled) == ("dark_zurich", 2, {"night"}, True)
    assert len(load_index("dark-zurich", "val")) == 2


# ----------------------------------------------------------------------------------------------------------- CamVid


def test_camvid_and_its_day_and_dusk(home: Path) -> None:
    camvid(home / "camvid")
    found = {i.split: i for i in prepare("camvid")}
    assert {split: [p.image.stem[:6] for p in i.pairs] for split, i in found.items()} == {
        "train": ["0001TP", "0001TP", "0006R0", "0016E5"],
        "val": ["0016E5"],
        "test": ["0001TP", "Seq05V"],
        "train_day": ["0006R0", "0016E5"],
        "train_dusk": ["0001TP", "0001TP"],
        "val_day": ["0016E5"],
        "test_dusk": ["0001TP"],
    }
    assert not any(i.unknown for i in found.values()) and found["train"].counts.shape == (4, 11)
    assert sample_values(found["train"]) == {*range(11), IGNORE}


def test_colour_files_of_a_data_set_without_official_colours(home: Path) -> None:
    root = camvid(home / "camvid")
    save(root / "valannot/0016E5_07959.png", photo(np.random.default_rng(0), (48, 36)))
    with pytest.raises(UserError, match="holds colours"):
        build_index(DATASETS["camvid"], "val")


# --------------------------------------------------------------------------------------------------------- polygons


def square(label: str, x: int, y: int, side: int = 7, **more: object) -> dict:
    return {"label": label, "polygon": [[x, y], [x + side, y], [x + side, y + side], [x, y + side]], **more}


def test_polygons_are_drawn_in_the_official_order(tmp_path: Path) -> None:
    objects = [
        square("road", 0, 0, 31),
        square("cargroup", 2, 2),
        square("license plate", 4, 4, 2),
        square("sky", 40, 2),
        square("person", 40, 2, deleted=1),
        square("polegroup", 20, 20, deleted=0),
        square("rider", 3, 3, 1),
    ]
    ids = read_label(polygons(tmp_path / "x.json", objects), POLYGONS)
    assert ids.shape == (32, 64)
    assert [ids[y, x] for y, x in ((0, 0), (2, 2), (4, 4), (5, 5), (3, 3), (3, 41), (21, 21), (20, 50))] == [
        7, 26, 25, 26, 25, 23, 18, 0,
    ]  # fmt: skip
    assert (ids == 26).sum() == 64 - 4


def test_cityscapes_with_polygons_only(home: Path) -> None:
    root = cityscapes(home / "cityscapes", kind=None)
    for i, image in enumerate(sorted((root / "leftImg8bit").rglob("*.png"))):
        name = image.relative_to(root / "leftImg8bit").as_posix().replace("leftImg8bit.png", "gtFine_polygons.json")
        polygons(root / "gtFine" / name, [square(label, 5 * j, i) for j, label in enumerate(CITYSCAPES_NAMES)])
    (index,) = prepare("cityscapes")
    assert index.encoding == "polygons" and len(index) == 6 and index.counts.any(1).all() and not index.unknown
    assert sample_values(index) > {1, 2, 3, IGNORE}
    cityscapes(root, kind="labelIds")
    (index,) = prepare("cityscapes")
    assert index.encoding == "ids" and index.counts.sum() > 6 * 1000  # rows of the polygons are not taken for these


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "polygons"),
        ("[]", "polygons"),
        ('{"imgWidth": 8, "imgHeight": 8}', "objects"),
        ('{"imgWidth": 1e9, "imgHeight": 1e9, "objects": []}', "pixels"),
        ('{"imgWidth": 8, "imgHeight": 8, "objects": [{"label": "unicorn", "polygon": []}]}', "'unicorn'"),
        ('{"imgWidth": 8, "imgHeight": 8, "objects": [{"label": "road", "polygon": [[1]]}]}', "polygons"),
        ('{"imgWidth": 8, "imgHeight": 8, "objects": [{"label": "road", "polygon": [["a", 2], [1, 1]]}]}', "polygons"),
        ("[" * 100_000, "polygons"),
    ],
)
def test_bad_polygon_files(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=rf"bad\.json.*{message}"):
        read_label(tmp_path / "bad.json", POLYGONS)
    with pytest.raises(UserError, match="does not exist"):
        read_label(tmp_path / "none.json", POLYGONS)


def test_a_label_changed_from_one_kind_to_another_is_read_again(home: Path) -> None:
    """Rows are kept by the files' times and by how they are read."""
    root = synthia(home / "synthia", n=1, size=(64, 40))
    first = build_index(DATASETS["synthia"], "train")
    path = root / "GT/LABELS/0000000.png"
    path.write_bytes(synthia_label(np.full((40, 64), 3)))
    second = build_index(DATASETS["synthia"], "train")
    assert not np.array_equal(first.counts, second.counts) and second.counts[0, 0] == 40 * 64
