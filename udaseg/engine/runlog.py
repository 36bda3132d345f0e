"""The run folder: self-contained, append-only logs, never reused silently.

``recipe.yaml`` flattened recipe, ``environment.json`` stamp, ``metrics.jsonl``, ``log.txt``, ``checkpoints/``,
``weights.safetensors`` (the student at the end), ``weights_bn.safetensors`` (the same with BatchNorm statistics of the
target, where the recipe asks for it) and ``result.json`` (raw confusion counts) or, of a run that ended without one,
``failure.json``.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import IO, Annotated, Any

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

import udaseg
from udaseg.errors import Busy, UserError
from udaseg.files import is_leftover, put_aside, read_bytes, write_atomic, write_json
from udaseg.problems import first_problem

BEFORE_A_RUN = {".lock", "output.log", "failure.json"}
"""Files of a folder in which a run was refused before it began; another may start there."""
OWN_FILES = re.compile(
    r"(recipe\.yaml|(environment|failure|result|trackers)\.json|metrics\.jsonl|weights(_best|_bn)?\.safetensors"
    r"|step-\d{7,}\.pt|non-finite-\d{7,}\.pt)"
)
"""What is written atomically in a run folder and the folders in it."""
Row = dict[str, Any]


class LogRow(TypedDict):
    """A line of metrics.jsonl: what is read again of it."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]
    iteration: Annotated[int, Field(ge=0, lt=2**53)]
    losses: NotRequired[dict[str, float | None]]
    validation: NotRequired[list[list[Annotated[int, Field(ge=0, lt=2**63)]]]]


class Stamp(TypedDict):
    """An entry of environment.json: what is read again of it."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]
    time: str
    fingerprint: NotRequired[str]


LOG_ROW, STAMPS = TypeAdapter(LogRow), TypeAdapter(list[Stamp])


class RunFolder:
    """Paths and files of one run. With ``writes`` False (ranks other than the first) every write is a no-op."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.recipe = path / "recipe.yaml"
        self.result = path / "result.json"
        self.failure = path / "failure.json"
        self.weights = path / "weights.safetensors"
        self.best_weights = path / "weights_best.safetensors"
        self.bn_weights = path / "weights_bn.safetensors"
        self.checkpoints = path / "checkpoints"
        self.fingerprints: set[str] = set()  # of the recipe, under each version of udaseg that trained here
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Hold the folder until ``unlock``, or until this process ends or crashes; Busy if another one holds it."""
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        if (lock := self.path / ".lock").exists() and not lock.is_file():
            raise UserError(f"{lock}: not a file; move it away")
        self._lock = open(lock, "w")  # noqa: SIM115 - held until the process ends
        for patience in (0.2, 0.2, 0.0):  # `held` takes the lock for a moment
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self._clear()
            except BlockingIOError:
                time.sleep(patience)
        raise Busy(f"{self.path}: another process is training in this folder; wait for it or choose another --out")

    def _clear(self) -> None:
        """Delete the temporary files that a killed process left in its run folder."""
        for folder in (self.path, self.checkpoints, self.path / "debug"):
            for path in folder.glob(".*.tmp"):
                if is_leftover(path, OWN_FILES):
                    path.unlink(missing_ok=True)

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
        """Append one row to metrics.jsonl."""
        if self.writes:
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def fail(self, kind: str, phase: str, iteration: int) -> None:
        """Write failure.json, which a study shows."""
        if self.writes:
            write_json(self.failure, {"kind": kind, "phase": phase, "iteration": iteration})
        self.say(f"{kind} in phase {phase} of iteration {iteration}")

    def rewind(self, iteration: int) -> str:
        """Drop the record of a crash and the log rows after ``iteration``; they will be computed again.

        Returns what there is to say: a log with lines that are no rows, but for the last, is kept aside.
        """
        if not self.writes:
            return ""
        self.failure.unlink(missing_ok=True)
        path = self.path / "metrics.jsonl"
        lines = read_bytes(path).splitlines(keepends=True) if path.exists() else []
        rows = [parse_row(line) for line in lines]
        kept = [line for line, row in zip(lines, rows, strict=True) if row and row["iteration"] <= iteration]
        damaged = sum(row is None for row in rows[:-1])
        note = f"{path}: {damaged} lines are no rows; it is kept as {put_aside(path).name}" if damaged else ""
        write_atomic(path, lambda file: file.writelines(kept))
        return note

    def stamp(self, **more: Any) -> str:
        """Append this process's ``environment`` and ``more`` to the list in environment.json.

        Returns what there is to say: a damaged list is kept aside and begun again.
        """
        if not self.writes:
            return ""
        path, before, note = self.path / "environment.json", [], ""
        try:
            before = read_stamps(self.path) if path.exists() else []
        except UserError as error:
            note = f"{error}; it is kept as {put_aside(path).name}"
        stamps = [*before, {**environment(), **more}]
        self.fingerprints = {stamp["fingerprint"] for stamp in stamps if "fingerprint" in stamp}
        write_json(path, stamps)
        return note


def parse_row(line: bytes) -> Row | None:
    """A row of metrics.jsonl; None for a line that is torn or damaged."""
    try:
        return dict(LOG_ROW.validate_json(line))
    except ValidationError:
        return None


def read_stamps(folder: Path) -> list[Row]:
    """The processes that trained in a run folder, by environment.json; UserError if it is missing or damaged."""
    path = folder / "environment.json"
    try:
        return [dict(stamp) for stamp in STAMPS.validate_json(read_bytes(path))]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{path}: damaged ({first_problem(error)})") from None


def held(folder: Path) -> bool:
    """True while a process trains in the folder."""
    if not (folder / ".lock").is_file():
        return False
    try:
        with open(folder / ".lock", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


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
