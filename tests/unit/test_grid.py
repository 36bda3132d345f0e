"""Grids: which runs a study takes, how far they are, and what becomes of those that fail or run elsewhere."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import toy

from udaseg.commands.ablate import GridProgress, parse_seeds, status, train_study
from udaseg.config.load import load
from udaseg.config.schema import Recipe
from udaseg.engine.domains import class_set
from udaseg.engine.runlog import RunFolder, held
from udaseg.engine.trainer import Interrupted
from udaseg.errors import Busy, UserError
from udaseg.files import write_json, write_text
from udaseg.report import grid
from udaseg.report.executors import Ended, Local, Slurm, log_path, train_cells, write_failure
from udaseg.report.grid import Cell, lay_out, run_of
from udaseg.report.results import Failure, Run, read_failure
from udaseg.report.study import Row, Study
from udaseg.yamls import as_yaml

STUDY = Study(
    title="toy",
    benchmark="streets",
    seeds=[0, 1],
    rows=[
        Row(label="plain", recipe="source_only"),
        Row(label="mixed", group="A", recipe="dacs"),
        Row(label="as it is", group="B", recipe="dacs", overrides=("teacher.alpha=0.99",)),
        Row(label="strong", group="B", recipe="dacs", overrides=("teacher.alpha=0.5",)),
        Row(label="to come", recipe="nosuch_recipe"),
        Row(label="wrong", recipe="dacs", overrides=("train.bach=3",)),
        Row(label="printed", published=[50.0]),
    ],
)


def cells(out: Path, **options: object) -> list[Cell]:
    return lay_out(STUDY, out=out, overrides=toy.TINY, **options).cells  # type: ignore[arg-type]


def finish(cell: Cell, hits: int = 1, fingerprint: str | None = None) -> None:
    """A result as a run leaves it: `hits` pixels of road right, one wrong."""
    confusion = [[0] * 19 for _ in range(19)]
    confusion[0][0], confusion[0][1] = hits, 1
    recipe = cell.loaded.recipe
    write_text(cell.folder / "recipe.yaml", as_yaml(cell.loaded.tree))
    write_json(cell.folder / "result.json", {
        "recipe": recipe.name, "benchmark": recipe.benchmark, "seed": recipe.seed,
        "iterations": recipe.train.iterations, "fingerprint": fingerprint or recipe.fingerprint(),
        "classes": class_set(recipe).names, "protocol": "cityscapes19", "oracle_selection": None,
        "validation": {"iteration": 4, "confusion": confusion},
    })  # fmt: skip


def failure(cell: Cell) -> Failure:
    """Of a run that failed."""
    run = run_of(cell)
    assert run.state == "failed" and run.failure is not None
    return run.failure


class Played:
    """An executor whose runs end as the test says: an exit code, and the last line of the log."""

    def __init__(self, *ends: tuple[int, str], slots: int = 1) -> None:
        self.ends, self.slots, self.began = list(ends), slots, []  # type: ignore[var-annotated]

    def start(self, cell: Cell) -> Ended:
        self.began.append(cell.folder)
        code, text = self.ends.pop(0) if self.ends else (0, "")
        with open(log_path(cell), "a", encoding="utf-8") as file:
            file.write(f"step 1\n{text}\n")
        if code == 0:
            finish(cell)
        return Ended(code)


class Told:
    def __init__(self) -> None:
        self.states: list[str] = []

    def started(self, cell: Cell) -> None: ...

    def ended(self, cell: Cell, run: Run) -> None:
        self.states.append(run.state)

    def waiting(self, running: Sequence[Cell]) -> None: ...


# --- which runs ----------------------------------------------------------------------------------------------------


def test_a_cell_is_a_row_with_a_seed(tmp_path: Path) -> None:
    laid = lay_out(STUDY, out=tmp_path, overrides=toy.TINY)
    assert [cell.name for cell in laid.cells[:3]] == ["plain, seed 0", "plain, seed 1", "A/mixed, seed 0"]
    assert len(laid.cells) == 8 and list(laid.left_out) == ["to come", "wrong"]
    assert "no recipe 'nosuch_recipe'" in laid.left_out["to come"] and "train.bach" in laid.left_out["wrong"]
    recipe = laid.cells[7].loaded.recipe
    assert (recipe.seed, recipe.benchmark, recipe.teacher.alpha, recipe.train.batch) == (1, "streets", 0.5, 2)


def test_equal_fingerprints_are_one_run(tmp_path: Path) -> None:
    laid = lay_out(STUDY, out=tmp_path, overrides=toy.TINY)
    assert load("dacs").recipe.teacher.alpha == 0.99
    assert [cell.row.name for cell in laid.runs()] == ["plain"] * 2 + ["A/mixed"] * 2 + ["B/strong"] * 2
    ours = lay_out(STUDY, out=tmp_path, overrides=[*toy.TINY, "teacher.alpha=0.7"])
    assert [cell.row.name for cell in ours.runs()] == ["plain"] * 2 + ["A/mixed"] * 2
    assert not {cell.folder for cell in ours.cells} & {cell.folder for cell in laid.cells}
    full = {cell.folder for cell in lay_out(STUDY, out=tmp_path).cells}
    assert not full & {cell.folder for cell in laid.cells}
    slower = lay_out(STUDY, out=tmp_path, overrides=[*toy.TINY, "runtime.workers=3"])
    assert [cell.folder for cell in slower.cells] == [cell.folder for cell in laid.cells]


def test_a_run_is_found_under_another_recipes_name(tmp_path: Path) -> None:
    (plain, *_) = cells(tmp_path)
    digits = plain.loaded.recipe.fingerprint()[:12]
    assert plain.folder.name == f"source_only-streets-seed0-{digits}"
    (tmp_path / f"mine-streets-seed0-{digits}").mkdir()
    assert cells(tmp_path)[0].folder.name.startswith("mine-")


def test_the_command_of_a_cell_trains_that_cell(tmp_path: Path) -> None:
    from udaseg.engine.runs import choose_recipe

    for cell in cells(tmp_path):
        _, _, name, _, benchmark, _, seed, _, out, *overrides = cell.command
        loaded = choose_recipe(name, benchmark, int(seed), overrides)
        assert loaded.recipe.fingerprint() == cell.loaded.recipe.fingerprint() and Path(out) == cell.folder


def test_seeds_rows_and_benchmark_can_be_chosen(tmp_path: Path) -> None:
    assert [cell.seed for cell in cells(tmp_path, seeds=[5], only="plain")] == [5]
    assert {cell.row.name for cell in cells(tmp_path, only="b/")} == {"B/as it is", "B/strong"}
    assert {cell.row.name for cell in cells(tmp_path, only="mixed")} == {"A/mixed"}
    assert cells(tmp_path, benchmark="camvid", only="plain")[0].loaded.recipe.benchmark == "camvid"
    for options, words in (
        ({"only": "plian"}, "did you mean 'plain'"),
        ({"only": "printed"}, "published numbers"),
        ({"only": "to come"}, "no recipe 'nosuch_recipe'"),
        ({"only": "wrong"}, "train.bach"),
    ):
        with pytest.raises(UserError, match=words):
            cells(tmp_path, **options)
    for text, option in (("seed=1", "--seeds"), ("benchmark=streets", "--benchmark")):
        with pytest.raises(UserError, match=option):
            lay_out(STUDY, out=tmp_path, overrides=[text])


def test_seeds_as_they_are_written() -> None:
    assert parse_seeds("0, 2,10") == [0, 2, 10]
    for text in ("", "0,", "a", "0,0", "-1", "1.5", "²"):
        with pytest.raises(UserError, match="--seeds"):
            parse_seeds(text)


# --- how far -------------------------------------------------------------------------------------------------------


def test_the_states_of_a_run(tmp_path: Path) -> None:
    (cell, *_) = cells(tmp_path)
    assert run_of(cell).state == "missing"
    run = RunFolder(cell.folder)
    run.lock()
    assert (run_of(cell).state, run_of(cell).reached) == ("running", 0)
    run.unlock()
    assert run_of(cell).state == "missing"  # nothing has begun without a recipe
    write_text(run.recipe, "x: 1\n")
    run.record({"iteration": 2, "losses": {}})
    run.lock()
    assert (run_of(cell).state, run_of(cell).reached) == ("running", 2)
    run.unlock()
    assert (run_of(cell).state, run_of(cell).reached) == ("interrupted", 2)
    write_failure(cell, "crash", "bang")
    assert (failure(cell).message, failure(cell).iteration) == ("bang", 2)
    finish(cell, hits=3)
    assert (run_of(cell).state, run_of(cell).reached) == ("finished", cell.iterations)
    assert run_of(cell).scores().miou == pytest.approx((75.0 + 0.0) / 2)
    finish(cell, fingerprint="another")
    assert run_of(cell).state == "damaged" and "another recipe" in run_of(cell).problem
    for text in ("", "{", "[1]", "null"):
        (cell.folder / "result.json").write_text(text)
        assert run_of(cell).state == "damaged" and "delete it" in run_of(cell).problem


def test_a_damaged_failure_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "failure.json"
    assert read_failure(path) is None
    for text in ("", "{", "[1]", '{"kind": 1}'):
        path.write_text(text)
        assert read_failure(path).kind == "unknown"  # type: ignore[union-attr]


def test_a_lock_is_seen_but_not_taken(tmp_path: Path) -> None:
    assert not held(tmp_path / "nowhere") and not held(tmp_path)
    run, other = RunFolder(tmp_path), RunFolder(tmp_path)
    run.lock()
    assert held(tmp_path) and held(tmp_path)
    with pytest.raises(Busy, match="another process"):
        other.lock()
    run.unlock()
    assert not held(tmp_path)
    other.lock()


def test_reading_the_lock_does_not_keep_a_run_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunFolder(tmp_path).lock()
    looking = open(tmp_path / ".lock")  # noqa: SIM115
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr("time.sleep", lambda seconds: looking.close())
    RunFolder(tmp_path).lock()


# --- what becomes of them ------------------------------------------------------------------------------------------


def test_one_failure_never_stops_the_rest(tmp_path: Path) -> None:
    runs = lay_out(STUDY, out=tmp_path, overrides=toy.TINY).runs()[:5]
    ends = [(2, "error: bad\n  thing: x"), (-9, "last row"), (1, "RuntimeError: bang"), (1, "CUDA out of memory. x")]
    played, told = Played(*ends), Told()
    train_cells(runs, played, told)
    assert told.states == ["failed"] * 4 + ["finished"] and len(played.began) == 5
    kept = [(failure(cell).kind, failure(cell).message) for cell in runs[:4]]
    assert kept == [
        ("error", "bad\n  thing: x"), ("killed by SIGKILL", "last row"), ("crash", "RuntimeError: bang"),
        ("out of memory", "CUDA out of memory. x"),
    ]  # fmt: skip


def test_an_error_of_several_runs_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    laid = lay_out(STUDY, out=tmp_path, overrides=toy.TINY, only="plain")
    played = Played(*[(2, "error: cannot run:\n  the data is not prepared")] * 2)
    train_cells(laid.cells, played, GridProgress(laid.cells, STUDY))
    assert "plain, seed 1: failed: error: cannot run: the data is not prepared\n" in capsys.readouterr().out
    status(STUDY, laid)
    told = capsys.readouterr().out
    assert "plain, seed 0; plain, seed 1: error: cannot run:\n" in told and told.count("not prepared") == 1


def test_failed_runs_wait_for_retry_and_only_their_last_words_count(tmp_path: Path) -> None:
    runs = cells(tmp_path)[:2]
    train_cells(runs, Played((2, "error: first")), Told())
    again = Played((1, "second"))
    train_cells(runs, again, Told())
    assert again.began == []
    train_cells(runs, again, Told(), retry=True)
    assert again.began == [runs[0].folder]
    assert (failure(runs[0]).kind, failure(runs[0]).message) == ("crash", "second")
    train_cells(runs, again, told := Told(), retry=True)
    assert told.states == ["finished"] * 2 and not (runs[0].folder / "failure.json").exists()


@pytest.mark.parametrize(("published", "code"), [(["OOM"], 0), ([50.0], 1), (None, 1)])
def test_out_of_memory_where_it_was_published_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], published: Any, code: int
) -> None:
    rows = [Row(label="large", recipe="dacs", published=published), Row(label="plain", recipe="source_only")]
    study = Study(title="t", benchmark="streets", seeds=[0], rows=rows)
    laid = lay_out(study, out=tmp_path, overrides=toy.TINY)
    played = Played((2, "error: out of memory in phase 'mixed' of iteration 3"))
    monkeypatch.setattr("udaseg.commands.ablate.executor_for", lambda *_: played)

    def ablate(retry: bool = False) -> int:
        try:
            train_study(study, laid, executor="", jobs=None, retry=retry, folder=tmp_path)
        except SystemExit as stop:
            return int(str(stop.code))
        return 0

    assert ablate() == code and len(played.began) == 2
    shown = capsys.readouterr().out
    assert re.search(r"^large +OOM *$", shown, re.MULTILINE) and ("\nlarge, seed 0: out of" in shown) == bool(code)
    assert ablate() == code and len(played.began) == 2
    assert ablate(retry=True) == 0 and len(played.began) == 3


def test_what_failed_since_is_not_tried_again(tmp_path: Path) -> None:
    """Two calls with --retry at once: one retries it, not both."""
    (cell, *_) = cells(tmp_path)
    write_failure(cell, "crash", "now")
    later = os.stat(cell.folder).st_mtime + 60
    os.utime(cell.folder / "failure.json", (later, later))
    train_cells([cell], played := Played(), Told(), retry=True)
    assert played.began == []


@pytest.mark.parametrize("code", [130, 143, -signal.SIGINT, -signal.SIGTERM])
def test_a_run_that_was_asked_to_stop_did_not_fail(tmp_path: Path, code: int) -> None:
    (cell, *_) = cells(tmp_path)
    write_text(cell.folder / "recipe.yaml", "x: 1\n")
    train_cells([cell], Played((code, "stopped")), told := Told())
    assert told.states == ["interrupted"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_runs_and_waits_for_them(tmp_path: Path, number: int) -> None:
    class Endless:
        def __init__(self) -> None:
            self.asked = self.polled = 0

        def poll(self) -> int | None:
            self.polled += self.asked
            return 143 if self.polled >= 3 else None

        def terminate(self) -> None:
            self.asked += 1

    class Two:
        slots = 2
        jobs: list[Endless] = []  # noqa: RUF012

        def start(self, cell: Cell) -> Endless:
            self.jobs = [*self.jobs, Endless()]
            return self.jobs[-1]

    class Impatient(Told):
        def waiting(self, running: Sequence[Cell]) -> None:
            os.kill(os.getpid(), number)

    executor, before = Two(), signal.getsignal(number)
    with pytest.raises(Interrupted) as stop:
        train_cells(cells(tmp_path)[:3], executor, Impatient())
    assert stop.value.number == number and all(job.asked == 1 and job.polled >= 3 for job in executor.jobs)
    assert signal.getsignal(number) is before and not any(tmp_path.glob("*/failure.json"))


def test_what_runs_elsewhere_is_skipped_and_looked_at_again(tmp_path: Path) -> None:
    """Held when it was looked at; taken while our child started; then free."""
    one, two, three = cells(tmp_path)[:3]
    run = RunFolder(one.folder)
    run.lock()
    played = Played((Busy.code, "error: another process is training"), (0, ""), (0, ""))
    train_cells([one, two, three], played, told := Told())
    assert played.began == [two.folder, three.folder, two.folder]
    assert sorted(told.states) == ["finished", "finished", "running"] and run_of(two).failure is None
    run.unlock()
    train_cells([one], played, told)
    assert told.states[-1] == "finished"


def test_children_share_cores_and_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    class Running:
        def poll(self) -> None: ...

    def launch(command: object, log: object, env: dict[str, str]) -> Running:
        seen.append(env)
        return Running()

    monkeypatch.setattr("udaseg.report.executors.launch", launch)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    executor = Local(slots=4, devices=["3", "GPU-x"])
    for cell in cells(tmp_path)[:4]:
        executor.start(cell)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in seen] == ["3", "GPU-x", "3", "GPU-x"]
    assert {env["OMP_NUM_THREADS"] for env in seen} == {"2"}


def test_costs_come_from_finished_runs_of_the_kind(tmp_path: Path) -> None:
    plain, other = cells(tmp_path, only="plain")
    recipe: Recipe = plain.loaded.recipe
    assert grid.costs([plain, other], tmp_path) == {}
    finish(plain)
    result = json.loads((plain.folder / "result.json").read_text())
    write_json(plain.folder / "result.json", {**result, "finished": "2026-11-21T13:00:00+0100"})
    write_json(plain.folder / "environment.json", [{"time": "2026-11-21T10:00:00+0000"}])
    cost = grid.costs([plain, other], tmp_path)
    assert cost[other.folder].hours == pytest.approx(2.0) and 0 < cost[other.folder].gigabytes < 1e-3
    longer = lay_out(STUDY, out=tmp_path, only="plain", overrides=[*toy.TINY, "train.iterations=80000"]).cells
    assert grid.costs(longer, tmp_path)[longer[0].folder].hours == pytest.approx(2.0 * 80000 / recipe.train.iterations)
    larger = lay_out(STUDY, out=tmp_path, only="plain", overrides=[*toy.TINY, "train.batch=4"]).cells
    assert grid.costs(larger, tmp_path) == {}
    write_json(plain.folder / "environment.json", [{"time": "2026-11-21T10:00:00+0000"}] * 2)
    assert grid.costs([plain], tmp_path) == {}


def test_the_time_left_is_told_from_iterations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = cells(tmp_path, only="plain")
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    watch = GridProgress([one, two], STUDY)
    assert watch.left() == ""
    clock[0] = 600.0
    watch.ended(one, Run(one.folder, "finished", reached=one.iterations))
    assert watch.left() == "; about 10 min 00 s left"
    watch.ended(two, Run(two.folder, "failed", reached=3))
    assert watch.left() == ""


def test_settings_of_a_term_leave_rows_without_it_alone(tmp_path: Path) -> None:
    """Else an override for the method's term would put that term into the control."""
    rows = [Row(label="control", recipe="dacs"), Row(label="method", recipe="daformer")]
    study = Study(title="two", benchmark="streets", seeds=[0], rows=rows)
    size = ("views.source.terms.feature_distance.min_ratio=0.5", "views.mixed.terms.feature_distance.weight=0.1")
    control, method = (c.loaded.recipe for c in lay_out(study, out=tmp_path, overrides=[*toy.TINY, *size]).cells)
    assert "feature_distance" not in control.views["source"].terms
    assert method.views["source"].terms["feature_distance"]["min_ratio"] == 0.5
    for recipe in (control, method):  # a term that no row has is meant to be added
        assert recipe.views["mixed"].weights["feature_distance"] == 0.1


ELSEWHERE = "views.mixed.terms.feature_distance={weight: 0.1}"
ROWS = [
    Row(label="control", recipe="dacs"),
    Row(label="method", recipe="daformer"),
    Row(label="elsewhere", recipe="dacs", overrides=(ELSEWHERE,)),
    Row(label="no target", recipe="source_only", overrides=("data.target=null",)),
]
METHOD = Study(title="where a term stands", benchmark="streets", seeds=[0], rows=ROWS)


def laid_out(out: Path, *overrides: str, **options: object) -> grid.Grid:
    size = [text for text in toy.TINY if not text.startswith("data.target")]
    return lay_out(METHOD, out=out, overrides=[*size, *overrides], **options)  # type: ignore[arg-type]


def test_an_override_that_misses_rows_is_refused_with_the_keys_that_reach_them(tmp_path: Path) -> None:
    text = "views.source.terms.feature_distance.min_ratio=0.5"
    with pytest.raises(UserError) as error:
        laid_out(tmp_path, text)
    assert f"override '{text}' changes 1 rows of the study and misses 1" in str(error.value)
    assert "  elsewhere: views.mixed.terms.feature_distance.min_ratio\n" in str(error.value)
    assert "give terms.feature_distance.min_ratio=0.5" in str(error.value)
    assert len(laid_out(tmp_path, text, only="method").cells) == 1
    both = laid_out(tmp_path, text, "views.mixed.terms.feature_distance.min_ratio=0.6").cells
    assert both[1].loaded.recipe.views["source"].terms["feature_distance"]["min_ratio"] == 0.5
    assert both[2].loaded.recipe.views["mixed"].terms["feature_distance"]["min_ratio"] == 0.6
    # what all rows have on the same other view as those that are reached is not meant
    assert len(laid_out(tmp_path, "views.mixed.terms.cross_entropy.weight=0.5").cells) == 4


def test_a_term_without_a_view_is_every_view_with_the_term(tmp_path: Path) -> None:
    laid = laid_out(tmp_path, "terms.feature_distance.min_ratio=0.5")
    (control, method, elsewhere, alone) = (cell.loaded.recipe for cell in laid.cells)
    assert method.views["source"].terms["feature_distance"]["min_ratio"] == 0.5
    assert elsewhere.views["mixed"].terms["feature_distance"]["min_ratio"] == 0.5
    assert all("feature_distance" not in stage.terms for r in (control, alone) for stage in r.views.values())
    assert laid.left_alone == {"terms.feature_distance.min_ratio=0.5": ["control", "no target"]}
    weights = [stage.weights["cross_entropy"] for cell in laid_out(tmp_path, "terms.cross_entropy.weight=2").cells
               for stage in cell.loaded.recipe.views.values()]  # fmt: skip
    assert weights == [2.0] * 7
    for text, words in (
        ("terms.feature_distance.min_ration=1", "did you mean 'min_ratio'"),
        ("terms.feature_distence.min_ratio=1", "did you mean 'feature_distance'"),
        ("terms=1", "no row has it"),
    ):
        with pytest.raises(UserError, match=words):
            laid_out(tmp_path, text)


def test_no_row_is_dropped_for_a_part_that_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    laid = laid_out(tmp_path, "data.target.size=[128,64]", "data.sampler.temperature=0.5")
    assert len(laid.cells) == 4 and not laid.left_out
    recipes = {cell.row.label: cell.loaded.recipe for cell in laid.cells}
    assert recipes["no target"].data.target is None and recipes["control"].data.target.size == (128, 64)  # type: ignore[union-attr]
    assert recipes["method"].data.sampler["temperature"] == 0.5 and recipes["control"].data.sampler == {
        "kind": "uniform"
    }
    status(METHOD, laid)
    told = " ".join(capsys.readouterr().out.split())
    assert "not changed by data.target.size=[128,64], which they lack: no target" in told
    changed = laid_out(tmp_path, "data.sampler=rare_class", "data.sampler.temperature=0.5").cells
    assert {cell.loaded.recipe.data.sampler["temperature"] for cell in changed} == {0.5}


def test_an_override_that_does_not_fit_a_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"do not fit these rows[^\n]*\n  method: [^\n]*\n[^\n]*min_ration") as error:
        laid_out(tmp_path, "views.source.terms.feature_distance.min_ration=0.5")
    assert "control" not in str(error.value)
    with pytest.raises(
        UserError, match=r"--only:\n  plain: [^\n]*\n[^\n]*train\.bach"
    ):  # "wrong" is wrong without it, too
        lay_out(STUDY, out=tmp_path, overrides=["train.bach=3"])


def test_a_job_that_the_cluster_refuses(tmp_path: Path) -> None:
    """sbatch's own words, and what a job asks for."""
    utils = pytest.importorskip("submitit.core.utils")

    class Refusing:
        def submit(self, job: object) -> None:
            raise utils.FailedJobError("sbatch: error: Invalid account")

    (cell,) = cells(tmp_path, only="plain", seeds=[0])
    cell.folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"Invalid account.*SBATCH_ACCOUNT.*runtime\.device=cpu"):
        Slurm(Refusing(), slots=1).start(cell)
