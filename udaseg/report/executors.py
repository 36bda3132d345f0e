"""Where the runs of a grid take place: in this process, in child processes, on a Slurm cluster.

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
from udaseg.report.grid import Cell, look
from udaseg.report.results import Failure, Run, reached

STOPPED = {-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM}
"""Exit codes of a run that somebody asked to stop; it can go on."""
PAUSE = 0.2  # seconds between two looks at the children


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


def work(cells: Sequence[Cell], executor: Executor, watch: Watch, *, retry: bool = False) -> None:
    """Bring all runs to their end: finished ones are left alone, stopped ones go on, failed ones are left as they are
    (``retry``: those that failed before now begin again). What another process is at, is looked at again at the end.

    SIGINT and SIGTERM stop all runs, which save themselves, then raise Interrupted.
    """
    began = time.time()
    with stopping():
        elsewhere = one_round(cells, executor, watch, began if retry else 0.0)
        for cell in one_round(elsewhere, executor, watch, 0.0):
            watch.ended(cell, look(cell))


def one_round(cells: Sequence[Cell], executor: Executor, watch: Watch, failed_before: float) -> list[Cell]:
    """Every cell once; gives those that another process is at. A failure of before that time is tried again."""
    waiting, elsewhere = deque(cells), []
    running: list[tuple[Cell, Job, int]] = []
    try:
        while waiting or running:
            while waiting and len(running) < executor.slots:
                cell = waiting.popleft()
                run = look(cell)
                again = run.state == "failed" and failure_of(cell).stat().st_mtime < failed_before
                if run.state == "running":
                    elsewhere.append(cell)
                elif again or run.state in ("missing", "interrupted"):
                    watch.started(cell)
                    running.append(begin(cell, executor))
                else:
                    watch.ended(cell, run)
            for attempt in [attempt for attempt in running if attempt[1].poll() is not None]:
                running.remove(attempt)
                if conclude(*attempt):
                    watch.ended(attempt[0], look(attempt[0]))
                else:
                    elsewhere.append(attempt[0])
            if running:
                watch.waiting([cell for cell, _, _ in running])
                time.sleep(PAUSE)
    finally:
        stop([job for _, job, _ in running])
    return elsewhere


def begin(cell: Cell, executor: Executor) -> tuple[Cell, Job, int]:
    """Start a run; with its log's length before."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    failure_of(cell).unlink(missing_ok=True)
    before = log_of(cell).stat().st_size if log_of(cell).exists() else 0
    return cell, executor.start(cell), before


def conclude(cell: Cell, job: Job, before: int) -> bool:
    """Keep the error of an attempt that failed. False: another process is at this run."""
    code = job.poll()
    assert code is not None
    if code == Busy.code:
        return False
    if code != 0 and code not in STOPPED:
        message = last_words(log_of(cell), before)
        write_failure(cell, kind_of_end(code, message), message)
    return True


def write_failure(cell: Cell, kind: str, message: str) -> None:
    """Keep the last error of a run, with the time and how far it had come."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    found = Failure(kind=kind, message=message, iteration=reached(cell.folder), time=now, log=str(log_of(cell)))
    write_json(failure_of(cell), found.model_dump())


def stop(jobs: Sequence[Job]) -> None:
    """Ask all to stop and wait until they have saved themselves."""
    for job in jobs:
        job.terminate()
    while any(job.poll() is None for job in jobs):
        time.sleep(PAUSE)


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """SIGINT and SIGTERM raise Interrupted."""

    def raise_interrupted(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, raise_interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log_of(cell: Cell) -> Path:
    return cell.folder / "output.log"


def failure_of(cell: Cell) -> Path:
    return cell.folder / "failure.json"


def last_words(log: Path, start: int) -> str:
    """The message for the user that ends a log, or its last line; only what lies behind byte ``start`` counts."""
    with open(log, "rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace").strip()
    _, found, message = ("\n" + text).rpartition("\nerror: ")
    return message if found else text.splitlines()[-1] if text else "no output"


def kind_of_end(code: int, message: str) -> str:
    if "out of memory" in message.lower():
        return "out of memory"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return "error" if code == UserError.code else "crash"


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


def write_log(cell: Cell, text: str) -> None:
    with open(log_of(cell), "a", encoding="utf-8") as file:
        file.write(f"{text}\n")


# --- in children ---------------------------------------------------------------------------------------------------


def launch(command: Sequence[str], log: Path, **options: Any) -> subprocess.Popen[bytes]:
    """`udaseg` in a child of this process's group: what kills the group kills it, too."""
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "udaseg.cli", *command],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, **options,
        )  # fmt: skip


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
        job = launch(cell.command, log_of(cell), env=environment)
        self.started.append((device, job))
        return job


# --- on a cluster --------------------------------------------------------------------------------------------------


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


class Slurm:
    """A job a run, through a submitit executor; the cluster's queue decides when."""

    def __init__(self, executor: Any, *, slots: int) -> None:
        self.executor, self.slots = executor, slots

    def start(self, cell: Cell) -> Submitted:
        """UserError with sbatch's words when the cluster does not take the job."""
        from submitit.core.utils import FailedJobError

        try:
            return Submitted(self.executor.submit(Child(cell.command, log_of(cell))), cell)
        except FailedJobError as error:
            raise UserError(
                f"--executor slurm: {error}. Partition and account come from SBATCH_PARTITION and SBATCH_ACCOUNT; a "
                "job asks for one GPU unless runtime.device=cpu"
            ) from None


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
