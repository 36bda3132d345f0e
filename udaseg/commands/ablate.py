"""`udaseg ablate`: the runs of a study, until all are there."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from udaseg.commands.train import watching
from udaseg.console import duration, out, table
from udaseg.errors import UserError
from udaseg.recipe import shipped
from udaseg.studies.executors import Executor, Inline, Local, Slurm, slurm_executor, work
from udaseg.studies.grid import CELLS, Cell, Grid, State, costs, lay_out, look
from udaseg.studies.study import Study, load_study, studies

EXECUTORS = ("inline", "local", "slurm")
HEARTBEAT = 300.0  # seconds between two lines that say how far everything is


def listing() -> None:
    """All shipped studies, and how many of their rows can be run."""
    recipes, rows = shipped(), []
    for name in studies():
        study = load_study(name)
        named = [row for row in study.rows if row.recipe]
        rows.append([name, study.title, study.benchmark, f"{sum(r.recipe in recipes for r in named)} of {len(named)}"])
    table(("study", "what it is", "benchmark", "rows with a recipe"), rows, left=3)


def parse_seeds(text: str) -> list[int]:
    """'0,1,2' -> [0, 1, 2]."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() for part in parts) or len({int(p) for p in parts}) < len(parts):
        raise UserError(f"--seeds {text!r}: expected different whole numbers, as in 0,1,2")
    return [int(part) for part in parts]


def notes(study: Study, grid: Grid) -> None:
    """Say which rows are not run."""
    for name, why in [*grid.absent.items(), *grid.refused.items()]:
        out.print(f"left out: {name}: {why}", style="yellow")
    if published := sum(row.recipe is None for row in study.rows):
        out.print(f"{published} of {len(study.rows)} rows are published numbers only")


# --- looking -------------------------------------------------------------------------------------------------------


def status(study: Study, grid: Grid) -> None:
    """A table, rows by seeds; then the errors."""
    states = {cell.folder: look(cell, study.protocol) for cell in grid.cells}
    seeds = list(dict.fromkeys(cell.seed for cell in grid.cells))
    found: dict[str, dict[int, str]] = {row.name: {} for row in study.rows}
    for cell in grid.cells:
        found[cell.row.name][cell.seed] = in_words(states[cell.folder], cell)
    rows = [[name, *(by_seed.get(seed, "-") for seed in seeds)] for name, by_seed in found.items() if by_seed]
    table(("row", *(f"seed {seed}" for seed in seeds)), rows, title=study.title)
    for cell in grid.runs():
        tell_failure(cell, states[cell.folder])
    notes(study, grid)


def in_words(state: State, cell: Cell) -> str:
    """A state in one cell of a table."""
    if state.kind == "done":
        return "done" if state.miou is None else f"{state.miou:.2f}"
    if state.kind == "failed" and state.failure:
        return f"failed: {state.failure.kind}"
    return state.kind if state.kind == "missing" else f"{state.kind} {state.iteration}/{cell.iterations}"


def tell_failure(cell: Cell, state: State) -> None:
    """Everything that is known of an error."""
    if (failure := state.failure) is not None:
        where = f"{failure.time} at iteration {failure.iteration}, {failure.log}" if failure.log else str(cell.folder)
        out.print(f"{cell.name}: {failure.kind}: {failure.message}\n  ({where})", style="red")


def dry_run(study: Study, grid: Grid, folder: Path | None) -> None:
    """The runs, their states, and what those to come cost."""
    cells = grid.runs()
    known, states = costs(cells, folder or CELLS), {cell.folder: look(cell, study.protocol) for cell in cells}
    rows = []
    for cell in cells:
        cost = known.get(cell.folder)
        price = [f"{cost.hours:.2f}", f"{cost.gigabytes:.2f}"] if cost else ["unknown", "unknown"]
        rows.append([cell.name, str(cell.folder), in_words(states[cell.folder], cell), *price])
    table(("run", "folder", "state", "hours", "GB"), rows, left=2)
    todo = [cell for cell in cells if states[cell.folder].kind != "done"]
    estimated = [(known[cell.folder], 1 - states[cell.folder].iteration / cell.iterations)
                 for cell in todo if cell.folder in known]  # fmt: skip
    hours = sum(cost.hours * part for cost, part in estimated)
    size = sum(cost.gigabytes for cost, _ in estimated)
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    out.print(f"to do: {len(todo)} of {len(cells)} runs")
    out.print(f"estimated: {len(estimated)} of these, {hours:.2f} h in a row, {size:.2f} GB ({free:.0f} GB free here)")
    if unknown := [cell for cell in todo if cell.folder not in known]:
        command = shlex.join(["udaseg", *unknown[0].command, "--dry-run"])
        out.print(f"unknown: no run of the kind is finished; this measures one: {command}")
    notes(study, grid)


# --- running -------------------------------------------------------------------------------------------------------


def run(study: Study, grid: Grid, *, executor: str, jobs: int | None, retry: bool, folder: Path | None) -> None:
    """Train what is not finished and say what came of it; exit code 1 if something failed."""
    cells = grid.runs()
    work(cells, executor_for(executor, cells, jobs, folder or CELLS), Watching(cells), retry=retry)
    status(study, grid)
    if grid.refused or any(look(cell).kind == "failed" for cell in cells):
        sys.exit(1)


class Watching:
    """A line for every run that starts or ends, and one now and then, with the time that is left."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = cells
        self.reached = {cell.folder: look(cell).iteration for cell in cells}
        self.first = sum(self.reached.values())
        self.over: set[Path] = set()
        self.began = self.said = time.monotonic()

    def started(self, cell: Cell) -> None:
        at = self.reached[cell.folder]
        self.say(f"{cell.name}: {f'on from iteration {at}' if at else 'begins'}, {cell.folder}")

    def ended(self, cell: Cell, state: State) -> None:
        self.over.add(cell.folder)
        self.reached[cell.folder] = state.iteration
        error = f": {(state.failure.message or state.failure.phase).partition(chr(10))[0]}" if state.failure else ""
        self.say(f"{cell.name}: {in_words(state, cell)}{error}{' elsewhere' if state.kind == 'running' else ''}")

    def waiting(self, running: Sequence[Cell]) -> None:
        if time.monotonic() - self.said > HEARTBEAT:
            self.reached.update({cell.folder: look(cell).iteration for cell in running})
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
    executor = slurm_executor(folder / ".slurm", gpus=int(gpus), cpus=cpus)
    return Slurm(executor, slots=jobs or len(cells))


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in named.split(",")][:count] if named else [str(i) for i in range(count)]


def choose(
    name: str, *, seeds: str | None, only: str | None, benchmark: str | None, overrides: list[str], folder: Path | None
) -> tuple[Study, Grid]:
    """The study of that name, and its cells."""
    study = load_study(name)
    numbers = None if seeds is None else parse_seeds(seeds)
    return study, lay_out(
        study, out=folder or CELLS, seeds=numbers, only=only, benchmark=benchmark, overrides=overrides
    )
