"""HTML pages of a study or of a folder of runs: one file each, no network, readable in light and dark."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from udaseg.config.layers import parse_override
from udaseg.report import figures
from udaseg.report.figures import Bars, Series
from udaseg.report.results import Points, Run, curves
from udaseg.report.study import Row
from udaseg.report.summary import (
    PUBLISHED,
    REPRODUCED,
    Entry,
    Summary,
    families_table,
    overview_table,
    stats,
    study_table,
)
from udaseg.report.tables import Table

SHOWN = 8  # methods in a chart of curves: as many as there are colours
BARS = 4  # methods in a chart of bars
LEVELS = 3  # rows that an ablation chart shows as a level across
POINTS = 150  # of a training curve
PICTURE = "panels.png"
LARGEST = 8 * 2**20  # bytes of a picture that goes into a page
PNG = b"\x89PNG\r\n\x1a\n"

Image = tuple[str, str]
"""Caption, and the image as a data URI."""


@dataclass(frozen=True)
class Part:
    """One table with its charts and pictures."""

    table: Table
    charts: Sequence[Image] = ()
    pictures: Sequence[Image] = ()


def render_page(*, title: str, lead: str, cards: Sequence[tuple[str, str]], parts: Sequence[Part], footer: str) -> str:
    """The page as text; everything that comes from outside is escaped. ``cards``: (name, number)."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    template = jinja2.Environment(loader=loader, autoescape=True).get_template("page.html")
    return template.render(title=title, lead=lead, cards=cards, parts=parts, footer=footer)


def study_part(summary: Summary, *, runs: Path) -> Part:
    """A study's table with its ablation charts, training curves, bars by class, and pictures in its run folders."""
    entries = [entry for entry in summary.entries if entry.runs]
    groups = [(entry.row.name, entry.runs) for entry in entries]
    charts = [*ablation_charts(summary), *training_charts(groups), *class_charts(summary, entries)]
    return Part(study_table(summary, runs=runs), charts, pictures(run for entry in entries for run in entry.runs))


def overview_parts(runs: Sequence[Run], root: Path) -> list[Part]:
    """Means over seeds if there are any; then all runs with the curves of the newest."""
    newest = sorted((run for run in runs if run.reached), key=lambda run: run.changed)[-SHOWN:]
    charts = training_charts([(str(run.folder.relative_to(root)), (run,)) for run in reversed(newest)])
    means = families_table(runs, root)
    return [*([Part(means)] if means else []), Part(overview_table(runs, root), charts, pictures(newest))]


def ablation_charts(summary: Summary) -> list[Image]:
    """mIoU over the number in which rows differ, a chart for each group; none where rows differ in anything else."""
    charts = []
    for group in dict.fromkeys(entry.row.group for entry in summary.entries):
        entries = [entry for entry in summary.entries if entry.row.group == group]
        key, positions = ablation_positions([entry.row for entry in entries])
        lines = ablation_lines(summary, entries, positions) if "mIoU" in summary.study.columns else []
        if lines:
            caption = f"mIoU over {key}" + (f", {group}" if group else "")
            charts.append(embedded(caption, figures.ablation(lines, key)))
    return charts


def embedded(caption: str, figure: figures.Figure) -> Image:
    return caption, figures.data_uri(figures.rendered(figure, "svg"), "svg")


# --- ablations -----------------------------------------------------------------------------------------------------


def ablation_lines(summary: Summary, entries: Sequence[Entry], positions: dict[str, float]) -> list[Series]:
    """Reproduced and published points, and a level for each other row of the group."""
    lines = []
    for what, colour in ((REPRODUCED, 0), (PUBLISHED, 1)):
        values = {entry.row.name: stat for entry in entries if (stat := stats(summary, entry, what, ["mIoU"])[0])}
        points = sorted((x, values[name].mean, values[name].std) for name, x in positions.items() if name in values)
        if not points:
            continue
        published = what == PUBLISHED
        lines.append(Series(what, [(x, y) for x, y, _ in points], colour, [std for *_, std in points], published))
        others = [entry.row for entry in entries if entry.row.name in values.keys() - positions.keys()]
        for number, row in enumerate(others[:LEVELS]):
            level = [(math.nan, values[row.name].mean)]
            lines.append(Series(f"{row.label}, {what}", level, 7 - 2 * number, published=published))
    return lines


def ablation_positions(rows: Sequence[Row]) -> tuple[str, dict[str, float]]:
    """The key in which rows of one recipe differ, and row -> number; nothing if there is no such key.

    The number is the label's, as in "40 %", where all labels have one, so that a row at the recipe's own value has its
    place; or else the override's.
    """
    changed = [row for row in rows if row.overrides]
    keys = {parse_override(text)[0] for row in changed for text in row.overrides}
    if len(keys) != 1 or any(len(row.overrides) != 1 for row in changed) or len({row.recipe for row in changed}) != 1:
        return "", {}
    alike = [row for row in rows if row.recipe == changed[0].recipe]
    labels = {row.name: re.fullmatch(r"(\d+(?:\.\d+)?)( ?%)?", row.label) for row in alike}
    if all(labels.values()):
        numbers = {name: float(match[1]) for name, match in labels.items() if match}
        percent = ", %" if any(match and match[2] for match in labels.values()) else ""
    else:
        values = {row.name: parse_override(row.overrides[0])[1] for row in changed}
        numbers = {name: float(value) for name, value in values.items() if type(value) in (int, float)}
        percent = ""
    if len(numbers) < 2:
        return "", {}
    words = next(iter(keys))[-2:]
    return " ".join(words if words[-1] == "weight" else words[-1:]).replace("_", " ") + percent, numbers


# --- training ------------------------------------------------------------------------------------------------------


def training_charts(groups: Sequence[tuple[str, Sequence[Run]]]) -> list[Image]:
    """Validation mIoU and loss over the iterations; the seeds of a row share a colour."""
    logs = [(name, colour, curves(run)) for colour, (name, runs) in enumerate(groups[:SHOWN]) for run in runs]
    charts = []
    for caption, label, points in (
        ("Validation mIoU while training, %", "mIoU, %", [log.miou for *_, log in logs]),
        ("Training loss, sum of all terms", "loss", [log.loss for *_, log in logs]),
    ):
        lines = [Series(name, thinned(of_run), colour)
                 for (name, colour, _), of_run in zip(logs, points, strict=True) if len(of_run) > 1]  # fmt: skip
        if lines:
            charts.append(embedded(caption, figures.curves({label: lines})))
    return charts


def thinned(points: Points) -> Points:
    """At most POINTS of them: neighbours are averaged."""
    size = math.ceil(len(points) / POINTS)
    pieces = [points[start : start + size] for start in range(0, len(points), size)]
    return [(piece[-1][0], sum(y for _, y in piece) / len(piece)) for piece in pieces]


# --- classes -------------------------------------------------------------------------------------------------------


def class_charts(summary: Summary, entries: Sequence[Entry]) -> list[Image]:
    """IoU by class of the first and the best reproduced rows, in the order of the table; the study's classes or, where
    it has none, those of its protocol."""
    if not entries:
        return []
    known = entries[0].runs[0].scores(summary.protocol).names
    classes = [column for column in summary.study.columns if column in known] or list(known)
    methods = [bars_of(summary, entry, classes, colour) for colour, entry in best_entries(summary, entries)]
    marked = any(value is not None for method in methods for value in method.published)
    caption = "IoU by class, %" + ("; | published" if marked else "")
    return [embedded(caption, figures.class_bars(classes, methods))]


def best_entries(summary: Summary, entries: Sequence[Entry]) -> list[tuple[int, Entry]]:
    """The first and the best, each with its colour: that of its training curve or, where one has none, the next."""

    def miou(entry: Entry) -> float:
        stat = stats(summary, entry, REPRODUCED, ["mIoU"])[0]
        return stat.mean if stat else 0.0

    best = sorted(entries[1:], key=miou, reverse=True)[: BARS - 1]
    shown = [number for number, entry in enumerate(entries) if number == 0 or entry in best]
    colours = shown if shown[-1] < SHOWN else range(len(shown))
    return [(colour, entries[number]) for colour, number in zip(colours, shown, strict=True)]


def bars_of(summary: Summary, entry: Entry, classes: Sequence[str], colour: int) -> Bars:
    ours = [stat.mean if stat else math.nan for stat in stats(summary, entry, REPRODUCED, classes)]
    printed = stats(summary, entry, PUBLISHED, classes)
    return Bars(
        entry.row.name, ours, colour, [stat.mean if stat and summary.as_published else None for stat in printed]
    )


def pictures(runs: Iterable[Run]) -> list[Image]:
    """What `udaseg plot panels` left in the run folders."""
    images = []
    for run in runs:
        path = run.folder / PICTURE
        try:
            content = path.read_bytes() if path.is_file() and path.stat().st_size <= LARGEST else b""
        except OSError:
            continue
        if content.startswith(PNG):
            images.append((f"Panels of {run.folder}", figures.data_uri(content, "png")))
    return images
