"""The demo through the real command, on the small scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from toy import run

from udaseg.commands import demo


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        demo, "QUICK", ("train.iterations=3", "optimiser.warmup=1", "train.batch=2", "runtime.workers=0")
    )


def test_quick_demo_leaves_table_picture_and_page(streets: Path, short: None, capsys: Any) -> None:
    assert run("demo", "--quick") == 0
    out = capsys.readouterr().out
    for word in ("source-only", "+ BN statistics", "adapted", "mIoU (19 classes)", "next:", "promise"):
        assert word in out
    folder = streets / "runs" / "demo-quick-seed0"
    with Image.open(folder / "demo.png") as picture:
        assert picture.width > 1000 and picture.height > 500
    page = (folder / "demo.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page
    before = (folder / "adapted" / "weights.safetensors").stat().st_mtime_ns
    assert run("demo", "--quick") == 0
    assert "already trained" in capsys.readouterr().out
    assert (folder / "adapted" / "weights.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_demo_takes_any_other_recipe_at_its_own_size(streets: Path, short: None, capsys: Any) -> None:
    assert run("demo", "--quick", "--recipe", "daformer") == 0
    assert "2/2 daformer" in capsys.readouterr().out
    text = (streets / "runs" / "demo-quick-daformer-seed0" / "adapted" / "recipe.yaml").read_text()
    assert "kind: tiny" in text and "feature_distance" not in text


def test_gains_are_signed_and_undefined_ones_are_dashes() -> None:
    from udaseg.evaluation.confusion import Scores

    def of(*values: float) -> Scores:
        return Scores(("a", "b", "c"), values)

    nan = float("nan")
    table = demo.result_table(demo.Result(of(1, 5, nan), of(2, 5, nan), of(3, 4, nan), Path()))
    rows = [[cell.number() for cell in row] for row in table.rows]
    assert rows[0] == ["a", "1.0", "2.0", "3.0", "+2.0", "+1.0"]
    assert rows[1][-2:] == ["-1.0", "-1.0"] and rows[2] == ["c", "-", "-", "-", "-", "-"]
    assert rows[3][0] == "mIoU (2 classes)"
