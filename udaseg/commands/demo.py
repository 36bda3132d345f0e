"""`udaseg demo`: from nothing to an adapted, evaluated model and a picture, in minutes on a laptop.

Draws the data set `streets`, trains on its source, then adapts to its target starting from those weights, and compares
on held-out labelled target scenes. The control in between recomputes the BatchNorm statistics of the source-only model
on unlabelled target images: what that alone gives is not owed to self-training.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import udaseg
from udaseg.config.layers import chain
from udaseg.config.load import Loaded, checked, load
from udaseg.console import Counting, Watching, out, percent
from udaseg.data.classes import PROTOCOLS, colourise
from udaseg.data.layouts import data_home
from udaseg.data.loading import evaluation_loader
from udaseg.data.prepare import prepare
from udaseg.data.streets import write_streets
from udaseg.engine import runs
from udaseg.engine.assembly import assemble
from udaseg.engine.domains import class_set, images_of
from udaseg.engine.networks import normalisation
from udaseg.engine.profile import time_steps
from udaseg.engine.result import read_result
from udaseg.errors import UserError
from udaseg.evaluation.confusion import Scores, scores
from udaseg.evaluation.evaluate import evaluate, evaluating, predict, recompute_batchnorm
from udaseg.files import refuse_no_folder, write_atomic, write_text
from udaseg.models.segmentor import Segmentor
from udaseg.report import figures
from udaseg.report.figures import Figure
from udaseg.report.pages import Part, render_page
from udaseg.report.tables import Cell, Mark, Table, terminal

QUICK = ("train.iterations=40", "optimiser.warmup=10")
SHOWN = 6  # validation images in the picture


@dataclass(frozen=True)
class Result:
    """What the demo measured, on the validation split of the target."""

    source_only: Scores
    control: Scores
    adapted: Scores
    folder: Path

    @property
    def picture(self) -> Path:
        return self.folder / "demo.png"

    @property
    def page(self) -> Path:
        return self.folder / "demo.html"


def run_demo(*, quick: bool, recipe: str | None, seed: int, folder: Path | None) -> Result:
    """The whole demo; what is already there (data, finished runs) is used again."""
    began = time.monotonic()
    folder = folder or default_folder(quick, recipe, seed)
    refuse_foreign(folder)
    prepare_streets()
    common = [f"seed={seed}", *(QUICK if quick else ())]
    start = folder / "source_only"
    network = {"model": {"wrapper": load_adaptation(recipe, common).recipe.model.wrapper}}  # both halves have one
    overlays = [("the demo", network)]
    if not (folder / "adapted" / "result.json").is_file():
        threads = fastest_threads(load("demo_source_only", overlays=overlays, overrides=common))
        common.append(f"runtime.threads={threads}")
    train(load("demo_source_only", overlays=overlays, overrides=common), start, "1/2 source-only")
    adapted = load_adaptation(recipe, [*common, f"model.start={start}"])
    train(adapted, folder / "adapted", f"2/2 {adapted.recipe.name}")
    result = report(folder, adapted, start, time.monotonic() - began)
    show(result, recipe, quick)
    return result


def default_folder(quick: bool, recipe: str | None, seed: int) -> Path:
    parts = ["demo", *(["quick"] if quick else []), *([Path(recipe).stem] if recipe else []), f"seed{seed}"]
    return Path("runs") / "-".join(parts)


def refuse_foreign(folder: Path) -> None:
    """UserError for a place that is no folder, or one that holds something and no demo: its files would be replaced."""
    refuse_no_folder(folder, "--out")
    if folder.exists() and any(folder.iterdir()) and not (folder / "source_only").is_dir():
        raise UserError(f"--out {folder}: exists and holds no demo; choose another folder")


def prepare_streets() -> None:
    """Draw and index the data set, unless that is done; one the user drew at another size is used as it is."""
    if not (data_home() / "streets" / "streets.json").is_file():
        with Counting("drawing street scenes") as progress:
            write_streets(data_home() / "streets", progress=progress)
    for name in ("streets_source", "streets_target"):
        prepare(name)


def load_adaptation(name: str | None, overrides: Sequence[str]) -> Loaded:
    """The demo's own recipe, or any other at the demo's size: its own keys on top of that recipe.

    A view goes with the last of its terms.
    """
    if name is None:
        return load("demo", overrides=overrides)
    source, own = chain("demo")[-1]
    views = load(name, benchmark="streets").recipe.views
    removed = {view: (own["views"].get(view) or {}).get("terms", {}) for view in views}
    gone = {"views": {view: None for view, stage in views.items() if stage.terms.keys() <= removed[view].keys()}}
    loaded = load(name, overlays=[(source, own), (source, gone)], benchmark="streets", overrides=overrides)
    if loaded.recipe.data.target is None:
        raise UserError(f"recipe {name!r} has no target domain; the demo adapts to one")
    return loaded


def fastest_threads(loaded: Loaded) -> int:
    """1, 2 or all cores: whichever takes a few steps of this recipe fastest here, now."""
    cores = os.cpu_count() or 1
    if torch.cuda.is_available() or cores == 1:
        return 1
    taken = {}
    for threads in sorted({1, 2, min(cores, 8)}):
        tree = {**loaded.tree, "runtime": {**loaded.tree.get("runtime", {}), "threads": threads, "workers": 0}}
        trainer = assemble(checked(tree, loaded.origin, more=False)).trainer
        taken[threads] = time_steps(trainer, 4)
    best = min(taken, key=lambda threads: taken[threads])
    times = ", ".join(f"{threads}: {1000 * seconds:.0f} ms" for threads, seconds in taken.items())
    out.print(f"threads: {best} (a step takes {times})")
    return best


def train(loaded: Loaded, folder: Path, title: str) -> None:
    """Train, or use the finished run that is there."""

    def watch(what: Loaded) -> Watching:
        return Watching(title, what.recipe.train.batch, rows=False)

    began = time.monotonic()
    outcome = runs.train(loaded, folder, watch)
    spent = "already trained" if outcome.already_finished else f"{time.monotonic() - began:.0f} s"
    out.print(f"{title}: {spent}, {folder}")


def report(folder: Path, adapted: Loaded, start: Path, seconds: float) -> Result:
    """Evaluate all three, draw, write the page."""
    names, only = class_set(adapted.recipe).names, PROTOCOLS[adapted.recipe.data.protocol]

    def of_run(path: Path) -> Scores:
        validation = read_result(path).validation
        if validation is None:
            raise UserError(f"{path}: was never validated; delete its result.json and run the demo again")
        return scores(validation.counts(), names, only)

    models = [runs.load_student(path)[0] for path in (start, folder / "adapted")]
    picture = figures.rendered(draw(adapted, models))
    control = scores(control_confusion(models[0], adapted), names, only)
    result = Result(of_run(start), control, of_run(folder / "adapted"), folder)
    write_atomic(result.picture, lambda file: file.write(picture))
    write_text(result.page, web_page(result, picture, adapted, seconds))
    return result


def control_confusion(model: Segmentor, adapted: Loaded) -> np.ndarray:
    """Counts of the source-only model after its BatchNorm statistics were recomputed on the unlabelled target."""
    data, names = adapted.recipe.data, class_set(adapted.recipe).names
    assert data.target is not None and data.validation is not None
    normalise = normalisation(model)
    images = images_of(data.target, data.scale, labels=False)
    recompute_batchnorm(model, (normalise(item["image"][None]) for item in evaluation_loader(images, workers=0)))
    held_out = evaluation_loader(images_of(data.validation, data.scale, names), workers=0)
    return evaluate(model, held_out, normalise, classes=len(names), device=torch.device("cpu")).numpy()


def draw(loaded: Loaded, models: Sequence[Segmentor]) -> Figure:
    """Target image, truth, predictions of source-only and adapted, for evenly spaced validation images."""
    section, classes = loaded.recipe.data.validation, class_set(loaded.recipe)
    assert section is not None
    images = images_of(section, loaded.recipe.data.scale, classes.names)
    rows: list[list[tuple[str, np.ndarray]]] = []
    for position in np.linspace(0, len(images) - 1, SHOWN).round().astype(int):
        item = images[int(position)]
        normalised = normalisation(models[0])(item["image"][None])
        labels = [item["label"].numpy()]
        for model in models:
            with evaluating(model):
                labels.append(predict(model, normalised, tuple(item["label"].shape))[0].numpy().astype(np.uint8))
        tiles = [item["image"].permute(1, 2, 0).numpy(), *(colourise(label, classes.palette) for label in labels)]
        titles = ("", "", "", "") if rows else ("target image", "truth", "source-only", "adapted")
        rows.append(list(zip(titles, tiles, strict=True)))
    return figures.panels(rows, classes.names, classes.palette)


def show(result: Result, recipe: str | None, quick: bool) -> None:
    """The table, where everything is, and what to try next."""
    promise = ["--quick trains too briefly to promise any margin; `udaseg demo` does."] if quick else []
    terminal(result_table(result, promise))
    out.print(f"\npicture {result.picture}\npage    {result.page}\nruns    {result.folder}")
    out.print("\nnext:\n" + "\n".join(f"  {line}" for line in next_steps(result.folder, recipe)))


def result_table(result: Result, notes: Sequence[str] = ()) -> Table:
    """One row a class and one for the mean; differences signed, undefined ones dashes."""

    def row(name: str, a: float, b: float, c: float, mark: Mark = "") -> tuple[Cell, ...]:
        cells = [Cell(text=name, mark=mark), *(Cell(value, mark=mark) for value in (a, b, c)),
                 *(Cell(c - value, mark=mark, signed=True) for value in (a, b))]  # fmt: skip
        return tuple(Cell(text="-") if cell.value is not None and math.isnan(cell.value) else cell for cell in cells)

    s, k, a = result.source_only, result.control, result.adapted
    rows = [row(*cells) for cells in zip(s.names, s.iou, k.iou, a.iou, strict=True)]
    return Table(
        title="IoU on held-out target images, %",
        header=("class", "source-only", "+ BN statistics", "adapted", "over source-only", "over BN"),
        rows=(*rows, row(f"mIoU ({a.counted} classes)", s.miou, k.miou, a.miou, "best")),
        lead="+ BN statistics: the source-only model with BatchNorm recomputed on unlabelled target images (control).",
        notes=tuple(notes),
    )


def next_steps(folder: Path, recipe: str | None) -> list[str]:
    return [
        f"udaseg evaluate {folder / 'adapted'} --teacher",
        "udaseg recipe show demo",
        *(["udaseg demo --recipe daformer"] if recipe is None else []),
        "udaseg train --recipe daformer --benchmark streets model.encoder=mit_b0 model.weights=none --dry-run",
    ]


def web_page(result: Result, picture: bytes, loaded: Loaded, seconds: float) -> str:
    """The result as one self-contained HTML file."""
    source_only, control, adapted = (scores.miou for scores in (result.source_only, result.control, result.adapted))
    notes = (
        f"{seconds:.0f} s on {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads",
        f"seed {loaded.recipe.seed}, {loaded.recipe.train.iterations} iterations of adaptation; {result.folder}",
        *(f"next: {step}" for step in next_steps(result.folder, None)),
    )
    caption = "Evenly spaced validation images; nothing was picked."
    return render_page(
        title=f"udaseg demo: {loaded.recipe.name} on generated street scenes",
        lead="A small network trained on labelled 'game' scenes, then adapted to unlabelled 'camera' scenes. Figures "
        "are IoU in percent on held-out camera scenes, of the student at the last iteration.",
        cards=[
            ("source-only", percent(source_only)),
            ("+ BN statistics", percent(control)),
            ("adapted", percent(adapted)),
            ("gain", f"{adapted - source_only:+.1f}"),
            ("gain over control", f"{adapted - control:+.1f}"),
        ],
        parts=[Part(result_table(result, notes), pictures=[(caption, figures.data_uri(picture, "png"))])],
        footer=f"udaseg {udaseg.__version__}",
    )
