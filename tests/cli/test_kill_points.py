"""A run that is killed before any of its operations on files goes on to the same end, and leaves no litter.

A child process counts what Python reports of files in the run's folder (audit events, and ``fsync``) and kills itself
with SIGKILL before the nth. Then the same command finishes the run.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy
from test_train import same_run

STEPS = ("train.iterations=3", "evaluation.every=2", "runtime.log_every=1", "runtime.checkpoint_minutes=0",
         "evaluation.bn=recompute")  # fmt: skip
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
STRIDE = 9
BN = "weights_bn.safetensors"


def train(folder: Path) -> int:
    return toy.run("train", "--recipe", "dacs", "--benchmark", "streets", "--out", str(folder), *toy.TINY, *STEPS)


def in_a_child(work: Callable[[], int]) -> int:
    """The exit status of a forked process that does the work, as ``os.waitpid`` has it."""
    if (child := os.fork()) == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(work())
        finally:
            os._exit(99)
    return os.waitpid(child, 0)[1]


def killed_at(folder: Path, point: int, count_into: Path | None = None) -> int:
    """Train in a child that dies before operation number ``point``; its status."""

    def work() -> int:
        seen = 0

        def meet(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            paths = [os.fsdecode(a) for a in arguments if isinstance(a, str | bytes | os.PathLike)]
            if event == "fsync" or (event in EVENTS and any(path.startswith(str(folder)) for path in paths)):
                seen += 1
                if seen == point:
                    os.kill(os.getpid(), signal.SIGKILL)

        sync = os.fsync
        os.fsync = lambda file: (meet("fsync", ()), sync(file))[1]
        sys.addaudithook(meet)
        code = train(folder)
        if count_into is not None:
            count_into.write_text(str(seen))
        return code

    return in_a_child(work)


@pytest.fixture(scope="module")
def whole(streets_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run that nothing stopped, and how many operations it took."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UDASEG_DATA", str(streets_home))
        assert killed_at(place / "run", 0, place / "count") == 0
    return place / "run", int((place / "count").read_text())


def check(whole: tuple[Path, int], folder: Path, point: int) -> None:
    assert os.WTERMSIG(killed_at(folder, point)) == signal.SIGKILL
    assert in_a_child(lambda: train(folder)) == 0
    same_run(whole[0], folder)
    assert (folder / BN).read_bytes() == (whole[0] / BN).read_bytes()
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert files == {path.relative_to(whole[0]).as_posix() for path in whole[0].rglob("*")}


def test_killed_at_some_points(whole: tuple[Path, int], streets: Path) -> None:
    assert whole[1] > 40
    for point in range(4, whole[1] + 1, whole[1] // 4):
        check(whole, streets / f"run{point}", point)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, STRIDE + 1))
def test_killed_at_every_point(whole: tuple[Path, int], streets: Path, first: int) -> None:
    for point in range(first, whole[1] + 1, STRIDE):
        check(whole, streets / f"run{point}", point)
