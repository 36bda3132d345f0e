"""Train the cells of a grid: in this process, in child processes, or on a Slurm cluster.

A run is kept from being trained twice by the lock of its folder, which the system lets go of when its holder dies. Its
output goes to ``output.log`` there, its last error to ``failure.json``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from udaseg.config.load import Loaded
from udaseg.engine import runs
from udaseg.engine.trainer import Interrupted, Progress
from udaseg.errors import Busy, UserError
from udaseg.files import write_json
from udaseg.report.grid import Cell, run_of
from udaseg.report.results import NO_MEMORY, Failure, Run, reached

STOPPED = {-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM}
"""Exit codes of a run that somebody asked to stop; it can go on."""
PAUSE = 0.2  # seconds between two polls of the jobs


class Job(Protocol):
    """One attempt at a run: ``poll`` gives its exit code (None while it goes on), ``terminate`` asks it to save and
    stop."""

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...


class Executor(Protocol):
    """``slots``: how many runs at a time."""

    slots: int

    def start(self, cell: Cell) -> Job: ...


class Watch(Protocol):
    """Who is told what happens."""

    def started(self, cell: Cell) -> None: ...

    def ended(self, cell: Cell, run: Run) -> None: ...

    def waiting(self, running: Sequence[Cell]) -> None: ...


def train_cells(cells: Sequence[Cell], executor: Executor, watch: Watch, *, retry: bool = False) -> None:
    """Bring all runs to their end: finished ones are left alone, stopped ones go on, failed ones are left as they are
    (``retry``: those that failed before now begin again). Runs locked elsewhere are checked again at the end.

    SIGINT and SIGTERM stop all runs, which save themselves, then raise Interrupted.
    """
    began = time.time()
    with interrupting_signals():
        elsewhere = train_once(cells, executor, watch, began if retry else 0.0)
        for cell in train_once(elsewhere, executor, watch, 0.0):
            watch.ended(cell, run_of(cell))


def train_once(cells: Sequence[Cell], executor: Executor, watch: Watch, failed_before: float) -> list[Cell]:
    """Try every cell once and return those locked elsewhere. A failure from before that time is tried again."""
    waiting, elsewhere = deque(cells), []
    running: list[Attempt] = []
    try:
        while waiting or running:
            while waiting and len(running) < executor.slots:
                cell = waiting.popleft()
                run = run_of(cell)
                again = run.state == "failed" and failure_path(cell).stat().st_mtime < failed_before
                if run.state == "running":
                    elsewhere.append(cell)
                elif again or run.state in ("missing", "interrupted"):
                    watch.started(cell)
                    running.append(begin(cell, executor))
                else:
                    watch.ended(cell, run)
            for attempt in [attempt for attempt in running if attempt.job.poll() is not None]:
                running.remove(attempt)
                if attempt.job.poll() == Busy.code:
                    elsewhere.append(attempt.cell)
                else:
                    record_failure(attempt)
                    watch.ended(attempt.cell, run_of(attempt.cell))
            if running:
                watch.waiting([attempt.cell for attempt in running])
                time.sleep(PAUSE)
    finally:
        stop([attempt.job for attempt in running])
    return elsewhere


@contextlib.contextmanager
def interrupting_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise Interrupted."""

    def raise_interrupted(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, raise_interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(jobs: Sequence[Job]) -> None:
    """Ask all to stop and wait until they have saved themselves."""
    for job in jobs:
        job.terminate()
    while any(job.poll() is None for job in jobs):
        time.sleep(PAUSE)


# --- attempts and their failures -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Attempt:
    """A job at work on a cell; ``logged``: bytes in the log before it."""

    cell: Cell
    job: Job
    logged: int


def begin(cell: Cell, executor: Executor) -> Attempt:
    cell.folder.mkdir(parents=True, exist_ok=True)
    failure_path(cell).unlink(missing_ok=True)
    logged = log_path(cell).stat().st_size if log_path(cell).exists() else 0
    return Attempt(cell, executor.start(cell), logged)


def record_failure(attempt: Attempt) -> None:
    """Keep the error of an attempt that failed."""
    code = attempt.job.poll()
    if code and code not in STOPPED:
        message = last_message(log_path(attempt.cell), attempt.logged)
        write_failure(attempt.cell, failure_kind(code, message), message)


def last_message(log: Path, start: int) -> str:
    """The message for the user that ends a log, or its last line; only what lies behind byte ``start`` counts."""
    with open(log, "rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace").strip()
    _, error, message = ("\n" + text).rpartition("\nerror: ")
    return message if error else text.splitlines()[-1] if text else "no output"


def failure_kind(code: int, message: str) -> str:
    if NO_MEMORY in message.lower():
        return NO_MEMORY
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return "error" if code == UserError.code else "crash"


def write_failure(cell: Cell, kind: str, message: str) -> None:
    """Keep the last error of a run, with the time and how far it had come."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    failure = Failure(kind=kind, message=message, iteration=reached(cell.folder), time=now, log=str(log_path(cell)))
    write_json(failure_path(cell), failure.model_dump())


def log_path(cell: Cell) -> Path:
    return cell.folder / "output.log"


def failure_path(cell: Cell) -> Path:
    return cell.folder / "failure.json"


# --- in this process -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """An attempt that is over."""

    code: int

    def poll(self) -> int:
        return self.code

    def terminate(self) -> None: ...


class Inline:
    """One after the other in this process."""

    slots = 1

    def __init__(self, watch: Callable[[Loaded], Progress]) -> None:
        self.watch = watch

    def start(self, cell: Cell) -> Ended:
        try:
            runs.train(cell.loaded, cell.folder, self.watch)
            return Ended(0)
        except Interrupted:
            raise
        except UserError as error:
            write_log(cell, f"error: {error}")
            return Ended(error.code)
        except Exception:
            write_log(cell, traceback.format_exc())
            return Ended(1)


# --- in child processes --------------------------------------------------------------------------------------------


def write_log(cell: Cell, text: str) -> None:
    with open(log_path(cell), "a", encoding="utf-8") as file:
        file.write(f"{text}\n")


class Local:
    """``slots`` children at a time, each with the least used of the devices (CUDA's numbers or names; none: the CPU)
    and, unless OMP_NUM_THREADS says otherwise, its share of the cores."""

    def __init__(self, *, slots: int, devices: Sequence[str] = ()) -> None:
        self.slots, self.devices = slots, devices
        self.started: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, cell: Cell) -> subprocess.Popen[bytes]:
        environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.slots)), **os.environ}
        busy = [device for device, job in self.started if job.poll() is None]
        device = min(self.devices, key=busy.count, default="")
        if device:
            environment["CUDA_VISIBLE_DEVICES"] = device
        job = launch(cell.command, log_path(cell), env=environment)
        self.started.append((device, job))
        return job


def launch(command: Sequence[str], log: Path, **options: Any) -> subprocess.Popen[bytes]:
    """`udaseg` in a child of this process's group: what kills the group kills it, too."""
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "udaseg.cli", *command],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, **options,
        )  # fmt: skip


# --- on a cluster --------------------------------------------------------------------------------------------------


class Slurm:
    """A job a run, through a submitit executor; the cluster's queue decides when."""

    def __init__(self, executor: Any, *, slots: int) -> None:
        self.executor, self.slots = executor, slots

    def start(self, cell: Cell) -> Submitted:
        """UserError with sbatch's words when the cluster does not take the job."""
        from submitit.core.utils import FailedJobError

        try:
            return Submitted(self.executor.submit(Child(cell.command, log_path(cell))), cell)
        except FailedJobError as error:
            raise UserError(
                f"--executor slurm: {error}. Partition and account come from SBATCH_PARTITION and SBATCH_ACCOUNT; a "
                "job asks for one GPU unless runtime.device=cpu"
            ) from None


class Submitted:
    """A job on the cluster."""

    def __init__(self, job: Any, cell: Cell) -> None:
        self.job, self.cell = job, cell
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None and self.job.done():
            try:
                self.code = int(self.job.result())
            except Exception as error:  # submitit's, for jobs that the cluster ended
                write_log(self.cell, f"error: job {self.job.job_id}: {error}")
                self.code = 1
        return self.code

    def terminate(self) -> None:
        self.job.cancel(check=False)


class Child:
    """What a job on the cluster does: `udaseg` in a child. When its time is over it saves, and the job queues again."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.command, self.log = command, log
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        # Slurm announces the end of a job's time by SIGUSR2 to all its processes
        ignore = lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # noqa: E731
        self.process = launch(self.command, self.log, preexec_fn=ignore)
        try:
            return self.process.wait()
        finally:
            self.stop()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(Child(self.command, self.log))


def slurm_executor(folder: Path, *, gpus: int, cpus: int, cluster: str = "slurm") -> Any:
    """submitit's executor; partition, account and the like come from sbatch's own variables, as SBATCH_PARTITION."""
    try:
        import submitit
    except ImportError:
        raise UserError('--executor slurm needs submitit: pip install "udaseg[slurm]"') from None
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
    except RuntimeError as error:
        raise UserError(f"--executor slurm: {error}; run it where sbatch is, or use --executor local") from None
    executor.update_parameters(name="udaseg", timeout_min=24 * 60, gpus_per_node=gpus, cpus_per_task=cpus)
    return executor
