"""Runs through the real command: kill, resume, refuse, finish."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from safetensors.torch import load_file
from toy import run

from udaseg.engine import checkpoint

RECIPE = ("--recipe", "daformer", "--benchmark", "streets")
MIC = ("--recipe", "mic", "--benchmark", "streets")
STEPS = ("train.iterations=20", "runtime.log_every=4", "evaluation.every=10")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "udaseg.cli", *arguments]


def train(folder: Path, *more: str, recipe: tuple[str, ...] = RECIPE) -> tuple[str, ...]:
    return ("train", *recipe, "--out", str(folder), *toy.MIT, *STEPS, *more)


def rows(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "waiting", "memory_gb")} for row in found]


def until(condition: Any, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(streets_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 iterations that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    before = os.environ.get("UDASEG_DATA")
    os.environ["UDASEG_DATA"] = str(streets_home)
    assert run(*train(folder)) == 0
    os.environ.pop("UDASEG_DATA") if before is None else os.environ.update(UDASEG_DATA=before)
    return folder


def same_run(one: Path, other: Path) -> None:
    """Bit for bit: weights, raw counts, log rows."""
    a, b = load_file(one / "weights.safetensors"), load_file(other / "weights.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert rows(one) == rows(other)
    results = [json.loads((f / "result.json").read_text()) for f in (one, other)]
    assert results[0]["validation"] == results[1]["validation"]
    assert results[0]["oracle_selection"] == results[1]["oracle_selection"]
    assert results[0]["recomputed_bn"] == results[1]["recomputed_bn"]


def test_twenty_steps_equal_ten_a_kill_and_ten_more(whole: Path, streets: Path) -> None:
    folder = streets / "killed"
    arguments = train(folder, "runtime.checkpoint_minutes=0")
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: any((folder / "checkpoints").glob("step-000001*.pt")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "result.json").exists()
    last = sorted((folder / "checkpoints").glob("step-*.pt"))[-1]
    assert 10 <= int(last.stem[5:]) < 20
    (folder / "metrics.csv").write_text("iteration,lr\n4,1e-5\n")  # as older versions wrote
    assert run(*train(folder, "runtime.workers=2")) == 0
    same_run(whole, folder)


@pytest.mark.slow
def test_resume_is_exact_for_mic(streets: Path) -> None:
    """HRDA's boxes, the block masks and the shared pseudo-labels, too: nothing of them is carried between steps."""
    few = ("train.iterations=6", "evaluation.every=6", "runtime.log_every=2")
    whole, killed = streets / "mic", streets / "mic-killed"
    assert run(*train(whole, *few, recipe=MIC)) == 0
    arguments = train(killed, *few, "runtime.checkpoint_minutes=0", recipe=MIC)
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: any((killed / "checkpoints").glob("step-0000002.pt")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "result.json").is_file()
    assert run(*arguments) == 0
    same_run(whole, killed)


def test_a_signal_saves_and_the_same_command_continues(whole: Path, streets: Path, capsys: Any) -> None:
    folder = streets / "stopped"
    process = subprocess.Popen(
        command(*train(folder, "runtime.workers=2")),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    until(lambda: (folder / "metrics.jsonl").exists())
    process.send_signal(signal.SIGUSR1)
    until(lambda: any((folder / "checkpoints").glob("step-*.pt")))
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does at Ctrl-C: loading processes get it too
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    assert "SIGINT" in err and "same command again continues" in err and "Traceback" not in err
    assert run("train", "--resume", "--out", str(folder)) == 0
    assert "continuing at iteration" in capsys.readouterr().out
    same_run(whole, folder)


def test_a_finished_run_is_left_alone(whole: Path, streets: Path, capsys: Any) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    assert run(*train(whole)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}


def test_another_recipe_in_the_folder_is_refused_with_the_difference(whole: Path, streets: Path, capsys: Any) -> None:
    assert run(*train(whole, "teacher.alpha=0.5", "runtime.log_every=3")) == 2
    err = capsys.readouterr().err
    assert "teacher.alpha: 0.999 -> 0.5" in err and "--out" in err and "log_every" not in err


def test_a_folder_that_is_no_run_is_refused_and_untouched(streets: Path, capsys: Any) -> None:
    folder = streets / "thesis"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert run(*train(folder)) == 2
    assert "not a run folder" in capsys.readouterr().err
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]


def test_two_processes_cannot_train_in_one_folder(streets: Path, capsys: Any) -> None:
    from udaseg.engine.runlog import RunFolder

    folder = RunFolder(streets / "busy")
    folder.lock()
    assert run(*train(streets / "busy")) == 75  # EX_TEMPFAIL: a grid tells it from a failure
    assert "another process" in capsys.readouterr().err
    folder.unlock()


def test_resume_needs_a_run(streets: Path, capsys: Any) -> None:
    assert run(*train(streets / "none", "--resume")) == 2
    assert "no run" in capsys.readouterr().err


def test_run_folder_holds_what_is_needed(whole: Path) -> None:
    stamp = json.loads((whole / "environment.json").read_text())[0]
    assert {"torch", "device", "git", "command", "fingerprint", "encoder_weights", "precision"} <= stamp.keys()
    assert (whole / "recipe.yaml").exists() and (whole / "log.txt").exists()
    first = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    assert {"iteration", "lr", "losses", "notes", "seconds", "waiting", "memory_gb"} <= first.keys()
    assert {"source/cross_entropy", "mixed/cross_entropy"} <= first["losses"].keys()
    result = json.loads((whole / "result.json").read_text())
    assert result["validation"]["iteration"] == 20 and "miou" not in json.dumps(result)
    assert sum(map(sum, result["validation"]["confusion"])) > 0
    checkpoints = sorted(p.name for p in (whole / "checkpoints").iterdir())
    assert checkpoints == ["step-0000020.pt"]


def test_checkpoints_load_without_pickled_code_and_hold_everything(whole: Path) -> None:
    state = torch.load(whole / "checkpoints" / "step-0000020.pt", weights_only=True)
    assert {"learner", "teacher", "optimiser", "scaler", "iteration", "seed", "meter", "best"} <= state.keys()


def test_only_the_last_two_checkpoints_are_kept(streets: Path) -> None:
    folder = streets / "many"
    more = ("train.iterations=5", "runtime.checkpoint_minutes=0", "runtime.log_every=100")
    assert run("train", "--recipe", "source_only", "-b", "streets", "--out", str(folder), *toy.TINY, *more) == 0
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-0000004.pt", "step-0000005.pt"]


def test_a_damaged_newest_checkpoint_is_kept_aside_and_the_one_before_used(streets: Path, capsys: Any) -> None:
    folder = streets / "torn"
    more = ("train.iterations=5", "runtime.checkpoint_minutes=0", "runtime.log_every=1")
    arguments = ("train", "--recipe", "source_only", "-b", "streets", "--out", str(folder), *toy.TINY, *more)
    assert run(*arguments) == 0
    result, log = (json.loads((folder / "result.json").read_text()), rows(folder))
    (folder / "result.json").unlink()
    (folder / ".result.json.ab_12xyz.tmp").write_text("{")
    newest = folder / "checkpoints/step-0000005.pt"
    newest.write_bytes(torn := newest.read_bytes()[:-100])
    assert run(*arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not a readable checkpoint" in said and "step-0000005.pt.damaged, the run goes on from iteration 4" in said
    assert newest.with_name("step-0000005.pt.damaged").read_bytes() == torn
    again = json.loads((folder / "result.json").read_text())
    assert again["validation"] == result["validation"] and rows(folder) == log
    assert not (folder / ".result.json.ab_12xyz.tmp").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(streets: Path, capsys: Any) -> None:
    folder = streets / "broken"
    more = ("train.iterations=12", "optimiser.lr=1e20", "optimiser.warmup=0", "runtime.log_every=6")
    assert run("train", "--recipe", "source_only", "-b", "streets", "--out", str(folder), *toy.TINY, *more) == 2
    err = capsys.readouterr().err
    assert "source/cross_entropy" in err and "not finite" in err
    (saved,) = (folder / "debug").iterdir()
    content = torch.load(saved, weights_only=True)
    assert content["terms"] == ["source/cross_entropy"] and content["batch"]["source_image"].dtype == torch.uint8
    assert not (folder / "checkpoints").exists()


def test_evaluate_gives_the_runs_own_result(whole: Path, streets: Path, capsys: Any) -> None:
    assert run("evaluate", str(whole), "--json") == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["confusion"] == json.loads((whole / "result.json").read_text())["validation"]["confusion"]
    assert run("evaluate", str(whole / "weights.safetensors"), "--json", "--protocol", "synthia13") == 0
    narrow = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert narrow["confusion"] == found["confusion"] and len(narrow["iou"]) == 13
    assert run("evaluate", str(whole), "--teacher") == 0
    text = capsys.readouterr().out
    assert "teacher of daformer" in text and "cityscapes19, fp32" in " ".join(text.split())
    assert run("evaluate", str(whole), "--json", "--precision", "bf16") == 0
    coarse = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (found["precision"], coarse["precision"]) == ("fp32", "bf16")
    assert coarse["confusion"] != found["confusion"]
    assert run("evaluate", str(whole), "--precision", "fp8") == 2
    assert "--precision 'fp8'" in capsys.readouterr().err
    assert run("evaluate", str(whole), "--protocol", "camvid11") == 2
    assert "--protocol camvid11" in capsys.readouterr().err


def test_a_disk_that_fills_up_keeps_the_checkpoint_before(
    streets: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, save = streets / "full", checkpoint.save
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_a_full_disk(place: Path, state: Any, keep: int) -> Path:
        if state["iteration"] > 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            return save(place, state, keep)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(checkpoint, "save", on_a_full_disk)
    more = ("train.iterations=3", "runtime.checkpoint_minutes=0", "runtime.log_every=1")
    command = ("train", "--recipe", "source_only", "-b", "streets", "--out", str(folder), *toy.TINY, *more)
    assert run(*command) == 2
    assert "the checkpoint of iteration 2 cannot be written" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-0000001.pt"]
    assert checkpoint.load(folder / "checkpoints" / "step-0000001.pt")["iteration"] == 1


def test_dry_run_says_what_a_run_costs_and_leaves_nothing(streets: Path, capsys: Any) -> None:
    assert run("train", *RECIPE, *toy.MIT, "--dry-run") == 0
    out = capsys.readouterr().out
    for word in ("encoder passes", "student 2", "teacher 1", "step", "peak memory", "whole run", "disk",
                 "one validation image"):  # fmt: skip
        assert word in out
    assert not list(streets.iterdir())


def test_profile_in_one_line_of_json(streets: Path, capsys: Any) -> None:
    assert run("profile", *RECIPE, *toy.MIT, "--steps", "1", "--json") == 0
    (line,) = capsys.readouterr().out.strip().splitlines()
    found = json.loads(line)
    assert (found["recipe"], found["benchmark"]) == ("daformer", "streets")
    assert found["passes"] == {"student": [2, 2], "teacher": [2], "pretrained": [2]}
    assert {"source", "teacher", "mixed", "optimiser", "data"} <= found["seconds"].keys()
    # a backward costs twice its forward; the teacher has none
    assert found["multiply_adds"]["mixed"] == pytest.approx(3 * found["multiply_adds"]["teacher"], rel=0.05)
    assert found["multiply_adds"]["source"] == pytest.approx(found["multiply_adds"]["mixed"], rel=0.01)  # which blurs
    assert found["multiply_adds"]["pretrained"] == pytest.approx(found["multiply_adds"]["teacher"], rel=0.5)  # forward


@pytest.mark.parametrize("recipe", [pytest.param("source_only", marks=pytest.mark.slow), "dacs"])
def test_two_processes_equal_one_with_the_whole_batch(streets: Path, recipe: str) -> None:
    """No BatchNorm anywhere: MiT without drop path, DeepLab-V2."""
    plain = ("model.encoder={kind: mit_b0, drop_path: 0.0}", "model.decoder=deeplabv2", "train.iterations=3")
    settings = (*toy.SMALL, *plain, "optimiser.warmup=0", "runtime.log_every=1", "runtime.trackers=[tensorboard]")
    base = ("train", "--recipe", recipe, "-b", "streets", *settings)
    assert run(*base, "--out", str(streets / "one")) == 0
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    arguments = [*launcher, "-m", "udaseg.cli", *base, "--out", str(streets / "two")]
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = rows(streets / "one"), rows(streets / "two")
    assert ours[0]["losses"] == pytest.approx(theirs[0]["losses"], rel=1e-5)
    a, b = (load_file(streets / name / "weights.safetensors") for name in ("one", "two"))
    moved = torch.cat([(a[k] - b[k]).abs().flatten() for k in a])
    # AdamW's first steps move by lr x sign(g): rounding may flip a gradient that is nearly zero, here and there
    assert (moved > 1e-5).float().mean() < 2e-3 and moved.max() < 6 * 6e-4
    results = [json.loads((streets / name / "result.json").read_text()) for name in ("one", "two")]
    pixels = [sum(map(sum, result["validation"]["confusion"])) for result in results]
    assert pixels[0] == pixels[1]
    assert len(list((streets / "two" / "tensorboard").iterdir())) == 1  # of the first process alone
