"""The parts of an HTML report: what is drawn of a study, or of a folder of runs."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from udaseg.config.layers import parse_override
from udaseg.report import charts
from udaseg.report.charts import Bars, Series
from udaseg.report.html import Figure, Part
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
)  # fmt: skip

SHOWN = 8  # methods in a chart of curves
BARS = 4  # methods in a chart of bars
POINTS = 150  # of a training curve
PICTURE = "panels.png"
LARGEST = 8 * 2**20  # bytes of a picture that goes into a page
PNG = b"\x89PNG\r\n\x1a\n"


def study_part(summary: Summary, *, runs: Path) -> Part:
    """A study's table with its ablation curves, bars by class, training curves, and pictures in its run folders."""
    entries = [entry for entry in summary.entries if entry.runs]
    figures = [*ablations(summary), *training([(e.row.name, e.runs) for e in entries]), *class_bars(summary, entries)]
    return Part(study_table(summary, runs=runs), figures, pictures(run for entry in entries for run in entry.runs))


def overview_parts(runs: Sequence[Run], root: Path) -> list[Part]:
    """Means over seeds if there are any; then all runs with the curves of the newest."""
    newest = sorted((run for run in runs if run.reached), key=lambda run: run.changed)[-SHOWN:]
    figures = training([(str(run.folder.relative_to(root)), (run,)) for run in reversed(newest)])
    means = families_table(runs, root)
    parts = [Part(overview_table(runs, root), figures, pictures(newest))]
    return [*([Part(means)] if means else []), *parts]


# --- ablation curves -----------------------------------------------------------------------------------------------


def ablations(summary: Summary) -> list[Figure]:
    """mIoU over the number in which rows differ, one figure a group; none where rows differ in anything else."""
    if "mIoU" not in summary.study.columns:
        return []
    groups = dict.fromkeys(entry.row.group for entry in summary.entries)
    found = [ablation(summary, [e for e in summary.entries if e.row.group == group], group) for group in groups]
    return [figure for figure in found if figure]


def ablation(summary: Summary, entries: Sequence[Entry], group: str) -> Figure | None:
    """Reproduced and published points, and a level for each row of the group that is no point."""
    key, places = positions([entry.row for entry in entries])
    series = []
    for what, colour in ((REPRODUCED, 0), (PUBLISHED, 1)):
        found = {entry.row.name: stats(summary, entry, what, ["mIoU"])[0] for entry in entries}
        points = sorted((x, s.mean, s.std) for name, x in places.items() if (s := found[name]))
        series += [Series(what, points, colour, what == PUBLISHED)] if points else []
        others = [(e.row, stat) for e in entries if e.row.name not in places and (stat := found[e.row.name])]
        series += [Series(f"{row.label}, {what}", [(math.nan, stat.mean, None)], 7 - 2 * i, what == PUBLISHED)
                   for i, (row, stat) in enumerate(others[:3]) if points]  # fmt: skip
    if not series:
        return None
    caption = f"mIoU over {key}" + (f", {group}" if group else "")
    svg = charts.lines(series, x_label=key, y_label="mIoU, %", title=caption)
    return Figure(caption, svg, [(s.name, s.colour, s.published) for s in series])


def positions(rows: Sequence[Row]) -> tuple[str, dict[str, float]]:
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
    words = next(iter(keys))[-2:]
    if all(labels.values()):
        numbers = {name: float(match[1]) for name, match in labels.items() if match}
        percent = ", %" if any(match and match[2] for match in labels.values()) else ""
    else:
        values = {row.name: parse_override(row.overrides[0])[1] for row in changed}
        numbers = {name: float(v) for name, v in values.items() if type(v) in (int, float)}
        percent = ""
    named = " ".join(words if words[-1] == "weight" else words[-1:]).replace("_", " ") + percent
    return (named, numbers) if len(numbers) > 1 else ("", {})


# --- classes -------------------------------------------------------------------------------------------------------


def class_bars(summary: Summary, entries: Sequence[Entry]) -> list[Figure]:
    """IoU by class of the first and the best reproduced rows, in the order of the table; the study's classes or, where
    it has none, those of its protocol."""
    if not entries:
        return []
    known = entries[0].runs[0].scores(summary.protocol).names
    classes = [column for column in summary.study.columns if column in known] or list(known)

    def miou(entry: Entry) -> float:
        found = stats(summary, entry, REPRODUCED, ["mIoU"])[0]
        return found.mean if found else 0.0

    def bars_of(entry: Entry, colour: int) -> Bars:
        ours = [s.mean if s else math.nan for s in stats(summary, entry, REPRODUCED, classes)]
        printed = stats(summary, entry, PUBLISHED, classes)
        return Bars(entry.row.name, ours, [s.mean if s and summary.as_published else None for s in printed], colour)

    best = sorted(entries[1:], key=miou, reverse=True)[: BARS - 1]
    shown = [i for i, entry in enumerate(entries) if i == 0 or entry in best]
    colours = shown if shown[-1] < SHOWN else range(len(shown))  # those of the curves, if there are so many
    methods = [bars_of(entries[i], colour) for i, colour in zip(shown, colours, strict=True)]
    svg = charts.bars(classes, methods, title="IoU by class")
    marked = any(value is not None for method in methods for value in method.published)
    caption = "IoU by class, %" + ("; | published" if marked else "")
    return [Figure(caption, svg, [(method.name, method.colour, False) for method in methods])]


# --- training ------------------------------------------------------------------------------------------------------


def training(groups: Sequence[tuple[str, Sequence[Run]]]) -> list[Figure]:
    """Loss and validation mIoU over the iterations; the seeds of a row share a colour."""
    logs = [(name, i, curves(run)) for i, (name, runs) in enumerate(groups[:SHOWN]) for run in runs]
    found = []
    for caption, label, points in (
        ("Validation mIoU while training, %", "mIoU, %", [log.miou for _, _, log in logs]),
        ("Training loss, sum of all terms", "loss", [log.loss for _, _, log in logs]),
    ):
        series = [Series(name, thinned(of_run), i, dots=False)
                  for (name, i, _), of_run in zip(logs, points, strict=True) if len(of_run) > 1]  # fmt: skip
        if series:
            svg = charts.lines(series, x_label="iteration", y_label=label, title=caption)
            found.append(Figure(caption, svg, list(dict.fromkeys((s.name, s.colour, False) for s in series))))
    return found


def thinned(points: Points) -> list[tuple[float, float, float | None]]:
    """Means of neighbours, so that few enough remain to be drawn."""
    size = math.ceil(len(points) / POINTS) or 1
    pieces = [points[i : i + size] for i in range(0, len(points), size)]
    return [(piece[-1][0], sum(y for _, y in piece) / len(piece), None) for piece in pieces]


def pictures(runs: Iterable[Run]) -> list[tuple[str, str]]:
    """What `udaseg plot panels` left in the run folders."""
    found = []
    for run in runs:
        path = run.folder / PICTURE
        try:
            content = path.read_bytes() if path.is_file() and path.stat().st_size <= LARGEST else b""
        except OSError:
            continue
        if content.startswith(PNG):
            found.append((f"Panels of {run.folder}", base64.b64encode(content).decode()))
    return found
