"""Tables of studies and of run folders: pure functions of what was published and of what the runs counted."""

from __future__ import annotations

import math
import shlex
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from udaseg.config.load import benchmark_data
from udaseg.console import duration
from udaseg.data.classes import PROTOCOLS
from udaseg.engine.profile import target_cost
from udaseg.report.grid import CELLS, lay_out
from udaseg.report.results import Run, Which, on
from udaseg.report.study import OUT_OF_MEMORY, Row, Study, load_study
from udaseg.report.tables import Cell, Mark, Table

"""Recipes that see the target's labels: compared with nothing."""
FLOPS = "training FLOPs (G)"
RECOMPUTED, ON_TARGET = "mIoU, BN of target", "the same student with BatchNorm statistics recomputed on the target"
"""Column of runs with evaluation.bn=recompute, and what it means."""
COSTS = {FLOPS, "training FLOPs (ratio)"}
"""Columns of what a target image costs in training; the ratio is to the study's first row with a recipe."""
PUBLISHED, REPRODUCED, DIFFERENCE = "published", "reproduced", "difference"


class Stat(NamedTuple):
    """Mean and sample standard deviation (None for a single value) over seeds."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Entry:
    """A row of a study as it stands: its finished runs, the study's seeds that have none, and those whose runs went out
    of memory.

    ``oracle``: it is trained with the target's labels. ``cost``: multiply-adds of a target image, where the study has a
    column for it and any runs.
    """

    row: Row
    runs: tuple[Run, ...]
    missing: tuple[int, ...]
    oracle: bool
    out_of_memory: tuple[int, ...] = ()
    cost: float | None = None


@dataclass(frozen=True)
class Summary:
    """A study with its runs.

    ``left_alone``: override -> rows that have no such part. ``options``: what was changed on the command line, as words
    of a command. ``place``: the folder where a grid has left most of its runs; ``failed``: did some of them fail?
    """

    name: str
    study: Study
    entries: tuple[Entry, ...]
    left_out: dict[str, str]
    left_alone: dict[str, list[str]]
    protocol: str
    options: tuple[str, ...] = ()
    place: Path | None = None
    failed: bool = False

    @property
    def as_published(self) -> bool:
        """Do the runs compute what the published numbers are of? ``runtime`` changes nothing of it."""
        return all(text.startswith("runtime.") for text in self.options)


def summarise(
    name: str,
    runs: Iterable[Run],
    *,
    benchmark: str | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
) -> Summary:
    """A study by name with those of the runs that are its cells, found by fingerprint (the newest, if several are).

    Runs with other seeds than the study's count, too.
    """
    study = load_study(name)
    benchmark = None if benchmark == study.benchmark else benchmark
    runs = sorted(runs, key=lambda run: run.changed)
    grid = lay_out(study, benchmark=benchmark, overrides=overrides, plugins=plugins, empty=not (benchmark or overrides))
    done = {run.fingerprint: run for run in runs if run.state == "finished"}
    others = sorted({run.seed for run in done.values() if run.seed is not None} - set(study.seeds))
    too_large = {run.fingerprint[:12] or run.folder.name[-12:] for run in runs if run.out_of_memory}
    recipes = {cell.row.name: cell.loaded.recipe for cell in grid.cells}
    entries = []
    for row in study.rows:
        recipe, of_seeds = recipes.get(row.name), {}
        spent: tuple[int, ...] = ()
        if recipe is not None:
            prints = {seed: recipe.model_copy(update={"seed": seed}).fingerprint() for seed in [*study.seeds, *others]}
            found = {seed: on(done[text], study.domain) for seed, text in prints.items() if text in done}
            of_seeds = {
                seed: run for seed, run in found.items() if study.domain == "validation" or run.counts is not None
            }
            spent = tuple(seed for seed, text in prints.items() if seed not in found and text[:12] in too_large)
        missing = [seed for seed in study.seeds if recipe is not None and seed not in (*of_seeds, *spent)]
        oracle = recipe is not None and recipe.data.labelled == "target"
        entries.append(Entry(row, tuple(of_seeds.values()), tuple(missing), oracle, spent))
    if COSTS.intersection(study.columns) and any(entry.runs for entry in entries):
        entries = [
            replace(e, cost=target_cost(recipes[e.row.name]) if e.row.name in recipes else None) for e in entries
        ]
    names = {cell.folder.name for cell in grid.cells}
    cells = [run for run in runs if run.folder.name in names]
    places = [run.folder.parent for run in cells]
    return Summary(
        name, study, tuple(entries), grid.left_out, grid.left_alone,
        study.protocol or benchmark_data(benchmark or study.benchmark).protocol,
        (*(["--benchmark", benchmark] if benchmark else []), *(f"--plugin={plugin}" for plugin in plugins), *overrides),
        statistics.mode(places) if places else None,
        any(run.state == "failed" and not run.out_of_memory for run in cells),
    )  # fmt: skip


def study_table(summary: Summary, *, runs: Path = Path("runs")) -> Table:
    """Methods x columns; a method has a line for what is published, what was reproduced, and the difference.

    Best and second are marked in each column among what can be compared: lines of one kind in one group, without those
    that were trained with the target's labels.
    """
    study, grouped = summary.study, any(row.group for row in summary.study.rows)
    blocks = [lines_of(entry, summary) for entry in summary.entries]
    for what in (PUBLISHED, REPRODUCED):
        comparable = [column not in COSTS and (what == REPRODUCED or is_iou(column)) for column in study.columns]
        for group in {row.group for row in study.rows}:
            mark([b[what] for e, b in zip(summary.entries, blocks, strict=True)
                  if what in b and e.row.group == group and not e.oracle], comparable)  # fmt: skip
    rows = [
        (*([Cell(text=entry.row.group)] if grouped else []), Cell(text=entry.row.label), Cell(text=what),
         Cell(len(entry.runs or entry.out_of_memory), digits=0) if what == REPRODUCED else Cell(), *cells)
        for entry, block in zip(summary.entries, blocks, strict=True)
        for what, cells in block.items()
    ]  # fmt: skip
    return Table(
        title=study.title,
        header=(*(["group"] if grouped else []), "method", "", "seeds", *study.columns),
        rows=tuple(rows),
        left=2 + grouped,
        lead=lead(summary),
        remarks=tuple(study.notes),
        notes=tuple(notes(summary)),
        commands=tuple(commands(summary, runs)),
    )


def lines_of(entry: Entry, summary: Summary) -> dict[str, list[Cell]]:
    """What -> cells."""
    columns = summary.study.columns
    printed, ours = (stats(summary, entry, what, columns) for what in (PUBLISHED, REPRODUCED))
    lines: dict[str, list[Cell]] = {}
    if entry.row.published is not None:
        lines[PUBLISHED] = [as_printed(*pair) for pair in zip(entry.row.published, printed, strict=True)]
    if entry.out_of_memory and not entry.runs:
        lines[REPRODUCED] = [Cell(text=OUT_OF_MEMORY) for _ in columns]
    elif entry.runs or not lines:
        lines[REPRODUCED] = [
            Cell(text="-") if s is None else Cell(s.mean, s.std, digits=digits(column))
            for column, s in zip(columns, ours, strict=True)
        ]
    if summary.as_published and any(p and s for p, s in zip(printed, ours, strict=True)):
        lines[DIFFERENCE] = [
            Cell(s.mean - p.mean, signed=True, digits=digits(column)) if p and s else Cell()
            for column, p, s in zip(columns, printed, ours, strict=True)
        ]
    return lines


def digits(column: str) -> int:
    """Behind the point, of what is reproduced."""
    return 2 if column in COSTS else 1


def stats(summary: Summary, entry: Entry, what: str, columns: Sequence[str]) -> list[Stat | None]:
    """Columns of an entry, published or reproduced; None where there is no number."""
    if what == REPRODUCED:
        return [measured(summary, entry, column) for column in columns]
    values = dict(zip(summary.study.columns, entry.row.published or (), strict=False))
    stds = dict(zip(summary.study.columns, entry.row.std or (), strict=False))
    return [Stat(value, std if isinstance(std := stds.get(column), float) else None)
            if isinstance(value := values.get(column), float) else None for column in columns]  # fmt: skip


# --- a study's table -----------------------------------------------------------------------------------------------


def measured(summary: Summary, entry: Entry, column: str) -> Stat | None:
    """A column of the table over the seeds; None for one that is printed only."""
    runs, protocol = entry.runs, summary.protocol
    if column in COSTS:
        unit = 1e9 if column == FLOPS else next((e.cost for e in summary.entries if e.row.recipe), None)
        return Stat(entry.cost / unit, None) if entry.cost and unit else None
    if column in ("mIoU", "mIoU*"):
        return over_seeds(run.scores(protocol if column == "mIoU" else "synthia13").miou for run in runs)
    if column == RECOMPUTED:
        return over_seeds(run.scores(protocol, of="recomputed").miou for run in runs)
    per_class = [dict(zip(s.names, s.iou, strict=True)) for s in (run.scores("all") for run in runs)]
    if classes := summary.study.means.get(column):
        return over_seeds(mean_of_defined([iou[n] for n in classes]) for iou in per_class if {*classes} <= {*iou})
    return over_seeds(iou[column] for iou in per_class if column in iou)


def mean_of_defined(values: Iterable[float]) -> float:
    """The mean of what is not NaN, or NaN."""
    stat = over_seeds(values)
    return stat.mean if stat else math.nan


def over_seeds(values: Iterable[float]) -> Stat | None:
    """Of the values that are defined; None if none is."""
    defined = [value for value in values if math.isfinite(value)]
    if not defined:
        return None
    return Stat(statistics.fmean(defined), statistics.stdev(defined) if len(defined) > 1 else None)


def as_printed(value: float | str | None, stat: Stat | None) -> Cell:
    """A published cell with no digit less than the paper has."""
    if stat is None:
        return Cell(text=str(value) if value is not None else "-")
    return Cell(stat.mean, stat.std, digits=1 if round(stat.mean, 1) == stat.mean else None)


def mark(lines: Sequence[list[Cell]], comparable: Sequence[bool]) -> None:
    """Put the marks of the columns that can be compared into lines that can be; equal as shown is equal."""
    for i in [i for i, yes in enumerate(comparable) if yes]:
        shown = {place: float(line[i].number()) for place, line in enumerate(lines) if line[i].value is not None}
        if len(shown) < 2:
            continue
        best, *others = sorted(set(shown.values()), reverse=True)
        marks: dict[float, Mark] = {best: "best", **({others[0]: "second"} if others and len(shown) > 2 else {})}
        for place, value in shown.items():
            lines[place][i] = replace(lines[place][i], mark=marks.get(value, ""))


def is_iou(column: str) -> bool:
    """The more the better; other published columns may be of any kind."""
    return column.startswith("mIoU") or any(column in names for names in PROTOCOLS.values())


def lead(summary: Summary) -> str:
    """Where the published numbers are from, and what the columns mean."""
    source, benchmark = summary.study.source, summary.study.benchmark
    published = f"Published: {source.paper}, {source.table}. " if source else ""
    means = f"mIoU over {summary.protocol}" + (", mIoU* over synthia13" if "mIoU*" in summary.study.columns else "")
    means += f", {RECOMPUTED}: {ON_TARGET}" if RECOMPUTED in summary.study.columns else ""
    means += "".join(f", {column} over {', '.join(names)}" for column, names in summary.study.means.items())
    settings = " ".join(text for text in summary.options if not text.startswith("runtime."))
    ours = "" if summary.as_published else f" Reproduced with {settings}."
    where = "" if summary.study.domain == "validation" else f" on the images of data.{summary.study.domain}"
    return f"{published}{benchmark}, IoU in %, {means}, student at the last iteration{where}.{ours}"


def notes(summary: Summary) -> list[str]:
    lines = []
    if not summary.as_published and any(entry.row.published for entry in summary.entries):
        lines.append("The published numbers are of other settings than the reproduced ones: no differences.")
    if any(entry.runs for entry in summary.entries):
        lines.append("Reproduced: mean ± sample standard deviation over the seeds counted.")
    lines += [
        f"Not changed by {text}, which they lack: {'; '.join(rows)}." for text, rows in summary.left_alone.items()
    ]
    lines += [f"Cannot be run ({why}): {rows}." for why, rows in together(summary.left_out.items())]
    for what, of in (("Out of memory", "out_of_memory"), ("Missing", "missing")):
        having = [(e.row.name, seeds_in_words(seeds)) for e in summary.entries if (seeds := getattr(e, of))]
        lines += [f"{what} ({seeds}): {rows}." for seeds, rows in together(having)]
    return lines


def seeds_in_words(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def together(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(row, what it has) -> what several have, and these rows in one text."""
    rows_with: dict[str, list[str]] = {}
    for row, what in pairs:
        rows_with.setdefault(what, []).append(row)
    return [(what, "; ".join(rows)) for what, rows in rows_with.items()]


def commands(summary: Summary, runs: Path) -> list[str]:
    """What fills the missing cells: one command that goes through the whole study, or one a row where that would
    train again what lies elsewhere than a grid looks for it."""
    missing = [entry for entry in summary.entries if entry.missing]
    place = summary.place or (CELLS if runs == CELLS.parent else runs)
    finished = [run for entry in summary.entries for run in entry.runs]
    at_hand = all(r.folder.parent == place and r.folder.name.endswith(r.fingerprint[:12]) for r in finished)
    wanted = [(entry.row.name, list(entry.missing)) for entry in missing]
    if len(missing) > 1 and at_hand:
        wanted = [("", sorted({seed for entry in missing for seed in entry.missing}))]
    return [
        shlex.join(["udaseg", "ablate", summary.name, *summary.options, *(["--only", only] if only else []),
                    "--seeds", ",".join(map(str, seeds)), *(["--out", str(place)] if place != CELLS else []),
                    *(["--retry"] if summary.failed else [])])
        for only, seeds in wanted
    ]  # fmt: skip


# --- all runs of a folder ------------------------------------------------------------------------------------------


def overview_table(runs: Sequence[Run], root: Path, *, now: float | None = None) -> Table:
    """A line for each run, by recipe, benchmark and seed."""
    now = time.time() if now is None else now
    ordered = sorted(runs, key=lambda run: (run.recipe, run.benchmark, run.family, run.seed or 0))
    columns = scored(ordered)
    more = f" {RECOMPUTED}: {ON_TARGET}." if RECOMPUTED in columns else ""
    return Table(
        title=f"Runs in {root}",
        header=("run", "recipe", "benchmark", "state", "seed", "iterations", *columns, "age"),
        rows=tuple(overview_row(run, root, now, columns.values()) for run in ordered),
        left=4,
        lead=f"mIoU in % of each run's own protocol, student at the last iteration.{more} oracle sel.: the best "
        "iteration on the validation split, chosen with target labels.",
        notes=tuple(
            f"{run.state}: {run.folder}: {run.problem or run.failure}" for run in ordered if run.problem or run.failure
        ),
    )


def scored(runs: Iterable[Run]) -> dict[str, Which]:
    """Columns of numbers: those of recomputed BatchNorm statistics only where a run has them."""
    recomputed: dict[str, Which] = {RECOMPUTED: "recomputed"} if any(r.recomputed is not None for r in runs) else {}
    return {"mIoU": "counts", **recomputed, "oracle sel.": "oracle"}


def overview_row(run: Run, root: Path, now: float, which: Iterable[Which]) -> tuple[Cell, ...]:
    steps = "" if run.total is None else str(run.total) if run.reached == run.total else f"{run.reached}/{run.total}"
    return (
        Cell(text=str(run.folder.relative_to(root))), Cell(text=run.recipe), Cell(text=run.benchmark),
        Cell(text=run.state), Cell(run.seed, digits=0) if run.seed is not None else Cell(), Cell(text=steps),
        *(miou_cell(run, of) for of in which), Cell(text=age(now - run.changed) if run.changed else ""),
    )  # fmt: skip


def miou_cell(run: Run, of: Which) -> Cell:
    value = run.scores(of=of).miou
    return Cell(value) if math.isfinite(value) else Cell(text="-" if run.state == "finished" else "")


def age(seconds: float) -> str:
    """How long ago, for the eye."""
    return f"{seconds / 86400:.0f} d" if seconds >= 2 * 86400 else duration(max(seconds, 0.0))


def families_table(runs: Iterable[Run], root: Path) -> Table | None:
    """Means over seeds, None if no recipe has two; one run's folder tells which recipe it is."""

    def mean(of_seeds: Sequence[Run], of: Which) -> Cell:
        stat = over_seeds(run.scores(of=of).miou for run in of_seeds)
        return Cell(*stat) if stat else Cell(text="-")

    runs = list(runs)
    columns = scored(runs)
    rows = [
        (Cell(text=first.recipe), Cell(text=first.benchmark), Cell(text=first.protocol),
         Cell(text=str(first.folder.relative_to(root))), Cell(first.total, digits=0), Cell(len(of_seeds), digits=0),
         *(mean(of_seeds, of) for of in columns.values()))
        for of_seeds in families(runs)
        for first in of_seeds[:1]
    ]  # fmt: skip
    if not rows:
        return None
    header = ("recipe", "benchmark", "protocol", "one of the runs", "iterations", "seeds", *columns)
    lead = "Mean ± sample standard deviation over seeds of recipes that differ in nothing else."
    return Table("Means over seeds", header, tuple(rows), 4, lead)


def families(runs: Iterable[Run]) -> list[list[Run]]:
    """Finished runs of equal recipes, where there are several seeds (of each the newest run)."""
    by_recipe: dict[tuple[str, str, str], dict[int | None, Run]] = {}
    for run in sorted(runs, key=lambda run: run.changed):
        if run.state == "finished":
            by_recipe.setdefault((run.recipe, run.benchmark, run.family), {})[run.seed] = run
    several = [(key, list(of_seeds.values())) for key, of_seeds in by_recipe.items() if len(of_seeds) > 1]
    return [of_seeds for _, of_seeds in sorted(several, key=lambda pair: pair[0])]
