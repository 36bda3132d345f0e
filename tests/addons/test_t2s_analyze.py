"""`udaseg analyze` and evaluation on other domains through the real command, with domain generalisation's runs."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from PIL import Image
from toy import run

from udaseg.engine import checkpoint
from udaseg.engine.result import read_result


def train(name: str, folder: Path, *more: str) -> tuple[str, ...]:
    base = [text for text in toy.MIT if not (name.startswith("dg_") and text.startswith("data.target"))]
    start = ("train", "--recipe", name, "--benchmark", "streets", "--out", str(folder))
    return (*start, *base, "train.iterations=3", *more)


@pytest.fixture(scope="module")
def trained(streets_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of three iterations."""
    home = tmp_path_factory.mktemp("trained")
    folders = {name: home / name for name in ("daformer_t2s", "dg_t2s")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UDASEG_DATA", str(streets_home))
        for name, folder in folders.items():
            assert run(*train(name, folder)) == 0
    return folders


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def is_picture(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.format == "PNG" and len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 4


def test_similarity_and_discriminability(trained: dict[str, Path], streets: Path, capsys: Any) -> None:
    folders = [str(folder) for folder in trained.values()]
    assert run("analyze", "similarity", *folders) == 0
    rows = read(Path("similarity.csv"))
    assert [row["class"] for row in rows][:2] == ["road", "sidewalk"] and rows[-1]["class"] == "mean"
    assert set(rows[0]) == {"class", "daformer_t2s", "dg_t2s"}
    assert all(-1 <= float(row["dg_t2s"]) <= 1 for row in rows if row["dg_t2s"]) and rows[0]["dg_t2s"]
    is_picture(Path("similarity.png"))
    assert run("analyze", "discriminability", folders[0], "--out", "d.csv", "--domain", "source", "--limit", "4") == 0
    rows = read(Path("d.csv"))
    assert set(rows[0]) == {"class", "daformer_t2s CCD", "daformer_t2s PDD"} and float(rows[-1]["daformer_t2s CCD"]) > 0
    is_picture(Path("d.png"))
    capsys.readouterr()


def test_nothing_is_replaced_and_mistakes_are_messages(trained: dict[str, Path], streets: Path, capfd: Any) -> None:
    folder = str(trained["daformer_t2s"])
    Path("mine.png").write_text("mine")
    for arguments, message in (
        (("--out", "mine.csv"), "mine.png exists; choose another name with --out"),
        (("--out", "mine.txt"), "the name of a .csv file is expected"),
        (("--domain", "sorce"), "did you mean 'source'?"),
    ):
        assert run("analyze", "discriminability", folder, *arguments) == 2
        assert message in " ".join(capfd.readouterr().err.split())
    assert Path("mine.png").read_text() == "mine"
    assert run("analyze", "similarity", str(streets / "nothing")) == 2
    assert "no such run folder" in capfd.readouterr().err


def test_without_scikit_learn_tsne_says_what_to_install(
    trained: dict[str, Path], streets: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert run("analyze", "tsne", str(trained["dg_t2s"])) == 2
    assert 'pip install "udaseg[analysis]"' in capfd.readouterr().err


def test_tsne(trained: dict[str, Path], streets: Path) -> None:
    pytest.importorskip("sklearn")
    assert run("analyze", "tsne", *map(str, trained.values()), "--pixels", "3", "--limit", "6") == 0
    rows = read(Path("tsne.csv"))
    assert {row["domain"] for row in rows} == {"source", "target"}
    assert {row["run"] for row in rows} == {"daformer_t2s", "dg_t2s"}
    road = [row for row in rows if (row["run"], row["domain"], row["class"]) == ("dg_t2s", "source", "road")]
    assert len(road) == 3 and all(np.isfinite(float(row[axis])) for row in rows for axis in "xy")
    is_picture(Path("tsne.png"))


def test_evaluation_on_the_source(trained: dict[str, Path], streets: Path, capsys: Any) -> None:
    capsys.readouterr()
    assert run("evaluate", str(trained["daformer_t2s"]), "--domain", "source", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert "streets_source train (24 images)" in found["what"]
    assert run("evaluate", str(trained["dg_t2s"]), "--json") == 0
    assert "streets_target val (6 images)" in json.loads(capsys.readouterr().out)["what"]


def test_a_run_without_target_has_none_to_evaluate_on(trained: dict[str, Path], streets: Path, capfd: Any) -> None:
    folder = str(trained["dg_t2s"])
    assert run("evaluate", folder, "--domain", "target") == 2
    assert "choose a --benchmark that has data.target" in " ".join(capfd.readouterr().err.split())
    assert run("demo", "--quick", "--recipe", "dg_t2s", "--seed", "5") == 2
    assert "has no target domain" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("name", ["daformer_t2s", "dg_t2s"])
def test_going_on_after_an_interruption_is_exact(
    name: str, trained: dict[str, Path], streets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both projectors are in the checkpoint, random numbers are functions of the iteration."""
    folder, real = streets / "interrupted", checkpoint.save

    def save_and_die(*arguments: Any) -> Path:
        real(*arguments)
        raise KeyError("power cut")

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    with pytest.raises(KeyError, match="power cut"):
        run(*train(name, folder, "runtime.checkpoint_minutes=0"))
    monkeypatch.setattr(checkpoint, "save", real)
    assert checkpoint.newest(folder / "checkpoints").name == "step-0000001.pt"  # type: ignore[union-attr]
    assert run(*train(name, folder, "runtime.checkpoint_minutes=0")) == 0
    ours, theirs = (checkpoint.load(checkpoint.newest(f / "checkpoints")) for f in (folder, trained[name]))  # type: ignore[arg-type]
    for part in ("learner", "teacher"):
        assert ours[part].keys() == theirs[part].keys()
        assert all(np.array_equal(value.numpy(), theirs[part][key].numpy()) for key, value in ours[part].items())
    assert any("contrast.teacher_projector" in key for key in ours["learner"])
    assert read_result(folder).validation == read_result(trained[name]).validation
