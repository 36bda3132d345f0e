"""Data sets and class names through the real commands: prepare, train, evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from cli.test_commands import Run, is_message, udaseg
from unit.data_files import camvid, gta5, photo, png, save, synthia

from udaseg.data.classes import CITYSCAPES
from udaseg.data.index import load_index

__all__ = ["udaseg"]
BENCHMARK = """\
data:
  source: {dataset: gta5, split: train, size: [64, 40]}
  validation: {dataset: camvid, split: train, size: [48, 36], merge: {tree: vegetation, pavement: sidewalk}}
  crop: [32, 32]
  min_pixels: 20
"""


def test_labels_of_zeros_never_pass(udaseg: Run) -> None:
    root = synthia(Path("data/synthia"), size=(64, 40))
    assert udaseg("prepare", "synthia").code == 0
    for path in (root / "GT/LABELS").iterdir():
        path.write_bytes(png(np.zeros((40, 64, 3), np.uint8)))
    is_message(udaseg("prepare", "synthia"), "no usable pair", "is all zeros")


def test_validation_with_other_classes(udaseg: Run) -> None:
    gta5(Path("data/gta5"), size=(64, 40))
    camvid(Path("data/camvid"))
    Path("b.yaml").write_text(BENCHMARK)
    assert udaseg("prepare", "gta5").code == udaseg("prepare", "camvid").code == 0
    settings = ("train.iterations=2", "runtime.workers=0", "runtime.device=cpu")
    trained = udaseg("train", "--recipe", "demo_source_only", "--benchmark", "b.yaml", "--out", "run", *settings)
    assert trained.code == 0, trained
    index = load_index("camvid", "train")
    expected = index.as_classes(CITYSCAPES.names, {"tree": "vegetation", "pavement": "sidewalk"}).counts.sum(0)
    assert expected[[0, 1, 8, 13]].all() and not expected[[9, 11, 12]].any()
    confusion = json.loads(Path("run/result.json").read_text())["validation"]["confusion"]
    assert np.array_equal(np.sum(confusion, 1), expected)
    again = json.loads(udaseg("evaluate", "run", "--json").out)
    assert again["confusion"] == confusion
    assert "left out: sign, pedestrian, bicyclist" in " ".join(udaseg("evaluate", "run").out.split())


def test_a_described_folder_from_start_to_end(udaseg: Run) -> None:
    rng = np.random.default_rng(0)
    for i in range(4):
        save(Path(f"f/img/{i}.png"), photo(rng, (48, 40)))
        save(Path(f"f/lab/{i}.png"), rng.integers(0, 3, (5, 6), dtype=np.uint8).repeat(8, 0).repeat(8, 1))
    text = (
        'name: f\nroot: f\nclasses: [soil, crop, weed]\nsplits: {all: {images: "img/*.png", masks: "lab/{stem}.png"}}\n'
    )
    Path("f.yaml").write_text(text.replace("{stem}", "{stm}"))
    is_message(udaseg("prepare", "f.yaml"), "splits.all.masks", "did you mean 'stem'?")
    Path("f.yaml").write_text(text)
    section = "{dataset: f.yaml, split: all}"
    domains = ", ".join(f"{key}: {section}" for key in ("source", "target", "validation"))
    Path("b.yaml").write_text(f"data: {{{domains}, crop: [32, 32], min_pixels: 9, protocol: all}}")
    train = ("train", "--recipe", "demo", "--benchmark", "b.yaml", "--out", "run", "train.iterations=2")
    settings = ("runtime.workers=1", "runtime.device=cpu")
    is_message(udaseg(*train, *settings), "is not prepared", "udaseg prepare")
    assert udaseg("prepare", "f.yaml", "--workers", "2").code == 0
    assert udaseg(*train, *settings).code == 0
    answer = udaseg("evaluate", "run")
    assert answer.code == 0 and "mIoU over" in answer.out and "weed" in answer.out
