"""`udaseg evaluate`: a run or a weights file on labelled images."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from udaseg.console import Counting, out, percent, table
from udaseg.engine.measure import Measured, measure
from udaseg.evaluation.confusion import Scores


def evaluate(path: Path, *, as_json: bool, **choices: Any) -> None:
    """Measure (``choices``: those of ``measure``) and print; nothing is written."""
    with Counting("evaluating") as progress:
        measured = measure(path, progress=progress, **choices)
    if as_json:
        print_json(measured)
    else:
        print_table(measured)


def print_json(measured: Measured) -> None:
    """One line; with conditions, a tree for each of them under ``conditions``."""
    trees = {name: as_dict(result, measured.counts[name]) for name, result in measured.scores.items()}
    head = {"what": measured.title, "protocol": measured.protocol, "precision": measured.precision, **trees.pop("all")}
    print(json.dumps({**head, "conditions": trees} if trees else head))


def as_dict(result: Scores, counts: Tensor) -> dict[str, Any]:
    iou = {name: None if math.isnan(value) else value for name, value in zip(result.names, result.iou, strict=True)}
    return {"miou": result.miou, "classes": result.counted, "iou": iou, "confusion": counts.tolist()}


def print_table(measured: Measured) -> None:
    """A row a class; a column for each condition, if there are any, and one for all images."""
    results, every = measured.scores, measured.scores["all"]
    columns = zip(*(result.iou for result in results.values()), strict=True)
    rows = [[name, *(percent(value) for value in values)] for name, values in zip(every.names, columns, strict=True)]
    mean = "mIoU" if len(results) > 1 else f"mIoU over {every.counted} of {len(every.names)} classes"
    rows.append([mean, *(f"{result.miou:.2f}" for result in results.values())])
    if len(results) > 1:
        rows.append(["classes in the mean", *(str(result.counted) for result in results.values())])
    table(("class", *(results if len(results) > 1 else ["IoU %"])), rows, title=measured.title)
    if any(result.counted < len(result.names) for result in results.values()):
        out.print("-: the class is neither in the labels nor predicted, and left out of the mean")
    if measured.ignored:
        names = ", ".join(measured.ignored)
        out.print(f"classes of {measured.dataset} that the model does not have, left out: {names}")
