"""`udaseg new`: what it writes works as it stands, and the commands it prints run."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy

from udaseg.commands import new
from udaseg.config.load import load


@pytest.fixture(autouse=True)
def without_plugins(streets: Path, fresh_registries: None) -> Iterator[None]:
    yield


@pytest.mark.parametrize("kind", new.KINDS)
def test_its_recipe_is_valid_and_its_study_has_two_rows(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert toy.run("new", kind, f"my_{kind}") == 0
    real, small = (load(f"my_{kind}/my_{kind}{size}.yaml").recipe for size in ("", "_small"))
    assert real.plugins == small.plugins == [str(Path(f"my_{kind}/my_{kind}.py").resolve())]
    assert small.benchmark == "streets" and f"my_{kind}" in small.model_dump_json()
    capsys.readouterr()
    assert toy.run("ablate", f"my_{kind}/study.yaml", "--dry-run") == 0
    assert "to do: 2 of 2 runs" in capsys.readouterr().out  # with and without are different runs


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k in ("term", "encoder") else pytest.mark.slow) for k in new.KINDS]
)
def test_it_trains(kind: str) -> None:
    toy.run("new", kind, f"my_{kind}")
    sizes = [*toy.SIZES, "train.batch=2", "runtime.workers=0", "runtime.threads=1", "train.iterations=1"]
    assert toy.run("train", "-r", f"my_{kind}/my_{kind}_small.yaml", "--out", "run", *sizes) == 0


def test_its_files_are_well_formed() -> None:
    for kind in new.KINDS:
        toy.run("new", kind, f"my_{kind}")
    for check in (["check", "--select", "E,F,I,UP,B,SIM,RUF"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "--isolated", "--line-length", "120", "."]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_names_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    toy.run("new", "term", "my_loss")
    for arguments, message in (
        (("term", "my_loss"), "my_loss exists; choose another name"),
        (("term", "MyLoss"), "small letters"),
        (("term", "../x"), "small letters"),
        (("term", "numpy"), "Python has a module of that name"),
        (("term", "cross_entropy"), "exists already"),
        (("terms", "x_loss"), "did you mean 'term'?"),
    ):
        assert toy.run("new", *arguments) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(os.listdir()) == ["my_loss"]


@pytest.mark.slow  # the default set runs the tutorial of docs/method.md instead
@pytest.mark.parametrize("kind", new.KINDS)
def test_the_printed_commands_run(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    toy.run("new", kind, f"my_{kind}")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert len(lines) == 5 and lines[0] == "udaseg prepare streets"
    small = [*toy.SIZES, "train.batch=2", "runtime.workers=0", "runtime.threads=1"]
    for line in lines[1:]:  # the session's fixture has prepared the data, small
        program, *arguments = shlex.split(line)
        front = [sys.executable, *(["-m", "udaseg.cli"] if program == "udaseg" else [])]
        more = small if arguments[0] in ("train", "ablate", "report") else ["-p", "no:cacheprovider"]
        done = subprocess.run([*front, *arguments, *more], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
