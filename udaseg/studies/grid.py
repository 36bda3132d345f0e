"""The runs that a study takes, where they lie, and how far each has come.

A cell is a row with a seed. Its run lies in ``<out>/<recipe>-<benchmark>-seed<N>-<12 digits of its fingerprint>``: rows
of one study or of several with the same fingerprint share it, and whatever changes what is computed (a row's settings,
an override, a smaller size) makes it another. So nothing is computed twice, and nothing is mixed up.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from udaseg import build
from udaseg.data.classes import PROTOCOLS
from udaseg.engine.runlog import RunFolder, held
from udaseg.errors import UserError
from udaseg.evaluation.confusion import scores
from udaseg.files import write_json
from udaseg.parts import suggest
from udaseg.recipe import Loaded, Recipe, locate, parse_override
from udaseg.runs import read_recipe, read_result
from udaseg.studies.study import Row, Study

CELLS = Path("runs/cells")
OWN_OPTIONS = {"seed": "--seeds", "benchmark": "--benchmark"}


@dataclass(frozen=True)
class Cell:
    """``command``: the arguments of `udaseg` that train it."""

    row: Row
    seed: int
    loaded: Loaded
    folder: Path
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.row.name}, seed {self.seed}"

    @property
    def iterations(self) -> int:
        return self.loaded.recipe.train.iterations


@dataclass(frozen=True)
class Grid:
    """``absent``: row -> the recipe that does not exist yet; ``refused``: row -> what is wrong with its settings."""

    cells: list[Cell] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def runs(self) -> list[Cell]:
        """One cell for each run."""
        return list({cell.folder: cell for cell in reversed(self.cells)}.values())[::-1]


@dataclass(frozen=True)
class Failure:
    """What is kept of a run that failed, in its folder's ``failure.json`` (a bare run's has no message: ``phase``)."""

    kind: str
    message: str = ""
    iteration: int = 0
    time: str = ""
    log: str = ""
    phase: str = ""


@dataclass(frozen=True)
class State:
    """``iteration``: the last one in the run's log; ``miou``: of a finished run, in percent."""

    kind: Literal["done", "running", "failed", "stopped", "missing"]
    iteration: int = 0
    miou: float | None = None
    failure: Failure | None = None


# --- which runs ----------------------------------------------------------------------------------------------------


def lay_out(
    study: Study,
    *,
    out: Path = CELLS,
    seeds: Sequence[int] | None = None,
    only: str | None = None,
    benchmark: str | None = None,
    overrides: Sequence[str] = (),
) -> Grid:
    """The cells of a study, row by row; overrides lie on top of the rows'. UserError where no row can run.

    Settings of a term that only some rows have leave the others alone: they would add the term to the control.
    """
    for text in overrides:
        if (option := OWN_OPTIONS.get(parse_override(text)[0][0])) is not None:
            raise UserError(f"override {text!r}: a grid has {option} for that")
    grid = Grid()
    target = benchmark or study.benchmark
    having = {row.name: terms_of(row, target) for row in study.rows}
    every = set[tuple[str, ...]]().union(*having.values())
    for row in chosen(study.rows, only):
        if row.recipe is None:
            continue
        own = [text for text in overrides if term_in(text) not in every - having[row.name]]
        try:
            locate(row.recipe)
        except UserError:
            grid.absent[row.name] = f"no recipe {row.recipe!r}"
            continue
        try:
            for seed in study.seeds if seeds is None else seeds:
                grid.cells.append(cell(row, seed, out, target, own))
        except UserError as error:
            grid.refused[row.name] = str(error)
    if not grid.cells:
        reasons = [f"  {name}: {why}" for name, why in [*grid.absent.items(), *grid.refused.items()]]
        raise UserError("\n".join(["no row of this study can run:", *(reasons or ["  they are published numbers"])]))
    return grid


def terms_of(row: Row, benchmark: str) -> set[tuple[str, ...]]:
    """("views", view, "terms", term) of a row's own recipe; none where it has no (valid) one."""
    try:
        recipe = build.load(row.recipe, benchmark=benchmark, overrides=row.overrides).recipe if row.recipe else None
    except UserError:
        recipe = None
    views = recipe.views.items() if recipe else ()
    return {("views", view, "terms", term) for view, stage in views for term in stage.terms}


def term_in(override: str) -> tuple[str, ...]:
    """The part of an override's key that names a term, as in ``terms_of``."""
    return parse_override(override)[0][:4]


def chosen(rows: Sequence[Row], only: str | None) -> list[Row]:
    """The row of that name, or all rows with it in their name."""
    if only is None:
        return list(rows)
    found = [row for row in rows if only in (row.name, row.label)]
    found = found or [row for row in rows if only.casefold() in row.name.casefold()]
    if not found:
        raise UserError(f"--only {only!r}: no such row; {suggest(only, [row.name for row in rows])}")
    return found


def cell(row: Row, seed: int, out: Path, benchmark: str, overrides: Sequence[str]) -> Cell:
    """A row with a seed; UserError for what is wrong with its recipe."""
    assert row.recipe is not None
    settings = [*row.overrides, *overrides]
    loaded = build.load(row.recipe, benchmark=benchmark, overrides=[*settings, f"seed={seed}"])
    folder = folder_of(loaded.recipe, out)
    options = ("--recipe", row.recipe, "--benchmark", benchmark, "--seed", str(seed), "--out", str(folder))
    return Cell(row, seed, loaded, folder, ("train", *options, *settings))


def folder_of(recipe: Recipe, out: Path) -> Path:
    """Where the run of a recipe lies or, under whatever recipe's name, lies already."""
    digits = recipe.fingerprint()[:12]
    there = sorted(out.glob(f"*-{digits}"))
    return there[0] if there else out / f"{recipe.name}-{recipe.benchmark}-seed{recipe.seed}-{digits}"


# --- how far -------------------------------------------------------------------------------------------------------


def look(cell: Cell, protocol: str | None = None) -> State:
    """How far a cell's run has come; mIoU over the classes of ``protocol``, or else of the recipe's."""
    folder = cell.folder
    if (folder / "result.json").is_file():
        try:
            return State("done", cell.iterations, miou(cell, protocol))
        except UserError as error:
            return State("failed", failure=Failure("damaged result", str(error), cell.iterations))
    if held(folder):
        return State("running", reached(folder))
    if (folder / "failure.json").is_file():
        failure = read_failure(folder)
        return State("failed", failure.iteration, failure=failure)
    return State("stopped", reached(folder)) if (folder / "recipe.yaml").is_file() else State("missing")


def reached(folder: Path) -> int:
    """The last iteration that a run has logged."""
    rows = RunFolder(folder, writes=False).rows()
    return int(rows[-1]["iteration"]) if rows else 0


def miou(cell: Cell, protocol: str | None) -> float | None:
    """Of a finished run, in percent; None for one without validation. UserError if it is not this cell's run."""
    result = read_result(cell.folder)
    if result.get("fingerprint") != cell.loaded.recipe.fingerprint():
        raise UserError(f"{cell.folder}: holds a run of another recipe; move it away")
    if not result["validation"]:
        return None
    return scores(result["validation"]["confusion"], result["classes"], PROTOCOLS[protocol or result["protocol"]]).miou


def read_failure(folder: Path) -> Failure:
    try:
        failure = Failure(**json.loads((folder / "failure.json").read_text(encoding="utf-8")))
        if isinstance(failure.kind, str):
            return failure
    except (OSError, ValueError, TypeError):
        pass
    return Failure("unknown", "failure.json cannot be read")


def write_failure(folder: Path, *, kind: str, message: str, log: Path) -> None:
    """Keep the last error of a run, with the time and how far it had come."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    write_json(folder / "failure.json", asdict(Failure(kind, message, reached(folder), now, str(log))))


# --- what it costs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of a whole run."""

    hours: float
    gigabytes: float


def costs(cells: Iterable[Cell], out: Path) -> dict[Path, Cost]:
    """Run folder -> cost, from finished runs of the same recipe at the same sizes; those without any are left out."""
    measured: dict[tuple[Any, ...], list[Cost]] = {}
    for path in sorted(out.glob("*/result.json")):
        try:
            recipe = read_recipe(path.parent).recipe
            measured.setdefault(kind_of(recipe), []).append(measure(path.parent, recipe))
        except (UserError, ValueError, KeyError, IndexError, OSError):  # damaged, or in several parts
            continue
    found = {}
    for cell in cells:
        if known := measured.get(kind_of(cell.loaded.recipe)):
            hours = statistics.median(cost.hours for cost in known) * cell.iterations
            found[cell.folder] = Cost(hours, statistics.median(cost.gigabytes for cost in known))
    return found


def kind_of(recipe: Recipe) -> tuple[Any, ...]:
    """Runs of a kind take the same time an iteration."""
    return (recipe.name, recipe.benchmark, build.training_crop(recipe), recipe.train.batch, str(recipe.model.encoder))


def measure(folder: Path, recipe: Recipe) -> Cost:
    """Hours *an iteration* and disk of a finished run; ValueError if it was trained in several parts."""
    (stamp,) = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    finished = datetime.strptime(read_result(folder)["finished"], "%Y-%m-%dT%H:%M:%S%z")
    seconds = (finished - datetime.strptime(stamp["time"], "%Y-%m-%dT%H:%M:%S%z")).total_seconds()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Cost(seconds / 3600 / recipe.train.iterations, size / 1e9)
