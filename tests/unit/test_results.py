"""What `udaseg report` shows: runs in any condition, means and marks worked out by hand, each format to the letter."""

from __future__ import annotations

import base64
import csv
import fcntl
import io
import json
import math
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from fake_runs import CLASSES, counts, write_log, write_run, write_start
from PIL import Image

from udaseg.config.load import load
from udaseg.engine.profile import counting, target_cost
from udaseg.errors import UserError
from udaseg.files import write_free
from udaseg.report import figures, pages
from udaseg.report.figures import Bars, Series, rendered
from udaseg.report.grid import lay_out
from udaseg.report.results import curves, read, scan
from udaseg.report.study import Row, load_study
from udaseg.report.summary import (
    Summary,
    age,
    families_table,
    over_seeds,
    overview_table,
    study_table,
    summarise,
)  # fmt: skip
from udaseg.report.tables import Cell, Table, blocks, clean, comma_separated, latex, markdown, terminal
from udaseg.yamls import as_yaml

STUDY = """
title: my own
source: {paper: P, reference: R, table: T}
benchmark: streets
columns: [road, car, mIoU, mIoU*, speed]
seeds: [0, 1, 2]
rows:
  - {label: elsewhere, published: [60, 80, 70, 70, 3]}
  - {label: one, recipe: demo, published: [50, 30, 40, 41, 2], std: [1, null, 0.5, null, null]}
  - {label: two, recipe: demo, overrides: [teacher.alpha=0.5], published: [52, 28, 40, null, 1]}
  - {label: three, recipe: demo, overrides: [teacher.alpha=0.6]}
  - {label: target only, recipe: oracle, published: [90, 90, 90, 90, 9]}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(STUDY, encoding="utf-8")
    (tmp_path / "runs").mkdir()
    return tmp_path


def train(label: str, seed: int, iou: tuple[int, int], **options: object) -> Path:
    """Leave the run of a cell somewhere below runs/."""
    folder = Path("runs") / "by hand" / f"{label}-{seed}"
    return write_run(folder, seed=seed, iou=iou, fingerprint=fingerprint(label, seed), **options)  # type: ignore[arg-type]


def fingerprint(label: str, seed: int) -> str:
    (cell,) = lay_out(load_study("mine.yaml"), only=label, seeds=[seed]).cells
    return cell.loaded.recipe.fingerprint()


def table_of(summary: Summary) -> dict[tuple[str, str], dict[str, Cell]]:
    table = study_table(summary)
    return {(row[0].text, row[1].text): dict(zip(table.header[2:], row[2:], strict=True)) for row in table.rows}


# --- runs ----------------------------------------------------------------------------------------------------------


def test_a_finished_run(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "a", seed=3, iou=(50, 30), oracle=(60, 40)))
    assert (run.state, run.recipe, run.benchmark, run.seed, run.reached) == ("finished", "dacs", "streets", 3, 40)
    assert run.scores().iou == pytest.approx((50, 30), abs=0.01) and run.scores().names == CLASSES
    assert run.scores(of="oracle").miou == pytest.approx(50, abs=0.01)


def test_runs_are_found_at_any_depth_but_not_inside_runs(tmp_path: Path) -> None:
    for name in ("b/c/d", "a", "a/below"):
        write_run(tmp_path / name)
    write_run(tmp_path / "a/checkpoints/x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [str(run.folder.relative_to(tmp_path)) for run in scan(tmp_path)] == ["a", "a/below", "b/c/d"]
    with pytest.raises(UserError, match="no such folder"):
        scan(tmp_path / "nowhere")


def test_unfinished_runs(tmp_path: Path) -> None:
    stopped = read(write_start(tmp_path / "stopped", seed=2, iterations=99))
    assert (stopped.state, stopped.reached, stopped.total, stopped.seed) == ("interrupted", 20, 99, 2)
    assert stopped.scores().iou == () and math.isnan(stopped.scores().miou)
    failed = write_start(tmp_path / "failed")
    (failed / "failure.json").write_text("{}", encoding="utf-8")
    assert read(failed).state == "failed"
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / "failure.json").write_text("{}", encoding="utf-8")
    assert read(tmp_path / "refused").state == "failed"
    with open(write_start(tmp_path / "busy") / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read(tmp_path / "busy").state == "running"
    assert read(tmp_path / "busy").state == "interrupted"


BROKEN = [
    ("result.json", '{"recipe": "da', "result.json: Invalid JSON"),
    ("result.json", "[]", "result.json: Input should be an object"),
    ("result.json", "{}", "result.json: recipe: Field required"),
    ("result.json", "\xff" * 9, "result.json: Invalid JSON"),
    ("result.json", "[" * 100_000, "result.json: Invalid JSON"),
    ("recipe.yaml", None, "recipe.yaml cannot be read: No such file"),
]


@pytest.mark.parametrize(("name", "text", "problem"), BROKEN)
def test_damaged_runs_say_what_is_wrong(tmp_path: Path, name: str, text: str | None, problem: str) -> None:
    folder = write_run(tmp_path / "a")
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text, encoding="latin-1")
    run = read(folder)
    assert run.state == "damaged" and run.problem.startswith(problem), run.problem


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("validation", {"iteration": 1, "confusion": [[1, 2]]}, "counts that are not 2 x 2"),
        ("oracle_selection", {"iteration": 1, "confusion": [[1, 2], [3]]}, "counts that are not 2 x 2"),
        ("validation", {"iteration": 1, "confusion": [[1, -2], [3, 4]]}, "greater than or equal to 0"),
        ("validation", {"iteration": 1, "confusion": [[1, "x"], [3, 4]]}, "valid integer"),
        ("protocol", "nosuch", "unknown protocol 'nosuch'"),
        ("seed", None, "seed: Input should be"),
    ],
)
def test_results_that_do_not_fit_are_damaged(tmp_path: Path, key: str, value: object, problem: str) -> None:
    run = read(
        write_run(tmp_path / "a", **{key: value}) if key not in ("protocol", "seed") else spoiled(tmp_path, key, value)
    )
    assert run.state == "damaged" and problem in run.problem, run.problem


def spoiled(folder: Path, key: str, value: object) -> Path:
    path = write_run(folder / "a") / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}), encoding="utf-8")
    return path.parent


def test_a_run_that_was_never_validated(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "a", validation=None, oracle_selection=None))
    assert run.state == "finished" and math.isnan(run.scores().miou) and math.isnan(run.scores(of="oracle").miou)


@pytest.mark.parametrize(
    ("text", "state"),
    [("seed: [\n", "damaged"), ("seed: x\n", "damaged"), ("train: 3\n", "damaged"), ("\x00", "interrupted")],
)
def test_a_half_written_recipe(tmp_path: Path, text: str, state: str) -> None:
    folder = write_start(tmp_path / "a")
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    assert read(folder).state == state
    (folder / "recipe.yaml").write_bytes(b"\xff\xfe")
    assert read(folder).state == "damaged"


def test_folders_that_cannot_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "a")
    (tmp_path / "secret").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    states = {run.folder.name: (run.state, run.problem) for run in scan(tmp_path)}
    assert states["a"][0] == "finished"
    assert states["secret"] == ("damaged", "cannot be looked into: Permission denied")


def test_families_are_of_equal_recipes(tmp_path: Path) -> None:
    a, b = read(write_run(tmp_path / "a")), read(write_run(tmp_path / "b", seed=1))  # workers differ, too
    assert a.family == b.family != read(write_run(tmp_path / "c", lr="0.1")).family


def test_curves_of_a_run_that_goes_on_have_its_validation(tmp_path: Path) -> None:
    """Its recipe tells the classes, which no result does yet."""
    loaded = load("demo", benchmark="streets")
    folder = write_start(tmp_path / "a")
    (folder / "recipe.yaml").write_text(as_yaml(loaded.tree), encoding="utf-8")
    confusion = [[0] * 19 for _ in range(19)]
    confusion[0][0], confusion[0][1] = 3, 1
    write_log(folder, [{"iteration": 30, "validation": confusion}], mode="a")
    assert curves(read(folder)).miou == [(30, pytest.approx(75 / 2))]


def test_curves_leave_out_what_cannot_be_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", iou=(50, 30))
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('[1]\n{"iteration": 50, "validation": [[1]]}\n{"iteration": 60, "losses": {"x": NaN}}\n{"itera')
    found = curves(read(folder))
    assert found.losses["source/ce"] == [(5, 3.0), (10, 1.5), (15, 1.0), (20, 0.75)]
    assert found.loss == [(5, 4.0), (15, 1 + 1 / 3), (20, 1.0)]  # at 10 a term had nothing to measure
    assert found.miou == [(40, pytest.approx(40, abs=0.01))]


# --- a study -------------------------------------------------------------------------------------------------------


def test_means_deviations_and_differences_by_hand(place: Path) -> None:
    for seed, iou in enumerate([(50, 30), (54, 30), (52, 36)]):
        train("one", seed, iou)
    cells = table_of(summarise("mine.yaml", scan(Path("runs"))))
    ours, delta = cells["one", "reproduced"], cells["one", "difference"]
    assert ours["seeds"].value == 3
    assert (ours["road"].value, ours["road"].std) == (pytest.approx(52, abs=0.01), pytest.approx(2, abs=0.01))
    assert (ours["car"].value, ours["car"].std) == (pytest.approx(32, abs=0.01), pytest.approx(math.sqrt(12), abs=0.01))
    assert (ours["mIoU"].value, ours["mIoU"].std) == (pytest.approx(42, abs=0.01), pytest.approx(2, abs=0.01))
    assert ours["speed"].number() == "-" and delta["speed"].number() == ""
    assert [delta[c].number() for c in ("road", "car", "mIoU", "mIoU*")] == ["+2.0", "+2.0", "+2.0", "+1.0"]
    assert cells["one", "published"]["road"].plus_minus() == "±1.0"
    assert cells["one", "published"]["car"].plus_minus() == ""


def test_protocols_are_computed_from_the_counts(place: Path) -> None:
    names = ("road", "wall", "terrain")  # wall is not among the 13, terrain not among the 16
    matrix = [[60, 40, 0], [0, 100, 0], [0, 0, 0]]
    folder = train("one", 0, (1, 1), classes=names, confusion=matrix)
    run = read(folder)
    assert run.scores("cityscapes19").miou == run.scores("synthia16").miou == pytest.approx((60 + 100 / 1.4) / 2)
    assert run.scores("synthia13").miou == pytest.approx(60)
    cells = table_of(summarise("mine.yaml", [run]))["one", "reproduced"]
    assert cells["mIoU*"].value == pytest.approx(60) and cells["mIoU"].value == pytest.approx((60 + 100 / 1.4) / 2)


def test_marks(place: Path) -> None:
    train("one", 0, (50, 30))
    train("two", 0, (49, 40))
    train("three", 0, (50, 20))
    train("target only", 0, (90, 90))
    cells = table_of(summarise("mine.yaml", scan(Path("runs"))))

    def marks(what: str, column: str) -> list[str]:
        return [cells[name, what][column].mark for name in ("elsewhere", "one", "two", "three", "target only")
                if (name, what) in cells]  # fmt: skip

    assert marks("published", "road") == ["best", "", "second", ""]  # the oracle is not compared
    assert marks("published", "mIoU") == ["best", "second", "second", ""]
    assert marks("published", "mIoU*") == ["best", "", "", ""]  # two values: no second
    assert marks("published", "speed") == ["", "", "", ""]  # may be better the lower it is
    assert marks("reproduced", "road") == ["best", "second", "best", ""]
    assert marks("reproduced", "car") == ["second", "best", "", ""]


def test_marks_are_by_group(place: Path) -> None:
    rows = "".join(
        f"  - {{label: {label}, group: {group}, published: [{value}]}}\n"
        for label, group, value in (("a", "x", 1), ("b", "x", 2), ("a", "y", 3), ("b", "y", 4))
    )
    Path("groups.yaml").write_text(f"title: t\nbenchmark: streets\nrows:\n{rows}", encoding="utf-8")
    table = study_table(summarise("groups.yaml", []))
    assert table.header == ("group", "method", "", "seeds", "mIoU") and table.left == 3
    assert [row[-1].mark for row in table.rows] == ["", "best", "", "best"]


def test_marks_tell_apart_what_is_shown_apart(place: Path) -> None:
    rows = "".join(f"  - {{label: m{value}, published: [{value}]}}\n" for value in (54.31, 54.29, 54.2))
    Path("close.yaml").write_text(f"title: t\nbenchmark: streets\nrows:\n{rows}", encoding="utf-8")
    assert [row[-1].mark for row in study_table(summarise("close.yaml", [])).rows] == ["best", "second", ""]


def test_missing_cells_name_their_command(place: Path) -> None:
    train("one", 1, (50, 30))
    summary = summarise("mine.yaml", scan(Path("runs")), overrides=())
    assert study_table(summary).commands == (
        "udaseg ablate mine.yaml --only one --seeds 0,2",
        "udaseg ablate mine.yaml --only two --seeds 0,1,2",
        "udaseg ablate mine.yaml --only three --seeds 0,1,2",
        "udaseg ablate mine.yaml --only 'target only' --seeds 0,1,2",
    )
    assert study_table(summary, runs=Path("else where")).commands[0].endswith("--seeds 0,2 --out 'else where'")


def test_one_command_fills_a_study_whose_runs_lie_where_a_grid_looks(place: Path) -> None:
    """With the folder in which it goes on; finished runs there are not trained again."""

    def leave(label: str, seed: int, out: str, write: Callable[..., Path]) -> None:
        (cell,) = lay_out(load_study("mine.yaml"), only=label, seeds=[seed]).cells
        more = {"fingerprint": fingerprint(label, seed)} if write is write_run else {}
        write(Path(out) / cell.folder.name, seed=seed, **more)

    for seed in (0, 1, 2):
        leave("one", seed, "runs/mine", write_run)
    leave("two", 1, "runs/mine", write_run)
    leave("three", 0, "runs/mine", write_start)
    table = study_table(summarise("mine.yaml", scan(Path("runs"))))
    assert table.commands == ("udaseg ablate mine.yaml --seeds 0,1,2 --out runs/mine",)
    assert table.notes[-2:] == ("Missing (seeds 0, 2): two.", "Missing (seeds 0, 1, 2): three; target only.")
    (failed,) = Path("runs/mine").glob(f"*-{fingerprint('three', 0)[:12]}")
    (failed / "failure.json").write_text("{}", encoding="utf-8")  # a grid leaves it alone unless it is told to retry
    assert study_table(summarise("mine.yaml", scan(Path("runs")))).commands[0].endswith("--out runs/mine --retry")
    (failed / "failure.json").unlink()
    write_run(Path("runs/by hand"), seed=0, fingerprint=fingerprint("two", 0))
    assert study_table(summarise("mine.yaml", scan(Path("runs")))).commands == (
        "udaseg ablate mine.yaml --only two --seeds 2 --out runs/mine",
        "udaseg ablate mine.yaml --only three --seeds 0,1,2 --out runs/mine",
        "udaseg ablate mine.yaml --only 'target only' --seeds 0,1,2 --out runs/mine",
    )


def test_runs_with_other_seeds_than_the_studys_count(place: Path) -> None:
    for seed, iou in ((0, (50, 30)), (7, (54, 30))):
        train("one", seed, iou)
    table = study_table(summarise("mine.yaml", scan(Path("runs"))))
    (row,) = (row for row in table.rows if (row[0].text, row[1].text) == ("one", "reproduced"))
    assert row[2].value == 2 and row[3].number() == "52.0"
    assert table.commands[0].endswith("--only one --seeds 1,2")


def test_notes_of_a_study_go_with_its_table_in_every_format(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = STUDY + "notes: [Read 100 % of this_note., 'Second, too.']\n"
    (place / "mine.yaml").write_text(text, encoding="utf-8")
    part = pages.study_part(summarise("mine.yaml", []), runs=Path("runs"))
    terminal(part.table)
    page = pages.render_page(title="", lead="", cards=[], parts=[part], footer="")
    for shown in (capsys.readouterr().out, page):
        assert "Read 100 % of this_note." in shown and "Second, too." in shown
    assert "\n- Read 100 % of this\\_note.\n- Second, too.\n- Missing" in markdown(part.table)
    inside = latex(part.table).split("\\end{table}")[0]
    assert "Read 100 \\% of this\\_note." in inside and "Second, too." in inside and "Missing" not in inside
    assert comma_separated(part.table).endswith('# Read 100 % of this_note.\n"# Second, too."\n')
    with pytest.raises(UserError, match=r"notes\.0: 3 is not allowed"):
        (place / "mine.yaml").write_text(STUDY + "notes: [3]\n", encoding="utf-8")
        load_study("mine.yaml")


def test_a_study_that_cannot_run_says_why(place: Path) -> None:
    Path("wrong.yaml").write_text(STUDY.replace("recipe: demo", "recipe: dmeo").replace("recipe: oracle, ", ""))
    assert "Cannot be run (no recipe 'dmeo'" in study_table(summarise("wrong.yaml", [])).notes[0]


def test_other_settings_are_other_runs_and_have_no_differences(place: Path) -> None:
    train("one", 0, (50, 30))
    summary = summarise("mine.yaml", scan(Path("runs")), overrides=["train.iterations=7"])
    assert all(not entry.runs for entry in summary.entries)
    assert study_table(summary).commands[0] == "udaseg ablate mine.yaml train.iterations=7 --seeds 0,1,2"
    (cell,) = lay_out(load_study("mine.yaml"), only="one", seeds=[0], overrides=["train.iterations=7"]).cells
    write_run(Path("runs/x"), fingerprint=cell.loaded.recipe.fingerprint())
    table = study_table(summarise("mine.yaml", scan(Path("runs")), overrides=["train.iterations=7"]))
    kinds = [row[1].text for row in table.rows if row[0].text == "one"]
    assert kinds == ["published", "reproduced"] and "no differences" in table.notes[0]
    with pytest.raises(UserError, match="trian"):
        summarise("mine.yaml", [], overrides=["trian.iterations=7"])


def test_the_studys_benchmark_and_runtime_are_no_other_settings(place: Path) -> None:
    train("one", 0, (50, 30))
    table = study_table(
        summarise("mine.yaml", scan(Path("runs")), benchmark="streets", overrides=["runtime.threads=1"])
    )
    assert [row[1].text for row in table.rows if row[0].text == "one"] == ["published", "reproduced", "difference"]
    assert "Reproduced with" not in table.lead and "runtime.threads=1" in table.commands[0]


def test_of_equal_runs_the_newest_counts_and_damaged_ones_never(place: Path) -> None:
    old = train("one", 0, (50, 30))
    for path in old.iterdir():
        os.utime(path, (1, 1))
    new = Path("runs/again")
    write_run(new, iou=(60, 30), fingerprint=read(old).fingerprint)
    assert table_of(summarise("mine.yaml", scan(Path("runs"))))["one", "reproduced"]["road"].number() == "60.0"
    (new / "recipe.yaml").unlink()
    assert table_of(summarise("mine.yaml", scan(Path("runs"))))["one", "reproduced"]["road"].number() == "50.0"


def test_out_of_memory_is_a_result_in_every_format(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run anywhere below runs/, or of one that a grid keeps, even if it failed before it wrote its recipe."""
    (first, second, _) = lay_out(load_study("mine.yaml"), only="three").cells
    folder = Path("runs/by hand")
    folder.mkdir()
    (folder / "recipe.yaml").write_text(as_yaml(first.loaded.tree), encoding="utf-8")
    for where in (folder, second.folder):
        where.mkdir(parents=True, exist_ok=True)
        (where / "failure.json").write_text(json.dumps({"kind": "out of memory", "message": "x"}), encoding="utf-8")
    train("two", 0, (50, 30))
    lost = lay_out(load_study("mine.yaml"), only="two", seeds=[1]).cells[0].folder
    lost.mkdir(parents=True)
    (lost / "failure.json").write_text('{"kind": "out of memory"}', encoding="utf-8")
    summary = summarise("mine.yaml", scan(Path("runs")))
    table, cells = study_table(summary), table_of(summary)
    assert [cell.text for cell in cells["three", "reproduced"].values()][1:] == ["OOM"] * 5
    assert cells["three", "reproduced"]["seeds"].value == 2 and cells["two", "reproduced"]["seeds"].value == 1
    assert "Out of memory (seeds 0, 1): three." in table.notes and "Out of memory (seed 1): two." in table.notes
    assert "Missing (seed 2): two; three." in table.notes and "--retry" not in " ".join(table.commands)
    terminal(table)
    page = pages.render_page(title="", lead="", cards=[], parts=[pages.study_part(summary, runs=Path())], footer="")
    for text in (capsys.readouterr().out, page, markdown(table), latex(table), comma_separated(table)):
        assert text.count("OOM") == 5
    train("three", 0, (50, 30))
    assert table_of(summarise("mine.yaml", scan(Path("runs"))))["three", "reproduced"]["road"].value == pytest.approx(
        50
    )


def test_a_mean_over_named_classes(place: Path) -> None:
    text = STUDY.replace("columns: [road, car, mIoU, mIoU*, speed]", "columns: [road, some, mIoU, mIoU*, unknown]")
    means = "means: {some: [car], unknown: [car, train]}\n"
    (place / "mine.yaml").write_text(text + means, encoding="utf-8")
    train("one", 0, (50, 30))
    train("one", 1, (50, 40))
    summary = summarise("mine.yaml", scan(Path("runs")))
    cells = table_of(summary)["one", "reproduced"]  # the runs know no trains
    assert (cells["some"].value, cells["some"].std) == (pytest.approx(35, rel=1e-3), pytest.approx(50**0.5, rel=1e-3))
    assert cells["unknown"].text == "-" and ", some over car, unknown over car, train, " in study_table(summary).lead


def test_the_cost_of_a_target_image_is_that_of_the_students_pass() -> None:
    """Against the same network on an image, and None where the target is never seen or the work depends on values."""
    from udaseg.engine.networks import segmentor_of

    recipe = toy.load("dacs").recipe
    with counting() as operations, operations("all"):
        segmentor_of(recipe)(torch.zeros(1, 3, 64, 64))
    assert target_cost(recipe) == operations.spent["all"] / 2 > 0
    masked = toy.load("dacs", "views.masked={masker: blocks, terms: {cross_entropy: {}}}").recipe
    assert target_cost(masked) == 2 * operations.spent["all"] / 2
    assert target_cost(toy.load("source_only").recipe) is None


def test_over_seeds() -> None:
    assert over_seeds([]) is None and over_seeds([math.nan]) is None
    one = over_seeds([3.0, math.nan])
    assert one is not None and (one.mean, one.std) == (3.0, None)


# --- all runs ------------------------------------------------------------------------------------------------------


def test_overview(tmp_path: Path) -> None:
    for seed, iou in enumerate([(50, 30), (54, 34)]):
        write_run(tmp_path / f"good{seed}", seed=seed, iou=iou, oracle=(60, 40))
    write_run(tmp_path / "other", seed=2, iou=(10, 10), lr="0.1")
    write_start(tmp_path / "stopped")
    write_start(tmp_path / "failed").joinpath("failure.json").write_text('{"kind": "crash", "message": "bang"}')
    write_run(tmp_path / "bad", recipe="zzz").joinpath("result.json").write_text("{")
    runs = scan(tmp_path)
    table = overview_table(runs, tmp_path, now=max(run.changed for run in runs) + 3 * 86400)
    shown = {row[0].text: [cell.number() for cell in row[1:]] for row in table.rows}
    assert shown["good0"] == ["dacs", "streets", "finished", "0", "40", "40.0", "50.0", "3 d"]
    assert shown["stopped"] == ["dacs", "streets", "interrupted", "0", "20/40", "", "", "3 d"]
    assert shown["bad"][2] == "damaged" and table.notes[0].startswith(f"damaged: {tmp_path / 'bad'}: result.json: ")
    assert table.notes[1] == f"failed: {tmp_path / 'failed'}: crash: bang"
    means = families_table(runs, tmp_path)
    assert means is not None and len(means.rows) == 1
    assert [cell.number() + cell.plus_minus() for cell in means.rows[0]] == [
        "dacs", "streets", "all", "good0", "40", "2", "42.0±2.8", "50.0±0.0"
    ]  # fmt: skip
    assert families_table(runs[:1], tmp_path) is None
    assert "mIoU, BN of target" not in (*table.header, *means.header)
    assert [age(s) for s in (5, 7200, 86400 * 9)] == ["0 min 05 s", "2 h 00 min", "9 d"]


def test_batchnorm_statistics_of_the_target_have_a_column_where_a_run_has_them(tmp_path: Path) -> None:
    for seed, iou in enumerate([(60, 40), (70, 50)]):
        more = {"recomputed_bn": {"iteration": 40, "confusion": counts(iou), "images": 64}}
        write_run(tmp_path / f"both{seed}", seed=seed, iou=(50, 30), **more)
    write_run(tmp_path / "one", recipe="other")
    runs = scan(tmp_path)
    table = overview_table(runs, tmp_path)
    shown = {row[0].text: [cell.number() for cell in row[6:9]] for row in table.rows}
    assert table.header[6:9] == ("mIoU", "mIoU, BN of target", "oracle sel.")
    assert shown == {"both0": ["40.0", "50.0", "40.0"], "both1": ["40.0", "60.0", "40.0"], "one": ["40.0", "-", "40.0"]}
    means = families_table(runs, tmp_path)
    assert means is not None and [cell.number() for cell in means.rows[0][6:]] == ["40.0", "55.0", "40.0"]


def test_a_study_has_the_column_if_it_asks_for_it(place: Path) -> None:
    study = {"title": "t", "benchmark": "streets", "columns": ["mIoU", "mIoU, BN of target"]}
    Path("mine.yaml").write_text(json.dumps({**study, "rows": [{"label": "one", "recipe": "demo"}]}), encoding="utf-8")
    train("one", 0, (50, 30), recomputed_bn={"iteration": 40, "confusion": counts((60, 40)), "images": 64})
    table = study_table(summarise("mine.yaml", scan(Path("runs"))))
    shown = [[cell.number() for cell in row[-2:]] for row in table.rows if row[1].text == "reproduced"]
    assert shown == [["40.0", "50.0"]] and "BatchNorm statistics recomputed on the target" in table.lead


# --- formats -------------------------------------------------------------------------------------------------------

EVIL = "a|b_c*<i>&\\ 50% #1 {x} $y$ ~^ `q` †→ “\n\x1b[31m"
TABLE = Table(
    title="T & 1",
    header=("method", "", "seeds", "road", "mIoU"),
    rows=(
        (Cell(text="A_1"), Cell(text="published"), Cell(), Cell(50.0, mark="second"), Cell(40.0, 0.5, mark="best")),
        (Cell(text="A_1"), Cell(text="reproduced"), Cell(2, digits=0), Cell(1 / 3, 0.25), Cell(text="-")),
        (Cell(text="A_1"), Cell(text="difference"), Cell(), Cell(-0.04, signed=True), Cell()),
    ),
    left=2,
    lead="100 %.",
    notes=("A note_.",),
    commands=("udaseg ablate x --only A_1",),
)


def test_markdown_to_the_letter() -> None:
    assert markdown(TABLE) == (
        "### T & 1\n\n100 %.\n\n"
        "| method |  | seeds | road | mIoU |\n| :-- | :-- | --: | --: | --: |\n"
        "| A\\_1 | published |  | <u>50.0</u> | **40.0±0.5** |\n"
        "| A\\_1 | reproduced | 2 | 0.3±0.2 | - |\n"
        "| A\\_1 | difference |  | +0.0 |  |\n\n- A note\\_.\n\n"
        "Missing; these fill it:\n\n```\nudaseg ablate x --only A_1\n```\n"
    )


def test_latex_to_the_letter() -> None:
    assert latex(TABLE) == (
        "\\begin{table}\n\\centering\n\\caption{T \\& 1. 100 \\%.}\n\\begin{tabular}{llrrr}\n\\toprule\n"
        "method &  & seeds & road & mIoU \\\\\n\\midrule\n"
        "A\\_1 & published &  & \\underline{50.0} & \\textbf{40.0}$\\pm$0.5 \\\\\n"
        "A\\_1 & reproduced & 2 & 0.3$\\pm$0.2 & - \\\\\n"
        "A\\_1 & difference &  & $+0.0$ &  \\\\\n"
        "\\bottomrule\n\\end{tabular}\n\\end{table}\n% A note_.\n% missing: udaseg ablate x --only A_1\n"
    )


def test_csv_to_the_letter() -> None:
    assert comma_separated(TABLE) == (
        "method,,seeds,road,road std,mIoU,mIoU std\nA_1,published,,50,,40,0.5\n"
        "A_1,reproduced,2,0.3333,0.25,-,\nA_1,difference,,-0.04,,,\n"
    )


def evil() -> Table:
    return Table(
        EVIL, (EVIL, "n"), ((Cell(text=EVIL), Cell(1.0)), (Cell(text="[x"), Cell(2.0))), lead=EVIL, notes=(EVIL,)
    )


def test_special_characters_in_latex() -> None:
    text = latex(evil())
    for wanted in (
        r"a\textbar{}b\_c*\textless{}i\textgreater{}\&\textbackslash{}", r"50\% \#1 \{x\} \$y\$",
        r"\textasciitilde{}\textasciicircum{}", r"\textdagger{}$\rightarrow$", "{[x} & 2.0",
    ):  # fmt: skip
        assert wanted in text
    body = [line for line in text.splitlines() if not line.startswith("%")]
    bare = re.sub(r"\\[\\{}&%$#_]", "", "\n".join(body))
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0 and "\x1b" not in text
    inside = "\n".join(body)[text.index(r"\toprule") :]
    assert all(len(re.findall(r"(?<!\\)&", line)) == 1 for line in inside.splitlines() if line.endswith(r"\\"))


def test_special_characters_in_markdown_and_csv() -> None:
    text = markdown(evil())
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in text.splitlines() if line.startswith("|"))
    assert r"a\|b\_c\*\<i\>&\\ 50% \#1 \{x\}" in text and "\x1b" not in text
    rows = list(csv.reader(io.StringIO(comma_separated(Table("t", ("a", "b"), ((Cell(text='x,"y\n'), Cell(1.5)),))))))
    assert rows == [["a", "b"], ['x,"y', "1.5"]]


def test_special_characters_in_html() -> None:
    chart = rendered(figures.curves({EVIL: [Series(EVIL, [(0, 1), (1, 2)], 0)]}), "svg")
    part = pages.Part(evil(), [(EVIL, figures.data_uri(chart, "svg"))])
    page = pages.render_page(title=EVIL, lead=EVIL, cards=[(EVIL, EVIL)], parts=[part], footer=EVIL)
    assert "<i>" not in page and "a|b_c*&lt;i&gt;&amp;" in page
    assert clean(EVIL) in texts(chart)


def test_wide_tables_are_printed_in_blocks() -> None:
    table = Table("t", ("method", *(f"c{i}" for i in range(9))), ((Cell(text="m" * 10), *[Cell(1.0)] * 9),))
    texts = [["m" * 10, *["1.0"] * 9]]
    assert blocks(table, texts, 200) == [list(range(10))]
    assert blocks(table, texts, 32) == [[0, 1, 2, 3, 4], [0, 5, 6, 7, 8], [0, 9]]
    assert blocks(table, texts, 5) == [[0, i] for i in range(1, 10)]


@pytest.mark.parametrize(
    ("value", "digits", "signed", "shown"),
    [
        (0.04, 1, False, "0.0"),
        (-0.04, 1, True, "+0.0"),
        (-0.06, 1, True, "-0.1"),
        (1.5, None, False, "1.5"),
        (3, 0, False, "3"),
    ],
)
def test_numbers(value: float, digits: int | None, signed: bool, shown: str) -> None:
    assert Cell(value, digits=digits, signed=signed).number() == shown


# --- the page ------------------------------------------------------------------------------------------------------


def rows(*found: tuple[str, str | None, tuple[str, ...]]) -> list[Row]:
    return [Row(label=label, recipe=recipe, overrides=overrides, published=[1.0]) for label, recipe, overrides in found]


def test_positions_in_an_ablation() -> None:
    key = "views.mixed.terms.rebuild.mask_ratio"
    figure4 = rows(("w/o", "dacs", ()), ("20 %", "m", (f"{key}=0.2",)), ("40 %", "m", ()))
    assert pages.ablation_positions(figure4) == ("mask ratio, %", {"20 %": 20.0, "40 %": 40.0})
    named = rows(("low", "m", ("a.weight=0.1",)), ("own", "m", ()), ("high", "m", ("a.weight=2",)))
    assert pages.ablation_positions(named) == ("a weight", {"low": 0.1, "high": 2.0})
    assert pages.ablation_positions(rows(("a", "m", ("x=1", "y=2")), ("b", "m", ("x=2",))))[1] == {}
    assert pages.ablation_positions(rows(("a", "m", ("x=1",)), ("b", "n", ("x=2",))))[1] == {}
    assert pages.ablation_positions(rows(("a", "m", ("x=p",)), ("b", "m", ("x=q",))))[1] == {}
    assert pages.ablation_positions(rows(("a", "m", ()), ("b", "n", ())))[1] == {}


def test_a_page_with_runs_is_whole_and_asks_for_nothing(place: Path) -> None:
    for label, seed, iou in (("one", 0, (50, 30)), ("one", 1, (54, 30)), ("two", 0, (40, 30))):
        folder = train(label, seed, iou)
        write_log(folder, [{"iteration": 10, "validation": counts((20, 20))}], mode="a")
    (folder / "panels.png").write_bytes(pages.PNG + b"rest")
    part = pages.study_part(summarise("mine.yaml", scan(Path("runs"))), runs=Path("runs"))
    captions = [caption for caption, _ in part.charts]
    assert len(captions) == 4 and captions[0] == "mIoU over alpha" and len(part.pictures) == 1
    assert captions[3] == "IoU by class, %; | published"
    shown = texts(content(part.charts[3][1]))
    assert {"road", "car", "52.0", "30.0", "40.0", "one", "two", "published"} <= set(shown)
    page = pages.render_page(title="t", lead="l", cards=[], parts=[part], footer="f")
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert page.count("data:image/svg+xml;base64,") == 4 and page.count("data:image/png;base64,") == 1


def test_bars_of_late_rows_have_colours_of_their_own(place: Path) -> None:
    """There are eight colours; two methods of one colour could not be told apart."""
    rows = "".join(f"  - {{label: r{i}, recipe: demo, overrides: [teacher.alpha=0.{i + 10}]}}\n" for i in range(10))
    (place / "mine.yaml").write_text(STUDY.split("rows:")[0] + "rows:\n" + rows, encoding="utf-8")
    for i in range(10):
        train(f"r{i}", 0, (20 + i, 30))
    summary = summarise("mine.yaml", scan(Path("runs")))
    best = [(colour, entry.row.label) for colour, entry in pages.best_entries(summary, summary.entries)]
    assert best == [(0, "r0"), (1, "r7"), (2, "r8"), (3, "r9")]
    few = [(colour, entry.row.label) for colour, entry in pages.best_entries(summary, summary.entries[:6])]
    assert few == [(0, "r0"), (3, "r3"), (4, "r4"), (5, "r5")]  # those of the training curves


def content(source: str) -> bytes:
    """What lies in a data URI."""
    return base64.b64decode(source.partition(",")[2])


def texts(svg: bytes) -> list[str | None]:
    """All that is written in a chart."""
    return [text.text for text in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_an_ablation_shows_points_deviations_and_levels() -> None:
    series = [
        Series("reproduced", [(20, 50.0), (40, 53.5)], 0, [1.5, None]),
        Series("without, reproduced", [(math.nan, 48.0)], 7),
        Series("published", [(40, 55.9)], 1, [None], published=True),
    ]
    (axes,) = figures.ablation(series, "mask ratio, %").axes
    assert list(axes.get_xticks()) == [20, 40] and axes.get_xscale() == "linear"
    points = {tuple(xy) for line in axes.lines for xy in line.get_xydata()}
    assert {(20, 50.0), (40, 53.5), (40, 55.9)} <= points
    assert any(set(line.get_ydata()) == {48.0} for line in axes.lines)
    bars = [segment[:, 1].tolist() for bar in axes.collections for segment in bar.get_segments()]
    assert [48.5, 51.5] in bars and {text.get_text() for text in axes.texts} == {"50.0", "53.5", "55.9"}


def test_many_points_on_a_logarithmic_axis() -> None:
    points = [(10 ** (k / 4), float(k)) for k in range(-12, 5)]
    chart = figures.ablation([Series("s", points, 0)], "weight")
    assert chart.axes[0].get_xscale() == "log"
    assert {"0.001", "0.01", "0.1", "1", "10"} <= set(texts(rendered(chart, "svg")))


def test_class_bars_mark_what_was_published() -> None:
    chart = figures.class_bars(["road", "car"], [Bars("one", [52.0, math.nan], 0, [50.0, None])])
    (axes,) = chart.axes
    assert [round(bar.get_width(), 3) for bar in axes.patches] == [52.0, 0.0]
    assert [text.get_text() for text in axes.texts] == ["52.0", "-"]
    (mark,) = axes.collections
    assert mark.get_segments()[0][:, 0].tolist() == [50.0, 50.0]


def test_rows_of_a_confusion_matrix_add_up_to_100() -> None:
    chart = figures.confusion_matrices(["a", "b"], {"run": np.array([[3.0, 1.0], [0.0, 0.0]])})
    shown = np.asarray(chart.axes[0].images[0].get_array())
    assert shown[0].tolist() == [75.0, 25.0] and np.isnan(shown[1]).all()


def test_panels_keep_the_colours_and_shapes_of_their_images() -> None:
    wide, upright = np.full((20, 40, 3), 90, np.uint8), np.full((40, 20, 3), (7, 80, 200), np.uint8)
    chart = figures.panels([[("", wide), ("", upright)]], ["c"], [(1, 2, 3)])
    with Image.open(io.BytesIO(rendered(chart))) as png:
        pixels = np.asarray(png.convert("RGB"))
    for colour, ratio in ((90, 90, 90), 2.0), ((7, 80, 200), 0.5):
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert width / height == pytest.approx(ratio, rel=0.02) and len(rows) == height * width
        assert 0.9 < max(width / 390, height / 195) < 1.06


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    assert [write_free(tmp_path / "x.md", text).name for text in (b"a", b"b", b"c")] == ["x.md", "x-2.md", "x-3.md"]
    assert (tmp_path / "x.md").read_bytes() == b"a"
