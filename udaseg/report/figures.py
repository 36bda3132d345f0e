"""Charts and panels, drawn by matplotlib; written as PNG, PDF or SVG, or embedded in a page.

matplotlib takes a while to load: import this module only where something is drawn.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from udaseg.report.tables import clean

Pixels = npt.NDArray[np.uint8]
Palette = Sequence[tuple[int, int, int]]
COLOURS = ("#2563c9", "#d2601a", "#14866d", "#a03cb4", "#b8860b", "#c2314f", "#4b7f1d", "#5f6b7a")
FEW = 20  # points of a curve that are marked one by one
TILE = 2.6  # width of an image in a panel, inches
STYLE: dict[str, Any] = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 8, "font.size": 9, "axes.titlesize": 10, "figure.dpi": 150,
    "figure.constrained_layout.use": True, "pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "udaseg",
    "text.parse_math": False,
}  # fmt: skip
MIME = {"png": "image/png", "svg": "image/svg+xml"}

styled = matplotlib.rc_context(STYLE)


@dataclass(frozen=True)
class Series:
    """A line of a chart: (x, y) points, each with its standard deviation over seeds if ``std`` is given.

    A single point whose x is NaN is a level, drawn across the chart. Published values are hollow and dashed.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    std: Sequence[float | None] = ()
    published: bool = False

    @property
    def style(self) -> dict[str, Any]:
        return {"color": COLOURS[self.colour % len(COLOURS)], "linestyle": "--" if self.published else "-"}


@dataclass(frozen=True)
class Bars:
    """One value for each class (NaN: undefined); ``published`` values are marked where there are any."""

    name: str
    values: Sequence[float]
    colour: int
    published: Sequence[float | None] = ()


# --- what is drawn -------------------------------------------------------------------------------------------------


@styled
def curves(charts: Mapping[str, Sequence[Series]]) -> Figure:
    """Title -> lines over the iterations, one chart each. Lines of one name share a legend entry."""
    columns = min(len(charts), 3)
    rows = math.ceil(len(charts) / columns)
    figure = Figure(figsize=(max(3.4 * columns, 5.0), 2.6 * rows + 0.6))
    for place, (title, lines) in enumerate(charts.items(), 1):
        axes = figure.add_subplot(rows, columns, place, xlabel="iteration")
        axes.set(**{"title" if len(charts) > 1 else "ylabel": clean(title)})
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        for line in lines:
            marker = "o" if len(line.points) < FEW else ""
            x, y = np.reshape(line.points, (-1, 2)).T
            axes.plot(x, y, label=clean(line.name), linewidth=1.4, marker=marker, markersize=3, **line.style)
    add_legend(figure, columns=max(columns, 2))
    return figure


@styled
def ablation(lines: Sequence[Series], key: str) -> Figure:
    """mIoU over the number in which runs differ. Numbers that spread over more than a factor of 30 are spaced by their
    logarithm."""
    figure = Figure(figsize=(5.0, 3.4))
    axes = figure.add_subplot(xlabel=clean(key), ylabel="mIoU, %")
    for line in lines:
        x, y = np.transpose(line.points)
        if np.isnan(x).all():
            axes.axhline(y[0], label=clean(line.name), linewidth=1.2, **line.style)
            continue
        hollow = {"markerfacecolor": "none"} if line.published else {}
        error = [std or 0.0 for std in line.std] or None
        axes.errorbar(x, y, error, label=clean(line.name), marker="o", markersize=5, **hollow, **line.style)
        for place, value in line.points:
            axes.annotate(f"{value:.1f}", (place, value), (4, 4), textcoords="offset points", fontsize=7)
    places = sorted({x for line in lines for x, _ in line.points if not math.isnan(x)})
    axes.margins(x=0.06, y=0.12)
    if places[0] > 0 and places[-1] / places[0] > 30:
        axes.set_xscale("log")
    if len(places) <= 9:
        axes.set_xticks(places)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:g}")
    add_legend(figure, columns=2)
    return figure


@styled
def class_bars(
    classes: Sequence[str],
    methods: Sequence[Bars],
    *,
    label: str = "IoU, %",
    limits: tuple[float, float] | None = (0, 100),
    digits: int = 1,
) -> Figure:
    """Horizontal bars with their values, one below the other for each class."""
    thick = 0.84 / len(methods)
    figure = Figure(figsize=(5.6, 1.0 + len(classes) * (0.12 + 0.1 * len(methods))))
    axes = figure.add_subplot(xlabel=clean(label), xlim=limits)
    for number, method in enumerate(methods):
        places = np.arange(len(classes)) + (number - (len(methods) - 1) / 2) * thick
        colour = COLOURS[method.colour % len(COLOURS)]
        axes.barh(places, np.nan_to_num(method.values), thick * 0.9, color=colour, label=clean(method.name))
        for place, value, printed in zip(places, method.values, method.published or [None] * len(places), strict=True):
            text = "-" if math.isnan(value) else f"{value:.{digits}f}"
            right = max(0.0 if math.isnan(value) else value, printed or 0.0, 0.0)
            axes.annotate(text, (right, place), (3, 0), textcoords="offset points", va="center", fontsize=6)
            if printed is not None:
                axes.vlines(printed, place - thick / 2, place + thick / 2, color="black", label="published")
    axes.set_yticks(range(len(classes)), [clean(name) for name in classes])
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    add_legend(figure, columns=2)
    return figure


@styled
def confusion_matrices(classes: Sequence[str], counts: Mapping[str, npt.NDArray[np.float64]]) -> Figure:
    """Name -> pixels (K, K): where those of each class go. Rows are truth and add up to 100 %."""
    size = 1.6 + 0.24 * len(classes)
    figure = Figure(figsize=(size * len(counts) + 0.6, size))
    names = [clean(name) for name in classes]
    for column, (title, pixels) in enumerate(counts.items(), 1):
        rows = pixels.sum(1, keepdims=True)
        share = np.divide(100 * pixels, rows, out=np.full_like(pixels, np.nan), where=rows > 0)
        axes = figure.add_subplot(1, len(counts), column, title=clean(title), xlabel="prediction", ylabel="truth")
        image = axes.imshow(share, vmin=0, vmax=100, cmap="Blues")
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_yticks(range(len(names)), names, fontsize=6)
        axes.grid(visible=False)
        for (i, j), value in np.ndenumerate(share):
            if value >= 1:
                tint = "white" if value > 55 else "black"
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=4.5, color=tint)
    figure.colorbar(image, ax=figure.axes, shrink=0.7, label="% of the true pixels")
    return figure


@styled
def panels(rows: Sequence[Sequence[tuple[str, Pixels]]], names: Sequence[str], palette: Palette) -> Figure:
    """Rows of (title, RGB image (H, W, 3)), and the classes' colours. Images may differ in size and shape."""
    columns = len(rows[0])
    ratio = min(image.shape[0] / image.shape[1] for row in rows for _, image in row)
    titles = sum(any(title for title, _ in row) for row in rows)
    size = (
        TILE * columns,
        (TILE * ratio + 0.05) * len(rows) + 0.2 * titles + 0.2 * math.ceil(len(names) / (2 * columns)),
    )
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.04, wspace=0, hspace=0)
    for place, (title, image) in enumerate((tile for row in rows for tile in row), 1):
        axes = figure.add_subplot(len(rows), columns, place)
        axes.set_title(clean(title), fontsize=7, pad=2)
        axes.imshow(image, interpolation="nearest")
        axes.set_axis_off()
    add_legend(figure, columns=2 * columns, handles=class_patches(names, palette))
    return figure


@styled
def scatter(
    clouds: Mapping[str, tuple[npt.NDArray[np.floating], npt.NDArray[np.int64], npt.NDArray[np.bool_]]],
    names: Sequence[str],
    palette: Palette,
) -> Figure:
    """Title -> points (N, 2), train ids (N,), and which are of the target (dots; those of the source are rings)."""
    figure = Figure(figsize=(5.0 * len(clouds), 5.8))
    for column, (title, (points, label, target)) in enumerate(clouds.items(), 1):
        axes = figure.add_subplot(1, len(clouds), column, title=clean(f"{title}: dots target, rings source"))
        colours = np.asarray(palette)[label] / 255
        axes.scatter(*points[target].T, s=12, c=colours[target], linewidths=0)
        axes.scatter(*points[~target].T, s=12, facecolors="none", edgecolors=colours[~target], linewidths=0.7)
        axes.set(xticks=[], yticks=[])
    add_legend(figure, columns=5 * len(clouds), handles=class_patches(names, palette))
    return figure


def class_patches(names: Sequence[str], palette: Palette) -> dict[str, Any]:
    """Name -> a patch in the colour of the class."""
    patches = [Patch(facecolor=np.divide(colour, 255), edgecolor="gray", linewidth=0.4) for colour in palette]
    return dict(zip(map(clean, names), patches, strict=True))


def add_legend(figure: Figure, *, columns: int, handles: Mapping[str, Any] | None = None) -> None:
    """Below everything, each name once. Without ``handles``: those of all charts."""
    if handles is None:
        pairs = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
        handles = {label: handle for chart in pairs for handle, label in chart}
    columns = min(columns, len(handles))
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns, handlelength=1.4)


# --- as files and in pages -----------------------------------------------------------------------------------------


@styled
def rendered(figure: Figure, form: str = "png") -> bytes:
    """The content of a ``png``, ``pdf`` or ``svg`` file. An SVG is transparent, so that it suits light and dark."""
    buffer = io.BytesIO()
    date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    figure.savefig(buffer, format=form, transparent=form == "svg", metadata=date)
    return buffer.getvalue()


def data_uri(content: bytes, form: str) -> str:
    """A ``png`` or ``svg`` as the address of an image that lies in the page itself."""
    return f"data:{MIME[form]};base64,{base64.b64encode(content).decode()}"
