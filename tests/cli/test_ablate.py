"""Grids through the real command: killed, stopped, twice at once, with a row that fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from safetensors.torch import load_file
from toy import run

from udaseg.engine.runlog import RunFolder, held
from udaseg.errors import Busy

STUDY = """
title: toy
benchmark: streets
seeds: [0]
rows:
  - {label: plain, recipe: source_only, overrides: [train.iterations=4], published: [50]}
  - {label: mixed, recipe: dacs, overrides: [train.iterations=8]}
  - {label: printed, published: [1]}
"""
SIZE = (*toy.TINY, "runtime.log_every=1", "runtime.checkpoint_minutes=0")


def ablate(study: Path, out: str, *more: str) -> list[str]:
    return ["ablate", str(study), "--out", out, *more, *SIZE]


def child(*arguments: str) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "udaseg.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def cell(out: Path, recipe: str) -> Path:
    (found,) = out.glob(f"{recipe}-streets-seed0-*")
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "waiting", "memory_gb")} for row in found]


def same_grid(one: Path, other: Path) -> None:
    """Bit for bit: weights, raw counts, log rows."""
    assert sorted(p.name for p in one.glob("*-*")) == sorted(p.name for p in other.glob("*-*"))
    for folder in (cell(one, name) for name in ("source_only", "dacs")):
        twin = other / folder.name
        a, b = load_file(folder / "weights.safetensors"), load_file(twin / "weights.safetensors")
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        assert rows(folder) == rows(twin)
        results = [json.loads((f / "result.json").read_text()) for f in (folder, twin)]
        assert results[0]["validation"] == results[1]["validation"]


def write_study(folder: Path, text: str = STUDY) -> Path:
    path = folder / "toy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(streets_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of two runs that nothing interrupted."""
    folder = tmp_path_factory.mktemp("grid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UDASEG_DATA", str(streets_home))
        assert run(*ablate(write_study(folder), str(folder / "whole"), "--executor", "inline")) == 0
    return folder / "whole"


def test_a_kill_of_everything_and_the_same_command_again(whole: Path, streets: Path, capsys: Any) -> None:
    study, out = write_study(streets), streets / "killed"
    process = child(*ablate(study, str(out)))
    until(lambda: any(out.glob("dacs-*/checkpoints/step-0000002.pt")))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (cell(out, "source_only") / "result.json").is_file() and not (cell(out, "dacs") / "result.json").exists()
    before = (cell(out, "source_only") / "result.json").stat().st_mtime_ns
    until(lambda: run(*ablate(study, str(out), "--status")) == 0 and "interrupted" in capsys.readouterr().out)
    saved = max(cell(out, "dacs").glob("checkpoints/step-*.pt")).stem
    assert run(*ablate(study, str(out), "--executor", "inline")) == 0
    assert f"mixed, seed 0: on from iteration {int(saved[5:])}," in capsys.readouterr().out
    assert (cell(out, "source_only") / "result.json").stat().st_mtime_ns == before
    same_grid(whole, out)


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(whole: Path, streets: Path) -> None:
    study, out = write_study(streets), streets / "stopped"
    process = child(*ablate(study, str(out), "--jobs", "2"), "runtime.checkpoint_minutes=60")
    until(lambda: any(path.stat().st_size for path in out.glob("dacs-*/metrics.jsonl")))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    text, _ = process.communicate(timeout=60)
    assert not held(cell(out, "dacs"))
    assert process.returncode == 130 and "same command again continues" in text and "Traceback" not in text
    assert any(cell(out, "dacs").glob("checkpoints/step-*.pt")) and not any(out.glob("*/failure.json"))
    assert run(*ablate(study, str(out), "--executor", "inline")) == 0
    same_grid(whole, out)


def test_two_at_once_train_every_run_once(whole: Path, streets: Path) -> None:
    study, out = write_study(streets), streets / "twice"
    both = [child(*ablate(study, str(out), "--executor", "inline")) for _ in range(2)]
    for process in both:
        text, _ = process.communicate(timeout=120)
        assert process.returncode == 0, text
    same_grid(whole, out)
    for name in ("source_only", "dacs"):
        assert (cell(out, name) / "log.txt").read_text().count("finished") == 1
        assert len(json.loads((cell(out, name) / "environment.json").read_text())) == 1
    assert not any(out.glob("*/failure.json"))


def test_a_row_that_fails_stops_nothing_and_is_retried_when_asked(whole: Path, streets: Path, capsys: Any) -> None:
    start, out = streets / "start.safetensors", streets / "cells"
    explodes = "{label: explodes, recipe: source_only, overrides: [train.iterations=5, optimiser.lr=1e30]}"
    starts = f"{{label: starts, recipe: source_only, overrides: [train.iterations=2, model.start={start}]}}"
    typo = "{label: typo, recipe: dasc}"
    study = write_study(streets, STUDY.replace("rows:", f"rows:\n  - {explodes}\n  - {starts}\n  - {typo}"))
    command = ablate(study, str(out), "--executor", "inline")

    def failures() -> dict[str, float]:
        found = {path: json.loads(path.read_text()) for path in out.glob("*/failure.json")}
        return {failure["message"]: path.stat().st_mtime for path, failure in found.items()}

    assert run(*command) == 1
    text = capsys.readouterr().out
    assert re.search(r"^plain +\d+\.\d\d *$", text, re.MULTILINE) and re.search(r"^mixed +\d", text, re.MULTILINE)
    assert re.search(r"^explodes +failed: error *$", text, re.MULTILINE) and "no such weights file" in text
    assert "left out: typo: no recipe 'dasc'" in text and "1 of 6 rows are published numbers only" in text
    before = failures()
    assert len(before) == 2 and any("cross_entropy is not finite since" in message for message in before)

    start.write_bytes((cell(whole, "source_only") / "weights.safetensors").read_bytes())
    assert run(*command) == 1 and failures() == before
    assert run(*command, "--retry") == 1
    assert re.search(r"^starts +\d+\.\d\d *$", capsys.readouterr().out, re.MULTILINE)
    ((message, when),) = failures().items()
    assert "cross_entropy is not finite" in message and when > before[message]


def test_a_folder_in_which_somebody_trains_is_told_by_the_exit_code(streets: Path, capsys: Any) -> None:
    run_folder = RunFolder(streets / "run")
    run_folder.lock()
    command = ("train", "--recipe", "source_only", "-b", "streets", "--out", str(run_folder.path), *SIZE)
    for name in ("output.log", "failure.json"):  # what a grid leaves of a run that was refused
        (run_folder.path / name).write_text("x")
    assert run(*command, "train.iterations=1") == Busy.code == 75
    assert "another process is training" in capsys.readouterr().err
    run_folder.unlock()
    assert run(*command, "train.iterations=1") == 0


def test_a_study_on_the_source_shares_the_runs_and_evaluates_them(whole: Path, streets: Path, capsys: Any) -> None:
    """`udaseg evaluate --domain source` says the same; nothing is trained or evaluated twice."""
    out = streets / "shared"
    shutil.copytree(whole, out)
    study = write_study(streets, STUDY.replace("title: toy", "title: on the source\ndomain: source"))
    report = ("report", str(study), "--runs", str(out), "-f", "csv", *SIZE)
    assert run(*ablate(study, str(out), "--dry-run")) == 0
    told = capsys.readouterr().out
    assert "to do: 0 of 2 runs" in told and "to evaluate on data.source after training: 2 of 2 runs" in told
    assert run(*ablate(study, str(out), "--status")) == 0 and "trained, not evaluated" in capsys.readouterr().out
    assert run(*report) == 0 and "reproduced,1" not in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert run(*ablate(study, str(out), "--executor", "inline")) == 0
    assert re.search(r"^plain +\d+\.\d\d *$", capsys.readouterr().out, re.MULTILINE)
    new = {path for path in out.rglob("*") if path.is_file()} - before.keys()
    assert {path.name for path in new} == {"evaluation-source.json"} and len(new) == 2
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert run("evaluate", str(cell(out, "source_only")), "--domain", "source", "--json") == 0
    miou = json.loads(capsys.readouterr().out.splitlines()[-1])["miou"]
    assert run(*report) == 0
    found = re.search(r"^plain,reproduced,1,([\d.]+)$", capsys.readouterr().out, re.MULTILINE)
    assert found and float(found[1]) == pytest.approx(miou, abs=1e-3)
    times = {path: path.stat().st_mtime_ns for path in new}
    assert run(*ablate(study, str(out))) == 0 and times == {path: path.stat().st_mtime_ns for path in new}

    path = cell(out, "source_only") / "evaluation-source.json"
    evaluation = json.loads(path.read_text())
    path.write_text(json.dumps({**evaluation, "finished": "of an earlier result"}))
    assert run(*ablate(study, str(out))) == 0 and json.loads(path.read_text()) == evaluation
    path.write_text(json.dumps({**evaluation, "confusion": [[1]]}))
    capsys.readouterr()
    assert run(*ablate(study, str(out))) == 1
    assert "damaged: evaluation-source.json: confusion: counts that are not 19 x 19; delete it" in " ".join(
        capsys.readouterr().out.split()
    )


def test_looking_changes_nothing(whole: Path, streets: Path, capsys: Any) -> None:
    study = write_study(streets)
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert run(*ablate(study, str(whole), "--status", "--seeds", "0,7")) == 0
    assert re.search(r"^plain +\d+\.\d\d +missing *$", capsys.readouterr().out, re.MULTILINE)
    assert run(*ablate(study, str(whole), "--dry-run", "--seeds", "0,7")) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"^plain, seed 7 +\S+source_only-streets-seed7-\w{12} +missing +0\.\d\d +0\.0\d *$", out, re.MULTILINE
    )
    assert "to do: 2 of 4 runs" in out and "estimated: 2 of these" in out
    assert run(*ablate(study, "nowhere", "--dry-run")) == 0
    assert "udaseg train --recipe source_only --benchmark streets --seed 0" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*")} and not Path("nowhere").exists()
    assert run("ablate", "--list") == 0
    assert re.search(
        r"^mrm_fig4_mask_ratio +MRM: masking ratio +gta5_cityscapes +\d of 7", capsys.readouterr().out, re.MULTILINE
    )


@pytest.mark.parametrize("cluster", [pytest.param("debug", marks=pytest.mark.slow), "local"])
def test_submitit(whole: Path, streets: Path, cluster: str) -> None:
    """The whole run through submitit's own executors; `local` is stopped in the middle as a cluster does it."""
    pytest.importorskip("submitit")
    from udaseg.report.executors import Slurm, slurm_executor, train_cells
    from udaseg.report.grid import lay_out, run_of
    from udaseg.report.study import load_study

    (dacs,) = lay_out(load_study(str(write_study(streets))), out=streets / "jobs", only="mixed", overrides=SIZE).cells

    class Told:
        def started(self, cell: Any) -> None: ...

        def ended(self, cell: Any, run: Any) -> None: ...

        def waiting(self, running: Any) -> None:
            if cluster == "local" and not interrupted and any(dacs.folder.glob("checkpoints/step-0000002.pt")):
                interrupted.append(1)
                executor.jobs[0].job._interrupt()

    class Kept(Slurm):
        jobs: list[Any]

        def start(self, cell: Any) -> Any:
            self.jobs = [super().start(cell)]
            return self.jobs[0]

    interrupted: list[int] = []
    executor = Kept(slurm_executor(streets / "submitit", gpus=0, cpus=1, cluster=cluster), slots=1)
    train_cells([dacs], executor, Told())
    assert run_of(dacs).state == "finished", (dacs.folder / "output.log").read_text()
    assert len(interrupted) == (cluster == "local")
    assert rows(dacs.folder) == rows(cell(whole, "dacs"))


def test_slurm_where_there_is_none(streets: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert run(*ablate(write_study(streets), "cells", "--executor", "slurm")) == 2
    assert "--executor" in capsys.readouterr().err and not Path("cells").exists()
