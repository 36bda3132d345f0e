"""Figures for papers and talks as PNG or PDF, drawn by matplotlib (the extra ``plots``)."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from udaseg.errors import UserError
from udaseg.report.figures import COLOURS, Pixels
from udaseg.report.results import Curves, Run
from udaseg.report.tables import clean

FEW = 20  # points that are marked one by one
STYLE: dict[str, Any] = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True,
    "legend.frameon": False, "font.size": 9, "axes.titlesize": 10, "figure.constrained_layout.use": True,
    "figure.dpi": 150, "pdf.fonttype": 42, "text.parse_math": False,
    "axes.prop_cycle": f"cycler(color={list(COLOURS)})",
}  # fmt: skip


def figure(**options: Any) -> Any:
    """An empty figure that needs no screen. UserError where matplotlib is not installed."""
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError('plots need matplotlib: pip install "udaseg[plots]"') from None
    settings: Any = rcParams
    settings.update(STYLE)
    return Figure(**options)


def saved(drawn: Any, form: str) -> bytes:
    """As ``png`` or ``pdf``."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format=form)
    return buffer.getvalue()


def names(runs: Sequence[Run]) -> list[str]:
    """What tells runs apart: recipe and seed, or their folders."""
    short = [f"{run.recipe}, seed {run.seed}" for run in runs]
    return [clean(text) for text in (short if len(set(short)) == len(runs) else [str(run.folder) for run in runs])]


def curves_figure(runs: Sequence[Run], logs: Sequence[Curves]) -> Any:
    """Each loss term over the iterations, and the validation mIoU; one colour a run."""
    terms = list(dict.fromkeys(name for log in logs for name in log.losses))
    panels = [*terms, *(["validation mIoU, %"] if any(log.miou for log in logs) else [])]
    if not panels:
        raise UserError(f"{runs[0].folder}: nothing has been logged yet (runtime.log_every); train it further")
    wide = min(len(panels), 3)
    drawn = figure(figsize=(3.4 * wide, 2.6 * math.ceil(len(panels) / wide) + 0.4))
    for place, name in enumerate(panels, 1):
        axes = drawn.add_subplot(math.ceil(len(panels) / wide), wide, place, title=clean(name), xlabel="iteration")
        for label, log in zip(names(runs), logs, strict=True):
            points = log.losses.get(name, []) if name in terms else log.miou
            look = "o-" if len(points) < FEW else "-"
            axes.plot([x for x, _ in points], [y for _, y in points], look, label=label, linewidth=1.4, markersize=3)
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(runs), 3))
    return drawn


def classes_figure(runs: Sequence[Run], protocol: str | None) -> Any:
    """Bars of the IoU by class, of all runs over the classes of one protocol (None: the first run's)."""
    found = [run.scores(protocol or runs[0].protocol) for run in runs]
    classes, thick = found[0].names, 0.8 / len(runs)
    drawn = figure(figsize=(6.4, 1.0 + len(classes) * (0.18 + 0.1 * len(runs))))
    axes = drawn.add_subplot(xlabel="IoU, %", xlim=(0, 100))
    for j, (label, one) in enumerate(zip(names(runs), found, strict=True)):
        places = np.arange(len(classes)) + (j - (len(runs) - 1) / 2) * thick
        bars = axes.barh(places, np.nan_to_num(one.iou), thick * 0.92, label=f"{label}: mIoU {one.miou:.1f}")
        axes.bar_label(bars, ["-" if math.isnan(v) else f"{v:.1f}" for v in one.iou], padding=2, fontsize=6)
    axes.set_yticks(range(len(classes)), map(clean, classes))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    drawn.legend(loc="outside lower center", ncols=min(len(runs), 2))
    return drawn


def confusion_figure(runs: Sequence[Run]) -> Any:
    """For each run where the pixels of each class go: rows are truth and add up to 100 %."""
    size = 1.6 + 0.24 * len(runs[0].classes)
    drawn = figure(figsize=(size * len(runs) + 0.6, size))
    for place, (label, run) in enumerate(zip(names(runs), runs, strict=True), 1):
        assert run.counts is not None
        rows = run.counts.sum(1, keepdims=True)
        share = np.divide(100 * run.counts, rows, out=np.full_like(run.counts, np.nan), where=rows > 0)
        axes = drawn.add_subplot(1, len(runs), place, title=label, xlabel="prediction", ylabel="truth")
        picture = axes.imshow(share, vmin=0, vmax=100, cmap="Blues")
        axes.set_xticks(range(len(run.classes)), map(clean, run.classes), rotation=90, fontsize=6)
        axes.set_yticks(range(len(run.classes)), map(clean, run.classes), fontsize=6)
        axes.grid(visible=False)
        for (i, j), value in np.ndenumerate(share):
            if value >= 1:
                tint = "white" if value > 55 else "black"
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=4.5, color=tint)
    drawn.colorbar(picture, ax=drawn.axes, shrink=0.7, label="% of the true pixels")
    return drawn


def panels_figure(rows: Sequence[Sequence[tuple[str, Pixels]]], legend: Sequence[tuple[str, str]]) -> Any:
    """Rows of titled RGB pictures (H, W, 3) of one shape, and what the colours stand for."""
    from matplotlib.patches import Patch

    height, width, _ = rows[0][0][1].shape
    columns = len(rows[0])
    drawn = figure(figsize=(2.6 * columns, len(rows) * (2.6 * height / width + 0.28) + 1.1))
    for place, (title, tile) in enumerate((cell for row in rows for cell in row), 1):
        axes = drawn.add_subplot(len(rows), columns, place)
        axes.set_title(clean(title), fontsize=6.5, pad=2)
        axes.imshow(tile, interpolation="nearest")
        axes.set_axis_off()
    patches = [Patch(color=tint, label=clean(name)) for name, tint in legend]
    drawn.legend(handles=patches, loc="outside lower center", ncols=8, fontsize=6.5)
    return drawn
