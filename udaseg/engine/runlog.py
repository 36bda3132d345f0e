"""The run folder: self-contained, append-only logs, never reused silently.

``recipe.yaml`` flattened recipe, ``environment.json`` stamp, ``metrics.jsonl``, ``log.txt``, ``checkpoints/``,
``weights.safetensors`` (the student at the end) and ``result.json`` (raw confusion counts) or, of a run that ended
without one, ``failure.json``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch

import udaseg
from udaseg.errors import Busy, UserError
from udaseg.files import write_json, write_text

Row = dict[str, Any]


class RunFolder:
    """Paths and files of one run. With ``writes`` False (ranks other than the first) every write is a no-op."""

    def __init__(self, path: Path, *, writes: bool = True, tensorboard: bool = False) -> None:
        self.path = path
        self.writes = writes
        self._board: Any = board(path) if writes and tensorboard else None
        self.recipe = path / "recipe.yaml"
        self.result = path / "result.json"
        self.failure = path / "failure.json"
        self.weights = path / "weights.safetensors"
        self.best_weights = path / "weights_best.safetensors"
        self.checkpoints = path / "checkpoints"
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Hold the folder until ``unlock``, or until this process ends or crashes; Busy if another one holds it."""
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held until the process ends
        for patience in (0.2, 0.2, 0.0):  # `held` takes the lock for a moment
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(patience)
        raise Busy(f"{self.path}: another process is training in this folder; wait for it or choose another --out")

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def say(self, line: str) -> None:
        """A line for the run's log, with the time."""
        if self.writes:
            with open(self.path / "log.txt", "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def record(self, row: Row) -> None:
        """Append one row to metrics.jsonl and, if it is a training row, to TensorBoard."""
        if not self.writes:
            return
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is not None and "losses" in row:
            for name, value in flat(row).items():
                if isinstance(value, int | float) and name != "iteration":
                    self._board.add_scalar(name, value, row["iteration"])

    def fail(self, kind: str, phase: str, iteration: int) -> None:
        """Write failure.json, which a study shows."""
        if self.writes:
            write_json(self.failure, {"kind": kind, "phase": phase, "iteration": iteration})
        self.say(f"{kind} in phase {phase} of iteration {iteration}")

    def rewind(self, iteration: int) -> None:
        """Drop the record of a crash and the log rows after ``iteration``; they will be computed again."""
        if self.writes:
            self.failure.unlink(missing_ok=True)
            kept = [json.dumps(row) + "\n" for row in self.rows() if row["iteration"] <= iteration]
            write_text(self.path / "metrics.jsonl", "".join(kept))

    def rows(self) -> list[Row]:
        """All rows of metrics.jsonl; lines torn by a crash are left out."""
        path = self.path / "metrics.jsonl"
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows

    def stamp(self, **more: Any) -> None:
        """Append this process's ``environment`` and ``more`` to the list in environment.json."""
        if not self.writes:
            return
        path = self.path / "environment.json"
        before = json.loads(path.read_text()) if path.exists() else []
        write_json(path, [*before, {**environment(), **more}])


def held(folder: Path) -> bool:
    """True while a process trains in the folder."""
    try:
        with open(folder / ".lock", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def board(path: Path) -> Any:
    """A TensorBoard writer for the folder, where tensorboard is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError('runtime.tensorboard=true needs tensorboard: pip install "udaseg[tensorboard]"') from None
    return SummaryWriter(str(path / "tensorboard"))


def flat(row: Row) -> Row:
    """Nested maps as ``outer/inner`` columns."""
    return {
        (f"{key}/{inner}" if inner else key): value
        for key, entry in row.items()
        for inner, value in (entry.items() if isinstance(entry, dict) else [("", entry)])
    }


def environment() -> Row:
    """Versions, machine, git state and command line of this process."""
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "udaseg": udaseg.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "cuda": torch.version.cuda,
        "device": device,
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "git": git_state(),
        "command": sys.argv,
        "host": platform.node(),
        "process": os.getpid(),
    }


def git_state() -> str | None:
    """Commit of the package's checkout, with ``-dirty`` when it has changes; None outside a checkout."""
    folder = Path(udaseg.__file__).parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
