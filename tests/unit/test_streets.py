"""The generated data set `streets`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from udaseg.data.streets import draw, write_streets
from udaseg.errors import UserError

DOMAINS = ("game", "camera")
CLASSES = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
EGO = 1
SMALL = (64, 32)
PARAMETERS: dict[str, Any] = {
    **{"size": SMALL, "gap": 0.5, "seed": 3},
    **{"source": 5, "source_val": 2, "target_train": 5, "target_val": 3},
}
DIGEST = """
import hashlib
from udaseg.data.streets import draw
for domain, index in (("camera", 4), ("game", 4), ("camera", 3)):
    image, label = draw(domain, 1, index, size=(64, 32), gap=0.3)
    print(domain, index, hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest())
"""


def digest(domain: Any, index: int) -> str:
    image, label = draw(domain, 1, index, size=SMALL, gap=0.3)
    return hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ---- draw ----


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("size", [SMALL, (256, 128), (96, 96), (32, 80)])
def test_shapes_and_types(domain: Any, size: tuple[int, int]) -> None:
    image, label = draw(domain, 0, 0, size=size)
    assert image.shape == (size[1], size[0], 3) and label.shape == (size[1], size[0])
    assert image.dtype == np.uint8 and label.dtype == np.uint8


def test_same_bytes_in_another_process_and_order() -> None:
    scenes = (("camera", 3), ("game", 4), ("camera", 4))
    here = [f"{domain} {index} {digest(domain, index)}" for domain, index in scenes]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    there = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True, env=environment)
    assert sorted(here) == sorted(there.stdout.split("\n")[:-1])


def test_index_seed_and_domain_each_give_another_scene() -> None:
    arguments: Any = (("game", 0, 0), ("game", 0, 1), ("game", 1, 0), ("camera", 0, 0))
    variants = [draw(*which, size=SMALL) for which in arguments]
    for part in range(2):
        assert len({variant[part].tobytes() for variant in variants}) == 4


@pytest.mark.parametrize("domain", DOMAINS)
def test_labels_are_legal_and_all_classes_occur(domain: Any) -> None:
    found: set[int] = set()
    for index in range(150):
        found |= set(np.unique(draw(domain, 0, index, size=SMALL)[1]).tolist())
        if found == CLASSES | {EGO} and index >= 60:
            break
    assert found == CLASSES | {EGO}


@pytest.mark.parametrize("domain", DOMAINS)
def test_twice_the_resolution_is_the_same_scene(domain: Any) -> None:
    shares = np.zeros((2, 34))
    agreement = []
    for index in range(25):
        small, large = (draw(domain, 0, index, size=size)[1] for size in ((128, 64), (256, 128)))
        shares += [np.bincount(label.ravel(), minlength=34) / label.size / 25 for label in (small, large)]
        agreement.append((small == large[1::2, 1::2]).mean())
    assert np.abs(shares[0] - shares[1]).max() < 0.02
    assert np.mean(agreement) > 0.9


def test_gap_changes_the_camera_s_colours_only() -> None:
    for index in range(3):
        drawn = {gap: draw("camera", 0, index, gap=gap) for gap in (0.0, 0.5, 1.0)}
        images = {gap: image.astype(float) for gap, (image, _) in drawn.items()}
        assert all((label == drawn[0.0][1]).all() for _, label in drawn.values())
        assert np.abs(images[0.0] - images[1.0]).mean() > 8
        assert np.abs(images[0.5] - (images[0.0] + images[1.0]) / 2).mean() < 2
    assert (draw("game", 0, 0, gap=0.0)[0] == draw("game", 0, 0, gap=1.0)[0]).all()


def test_the_game_is_more_colourful_than_the_camera() -> None:
    saturation = {
        domain: np.mean([np.ptp(draw(domain, 0, index, gap=1.0)[0].astype(float), axis=2).mean() for index in range(8)])
        for domain in DOMAINS
    }
    assert saturation["game"] > 1.5 * saturation["camera"]


BAD = [
    ("domain", "film"),
    ("index", -1),
    ("size", (64, 31)),
    ("size", (64.0, 32.0)),
    ("gap", 1.5),
    ("gap", float("nan")),
    ("size", (100_000, 128)),
    ("seed", 2**63),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values_are_refused(name: str, value: Any) -> None:
    arguments: dict[str, Any] = {"domain": "game", "seed": 0, "index": 0, name: value}
    with pytest.raises(ValueError, match="allowed") as caught:
        draw(**arguments)
    assert repr(value) in str(caught.value)


# ---- write_streets ----


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streets") / "new"
    write_streets(root, **PARAMETERS, workers=1)
    return root


def test_source_is_in_the_format_of_gta5(written: Path) -> None:
    for folder, count in (("gta5", 5), ("gta5_val", 2)):
        names = [f"{number:05d}.png" for number in range(1, count + 1)]
        for part in ("images", "labels"):
            assert sorted(path.name for path in (written / folder / part).iterdir()) == names
    image, label = draw("game", 3, 1, size=SMALL, gap=0.5)
    with Image.open(written / "gta5/images/00002.png") as stored:
        assert stored.mode == "RGB" and (np.asarray(stored) == image).all()
    with Image.open(written / "gta5/labels/00002.png") as stored:
        assert stored.mode == "P" and (np.asarray(stored) == label).all()
        colours = np.asarray(stored.convert("RGB"))
    assert (colours[label == 7] == (128, 64, 128)).all() and (colours[label == 23] == (70, 130, 180)).all()


def test_target_is_in_the_format_of_cityscapes(written: Path) -> None:
    for part, count in (("train", 5), ("val", 3)):
        images = sorted((written / "cityscapes/leftImg8bit" / part).glob("*/*_leftImg8bit.png"))
        labels = sorted((written / "cityscapes/gtFine" / part).glob("*/*_gtFine_labelIds.png"))
        assert len(images) == len(labels) == count
        for image, label in zip(images, labels, strict=True):
            city, sequence, frame = image.name.removesuffix("_leftImg8bit.png").split("_")
            assert (city, len(sequence), frame) == (image.parent.name, 6, "000019")
            assert label.name == f"{city}_{sequence}_{frame}_gtFine_labelIds.png"
            with Image.open(image) as stored, Image.open(label) as ids:
                assert (stored.mode, ids.mode) == ("RGB", "L") and stored.size == ids.size == SMALL
                assert set(np.unique(np.asarray(ids)).tolist()) <= CLASSES | {EGO}


def test_no_scene_twice_a_manifest_and_nothing_temporary(written: Path) -> None:
    contents = [content for name, content in files(written).items() if "images" in name or "leftImg8bit" in name]
    assert len(contents) == len(set(contents)) == 15
    manifest = json.loads((written / "streets.json").read_text())
    counts = {"source": 5, "source_val": 2, "target_train": 5, "target_val": 3}
    assert manifest == {"generator": 1, "seed": 3, "size": [64, 32], "gap": 0.5, "counts": counts}
    assert len(files(written)) == 2 * 15 + 1


def test_two_processes_write_the_same_bytes(written: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_streets(tmp_path, **PARAMETERS, workers=2, progress=lambda done, total: calls.append((done, total)))
    assert files(tmp_path) == files(written)
    assert calls == [(done, 15) for done in range(16)]


def test_resumes_and_keeps_what_is_there(written: Path) -> None:
    before = files(written)
    stamps = {path: path.stat().st_mtime_ns for path in written.rglob("*.png")}
    deleted = written / "gta5/labels/00003.png"
    deleted.unlink()
    calls: list[tuple[int, int]] = []
    write_streets(written, **PARAMETERS, workers=1, progress=lambda done, total: calls.append((done, total)))
    assert files(written) == before and calls == [(14, 15), (15, 15)]
    assert [path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp] == [deleted]


def test_resumes_an_interrupted_write_and_refuses_it_to_others(written: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_streets(tmp_path, **PARAMETERS, workers=1, progress=interrupt)
    assert not (tmp_path / "streets.json").exists()
    before = files(tmp_path)
    with pytest.raises(UserError, match="seed = 3"):
        write_streets(tmp_path, **{**PARAMETERS, "seed": 4}, workers=1)
    assert files(tmp_path) == before
    write_streets(tmp_path, **PARAMETERS, workers=1)
    assert files(tmp_path) == files(written)


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 9), ("gap", 0.75), ("size", (64, 48)), ("source", 6), ("target_val", 2)]
)
def test_other_parameters_are_refused_and_nothing_changes(written: Path, name: str, value: Any) -> None:
    before = files(written)
    with pytest.raises(UserError, match=f"{name} = .*choose another root"):
        write_streets(written, **{**PARAMETERS, name: value}, workers=1)
    assert files(written) == before


def test_data_of_the_user_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "gta5/images").mkdir(parents=True)
    (tmp_path / "gta5/images/00001.png").write_bytes(b"real")
    with pytest.raises(UserError, match="gta5"):
        write_streets(tmp_path, **PARAMETERS, workers=1)
    assert files(tmp_path) == {"gta5/images/00001.png": b"real"}


@pytest.mark.parametrize(("name", "value"), [("size", (64, 8)), ("gap", 2.0)])
def test_bad_parameters_are_refused_before_writing(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="allowed"):
        write_streets(tmp_path / "new", **{**PARAMETERS, name: value})
    assert not (tmp_path / "new").exists()


def test_a_disk_too_small_is_told_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"GB are needed in .*choose a smaller size"):
        write_streets(tmp_path / "new", **PARAMETERS)
    assert not (tmp_path / "new").exists()


def test_imports_no_torch() -> None:
    code = "import sys, udaseg.data.streets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
