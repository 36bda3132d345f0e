"""`udaseg plot`: figures of runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from udaseg.console import Counting
from udaseg.console import out as screen
from udaseg.data.classes import PROTOCOLS, ClassSet
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
from udaseg.report import plots
from udaseg.report.figures import Pixels, colour
from udaseg.report.results import Run, curves, read

KINDS = ("curves", "classes", "confusion", "panels")
FORMS = {".png": "png", ".pdf": "pdf"}


def run(kind: str, folders: Sequence[Path], *, out: Path | None, protocol: str | None, images: int) -> None:
    """Check everything, draw, write under a free name."""
    if kind not in KINDS:
        raise UserError(f"plot {kind!r}: {suggest(kind, KINDS)}")
    if protocol is not None and (kind != "classes" or protocol not in PROTOCOLS):
        raise UserError(f"--protocol {protocol!r}: only for classes; {suggest(protocol, PROTOCOLS)}")
    path = out or (folders[-1] / "panels.png" if kind == "panels" else Path(f"{kind}.png"))
    if path.suffix.lower() not in FORMS:
        raise UserError(f"--out {path}: the ending must be .png or .pdf")
    plots.figure()  # is matplotlib there?
    found = [usable(folder, validated=kind in ("classes", "confusion")) for folder in folders]
    drawn = draw(kind, found, protocol, images)
    screen.print(f"picture {write_free(path, plots.saved(drawn, FORMS[path.suffix.lower()]))}")


def draw(kind: str, found: Sequence[Run], protocol: str | None, images: int) -> Any:
    if kind == "curves":
        return plots.curves_figure(found, [curves(one) for one in found])
    if len({one.classes for one in found}) > 1 and kind != "panels":
        raise UserError(f"{found[0].folder} and others have different classes; plot them apart")
    if kind == "classes":
        return plots.classes_figure(found, protocol)
    return plots.confusion_figure(found) if kind == "confusion" else panels(found, images)


def usable(folder: Path, *, validated: bool) -> Run:
    """A run that can be drawn; UserError for any other folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; `udaseg report` lists those there are")
    if not (folder / "recipe.yaml").exists():
        raise UserError(f"{folder}: not a run folder (it has no recipe.yaml)")
    found = read(folder)
    if found.state == "damaged":
        raise UserError(f"{folder}: damaged: {found.problem}")
    if validated and found.counts is None:
        raise UserError(f"{folder}: has no result yet; finish it: udaseg train --resume --out {folder}")
    return found


# --- panels --------------------------------------------------------------------------------------------------------


def panels(found: Sequence[Run], images: int) -> Any:
    """The images that the last run improves most on the first, and those that it degrades most (one run: its best and
    worst), by the mIoU of each image, most improved first: image, truth, predictions."""
    recipe = runs.read_recipe(found[-1].folder).recipe
    classes, only = class_set(recipe), PROTOCOLS[recipe.data.protocol]
    if recipe.data.validation is None:
        raise UserError(f"{found[-1].folder}: its recipe has no validation images to show")
    items = images_of(recipe.data.validation, recipe.data.scale, classes.names)

    def mious(one: Run) -> dict[int, float]:
        return {i: value for i, _, value in predictions(one, items, range(len(items)), classes, only)}

    last, first = mious(found[-1]), mious(found[0]) if len(found) > 1 else {}
    order = ranked({i: value - first.get(i, 0.0) for i, value in last.items()}, images)
    rows: dict[int, list[tuple[str, Pixels]]] = {}
    for i in order:
        item = items[i]
        truth = colour(item["label"].numpy(), classes.palette)
        rows[i] = [(Path(item["name"]).name, item["image"].permute(1, 2, 0).numpy()), ("truth", truth)]
    for one, name in zip(found, plots.names(found), strict=True):
        for i, label, value in predictions(one, items, order, classes, only):
            gain = f" ({value - first[i]:+.1f})" if first and one is found[-1] else ""
            rows[i].append((f"{name}: {value:.1f}{gain}", colour(label, classes.palette)))
    there = sorted({int(c) for i in order for c in np.unique(items[i]["label"]) if c < len(classes)})
    legend = [(classes.names[c], "#{:02x}{:02x}{:02x}".format(*classes.palette[c])) for c in there]
    return plots.panels_figure(list(rows.values()), legend)


def ranked(gains: dict[int, float], images: int) -> list[int]:
    """The ``images`` // 2 (rounded up) most improved and the rest most degraded, best first; undefined ones are left
    out."""
    order = sorted((i for i, gain in gains.items() if gain == gain), key=lambda i: -gains[i])
    if not order:
        raise UserError("no validation image has labelled pixels: nothing to compare")
    best = order[: (images + 1) // 2]
    return best + [i for i in order[len(order) - images // 2 :] if i not in best]


def predictions(
    one: Run, items: Any, which: Sequence[int], classes: ClassSet, only: Sequence[str]
) -> Iterator[tuple[int, np.ndarray, float]]:
    """(place, train ids (H, W), mIoU) of a run for each of the images."""
    module, metadata = runs.load_student(one.folder)
    if tuple(metadata.classes) != tuple(classes.names):
        raise UserError(f"{one.folder}: has other classes than the last run; plot them apart")
    device, normalise = choose_device("auto"), Normalise(metadata.mean, metadata.std)
    look = inference(metadata.inference, metadata.crop)
    with Counting(f"predicting, {one.folder.name}") as progress, evaluating(module.to(device)):
        for done, i in enumerate(which, 1):
            item = items[i]
            label = item["label"]
            image = normalise(item["image"][None]).to(device)
            guess = predict(module, image, tuple(label.shape), inference=look)[0].cpu()
            value = scores(count(guess, label, len(classes)).numpy(), classes.names, only).miou
            yield i, guess.to(torch.uint8).numpy(), value
            progress(done, len(which))
