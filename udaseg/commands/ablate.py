"""`udaseg ablate`: the runs of a study, until all are there."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from udaseg.console import Bar, Counting, duration, out, table
from udaseg.engine import checkpoint
from udaseg.engine.measure import measure
from udaseg.engine.result import write_evaluation
from udaseg.engine.runs import changed_plugins, watching
from udaseg.errors import UserError
from udaseg.files import refuse_no_folder
from udaseg.report.executors import Executor, Inline, Local, Slurm, interrupting_signals, slurm_executor, train_cells
from udaseg.report.grid import CELLS, Cell, Grid, costs, lay_out, run_of
from udaseg.report.results import Run, on
from udaseg.report.study import OUT_OF_MEMORY, Study, load_study, studies

EXECUTORS = ("inline", "local", "slurm")
BEAT = 5.0  # seconds between two looks at the logs for the bar
HEARTBEAT = 300.0  # seconds between two lines that say how far everything is


def listing() -> None:
    """All shipped studies, and how many of their rows are runs."""
    rows = []
    for name in studies():
        study = load_study(name)
        runnable = sum(row.recipe is not None for row in study.rows)
        rows.append([name, study.title, study.benchmark, f"{runnable} of {len(study.rows)}"])
    table(("study", "what it is", "benchmark", "rows with a recipe"), rows, left=3)


def choose(name: str, *, seeds: str | None, folder: Path | None, **options: Any) -> tuple[Study, Grid]:
    """The study of that name, and its cells; ``options``: those of ``lay_out``."""
    if folder is not None:
        refuse_no_folder(folder, "--out")
    study = load_study(name)
    return study, lay_out(study, out=folder or CELLS, seeds=None if seeds is None else parse_seeds(seeds), **options)


def parse_seeds(text: str) -> list[int]:
    """'0,1,2' -> [0, 1, 2]."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() for part in parts) or len({int(p) for p in parts}) < len(parts):
        raise UserError(f"--seeds {text!r}: expected different whole numbers, as in 0,1,2")
    return [int(part) for part in parts]


def dry_run(study: Study, grid: Grid, folder: Path | None) -> None:
    """Print the runs, how far they are, and what those to come cost."""
    cells, place = grid.runs(), (folder or CELLS).absolute()
    known = costs(cells, place)
    rows, todo, hours, size = [], [], 0.0, 0.0
    for cell in cells:
        cost, run = known.get(cell.folder), run_of(cell)
        price = [f"{cost.hours:.2f}", f"{cost.gigabytes:.2f}"] if cost else ["unknown", "unknown"]
        rows.append([cell.name, str(cell.folder), in_words(run, cell, study), *price])
        if run.state != "finished":
            todo.append(cell)
            hours += cost.hours * (1 - run.reached / cell.iterations) if cost else 0.0
            size += cost.gigabytes if cost else 0.0
    table(("run", "folder", "state", "hours", "GB"), rows, left=2)
    if study.domain != "validation":
        due = sum(on(run_of(cell), study.domain).counts is None for cell in cells)
        out.print(f"to evaluate on data.{study.domain} after training: {due} of {len(cells)} runs")
    unknown = [cell for cell in todo if cell.folder not in known]
    free = shutil.disk_usage(next(there for there in (place, *place.parents) if there.exists())).free / 1e9
    out.print(f"to do: {len(todo)} of {len(cells)} runs")
    out.print(
        f"estimated: {len(todo) - len(unknown)} of these, {hours:.2f} h in a row, {size:.2f} GB ({free:.0f} GB free "
        "there)"
    )
    if unknown:
        command = shlex.join(["udaseg", *unknown[0].command, "--dry-run"])
        out.print(f"unknown: no run of the kind is finished; this measures one: {command}")
    print_notes(study, grid)


def in_words(run: Run, cell: Cell, study: Study) -> str:
    """A run in one cell of a table: its mIoU over the classes of the study's protocol (None: its own) on the study's
    domain, or how far it is."""
    run = on(run, study.domain)
    if run.state == "finished":
        nothing = "finished" if study.domain == "validation" else "trained, not evaluated"
        return nothing if run.counts is None else f"{run.scores(study.protocol).miou:.2f}"
    if run.failure:
        return OUT_OF_MEMORY if run.out_of_memory else f"failed: {run.failure.kind}"
    return f"{run.state} {run.reached}/{cell.iterations}" if run.state in ("running", "interrupted") else run.state


def print_notes(study: Study, grid: Grid) -> None:
    """Say which rows are not run."""
    for name, why in grid.left_out.items():
        out.print(f"left out: {name}: {why}", style="yellow")
    for override, rows in grid.left_alone.items():
        out.print(f"not changed by {override}, which they lack: {'; '.join(rows)}")
    for cell in grid.runs():
        for text in changed_plugins(cell.folder, cell.loaded.recipe):
            out.print(f"{cell.name}: {text}; to train it anew, delete {cell.folder}", style="yellow")
    if published := sum(row.recipe is None for row in study.rows):
        out.print(f"{published} of {len(study.rows)} rows are published numbers only")


def train_study(study: Study, grid: Grid, *, executor: str, jobs: int | None, retry: bool, folder: Path | None) -> None:
    """Train what is not finished, evaluate it on the study's domain and say what came of it; exit code 1 if something
    failed or could not begin."""
    cells = grid.runs()
    progress = GridProgress(cells, study)
    with closing(progress.bar):
        train_cells(cells, executor_for(executor, cells, jobs, folder or CELLS), progress, retry=retry)
    wrong = evaluate_runs(study, cells)
    runs = status(study, grid)
    for text in wrong:
        out.print(text, style="red")
    if grid.left_out or wrong or any(run.state in ("failed", "damaged") for run in unexpected(grid, runs).values()):
        sys.exit(1)


def evaluate_runs(study: Study, cells: Sequence[Cell]) -> list[str]:
    """Evaluate finished runs on the study's domain, one after the other in this process, and keep the counts in their
    folders; return what went wrong."""
    wrong = []
    for cell in cells:
        run = on(run_of(cell), study.domain)
        if run.state != "finished" or run.counts is not None or study.domain == "validation":
            continue
        try:
            with interrupting_signals(), Counting(f"{cell.name} on data.{study.domain}") as progress:
                measured = measure(cell.folder, domain=study.domain, protocol="all", progress=progress)
            write_evaluation(cell.folder, study.domain, measured.title, measured.counts["all"].long().tolist())
        except UserError as error:
            wrong.append(f"{cell.name}: not evaluated: {error}")
    return wrong


def status(study: Study, grid: Grid) -> dict[Path, Run]:
    """Print a table, rows by seeds; then the errors. Return the runs by their folders."""
    runs = {cell.folder: on(run_of(cell), study.domain) for cell in grid.runs()}
    seeds = list(dict.fromkeys(cell.seed for cell in grid.cells))
    rows: dict[str, list[str]] = {}
    for cell in grid.cells:  # row by row, each with the same seeds
        rows.setdefault(cell.row.name, [cell.row.name]).append(in_words(runs[cell.folder], cell, study))
    table(("row", *(f"seed {seed}" for seed in seeds)), list(rows.values()), title=study.title)
    print_failures(grid.runs(), unexpected(grid, runs))
    print_notes(study, grid)
    return runs


def unexpected(grid: Grid, runs: Mapping[Path, Run]) -> dict[Path, Run]:
    """The runs without those that went out of memory in a row whose published cell says so: that is its result."""
    printed = {cell.folder for cell in grid.cells if OUT_OF_MEMORY in (cell.row.published or ())}
    return {folder: run for folder, run in runs.items() if not (run.out_of_memory and folder in printed)}


def print_failures(cells: Sequence[Cell], runs: Mapping[Path, Run]) -> None:
    """Everything that is known of the errors; one that several runs have once, with the place of the first."""
    same: dict[str, list[Cell]] = {}
    for cell in cells:
        run = runs.get(cell.folder)
        if run is None:
            continue
        if text := f"{run.failure}" if run.failure else f"damaged: {run.problem}" if run.problem else "":
            same.setdefault(text, []).append(cell)
    for text, having in same.items():
        failure, place = runs[having[0].folder].failure, str(having[0].folder)
        where = f"{failure.time} at iteration {failure.iteration}, {failure.log}" if failure and failure.log else place
        out.print(f"{'; '.join(cell.name for cell in having)}: {text}\n  ({where})", style="red")


class GridProgress:
    """A line for every run that starts or ends; between them a bar, or without a terminal a line at times."""

    def __init__(self, cells: Sequence[Cell], study: Study) -> None:
        self.cells, self.study = cells, study
        self.reached = {cell.folder: run_of(cell).reached for cell in cells}
        self.first = sum(self.reached.values())
        self.over: set[Path] = set()
        self.began = self.said = self.read = time.monotonic()
        self.bar = Bar("grid", self.first, sum(cell.iterations for cell in cells))

    def started(self, cell: Cell) -> None:
        saved = checkpoint.newest(cell.folder / "checkpoints")
        how = f"on from iteration {checkpoint.step(saved)}" if saved else "begins"
        self.say(f"{cell.name}: {how}, {cell.folder}")

    def ended(self, cell: Cell, run: Run) -> None:
        self.over.add(cell.folder)
        self.reached[cell.folder] = run.reached
        self.bar.update(sum(self.reached.values()) - self.bar.n)
        text = f"failed: {run.failure}" if run.failure else in_words(run, cell, self.study)
        head = " ".join(line.strip() for line in text.splitlines()[:2])  # a list's title alone says nothing
        self.say(f"{cell.name}: {head}{' elsewhere' if run.state == 'running' else ''}")

    def waiting(self, running: Sequence[Cell]) -> None:
        silent = time.monotonic() - self.said > HEARTBEAT
        if silent or (not self.bar.disable and time.monotonic() - self.read > BEAT):
            self.read = time.monotonic()
            self.reached.update({cell.folder: run_of(cell).reached for cell in running})
            self.bar.update(sum(self.reached.values()) - self.bar.n)
        if silent:
            self.say(", ".join(f"{cell.name}: {self.reached[cell.folder]}/{cell.iterations}" for cell in running))

    def say(self, text: str) -> None:
        self.said = time.monotonic()
        out.print(f"[{len(self.over)}/{len(self.cells)}] {text}{self.left()}")

    def left(self) -> str:
        """The time that is left, from the iterations done since this began."""
        gained = sum(self.reached.values()) - self.first
        rest = sum(cell.iterations - self.reached[cell.folder] for cell in self.cells if cell.folder not in self.over)
        if gained <= 0 or not rest:
            return ""
        return f"; about {duration((time.monotonic() - self.began) * rest / gained)} left"


def executor_for(kind: str, cells: Sequence[Cell], jobs: int | None, folder: Path) -> Executor:
    """By name; `local` has a process for each GPU, on the CPU one."""
    if kind not in EXECUTORS:
        raise UserError(f"--executor {kind!r}: allowed: {', '.join(EXECUTORS)}")
    if kind == "inline":
        if jobs not in (None, 1):
            raise UserError("--jobs: --executor inline has one run at a time; use --executor local")
        return Inline(watching)
    gpus = any(cell.loaded.recipe.runtime.device in ("auto", "cuda") for cell in cells)
    if kind == "local":
        devices = visible_gpus() if gpus else []
        return Local(slots=jobs or len(devices) or 1, devices=devices)
    cpus = max(cell.loaded.recipe.runtime.workers for cell in cells) + 1
    return Slurm(slurm_executor(folder / ".slurm", gpus=int(gpus), cpus=cpus), slots=jobs or len(cells))


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in named.split(",")][:count] if named else [str(i) for i in range(count)]
