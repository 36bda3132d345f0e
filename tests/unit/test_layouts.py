"""Finding data sets in their official folders and in DAFormer's, and what is said when they are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from unit.data_files import cityscapes, gta5, png, save

from udaseg.data.classes import CITYSCAPES, CITYSCAPES_IDS, PROTOCOLS, SYNTHIA_IDS, lookup
from udaseg.data.images import image_size, read_image, read_label
from udaseg.data.layouts import DATASETS, data_home, dataset_spec, find_cityscapes, find_gta5, find_root
from udaseg.errors import UserError


def test_class_tables() -> None:
    assert (
        len(CITYSCAPES) == 19 and CITYSCAPES.names.index("traffic light") == 6 and CITYSCAPES.palette[13] == (0, 0, 142)
    )
    assert lookup(CITYSCAPES_IDS)[[7, 33, 0, 34, 255]].tolist() == [0, 18, 255, 255, 255]
    assert lookup(SYNTHIA_IDS)[[3, 11, 22]].tolist() == [0, 18, 255]
    assert [len(PROTOCOLS[p]) for p in ("cityscapes19", "synthia16", "synthia13")] == [19, 16, 13]


def test_gta5_is_sorted_and_ignores_converted_labels(tmp_path: Path) -> None:
    root = gta5(tmp_path / "gta", n=12)
    save(root / "labels/00001_labelTrainIds.png", np.zeros((40, 64), np.uint8))
    found = find_gta5(root, "train")
    assert [p.image.name for p in found.pairs] == [f"{i:05d}.png" for i in range(1, 13)]
    assert all(p.label is not None and p.label.name == p.image.name for p in found.pairs)
    assert found.unmatched == ()


def test_unmatched_names_are_listed(tmp_path: Path) -> None:
    root = gta5(tmp_path, n=3)
    (root / "labels/00002.png").unlink()
    (root / "images/00003.png").unlink()
    found = find_gta5(root, "train")
    assert [p.image.stem for p in found.pairs] == ["00001"]
    assert dict(found.unmatched) == {
        "images/00002.png": "image without a label",
        "labels/00003.png": "label without an image",
    }


def test_cityscapes_prefers_label_ids(tmp_path: Path) -> None:
    cityscapes(tmp_path, kind="labelIds")
    cityscapes(tmp_path, kind="labelTrainIds")
    found = find_cityscapes(tmp_path, "train")
    assert found.encoding == "ids" and len(found.pairs) == 6 and not found.unmatched
    assert str(found.pairs[0].label) == "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"


def test_linked_folders_count(tmp_path: Path) -> None:
    root = cityscapes(tmp_path / "a")
    for part in ("leftImg8bit", "gtFine"):
        (root / part / "train/ulm").rename(tmp_path / part)
        (root / part / "train/ulm").symlink_to(tmp_path / part)
    found = find_cityscapes(root, "train")
    assert len(found.pairs) == 6 and found.pairs[-1].image.parts[2] == "ulm" and not found.unmatched


def test_cityscapes_train_ids_only_and_no_labels(tmp_path: Path) -> None:
    assert find_cityscapes(cityscapes(tmp_path / "a", kind="labelTrainIds"), "train").encoding == "train_ids"
    assert all(p.label is None for p in find_cityscapes(cityscapes(tmp_path / "b", kind=None), "train").pairs)
    test = find_cityscapes(cityscapes(tmp_path / "c", "test"), "test")
    assert len(test.pairs) == 6 and test.pairs[0].label is None


def test_default_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDASEG_DATA", str(tmp_path))
    gta5(tmp_path / "gta")
    gta5(tmp_path / "streets/gta5")
    assert data_home() == tmp_path
    assert find_root(DATASETS["gta5"]) == tmp_path / "gta"
    gta5(tmp_path / "gta5")
    assert find_root(DATASETS["gta5"]) == tmp_path / "gta5"
    assert find_root(DATASETS["streets_source"]) == tmp_path / "streets/gta5"


@pytest.mark.parametrize("name", list(DATASETS))
def test_missing_data_set_says_what_to_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDASEG_DATA", str(tmp_path))
    spec = dataset_spec(name)
    with pytest.raises(UserError) as error:
        find_root(spec)
    text = str(error.value)
    assert spec.tree.splitlines()[1] in text and spec.command() in text and spec.page in text
    with pytest.raises(UserError, match="nowhere"):
        find_root(spec, tmp_path / "nowhere")


def test_unknown_name() -> None:
    with pytest.raises(UserError, match=r"'cityscapes'.*There are"):
        dataset_spec("cityscape")


def test_label_formats(tmp_path: Path) -> None:
    from PIL import Image

    ids = np.array([[7, 11, 26], [0, 33, 4]], np.uint8)
    root = gta5(tmp_path, n=1)
    assert read_label(root / "labels/00001.png").max() > 0
    assert np.array_equal(read_label(save(tmp_path / "gray.png", ids)), ids)
    colours = np.array([[(128, 64, 128), (70, 70, 70), (0, 0, 142)], [(0, 0, 0), (119, 11, 32), (1, 2, 3)]], np.uint8)
    assert read_label(save(tmp_path / "rgb.png", colours)).tolist() == [[7, 11, 26], [0, 33, 254]]
    with pytest.raises(UserError, match=r"gray16\.png has 16 bits"):
        read_label(save(tmp_path / "gray16.png", ids.astype(np.uint16)))
    Image.fromarray(ids).convert("LA").save(tmp_path / "la.png")
    with pytest.raises(UserError, match=r"la\.png has pixel format"):
        read_label(tmp_path / "la.png")


def test_16_bit_colour_png_is_never_zeros(tmp_path: Path) -> None:
    path = tmp_path / "synthia.png"
    path.write_bytes(png(np.full((4, 6, 3), 3, np.uint16)))
    for read in (read_label, read_image):
        with pytest.raises(UserError, match=r"synthia\.png has 16 bits"):
            read(path)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bit_files_are_not_clipped(kind: type, tmp_path: Path) -> None:
    path = save(tmp_path / "height.tif", np.full((4, 6), 700, kind))
    for read in (read_label, read_image, image_size):
        with pytest.raises(UserError, match=r"height\.tif has 32 bits"):
            read(path)


def test_a_photo_with_something_behind_it_is_not_cut_off(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for name in ("motion.jpg", "notes.png"):
        path = save(tmp_path / name, pixels)
        content = path.read_bytes()
        path.write_bytes(content + bytes(9999))
        assert image_size(path) == (60, 40)
        path.write_bytes(content[: len(content) // 2] + bytes(9999))
        with pytest.raises(UserError, match="cut off"):
            image_size(path)


def test_bad_image_files(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    for name in ("text.png", "empty.png", "none.png"):
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)
