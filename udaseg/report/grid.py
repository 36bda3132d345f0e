"""The runs of a study: which they are, where they lie, how far each has come, and what they cost.

A cell is a row with a seed. Its run lies in ``<out>/<recipe>-<benchmark>-seed<N>-<12 digits of its fingerprint>``: rows
of one study or of several with the same fingerprint share it, and whatever changes what is computed (a row's settings,
an override, a smaller size) makes it another. So nothing is computed twice, and nothing is mixed up.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from udaseg.config.load import Loaded, load
from udaseg.config.plugins import load_named
from udaseg.config.schema import Recipe
from udaseg.engine.domains import training_crop
from udaseg.engine.result import read_result
from udaseg.engine.runlog import read_stamps
from udaseg.engine.runs import read_recipe
from udaseg.errors import UserError
from udaseg.problems import suggest
from udaseg.report.reach import reach
from udaseg.report.results import Run, read
from udaseg.report.study import Row, Study, own_option

CELLS = Path("runs/cells")


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
    """``left_out``: row -> why it cannot run. ``left_alone``: override -> rows that have no such part."""

    cells: list[Cell] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    left_alone: dict[str, list[str]] = field(default_factory=dict)

    def runs(self) -> list[Cell]:
        """One cell for each run."""
        return list({cell.folder: cell for cell in reversed(self.cells)}.values())[::-1]


# --- which runs ----------------------------------------------------------------------------------------------------


def lay_out(
    study: Study,
    *,
    out: Path = CELLS,
    seeds: Sequence[int] | None = None,
    only: str | None = None,
    benchmark: str | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    empty: bool = False,
) -> Grid:
    """The cells of a study, row by row; overrides lie on top of the rows' (``report.reach``: which ones get them).

    UserError where an override does not reach or fit every row that it names, and where no row can run, unless it may
    be ``empty``.
    """
    for text in overrides:
        if option := own_option(text):
            raise UserError(f"override {text!r}: a grid has {option} for that")
    load_named(plugins)
    target, chosen_seeds = benchmark or study.benchmark, study.seeds if seeds is None else seeds
    rows = [row for row in rows_named(study.rows, only) if row.recipe is not None]
    reached = reach(overrides, study.rows, target, {row.name for row in rows})
    grid = Grid(left_alone=reached.left_alone)
    unfit: dict[str, str] = {}
    for row in rows:
        try:
            own = reached.of[row.name]
            grid.cells.extend([cell_of(row, seed, out, target, own, plugins) for seed in chosen_seeds])
        except UserError as error:
            blame = unfit if overrides and runs_without(row, target) else grid.left_out
            blame[row.name] = str(error)
    if unfit:
        lines = [f"  {name}: {why}" for name, why in unfit.items()]
        raise UserError(
            "\n".join(["the overrides do not fit these rows; correct them, or choose rows by --only:", *lines])
        )
    if not (grid.cells or empty):
        reasons = [f"  {name}: {why}" for name, why in grid.left_out.items()]
        raise UserError("\n".join(["no row of this study can run:", *(reasons or ["  they are published numbers"])]))
    return grid


def runs_without(row: Row, benchmark: str) -> bool:
    """Is a row's own recipe free of problems?"""
    try:
        load(str(row.recipe), benchmark=benchmark, overrides=row.overrides)
    except UserError:
        return False
    return True


def rows_named(rows: Sequence[Row], only: str | None) -> list[Row]:
    """The row of that name, or all rows with it in their name."""
    if only is None:
        return list(rows)
    exact = [row for row in rows if only in (row.name, row.label)]
    matching = exact or [row for row in rows if only.casefold() in row.name.casefold()]
    if not matching:
        raise UserError(f"--only {only!r}: no such row; {suggest(only, [row.name for row in rows])}")
    return matching


def cell_of(
    row: Row, seed: int, out: Path, benchmark: str, overrides: Sequence[str], plugins: Sequence[str] = ()
) -> Cell:
    """A row with a seed; UserError for what is wrong with its recipe."""
    assert row.recipe is not None
    settings = [*row.overrides, *overrides]
    loaded = load(row.recipe, benchmark=benchmark, overrides=[*settings, f"seed={seed}"], plugins=plugins)
    folder = folder_of(loaded.recipe, out)
    options = ["--recipe", row.recipe, "--benchmark", benchmark, "--seed", str(seed), "--out", str(folder)]
    options += [word for plugin in plugins for word in ("--plugin", plugin)]
    return Cell(row, seed, loaded, folder, ("train", *options, *settings))


def folder_of(recipe: Recipe, out: Path) -> Path:
    """Where the run of a recipe lies or, under whatever recipe's name, lies already."""
    digits = recipe.fingerprint()[:12]
    existing = sorted(out.glob(f"*-{digits}"))
    return existing[0] if existing else out / f"{recipe.name}-{recipe.benchmark}-seed{recipe.seed}-{digits}"


def run_of(cell: Cell) -> Run:
    """A cell's run as it stands; another recipe's result in its place is damage."""
    run = read(cell.folder)
    if run.state == "finished" and run.fingerprint != cell.loaded.recipe.fingerprint():
        return replace(run, state="damaged", problem="holds a run of another recipe; move it away")
    return run


# --- what it costs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of a whole run."""

    hours: float
    gigabytes: float


def costs(cells: Iterable[Cell], out: Path) -> dict[Path, Cost]:
    """Run folder -> cost, from finished runs of the same recipe at the same sizes; those without any are left out."""
    measured: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for path in sorted(out.glob("*/result.json")):
        try:
            recipe = read_recipe(path.parent).recipe
            measured.setdefault(kind_of(recipe), []).append(measure(path.parent, recipe))
        except (ValueError, OSError):  # damaged, or in several parts
            continue
    known = {cell.folder: (cell.iterations, measured.get(kind_of(cell.loaded.recipe))) for cell in cells}
    return {
        folder: Cost(iterations * statistics.median(h for h, _ in alike), statistics.median(gb for _, gb in alike))
        for folder, (iterations, alike) in known.items()
        if alike
    }


def kind_of(recipe: Recipe) -> tuple[Any, ...]:
    """Runs of a kind take the same time an iteration."""
    return (recipe.name, recipe.benchmark, training_crop(recipe), recipe.train.batch, str(recipe.model.encoder))


def measure(folder: Path, recipe: Recipe) -> tuple[float, float]:
    """Hours an iteration and gigabytes of a finished run; ValueError if it was trained in several parts."""
    (stamp,) = read_stamps(folder)
    start, end = (datetime.strptime(t, "%Y-%m-%dT%H:%M:%S%z") for t in (stamp["time"], read_result(folder).finished))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return (end - start).total_seconds() / 3600 / recipe.train.iterations, size / 1e9
