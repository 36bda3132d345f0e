"""What ``import udaseg`` offers: training, evaluation and prediction as functions, and a network as an object."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from udaseg.deploy.files import Result, predict
from udaseg.deploy.model import Model, Prediction
from udaseg.deploy.model import load as load_model
from udaseg.engine import runs
from udaseg.engine.measure import measure
from udaseg.errors import UserError
from udaseg.evaluation.confusion import Scores

__all__ = ["Model", "Prediction", "Result", "Scores", "UserError", "evaluate", "load_model", "predict", "train"]


def train(
    recipe: str,
    *,
    benchmark: str | None = None,
    overrides: str | Sequence[str] = (),
    out: str | Path | None = None,
    seed: int | None = None,
) -> Path:
    """Train a recipe to the end, or go on with its run; the run folder. ``overrides``: key=value texts."""
    changes = [overrides] if isinstance(overrides, str) else overrides
    loaded = runs.choose_recipe(recipe, benchmark, seed, changes)
    return runs.train(loaded, Path(out) if out is not None else runs.default_folder(loaded)).folder


def evaluate(
    weights: str | Path,
    *,
    benchmark: str | None = None,
    protocol: str | None = None,
    split: str | None = None,
    teacher: bool = False,
    recompute_bn: bool = False,
    precision: str = "fp32",
    limit: int | None = None,
) -> Scores:
    """Per-class IoU in percent (``.miou``: their mean) of a run or weights file on labelled images.

    ``precision``: fp32, as published scores are, or bf16.
    """
    return measure(
        Path(weights), benchmark=benchmark, protocol=protocol, split=split, teacher=teacher,
        recompute_bn=recompute_bn, precision=precision, limit=limit,
    ).scores["all"]  # fmt: skip
