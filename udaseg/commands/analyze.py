"""`udaseg analyze`: features and trainings of runs, class by class; a CSV file and a picture beside it each."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from udaseg.config.registry import REGISTRIES
from udaseg.console import Counting, out, table
from udaseg.data.loading import Normalise
from udaseg.engine import checkpoint, runs
from udaseg.engine.device import autocast, choose_device, choose_precision, set_up
from udaseg.engine.domains import class_set, images_of
from udaseg.engine.measure import data_section, domain_section, measure, reporting
from udaseg.engine.runlog import parse_row
from udaseg.errors import UserError
from udaseg.evaluation import features as analysis
from udaseg.files import read_bytes, write_atomic, write_text
from udaseg.models.segmentor import Segmentor
from udaseg.models.weights_file import WeightsMetadata
from udaseg.problems import suggest
from udaseg.report import figures


class Subject(NamedTuple):
    """A network to look at, on what images."""

    name: str
    module: Segmentor
    metadata: WeightsMetadata
    benchmark: str | None
    limit: int | None

    def cells(self, domain: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and labels of a domain's images, image by image."""
        data = data_section(self.metadata, self.benchmark)
        section = domain_section(data, domain)
        device = next(self.module.parameters()).device
        images = images_of(section, data.scale, self.metadata.classes, limit=self.limit)
        normalise = Normalise(self.metadata.mean, self.metadata.std).to(device)
        numbers = autocast(choose_precision("auto", device), device)
        with Counting(f"{self.name}, {section.dataset} {section.split}") as progress:
            shown = reporting(images, progress)
            yield from analysis.cells_of(self.module, shown, normalise, device=device, autocast=numbers)

    def centres(self, domain: str) -> analysis.Centres:
        return analysis.centres(self.cells(domain), len(self.metadata.classes))


def similarity(paths: Sequence[Path], target: Path | None, **options: Any) -> None:
    """Cosine of the class centres of source and validation images."""
    place = files(target, "similarity")
    found = subjects(paths, **options)
    values = {s.name: analysis.similarity(s.centres("source"), s.centres("validation")).tolist() for s in found}
    report(place, found[0].metadata.classes, values, "similarity of source and target features")


def subjects(paths: Sequence[Path], *, teacher: bool, benchmark: str | None, limit: int | None) -> list[Subject]:
    """The runs, all with the same classes."""
    device = choose_device("auto")
    set_up(device, choose_precision("auto", device), None)
    found = []
    for path in paths:
        module, metadata = runs.load_student(path, teacher=teacher)
        found.append(Subject(path.resolve().name, module.to(device).eval(), metadata, benchmark, limit))
        if metadata.classes != found[0].metadata.classes:
            raise UserError(f"{path} has other classes than {paths[0]}; only runs with the same can be compared")
    if len({subject.name for subject in found}) < len(found):
        found = [subject._replace(name=str(path)) for subject, path in zip(found, paths, strict=True)]
    return found


def discriminability(paths: Sequence[Path], target: Path | None, domain: str, **options: Any) -> None:
    """Every registered measure of how well features tell classes apart."""
    place = files(target, "discriminability")
    values, networks = {}, subjects(paths, **options)
    measures = {name: REGISTRIES["measure"].create({"kind": name}) for name in REGISTRIES["measure"].entries}
    for subject in networks:
        centres = subject.centres(domain)
        for name, distance in measures.items():
            values[f"{subject.name} {name}"] = distance(lambda s=subject: s.cells(domain), centres).tolist()
    report(place, networks[0].metadata.classes, values, f"discriminability of {domain} features (less is better)")


def tsne(paths: Sequence[Path], target: Path | None, pixels: int, seed: int, **options: Any) -> None:
    """Source and validation cells of each class in the plane."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError('t-SNE needs scikit-learn: pip install "udaseg[analysis]"') from None
    place = files(target, "tsne")
    rows, clouds = [["run", "domain", "class", "x", "y"]], {}
    for subject in subjects(paths, **options):
        names, palette = subject.metadata.classes, subject.metadata.palette
        parts = [analysis.sample(subject.cells(d), len(names), pixels, seed=seed) for d in ("source", "validation")]
        features = torch.cat([part[0] for part in parts]).numpy()
        points = TSNE(perplexity=min(30.0, (len(features) - 1) / 3), random_state=seed).fit_transform(features)
        label, first = torch.cat([part[1] for part in parts]).numpy(), len(parts[0][0])
        domain = np.where(np.arange(len(label)) < first, "source", "target")
        rows += [[subject.name, d, names[c], f"{x:.4f}", f"{y:.4f}"]
                 for d, c, (x, y) in zip(domain, label, points, strict=True)]  # fmt: skip
        clouds[subject.name] = points, label, domain == "target"
    write(place, rows, figures.scatter(clouds, names, palette))


class Recorded(NamedTuple):
    """What a run's training left (``evaluation.training.Training``), looked at on images of a domain."""

    folder: Path
    classes: tuple[str, ...]
    domain: str
    benchmark: str | None
    limit: int | None

    def validations(self) -> Iterator[tuple[int, Tensor]]:
        path, sizes = self.folder / "metrics.jsonl", [len(self.classes)] * len(self.classes)
        for row in filter(None, map(parse_row, read_bytes(path).splitlines() if path.is_file() else [])):
            if [len(line) for line in row.get("validation", [])] == sizes:
                yield row["iteration"], torch.tensor(row["validation"])

    def centres(self) -> Iterator[tuple[int, analysis.Centres]]:
        for path in self.checkpoints():
            (subject,) = subjects([path], teacher=False, benchmark=self.benchmark, limit=self.limit)
            yield checkpoint.step(path), subject.centres(self.domain)

    def pseudo_labels(self) -> Iterator[tuple[int, Tensor]]:
        for path in self.checkpoints():
            with Counting(f"{self.folder.name}, {path.stem}") as progress:
                found = measure(
                    path,
                    teacher=True,
                    domain=self.domain,
                    benchmark=self.benchmark,
                    limit=self.limit,
                    progress=progress,
                )
            yield checkpoint.step(path), found.counts["all"]

    def checkpoints(self) -> list[Path]:
        """UserError if there is none."""
        found = checkpoint.listed(self.folder / "checkpoints")
        if not found:
            raise UserError(f"{self.folder}: no checkpoint in its folder checkpoints")
        return found

    def shares(self) -> npt.NDArray[np.float64]:
        """(K,): percent of the validation images' pixels that are of a class, by the last validation."""
        counts = [counts for _, counts in self.validations()]
        if not counts:
            raise UserError(f"{self.folder}: nothing has been validated yet (evaluation.every); train it further")
        pixels = counts[-1].sum(dim=1).numpy()
        return 100 * pixels / pixels.sum()


def training(kind: str, paths: Sequence[Path], target: Path | None, **options: Any) -> None:
    """A registered measure of trainings over the iterations, class by class; those with most pixels first."""
    measures = REGISTRIES["training_measure"]
    if kind not in measures:
        raise UserError(f"no measure of a training is called {kind!r}; {suggest(kind, measures.entries)}")
    place, method = files(target, kind), measures.create({"kind": kind})
    recorded = {str(path): Recorded(path, class_set(runs.read_recipe(path).recipe).names, **options) for path in paths}
    names = recorded[str(paths[0])].classes
    if any(run.classes != names for run in recorded.values()):
        raise UserError(f"{paths[0]} and others have other classes; only runs with the same can be compared")
    shares = recorded[str(paths[0])].shares()
    order = [int(c) for c in np.argsort(-shares, kind="stable") if shares[c] > 0]
    tracks = method(recorded)
    rows, charts, ends = [["class", "pixels, %", "run", "iteration", kind]], {}, []
    for c in order:
        name, share = names[c], f"{shares[c]:.3f}"
        lines = {run: track.values[:, c].tolist() for run, track in tracks.items()}
        rows += [[name, share, run, str(t), text_of(value)] for run, values in lines.items()
                 for t, value in zip(tracks[run].iterations, values, strict=True)]  # fmt: skip
        ends.append([name, share, *(text_of(values[-1]) for values in lines.values())])
        if any(np.isfinite(values).any() for values in lines.values()):
            charts[f"{name}, {share} %"] = [
                figures.Series(run, list(zip(tracks[run].iterations, values, strict=True)), colour)
                for colour, (run, values) in enumerate(lines.items())
            ]
    if not charts:
        raise UserError(f"{kind}: no class has a value at any time")
    table(("class", "pixels, %", *tracks), ends, title=f"{method.label}; at the last iteration")
    write(place, rows, alike(figures.curves(charts), method.label))


def alike(picture: figures.Figure, title: str) -> figures.Figure:
    """The charts of a picture with one vertical axis, under a title."""
    limits = [axes.get_ylim() for axes in picture.axes]
    for axes in picture.axes:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    picture.suptitle(title, fontsize=10)
    return picture


def report(place: tuple[Path, Path], names: Sequence[str], values: dict[str, list[float]], title: str) -> None:
    """Table on screen, CSV and bars: one row a class, one column a value; then the mean over classes that have one."""
    numbers = np.array(list(values.values()), dtype=float)  # (columns, K)
    finite = [column[np.isfinite(column)] for column in numbers]
    numbers = np.c_[numbers, [column.mean() if len(column) else np.nan for column in finite]]
    labels = [*names, "mean"]
    rows = [[name, *map(text_of, column)] for name, column in zip(labels, numbers.T, strict=True)]
    table(("class", *values), rows, title=title)
    bars = [figures.Bars(name, column, i) for i, (name, column) in enumerate(zip(values, numbers, strict=True))]
    write(place, [["class", *values], *rows], figures.class_bars(labels, bars, label=title, limits=None, digits=2))


def text_of(value: float) -> str:
    """Empty where the value is undefined."""
    return f"{value:.4f}" if np.isfinite(value) else ""


def files(target: Path | None, kind: str) -> tuple[Path, Path]:
    """CSV and picture to write; nothing that is there is replaced."""
    path = target or Path(f"{kind}.csv")
    if path.suffix != ".csv":
        raise UserError(f"--out {path}: the name of a .csv file is expected; the picture gets the same with .png")
    for found in (path, path.with_suffix(".png")):
        if found.exists():
            raise UserError(f"{found} exists; choose another name with --out")
    return path, path.with_suffix(".png")


def write(place: tuple[Path, Path], rows: list[list[str]], picture: figures.Figure) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(place[0], text.getvalue())
    write_atomic(place[1], lambda file: file.write(figures.rendered(picture)))
    out.print(f"{place[0]}, {place[1]}")
