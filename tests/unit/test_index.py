"""The index: counts, what is left out and why, resuming, read-only data, changed files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unit.data_files import cityscapes, gta5, labels, photo, save, save_palette, truncate

from udaseg.data import index as index_module
from udaseg.data import parallel
from udaseg.data.classes import CITYSCAPES_IDS, lookup
from udaseg.data.images import read_label
from udaseg.data.index import Index, build_index, index_path, load_index
from udaseg.data.layouts import DATASETS
from udaseg.data.prepare import prepare, summary
from udaseg.errors import UserError

GTA5, CITYSCAPES = DATASETS["gta5"], DATASETS["cityscapes"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UDASEG_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def same(a: Index, b: Index) -> bool:
    return (a.pairs, a.left_out, a.unknown, a.root, a.encoding) == (
        b.pairs,
        b.left_out,
        b.unknown,
        b.root,
        b.encoding,
    ) and all(np.array_equal(x, y) for x, y in ((a.counts, b.counts), (a.sizes, b.sizes)))


@pytest.mark.parametrize("workers", [0, 2])
def test_counts(home: Path, workers: int) -> None:
    root = gta5(home / "gta", n=5)
    seen: list[tuple[int, int]] = []
    index = build_index(GTA5, "train", workers=workers, progress=lambda *done: seen.append(done))
    for pair, counts in zip(index.pairs, index.counts, strict=True):
        ids = lookup(CITYSCAPES_IDS)[read_label(root / pair.label)]
        assert counts.tolist() == [(ids == c).sum() for c in range(19)]
    assert index.counts.dtype == np.int64 and index.sizes.tolist() == [[64, 40]] * 5
    assert seen[-1] == (5, 5) and index.labelled and not index.left_out and not index.unknown
    assert same(index, load_index("gta5", "train"))


def test_train_id_labels(tmp_path: Path) -> None:
    root = cityscapes(tmp_path / "cs", kind="labelTrainIds")
    index = build_index(CITYSCAPES, "train", root)
    ids = read_label(root / index.pairs[0].label)
    assert index.counts[0].tolist() == [(ids == c).sum() for c in range(19)]
    assert np.array_equal(index.lut()[ids], ids)


def test_read_only_data_and_nothing_written_into_it(tmp_path: Path, home: Path) -> None:
    root = gta5(tmp_path / "gta")
    before = sorted(root.rglob("*"))
    for folder in (root, root / "images", root / "labels"):
        folder.chmod(0o555)
    try:
        build_index(GTA5, "train", root)
        assert sorted(root.rglob("*")) == before
        assert [p.name for p in (home / ".udaseg").iterdir()] == [index_path(GTA5, "train", root).name]
    finally:
        for folder in (root, root / "images", root / "labels"):
            folder.chmod(0o755)


def test_irregular_files_are_left_out_with_a_reason(home: Path) -> None:
    root = gta5(home / "gta5", n=7)
    truncate(root / "images/00002.png")
    truncate(root / "labels/00003.png", 0.5)
    (root / "labels/00004.png").write_text("html of a login page")
    save_palette(root / "labels/00005.png", np.full((41, 64), 7, np.uint8))
    (root / "labels/00006.png").unlink()
    index = build_index(GTA5, "train")
    assert [p.image.stem for p in index.pairs] == ["00001", "00007"]
    reasons = dict(index.left_out)
    assert "cut off" in reasons["images/00002.png"] and "00003.png" in reasons["images/00003.png"]
    assert "labels/00004.png cannot be read" in reasons["images/00004.png"]
    assert reasons["images/00005.png"] == "label is 64x41, image 64x40"
    assert reasons["images/00006.png"] == "image without a label"
    with pytest.raises(UserError, match=r"5 problems"):
        build_index(GTA5, "train", strict=True)


def test_unknown_label_values(home: Path) -> None:
    root = gta5(home / "gta5", n=3)
    ids = labels(np.random.default_rng(3), (64, 40))
    ids[:2, :5] = 77
    save_palette(root / "labels/00002.png", ids)
    index = build_index(GTA5, "train")
    assert index.unknown == {77: (10, "labels/00002.png")} and len(index) == 3
    assert ("unknown label value 77", "10 pixels ignored, first in labels/00002.png") in summary(index)
    with pytest.raises(UserError, match="label value 77: 10 pixels"):
        build_index(GTA5, "train", strict=True)


def test_no_usable_pair_is_an_error(home: Path) -> None:
    root = gta5(home / "gta5", n=2)
    for file in (root / "images").iterdir():
        truncate(file)
    with pytest.raises(UserError, match=r"(?s)no usable pair.*cut off"):
        build_index(GTA5, "train")
    for file in (root / "images").iterdir():
        save(file, photo(np.random.default_rng(0), (64, 40)))
    for file in (root / "labels").iterdir():
        save_palette(file, np.zeros((40, 64), np.uint8))
    with pytest.raises(UserError, match="no label has a pixel"):
        build_index(GTA5, "train")


def test_target_without_labels(home: Path) -> None:
    cityscapes(home / "cityscapes", kind=None)
    cityscapes(home / "cityscapes", "val", kind=None)
    index = build_index(CITYSCAPES, "train")
    assert len(index) == 6 and not index.labelled and not index.counts.any()
    with pytest.raises(UserError, match="no labels"):
        build_index(CITYSCAPES, "val")


def test_building_again_reads_only_what_is_new(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = gta5(home / "gta5", n=4)
    truncate(root / "images/00003.png")
    first = build_index(GTA5, "train", workers=0)
    read: list[str] = []
    original = index_module._read_row
    monkeypatch.setattr(index_module, "_read_row", lambda *job: read.append(job[-1].image.name) or original(*job))
    assert same(build_index(GTA5, "train", workers=0), first)
    assert read == ["00003.png"]  # only what failed is tried again
    save(root / "images/00003.png", photo(np.random.default_rng(0), (64, 40)))
    save(root / "images/00005.png", photo(np.random.default_rng(0), (64, 40)))
    save_palette(root / "labels/00005.png", labels(np.random.default_rng(0), (64, 40)))
    save_palette(root / "labels/00001.png", np.full((40, 64), 7, np.uint8))
    read.clear()
    index = build_index(GTA5, "train", workers=0)
    assert sorted(read) == ["00001.png", "00003.png", "00005.png"]
    assert len(index) == 5 and not index.left_out and index.counts[0, 0] == 40 * 64


def test_interrupted_build_resumes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gta5(home / "gta5", n=6)
    clock = iter(range(0, 10_000, 11))
    monkeypatch.setattr(parallel.time, "monotonic", lambda: next(clock))  # flush after every file
    original, read = index_module._read_row, []

    def interrupted(*job: Any) -> Any:
        read.append(job[-1].image.name)
        if len(read) == 4:
            raise KeyboardInterrupt
        return original(*job)

    monkeypatch.setattr(index_module, "_read_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_index(GTA5, "train", workers=0)
    with pytest.raises(UserError, match="udaseg prepare gta5"):
        load_index("gta5", "train")
    index = build_index(GTA5, "train", workers=0)
    assert read[4:] == ["00004.png", "00005.png", "00006.png"] and len(index) == 6
    assert [p.suffix for p in (home / ".udaseg").iterdir()] == [".npz"]


def test_changed_file_list_is_refused(home: Path) -> None:
    root = gta5(home / "gta5", n=3)
    with pytest.raises(UserError, match=r"not prepared\. Run: udaseg prepare gta5"):
        load_index("gta5", "train")
    build_index(GTA5, "train")
    (root / "images/00002.png").rename(root / "images/00009.png")
    with pytest.raises(UserError, match=r"have changed\. Run: udaseg prepare gta5"):
        load_index("gta5", "train")
    with pytest.raises(UserError, match="has no split 'val'"):
        load_index("gta5", "val")


def test_damaged_index_and_other_version(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = gta5(home / "gta5", n=2)
    build_index(GTA5, "train")
    monkeypatch.setattr(index_module, "FORMAT", 99)
    with pytest.raises(UserError, match="another version"):
        load_index("gta5", "train")
    monkeypatch.undo()
    os.environ["UDASEG_DATA"] = str(home)
    try:
        truncate(index_path(GTA5, "train", root))
        with pytest.raises(UserError, match="another version"):
            load_index("gta5", "train")
        assert len(build_index(GTA5, "train")) == 2
        path = index_path(GTA5, "train", root)
        np.savez(path, meta=np.array([{}], dtype=object))  # a pickle is never loaded
        with pytest.raises(UserError, match="another version"):
            load_index("gta5", "train")
    finally:
        del os.environ["UDASEG_DATA"]


def test_prepare_group_and_present_splits(home: Path) -> None:
    gta5(home / "streets/gta5")
    cityscapes(home / "streets/cityscapes", "train")
    cityscapes(home / "streets/cityscapes", "val")
    done = prepare("streets")
    assert [(i.dataset, i.split, len(i)) for i in done] == [
        ("streets_source", "train", 4),
        ("streets_target", "train", 6),
        ("streets_target", "val", 6),
    ]
    rows = dict(summary(done[0]))
    assert rows["usable pairs"] == "4" and rows["left out"] == "0"
    json.dumps(rows)


def test_a_split_that_is_not_usable_does_not_stop_the_others(home: Path) -> None:
    for split in ("train", "val", "test"):
        cityscapes(home / "cityscapes", split, kind=None)
    with pytest.raises(UserError, match=r"\(val\).* 6 images but no labels"):
        prepare("cityscapes")
    assert len(load_index("cityscapes", "train")) == len(load_index("cityscapes", "test")) == 6


def test_unwritable_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = gta5(tmp_path / "gta")
    (tmp_path / "file").touch()
    monkeypatch.setenv("UDASEG_DATA", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set UDASEG_DATA"):
        build_index(GTA5, "train", root)
