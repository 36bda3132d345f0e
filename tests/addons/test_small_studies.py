"""The studies of the add-ons with a small pretrained encoder: both tables have the same rows, and every row steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import toy

from udaseg.config.layers import shipped
from udaseg.report.study import load_study
from udaseg.report.summary import summarise
from udaseg.testing.training import require_steps

SMALL = [name for name in shipped() if name.startswith("small_")]
TIMM = "model.encoder=timm/test_resnet"  # a very small network, with random weights


@pytest.mark.parametrize("name", ["camvid_addons", "streets_camvid_addons"])
def test_their_studies_show_both_numbers_of_every_row(name: str) -> None:
    study = load_study(name)
    assert study.columns == ["mIoU", "mIoU, BN of target"]
    assert {row.recipe for row in study.rows} == {*SMALL}
    assert [entry.row.recipe for entry in summarise(name, []).entries if entry.oracle] == ["small_oracle"]


def test_both_studies_have_the_same_rows() -> None:
    assert load_study("camvid_addons").rows == load_study("streets_camvid_addons").rows


@pytest.mark.parametrize("row", load_study("camvid_addons").rows, ids=lambda row: row.label)
def test_every_row_steps_at_toy_size(row: Any, streets: Path) -> None:
    """Everything learns, with the classes of CamVid that the rows name."""
    classes = ("data.classes=camvid", "data.protocol=camvid11", f"data.source.merge={MERGE}")
    base = [text for text in toy.SMALL if not text.startswith("train.batch")]
    require_steps(toy.load(row.recipe, *row.overrides, *classes, TIMM, "train.iterations=3", base=tuple(base)))


MERGE = (
    "{sidewalk: pavement, vegetation: tree, terrain: tree, wall: building, traffic light: sign, traffic sign: sign, "
    "person: pedestrian, rider: bicyclist, motorcycle: bicyclist, bicycle: bicyclist, truck: car, bus: car, train: car}"
)
