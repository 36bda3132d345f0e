"""`udaseg plot`: figures of runs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from udaseg.console import Counting
from udaseg.console import out as screen
from udaseg.data.classes import PROTOCOLS, ClassSet, colourise
from udaseg.data.loading import Normalise
from udaseg.engine import runs
from udaseg.engine.device import choose_device
from udaseg.engine.domains import class_set, images_of
from udaseg.errors import UserError
from udaseg.evaluation.confusion import count, scores
from udaseg.evaluation.evaluate import evaluating, predict
from udaseg.evaluation.inference import inference
from udaseg.files import write_free
from udaseg.problems import suggest
from udaseg.report import figures
from udaseg.report.figures import Bars, Figure, Pixels, Series
from udaseg.report.results import Run, curves, read

KINDS = ("curves", "classes", "confusion", "panels")
FORMS = {".png": "png", ".pdf": "pdf"}


def plot_runs(kind: str, folders: Sequence[Path], *, out: Path | None, protocol: str | None, images: str) -> None:
    """Check everything, draw, write under a free name."""
    if kind not in KINDS:
        raise UserError(f"plot {kind!r}: {suggest(kind, KINDS)}")
    if protocol is not None and (kind != "classes" or protocol not in PROTOCOLS):
        raise UserError(f"--protocol {protocol!r}: only for classes; {suggest(protocol, PROTOCOLS)}")
    if images.isdecimal() and not int(images):
        raise UserError("--images 0: at least 1 is needed")
    path = out or (folders[-1] / "panels.png" if kind == "panels" else Path(f"{kind}.png"))
    if path.suffix.lower() not in FORMS:
        raise UserError(f"--out {path}: the ending must be .png or .pdf")
    chosen = [usable(folder, validated=kind in ("classes", "confusion")) for folder in folders]
    figure = draw(kind, chosen, protocol, images)
    screen.print(f"picture {write_free(path, figures.rendered(figure, FORMS[path.suffix.lower()]))}")


def usable(folder: Path, *, validated: bool) -> Run:
    """A run that can be drawn; UserError for any other folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; `udaseg report` lists those there are")
    if not (folder / "recipe.yaml").exists():
        raise UserError(f"{folder}: not a run folder (it has no recipe.yaml)")
    run = read(folder)
    if run.state == "damaged":
        raise UserError(f"{folder}: damaged: {run.problem}")
    if validated and run.counts is None:
        raise UserError(f"{folder}: has no result yet; finish it: udaseg train --resume --out {folder}")
    return run


def draw(kind: str, chosen: Sequence[Run], protocol: str | None, images: str) -> Figure:
    """One of KINDS; UserError for runs that cannot share a figure."""
    if kind == "panels":
        return draw_panels(chosen, images)
    if kind == "curves":
        return draw_curves(chosen)
    if len({run.classes for run in chosen}) > 1:
        raise UserError(f"{chosen[0].folder} and others have different classes; plot them apart")
    if kind == "classes":
        return draw_classes(chosen, protocol or chosen[0].protocol)
    counts = {name: run.counts for name, run in zip(names_of(chosen), chosen, strict=True) if run.counts is not None}
    return figures.confusion_matrices(chosen[0].classes, counts)


def draw_curves(chosen: Sequence[Run]) -> Figure:
    """Each loss term over the iterations, and the validation mIoU."""
    logs = [curves(run) for run in chosen]
    points = {term: [log.losses.get(term, []) for log in logs] for log in logs for term in log.losses}
    if any(log.miou for log in logs):
        points["validation mIoU, %"] = [log.miou for log in logs]
    if not points:
        raise UserError(f"{chosen[0].folder}: nothing has been logged yet (runtime.log_every); train it further")
    names = names_of(chosen)
    return figures.curves({
        title: [Series(name, line, colour) for colour, (name, line) in enumerate(zip(names, lines, strict=True))]
        for title, lines in points.items()
    })  # fmt: skip


def draw_classes(chosen: Sequence[Run], protocol: str) -> Figure:
    """IoU by class of all runs, over the classes of one protocol."""
    results = [run.scores(protocol) for run in chosen]
    names = [f"{name}: mIoU {one.miou:.1f}" for name, one in zip(names_of(chosen), results, strict=True)]
    bars = [Bars(name, one.iou, colour) for colour, (name, one) in enumerate(zip(names, results, strict=True))]
    return figures.class_bars(results[0].names, bars)


def names_of(chosen: Sequence[Run]) -> list[str]:
    """What tells runs apart: recipe and seed, or their folders."""
    short = [f"{run.recipe}, seed {run.seed}" for run in chosen]
    return short if len(set(short)) == len(chosen) else [str(run.folder) for run in chosen]


# --- panels --------------------------------------------------------------------------------------------------------


def draw_panels(chosen: Sequence[Run], images: str) -> Figure:
    """Image, truth, predictions of the named images, in that order; of a number, the images that the last run improves
    most on the first and those that it degrades most (one run: its best and worst), by the mIoU of each image, most
    improved first."""
    recipe = runs.read_recipe(chosen[-1].folder).recipe
    classes, only = class_set(recipe), PROTOCOLS[recipe.data.protocol]
    if recipe.data.validation is None:
        raise UserError(f"{chosen[-1].folder}: its recipe has no validation images to show")
    items = images_of(recipe.data.validation, recipe.data.scale, classes.names)

    def mious(run: Run, which: Sequence[int]) -> dict[int, float]:
        return {i: value for i, _, value in predictions(run, items, which, classes, only)}

    if images.isdecimal():
        everything = range(len(items))
        last = mious(chosen[-1], everything)
        first = mious(chosen[0], everything) if len(chosen) > 1 else {}
        order = ranked({i: value - first.get(i, 0.0) for i, value in last.items()}, int(images))
    else:
        order = named(images, [pair.image for pair in items.dataset.domain.index.pairs])  # type: ignore[attr-defined]
        first = mious(chosen[0], order) if len(chosen) > 1 else {}
    rows: dict[int, list[tuple[str, Pixels]]] = {}
    for i in order:
        item = items[i]
        truth = colourise(item["label"].numpy(), classes.palette)
        rows[i] = [(Path(item["name"]).name, item["image"].permute(1, 2, 0).numpy()), ("truth", truth)]
    for run, name in zip(chosen, names_of(chosen), strict=True):
        for i, label, value in predictions(run, items, order, classes, only):
            gain = f" ({value - first[i]:+.1f})" if first and run is chosen[-1] else ""
            rows[i].append((f"{name}: {value:.1f}{gain}", colourise(label, classes.palette)))
    shown = sorted({int(c) for i in order for c in np.unique(items[i]["label"]) if c < len(classes)})
    names, palette = [classes.names[c] for c in shown], [classes.palette[c] for c in shown]
    return figures.panels(list(rows.values()), names, palette)


def named(names: str, paths: Sequence[Path]) -> list[int]:
    """Places of the images named, apart by commas: the name of a file, with or without ending, or part of its path."""
    found = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        fits = [i for i, path in enumerate(paths) if name in (path.name, path.stem)]
        fits = fits or [i for i, path in enumerate(paths) if name in path.as_posix()]
        if len(fits) > 1:
            few = ", ".join(paths[i].as_posix() for i in fits[:3])
            raise UserError(f"--images {name}: {len(fits)} validation images fit ({few}, ...); give more of the name")
        if not fits:
            stems = [path.stem for path in paths]
            near = difflib.get_close_matches(name, stems, 3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"they are called {', '.join(stems[:3])}, ..."
            raise UserError(f"--images {name}: no such validation image; {hint}")
        found += fits
    if not found:
        raise UserError(f"--images {names!r}: a number, or names of validation images with commas between them")
    return list(dict.fromkeys(found))


def ranked(gains: dict[int, float], images: int) -> list[int]:
    """The ``images`` // 2 (rounded up) most improved and the rest most degraded, best first; undefined ones are left
    out."""
    order = sorted((i for i, gain in gains.items() if gain == gain), key=lambda i: -gains[i])
    if not order:
        raise UserError("no validation image has labelled pixels: nothing to compare")
    best = order[: (images + 1) // 2]
    return best + [i for i in order[len(order) - images // 2 :] if i not in best]


def predictions(
    run: Run, items: Any, which: Sequence[int], classes: ClassSet, only: Sequence[str]
) -> Iterator[tuple[int, np.ndarray, float]]:
    """(place, train ids (H, W), mIoU) of a run for each of the images."""
    module, metadata = runs.load_student(run.folder)
    if tuple(metadata.classes) != tuple(classes.names):
        raise UserError(f"{run.folder}: has other classes than the last run; plot them apart")
    device, normalise = choose_device("auto"), Normalise(metadata.mean, metadata.std)
    mode = inference(metadata.inference, metadata.crop)
    with Counting(f"predicting, {run.folder.name}") as progress, evaluating(module.to(device)):
        for done, i in enumerate(which, 1):
            item = items[i]
            label = item["label"]
            image = normalise(item["image"][None]).to(device)
            guess = predict(module, image, tuple(label.shape), inference=mode)[0].cpu()
            value = scores(count(guess, label, len(classes)).numpy(), classes.names, only).miou
            yield i, guess.to(torch.uint8).numpy(), value
            progress(done, len(which))
