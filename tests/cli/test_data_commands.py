"""`udaseg prepare --archives | --cache` and `udaseg check` through the real command, on small official data sets."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cli.test_commands import Run, is_message, udaseg
from PIL import Image
from unit.data_files import cityscapes, gta5, labels, save, save_palette, truncate

__all__ = ["udaseg"]
BENCHMARK = """\
data:
  source: {dataset: gta5, split: train, size: [64, 36]}
  target: {dataset: cityscapes, split: train, size: [64, 32]}
  validation: {dataset: cityscapes, split: val, size: [64, 32]}
  crop: [32, 32]
  protocol: cityscapes19
  min_pixels: 3
  crop_margins: [2, 8]
"""


def pack(root: Path, target: Path, *folders: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(path for folder in folders for path in (root / folder).rglob("*.png")):
            archive.write(path, path.relative_to(root))


@pytest.fixture
def data(udaseg: Run) -> Path:
    """GTA5 and Cityscapes, prepared, and a benchmark on them (small.yaml)."""
    home = Path("data")
    gta5(home / "gta5", n=5, size=(95, 53))
    for split in ("train", "val"):
        cityscapes(home / "cityscapes", split)
    for name in ("gta5", "cityscapes"):
        assert udaseg("prepare", name).code == 0
    Path("small.yaml").write_text(BENCHMARK, encoding="utf-8")
    return home


def flat(text: str) -> str:
    return " ".join(text.split())


# --- prepare -------------------------------------------------------------------------------------------------------


def test_prepare_from_archives(udaseg: Run) -> None:
    cityscapes(Path("original"), "train")
    cityscapes(Path("original"), "val")
    pack(Path("original"), Path("zips/leftImg8bit_trainvaltest.zip"), "leftImg8bit")
    pack(Path("original"), Path("zips/gtFine_trainvaltest.zip"), "gtFine")
    answer = udaseg("prepare", "cityscapes", "--archives", "zips")
    assert answer.code == 0, answer
    assert "unpacked 24 files" in answer.out and len(re.findall(r"usable pairs +6", answer.out)) == 2
    assert "unpacked 0 files" in udaseg("prepare", "cityscapes", "--archives", "zips").out
    other = udaseg("prepare", "cityscapes", "--archives", "zips", "--root", "other place")
    assert other.code == 0 and Path("other place/gtFine/val/ulm").is_dir() and "other place" in other.out


def test_prepare_from_archives_that_are_not_right(udaseg: Run) -> None:
    gta5(Path("original"), n=2)
    is_message(udaseg("prepare", "gta5", "--archives", "nowhere"), "nowhere", "no such folder")
    is_message(udaseg("prepare", "streets", "--archives", "."), "streets has no official archives")
    is_message(
        udaseg("prepare", "gta5", "--archives", "."), "none of the archives of gta5", "01_images.zip", "https://"
    )
    pack(Path("original"), Path("zips/01_images.zip"), "images")
    answer = udaseg("prepare", "gta5", "--archives", "zips")
    assert answer.code == 2 and "not in zips: 02_images.zip" in flat(answer.out) and "needs the folders" in answer.err
    with zipfile.ZipFile("zips/01_labels.zip", "w") as archive:
        archive.writestr("../../outside.png", b"x")
    is_message(udaseg("prepare", "gta5", "--archives", "zips"), "'../../outside.png' leads out", "Nothing was unpacked")
    assert not Path("outside.png").exists() and not Path("data/outside.png").exists()


def test_prepare_cache(udaseg: Run, data: Path) -> None:
    answer = udaseg("prepare", "gta5", "--cache", "64x36")
    assert answer.code == 0 and "0.00 GB in " in answer.out and "used from now on" in answer.out
    (copy,) = (data / ".udaseg/cache").iterdir()
    assert (copy / "images.bin").stat().st_size == 5 * 64 * 36 * 3
    assert "nothing to do" in udaseg("prepare", "gta5", "--cache", "64x36").out
    answer = udaseg("prepare", "cityscapes", "--cache", "64x32")
    assert answer.code == 0 and len(list((data / ".udaseg/cache").iterdir())) == 2  # training images only
    text = udaseg("check", "small.yaml").out
    assert re.search(r"^source +gta5 train.*used *$", text, re.MULTILINE), text
    for size in ("64", "64x0", "x", "1280*720", "70000x64", "9" * 5000 + "x64"):
        is_message(udaseg("prepare", "gta5", "--cache", size), f"--cache '{size}'", "WIDTHxHEIGHT")


def test_prepare_names_at_most_some_of_what_is_left_out(udaseg: Run) -> None:
    root = gta5(Path("data/gta5"), n=26)
    for path in sorted((root / "images").iterdir())[:24]:
        truncate(path)
    answer = udaseg("prepare", "gta5", "--workers", "1")
    assert answer.code == 0 and answer.out.count("cut off") == 20 and "and 4 more" in answer.out
    assert re.search(r"usable pairs +2\b", answer.out) and re.search(r"left out +24\b", answer.out)
    assert "24966" in answer.out and "24941" in answer.out
    is_message(udaseg("prepare", "gta5", "--strict"), "24 problems (--strict)", "images/00001.png")


# --- check ---------------------------------------------------------------------------------------------------------


def test_check(udaseg: Run, data: Path) -> None:
    answer = udaseg("check", "small.yaml")
    assert answer.code == 0 and answer.err == "", answer
    for words in (r"source +gta5 train +5 +0", r"target +cityscapes train +6 +0", r"validation +cityscapes val +6 +0"):
        assert re.search(words, answer.out), words
    rows = re.findall(r"^([a-z ]+?) +([\d.]+|-) +([\d.]+|-) +([\d.]+|-) *$", answer.out, re.MULTILINE)
    assert len(rows) == 19 and rows[6][0] == "traffic light"
    for column in (1, 2, 3):
        assert 99 < sum(float(row[column].replace("-", "0")) for row in rows) < 101
    assert "data.margins" not in answer.out  # the target is Cityscapes
    picture = Image.open("check-small.png")
    assert picture.width == 4 * 390 and picture.height > 6 * 195
    assert "picture check-small-2.png" in udaseg("check", "small.yaml").out
    assert "picture mine/x.png" in udaseg("check", "small.yaml", "--out", "mine/x.png").out
    assert sorted(path.name for path in Path().glob("*.png")) == ["check-small-2.png", "check-small.png"]


def test_check_shows_image_and_overlay(udaseg: Run, data: Path) -> None:
    for path in (data / "gta5/images").iterdir():
        save(path, np.full((53, 95, 3), 200, np.uint8))
    for path in (data / "gta5/labels").iterdir():
        save_palette(path, np.full((53, 95), 26, np.uint8))  # car, (0, 0, 142)
    assert udaseg("prepare", "gta5").code == 0
    answer = udaseg("check", "small.yaml")
    assert "pixels in the target only: road, sidewalk, building," in answer.out
    under_labels = (80, 80, int(0.4 * 200 + 0.6 * 142))
    images, overlays = places_of((200, 200, 200), under_labels)
    assert len(images) > 5 * 195 * 340 and np.quantile(images[:, 1], 0.999) < 390
    assert len(overlays) > 5 * 195 * 340 and overlays[:, 1].min() > 390 and overlays[:, 1].max() < 2 * 390


def places_of(*colours: tuple[int, int, int]) -> list[np.ndarray]:
    """(row, column) of the pixels of each colour in the picture."""
    pixels = np.array(Image.open("check-small.png").convert("RGB"))
    return [np.argwhere((pixels == colour).all(-1)) for colour in colours]


def test_check_upright_images(udaseg: Run, data: Path) -> None:
    """A telephone's photos are shown whole, in the middle of a tile."""
    for path in (data / "gta5/images").iterdir():
        save(path, np.full((95, 53, 3), 200, np.uint8))
    for path in (data / "gta5/labels").iterdir():
        save_palette(path, np.full((95, 53), 26, np.uint8))
    assert udaseg("prepare", "gta5").code == 0
    answer = udaseg("check", "small.yaml")
    assert answer.code == 0, answer
    (images,) = places_of((200, 200, 200))
    first, last = np.quantile(images[:, 1], (0.01, 0.99))
    assert len(images) > 6 * 180 * 100 and 130 < first < 150 and 240 < last < 260


def test_check_names_settings_that_do_not_fit(udaseg: Run, data: Path) -> None:
    text = BENCHMARK.replace("min_pixels: 3", "min_pixels: 3000")
    Path("odd.yaml").write_text(text.replace("cityscapes, split: train", "streets_target, split: train"), "utf-8")
    cityscapes(data / "streets/cityscapes", "train")
    is_message(udaseg("check", "odd.yaml"), "odd.yaml: data.target", "Run: udaseg prepare streets")
    assert udaseg("prepare", "streets_target").code == 0
    answer = flat(udaseg("check", "odd.yaml").out)
    for words in (
        "data.margins=crop ((2, 8)) hides the bonnet",
        "data.min_pixels=3000 is 60 % of an image of gta5",
        "no source image has more than 3000 pixels (data.min_pixels) of: road,",
    ):
        assert words in answer, (words, answer)
    assert "data.margins" not in flat(udaseg("check", "odd.yaml", "-r", "dacs").out)
    own = "extends: daformer\nviews: {source: {terms: {feature_distance: {class_names: [car, lorry, tram]}}}}\n"
    Path("own.yaml").write_text(own, encoding="utf-8")
    found = flat(udaseg("check", "small.yaml", "-r", "own.yaml").out)
    assert "views.source.terms.feature_distance.class_names: no class is called lorry, tram" in found
    assert "data.min_pixels=3000 is 60 %" in flat(udaseg("check", "odd.yaml", "-r", "daformer").out)


def test_check_without_target_labels(udaseg: Run, data: Path) -> None:
    for path in (data / "cityscapes/gtFine/train").rglob("*.png"):
        path.unlink()
    assert udaseg("prepare", "cityscapes").code == 0
    answer = udaseg("check", "small.yaml")
    assert answer.code == 0 and re.search(r"target +cityscapes train +6 +0 +none", answer.out)
    assert re.search(r"class, % of labelled pixels +source +validation", answer.out)
    Path("alone.yaml").write_text(re.sub(r"  (target|validation): .*\n", "", BENCHMARK), encoding="utf-8")
    answer = udaseg("check", "alone.yaml", "-r", "source_only")
    assert answer.code == 0 and Image.open("check-alone.png").width == 2 * 390


def test_check_and_train_name_the_command_of_each_domain(udaseg: Run, tmp_path: Path) -> None:
    gta5(Path("my games"), n=2)
    cityscapes(Path("data/cityscapes"), "train")
    roots = BENCHMARK.replace("dataset: gta5,", "dataset: gta5, root: my games,")
    Path("small.yaml").write_text(roots, encoding="utf-8")
    for command in (["check", "small.yaml"], ["train", "-r", "daformer", "-b", "small.yaml"]):
        is_message(udaseg(*command), "data.source", "Run: udaseg prepare gta5 --root 'my games'", "data.target",
                   "Run: udaseg prepare cityscapes", "data.validation")  # fmt: skip
    assert udaseg("prepare", "gta5", "--root", "my games").code == 0
    assert "data.source" not in udaseg("check", "small.yaml").err
    assert not list(Path().glob("*.png"))


def test_check_data_that_went_bad(udaseg: Run, data: Path) -> None:
    paths = sorted((data / "cityscapes/leftImg8bit/train").rglob("*.png"))
    paths[0].unlink()
    is_message(udaseg("check", "small.yaml"), "data.target", "have changed. Run: udaseg prepare cityscapes")
    for path in paths[1:]:
        path.unlink()
    for command in (["check", "small.yaml"], ["train", "-r", "dacs", "-b", "small.yaml"]):
        is_message(udaseg(*command), "data.target", "has no image", "leftImg8bit/{train,val,test}")
    swapped = BENCHMARK.replace("dataset: gta5, split: train", "dataset: cityscapes, split: val")
    Path("swapped.yaml").write_text(re.sub(r"  (target|validation): .*\n", "", swapped), encoding="utf-8")
    assert udaseg("check", "swapped.yaml", "-r", "source_only").code == 0
    for path in (data / "cityscapes/gtFine/val").rglob("*.png"):
        path.unlink()
    is_message(udaseg("prepare", "cityscapes"), "(val)", "6 images but no labels")
    is_message(udaseg("check", "nosuch"), "no benchmark 'nosuch'")
    is_message(udaseg("check"), "Missing argument")


def test_a_class_of_the_source_only(udaseg: Run, data: Path) -> None:
    ids = labels(np.random.default_rng(0), (64, 32))
    for path in (data / "cityscapes/gtFine").rglob("*.png"):
        save(path, np.where(ids == 26, 0, ids).astype(np.uint8))
    assert udaseg("prepare", "cityscapes").code == 0
    assert re.search(r"pixels in the source only: .*\bcar\b", udaseg("check", "small.yaml").out)


def test_check_a_folder_of_your_own(udaseg: Run, data: Path) -> None:
    """Without labels its classes do not matter; with labels, those that match none are named."""
    own = "name: own\nroot: own\nclasses: [car, tree, sky]\nsplits: {train: {images: 'img/*.png'%s}}\n"
    encoding = "encoding: {kind: index, map: {0: car, 1: tree, 2: sky}, ignore: [255]}\n"
    for i in range(3):
        save(Path(f"own/img/{i}.png"), np.full((32, 64, 3), 90, np.uint8))
        save(Path(f"own/lab/{i}.png"), labels(np.random.default_rng(i), (64, 32), 3))
    Path("own.yaml").write_text(own.replace("car, tree, sky", "soil, crop") % "", encoding="utf-8")
    text = BENCHMARK.replace("dataset: cityscapes, split: train", "dataset: own.yaml, split: train")
    Path("small.yaml").write_text(text, encoding="utf-8")
    assert udaseg("prepare", "own.yaml").code == 0
    answer = udaseg("check", "small.yaml")
    assert answer.code == 0 and "become ignore" not in answer.out, answer
    Path("own.yaml").write_text(own % ", masks: 'lab/{stem}.png'" + encoding, encoding="utf-8")
    assert udaseg("prepare", "own.yaml", "--cache", "64x32").code == 0
    answer = udaseg("check", "small.yaml")
    assert "classes of target that become ignore (data.target.merge): tree" in flat(answer.out), answer
    assert re.search(r"^target.* used *$", answer.out, re.MULTILINE) and "only: road, sidewalk" not in answer.out
