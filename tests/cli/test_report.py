"""`udaseg report` and `udaseg plot` through the real command, and what a person gets for wrong inputs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toy
from fake_runs import write_run, write_start
from PIL import Image
from toy import run

from udaseg.console import Silent
from udaseg.engine import runs
from udaseg.report import figures
from udaseg.report.grid import lay_out
from udaseg.report.study import load_study

STUDY = """
title: my own
benchmark: streets
columns: [road, mIoU]
rows:
  - {label: A & B, recipe: demo, published: [5, 4]}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(STUDY, encoding="utf-8")
    for cell in lay_out(load_study("mine.yaml")).cells[:2]:
        write_run(Path(f"runs/by hand {cell.seed}"), seed=cell.seed, fingerprint=cell.loaded.recipe.fingerprint())
    write_start(Path("runs/stopped"))
    write_run(Path("runs/torn")).joinpath("result.json").write_text("{", encoding="utf-8")
    return tmp_path


def refused(capfd: pytest.CaptureFixture[str], arguments: list[str], *words: str) -> None:
    capfd.readouterr()
    assert run(*arguments) == 2
    out, err = capfd.readouterr()
    plain = " ".join(err.split())
    assert out == "" and "Traceback" not in err and all(word in plain for word in words), err


def test_overview_and_a_study_on_the_terminal(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("report") == 0
    out = capfd.readouterr().out
    assert "by hand 0" in out and "interrupted" in out and "damaged: runs/torn: result.json: Invalid JSON" in out
    assert "Means over seeds" in out and "40.0±0.0" in out
    assert run("report", "mine.yaml") == 0
    out = capfd.readouterr().out
    assert "reproduced      2  50.0±0.0" in out and "+45.0" in out
    assert "udaseg ablate mine.yaml --only 'A & B' --seeds 2" in out


def test_formats_and_files(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, words in (("t.md", "| A & B |"), ("t.tex", "A \\& B & published"), ("t.csv", "A & B,reproduced,2,50"),
                        ("t.html", "A &amp; B")):  # fmt: skip
        assert run("report", "mine.yaml", "--out", name) == 0 and words in Path(name).read_text(encoding="utf-8")
        assert run("report", "--out", f"all-{name}") == 0 and "stopped" in Path(f"all-{name}").read_text()
    assert run("report", "mine.yaml", "--out", "t.md") == 0 and Path("t-2.md").is_file()
    capfd.readouterr()
    assert run("report", "mine.yaml", "-f", "csv") == 0
    assert capfd.readouterr().out.startswith("method,,seeds,road,road std,mIoU,mIoU std\n")


def test_a_report_changes_nothing_in_the_runs(place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    assert run("report", "--out", "x.html") == 0 and run("report", "mine.yaml") == 0
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before


def test_published_numbers_need_no_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("report", "omuda_3_synthia", "-f", "md") == 0
    assert "| TQDM | published |  | <u>58.0</u> |" not in (out := capfd.readouterr().out) and "58.0" in out


def test_wrong_inputs(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(capfd, ["report", "nosuch"], "no study 'nosuch'", "ablate --list")
    refused(capfd, ["report", "--runs", "nowhere"], "nowhere: no such folder")
    refused(capfd, ["report", "--format", "htm"], "did you mean 'html'")
    refused(capfd, ["report", "--out", "x.doc"], "x.doc", "'.doc'")
    refused(capfd, ["report", "--out", "x.md", "-f", "terminal"], "--out needs --format")
    refused(capfd, ["report", "train.batch=1"], "name the study")
    refused(capfd, ["report", "mine.yaml", "trian.batch=1"], "trian")
    refused(capfd, ["report", "mine.yaml", "--out", "runs/stopped/recipe.yaml/x.md"], "recipe.yaml")


# --- plots ---------------------------------------------------------------------------------------------------------


def test_tables_need_no_matplotlib(place: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\nfrom udaseg.cli import main\n"
        "main(['report', 'mine.yaml', '--format', 'md'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "A & B" in done.stdout


@pytest.mark.parametrize("kind", ["curves", "classes", "confusion"])
@pytest.mark.parametrize("ending", [".png", ".pdf"])
def test_plots(place: Path, kind: str, ending: str) -> None:
    found = ["runs/by hand 0", "runs/by hand 1"]
    assert (
        run("plot", kind, *found, "--out", f"x{ending}") == 0
        and run("plot", kind, found[0], "--out", f"x{ending}") == 0
    )
    for name in (f"x{ending}", f"x-2{ending}"):
        if ending == ".png":
            with Image.open(name) as picture:
                assert picture.width > 300 and len(picture.convert("RGB").getcolors(2**24) or []) > 50
        else:
            assert Path(name).read_bytes().startswith(b"%PDF")


def test_runs_of_other_protocols_are_drawn_over_the_first_ones(place: Path) -> None:
    more = {"classes": ("road", "wall", "car"), "confusion": [[5, 1, 1], [1, 5, 1], [1, 1, 5]]}
    for name, protocol in (("a", "cityscapes19"), ("b", "synthia13")):
        write_run(Path(f"runs/{name}"), recipe=name, protocol=protocol, **more)  # type: ignore[arg-type]
    assert run("plot", "classes", "runs/a", "runs/b", "--out", "x.png") == 0


def test_wrong_plots(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(capfd, ["plot", "curve", "runs/stopped"], "did you mean 'curves'")
    refused(capfd, ["plot", "curves", "nowhere"], "nowhere: no such run folder")
    refused(capfd, ["plot", "curves", "runs"], "not a run folder")
    refused(capfd, ["plot", "classes", "runs/torn"], "damaged: result.json: Invalid JSON")
    refused(capfd, ["plot", "confusion", "runs/stopped"], "has no result yet", "udaseg train --resume --out")
    refused(capfd, ["plot", "curves", "runs/stopped", "--out", "x.jpg"], ".png or .pdf")
    refused(capfd, ["plot", "classes", "runs/by hand 0", "--protocol", "synthia15"], "did you mean 'synthia1")
    write_run(Path("runs/other"), classes=("road", "tree"))
    refused(capfd, ["plot", "classes", "runs/by hand 0", "runs/other"], "different classes")
    refused(capfd, ["plot", "panels", "runs/stopped"], "problem(s)")


def test_panels_pick_the_most_improved_and_the_most_degraded_or_the_named(
    streets: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from udaseg.commands.plot import ranked

    assert ranked({0: 1.0, 1: 5.0, 2: -3.0, 3: 2.0, 4: float("nan")}, 2) == [1, 2]
    assert ranked({0: 1.0, 1: 5.0, 2: -3.0, 3: 2.0}, 3) == [1, 3, 2]
    assert ranked({0: 1.0, 1: 5.0}, 6) == [1, 0]
    for seed in (0, 1):
        loaded = toy.load("source_only", f"seed={seed}", "train.iterations=2", "evaluation.every=2")
        runs.train(loaded, Path(f"r{seed}"), lambda _: Silent())
    assert run("plot", "panels", "r0", "r1", "--images", "2") == 0
    assert "picture r1/panels.png" in capfd.readouterr().out
    with Image.open("r1/panels.png") as picture:
        assert picture.width > picture.height > 200
    drawn: list[list[str]] = []
    monkeypatch.setattr(figures, "panels", lambda rows, *_: drawn.append([row[0][0] for row in rows]) or figures.curves(
        {"": [figures.Series("", [(0, 0)], 0)]}
    ))  # fmt: skip
    names = "blockville_000004, val/blockville/blockville_000001_000019_leftImg8bit.png,blockville_000004"
    assert run("plot", "panels", "r0", "r1", "--images", names) == 0
    assert run("plot", "panels", "r0", "--images", "blockville_000002_000019_leftImg8bit") == 0
    ending = "000019_leftImg8bit.png"
    assert drawn == [[f"blockville_000004_{ending}", f"blockville_000001_{ending}"], [f"blockville_000002_{ending}"]]
    for names, words in (
        ("blockvile_000004_000019_leftImg8bit", "did you mean blockville_000004_000019_leftImg8bit or"),
        ("lindau", "no such validation image; they are called blockville_000000_000019_leftImg8bit, "),
        ("blockville", "6 validation images fit (leftImg8bit/val/blockville/blockville_000000"),
        (",", "a number, or names of validation images"),
        ("0", "at least 1 is needed"),
    ):
        refused(capfd, ["plot", "panels", "r0", "--images", names], "--images", words)
    shutil.rmtree("r0/checkpoints")
    Path("r0/weights.safetensors").unlink()
    refused(capfd, ["plot", "panels", "r0", "r1"], "r0: no checkpoint yet")
