"""Trackers with their real packages, without a network; those that are not installed are skipped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from PIL import Image
from safetensors.torch import load_file
from toy import run

from udaseg.data.classes import colourise
from udaseg.data.dataset import EvaluationImages
from udaseg.engine import trackers
from udaseg.engine.assembly import assemble
from udaseg.engine.domains import class_set, validation_domain
from udaseg.engine.runs import read_recipe
from udaseg.engine.trackers import TRACKERS, Tracked, Tracker, missing_packages

RECIPE = ("train", "--recipe", "dacs", "--benchmark", "streets", *toy.TINY)
STEPS = ("train.iterations=12", "runtime.log_every=2", "evaluation.every=6")
SCALARS = {"losses/source/cross_entropy", "losses/mixed/cross_entropy", "lr", "validation/miou"}
INSTALLED = [name for name in TRACKERS if not missing_packages([name])]
VARIABLES = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")


@pytest.fixture(scope="module")
def home(streets_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder; nobody is logged in anywhere."""
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("nobody")))
        patch.setenv("UDASEG_DATA", str(streets_home))
        yield tmp_path_factory.mktemp("trackers")


@pytest.fixture(scope="module")
def plain(home: Path) -> Path:
    """A run without trackers."""
    assert run(*RECIPE, *STEPS, "--out", str(home / "plain")) == 0
    return home / "plain"


@pytest.fixture(scope="module")
def tracked(home: Path) -> Path:
    """The same run with every tracker that is installed, interrupted once and continued."""
    folder = home / "tracked"
    arguments = (*RECIPE, *STEPS, f"runtime.trackers=[{','.join(INSTALLED)}]", "--out", str(folder))
    process = subprocess.Popen(
        [sys.executable, "-m", "udaseg.cli", *arguments], stdout=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + 300
    log = folder / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("losses") > 1):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does at Ctrl-C: the trackers' own processes get it, too
    assert process.wait(120) == 128 + signal.SIGINT
    assert not (folder / "result.json").exists()
    assert run(*arguments) == 0
    return folder


def needs(tracker: str) -> None:
    if tracker not in INSTALLED:
        pytest.skip(f"{tracker} is not installed")


def test_trackers_change_no_weight(plain: Path, tracked: Path) -> None:
    a, b = load_file(plain / "weights.safetensors"), load_file(tracked / "weights.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert "failed" not in (tracked / "log.txt").read_text()


def test_tensorboard_has_every_number_once_and_the_panels(tracked: Path) -> None:
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tracked / "tensorboard")).Reload()
    assert set(found.Tags()["scalars"]) >= SCALARS
    assert [event.step for event in found.Scalars("losses/source/cross_entropy")] == [2, 4, 6, 8, 10, 12]
    rows = [json.loads(line) for line in (tracked / "metrics.jsonl").read_text().splitlines()]
    logged = [row["losses"]["source/cross_entropy"] for row in rows if "losses" in row]
    assert [event.value for event in found.Scalars("losses/source/cross_entropy")] == pytest.approx(logged)
    assert [event.step for event in found.Images("panel")] == [6, 12]
    assert (found.Images("panel")[0].width, found.Images("panel")[0].height) == (1152, 576)  # 3 images of 2 : 1


def test_tensorboard_shows_once_what_is_computed_again(tmp_path: Path) -> None:
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done, values in ((0, {2: 0.5, 4: 0.4, 6: 0.3}), (4, {6: 0.25, 8: 0.2})):  # killed after 6, saved at 4
        tracker = TRACKERS["tensorboard"]()
        tracker.start(tmp_path, {}, done)
        for iteration, value in values.items():
            tracker.scalars(iteration, {"loss": value})
        tracker.close(False)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert {event.step: event.value for event in found} == pytest.approx({2: 0.5, 4: 0.4, 6: 0.25, 8: 0.2})
    assert len(found) == 4


def test_wandb_offline_is_one_run_that_can_be_synced(tracked: Path) -> None:
    needs("wandb")
    name = json.loads((tracked / "trackers.json").read_text())["wandb"]
    parts = sorted((tracked / "wandb").glob("offline-run-*"))
    assert len(parts) == 2 and all(part.name.endswith(f"-{name}") for part in parts)
    logs = [(part / f"run-{name}.wandb").read_bytes() for part in parts]
    for scalar in SCALARS:
        assert scalar.encode() in logs[1]
    assert b"losses/source/cross_entropy" in logs[0] and b'"dacs"' in logs[0]
    assert len({path.name for part in parts for path in (part / "files/media/images").glob("panel_*.png")}) >= 2


def test_mlflow_is_one_run_in_a_store_of_the_run_folder(tracked: Path) -> None:
    needs("mlflow")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tracked}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("udaseg")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("tracked", "FINISHED")
    assert found.data.metrics.keys() >= SCALARS and found.data.params["data.source.size"] == "[128, 64]"
    steps = [metric.step for metric in client.get_metric_history(found.info.run_id, "losses/source/cross_entropy")]
    assert sorted(set(steps)) == [2, 4, 6, 8, 10, 12]
    pictures = [Path(file.path).name for file in client.list_artifacts(found.info.run_id, "images")]
    assert {part.split("+")[2] for part in pictures if part.endswith(".png")} >= {"6", "12"}


def test_mlflow_goes_where_its_variable_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mlflow")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/shared.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.chdir(home)
    for folder in (home / "a", home / "b"):
        folder.mkdir()
        tracker = TRACKERS["mlflow"]()
        tracker.start(folder, {"name": "x"}, 0)
        tracker.scalars(1, {"loss": 0.5})
        tracker.close(False)
        assert not (folder / "mlflow").exists()
    client = MlflowClient(f"sqlite:///{home}/shared.db")
    found = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert {(one.info.run_name, one.info.status) for one in found} == {("a", "KILLED"), ("b", "KILLED")}


def test_no_server_answers_and_the_run_goes_on(
    plain: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    needs("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = home / "alone"
    assert run(*RECIPE, *STEPS, "runtime.trackers=[mlflow]", "--out", str(folder)) == 0
    assert capsys.readouterr().out.count("tracker mlflow failed") == 1
    assert (folder / "log.txt").read_text().count("tracker mlflow failed") == 1
    assert (folder / "weights.safetensors").read_bytes() == (plain / "weights.safetensors").read_bytes()


def test_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    needs("tensorboard")
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    screen, said = Screen(), []
    with Tracked(screen, ["tensorboard"], tmp_path, {}, None, said.append) as progress:
        progress.begin(0, 4)
        progress.row({"iteration": 2, "losses": {"a": 1.0}})
    assert len(said) == 1 and "tensorboard failed" in said[0] and screen.seen == ["begin", *said, "row"]


class Screen:
    """What a person sees."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def begin(self, first: int, total: int) -> None:
        self.seen.append("begin")

    def row(self, row: Any) -> None:
        self.seen.append("row")

    def advance(self, iteration: int) -> None:
        self.seen.append("advance")

    def note(self, text: str) -> None:
        self.seen.append(text)

    def end(self) -> None:
        self.seen.append("end")


class Diary(Tracker):
    """Remembers every call; fails at the one named ``broken``."""

    broken = ""
    calls: tuple[Any, ...] = ()

    def note(self, name: str, *values: Any) -> None:
        Diary.calls += ((name, *values),)
        if name == Diary.broken:
            raise ConnectionError("the network\nis gone")

    def start(self, folder: Path, recipe: Any, done: int) -> None:
        self.note("start", done)

    def scalars(self, iteration: int, values: Any) -> None:
        self.note("scalars", iteration, values)

    def image(self, iteration: int, name: str, picture: Any) -> None:
        self.note("image", iteration, name, picture.shape)

    def close(self, finished: bool) -> None:
        self.note("close", finished)


ROW = {
    "iteration": 2, "lr": 0.5, "losses": {"source/a": 1.0, "source/b": None}, "notes": {"share": 0.2}, "memory_gb": None
}  # fmt: skip
VALIDATION = {"iteration": 2, "confusion": [[1]], "miou": 100.0}


@pytest.mark.parametrize("broken", ["", "start", "scalars", "image", "close"])
def test_what_a_tracker_gets_and_that_it_may_fail_anywhere(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Diary, "broken", broken)
    monkeypatch.setattr(Diary, "calls", ())
    monkeypatch.setitem(TRACKERS, "wandb", Diary)
    screen, said = Screen(), []
    picture = np.zeros((4, 6, 3), np.uint8)
    with Tracked(screen, ["wandb"], tmp_path, {}, lambda: picture, said.append) as progress:
        progress.begin(0, 4)
        progress.row(ROW)
        progress.row(VALIDATION)
        progress.advance(2)
        progress.end()
    whole = (
        ("start", 0),
        ("scalars", 2, {"lr": 0.5, "losses/source/a": 1.0, "notes/share": 0.2}),
        ("scalars", 2, {"validation/miou": 100.0}),
        ("image", 2, "panel", (4, 6, 3)),
        ("close", True),
    )
    calls = [call[0] for call in whole]
    assert Diary.calls == whole[: calls.index(broken) + 1 if broken else None]
    assert [text for text in screen.seen if "failed" in text] == said and len(said) == bool(broken)
    assert [text for text in screen.seen if "failed" not in text] == ["begin", "row", "row", "advance", "end"]
    assert not broken or "wandb failed: the network is gone." in said[0]


def test_an_error_of_the_run_itself_is_no_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Diary, "calls", ())
    monkeypatch.setitem(TRACKERS, "wandb", Diary)
    with (
        pytest.raises(ZeroDivisionError),
        Tracked(Screen(), ["wandb"], tmp_path, {}, None, lambda text: None) as progress,
    ):
        progress.begin(0, 4)
        raise ZeroDivisionError
    assert Diary.calls == (("start", 0), ("close", False))


def test_a_missing_package_is_told_before_training(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    folder = tmp_path / "run"
    assert run(*RECIPE, "runtime.trackers=[wandb,mlflow]", "--out", str(folder)) == 2
    err = capsys.readouterr().err
    assert 'pip install "udaseg[wandb]"' in err and 'pip install "udaseg[mlflow]"' in err
    assert "runtime.trackers" in err and not folder.exists()


def test_wrong_names_are_told(capsys: Any) -> None:
    assert run(*RECIPE, "runtime.trackers=[wanb]") == 2
    assert "'wanb' is not allowed: input should be 'tensorboard', 'wandb' or 'mlflow'" in capsys.readouterr().err
    assert run(*RECIPE, "runtime.trackers=wandb") == 2
    assert "a list is expected" in capsys.readouterr().err


def test_every_tracker_of_the_schema_exists() -> None:
    for name in TRACKERS:
        assert toy.load("dacs", f"runtime.trackers=[{name}]").recipe.runtime.trackers == [name]
    assert toy.load("dacs", "runtime.trackers=[wandb]").recipe.fingerprint() == toy.load("dacs").recipe.fingerprint()


def test_damaged_ids_are_told_and_kept(tmp_path: Path) -> None:
    (tmp_path / "trackers.json").write_text('{"wandb": 3}')
    needs("wandb")
    said: list[str] = []
    with Tracked(Screen(), ["wandb"], tmp_path, {}, None, said.append) as progress:
        progress.begin(0, 4)
    assert "trackers.json: damaged (wandb: Input should be a valid string)" in said[0]
    assert (tmp_path / "trackers.json").read_text() == '{"wandb": 3}'


def test_a_run_folder_with_a_runtime_key_of_another_version_is_read(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "old")
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("runtime:\n", "runtime:\n  tensorboard: true\n"))
    assert "tensorboard: true" in (folder / "recipe.yaml").read_text()
    assert read_recipe(folder).recipe.fingerprint() == read_recipe(plain).recipe.fingerprint()
    (folder / "result.json").unlink()
    assert run("train", "--resume", "--out", str(folder)) == 0
    assert (folder / "weights.safetensors").read_bytes() == (plain / "weights.safetensors").read_bytes()


def test_the_panel_shows_image_truth_and_prediction(home: Path) -> None:
    recipe, built = toy.load("dacs").recipe, assemble(toy.load("dacs"))
    domain, palette, segmentor = validation_domain(recipe), class_set(recipe).palette, built.trainer.learner.segmentor
    assert built.picture is not None and domain is not None
    before = {key: value.clone() for key, value in segmentor.state_dict().items()}
    training, random = segmentor.training, torch.get_rng_state()
    picture = built.picture()
    assert segmentor.training == training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in segmentor.state_dict().items())
    assert picture.shape == (3 * 192, 3 * 384, 3) and picture.dtype == np.uint8  # of 6 images every second

    def shown(label: Any) -> Any:
        pixels = Image.fromarray(colourise(label.to(torch.uint8).numpy(), palette))
        return np.asarray(pixels.resize((384, 192), Image.Resampling.NEAREST))

    item: Any = EvaluationImages(domain)[2]
    assert np.array_equal(picture[192:384, 384:768], shown(item["label"]))
    segmentor.eval()
    with torch.no_grad():
        guess = segmentor(built.trainer.normalise(item["image"][None])).predictions[0].logits
    for size in (item["image"].shape[1:], item["label"].shape):
        guess = torch.nn.functional.interpolate(guess, size, mode="bilinear", align_corners=False)
    assert np.mean(picture[192:384, 768:] == shown(guess.argmax(1)[0])) > 0.99
