"""What ``import udaseg`` offers: training, evaluation and prediction as functions, and a network as an object.

These names, ``udaseg.plugin`` and the command line are the public interface; all else may change between versions. What
the caller can mend raises ``UserError`` with the message that the command prints.
"""

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
    """Train a recipe to the end, or go on with its run; the run folder. A finished run is left alone.

    ``recipe``, ``benchmark``: a shipped name or a path to a YAML file. ``overrides``: key=value texts, above both.
    ``out``: the run folder; default: runs/<recipe>-<benchmark>-seed<N>. ``seed``: instead of the recipe's.
    UserError lists all that is wrong with the recipe, or missing for it; one for a folder that holds something else.
    Call it in the main thread: Ctrl-C and SIGTERM save a checkpoint before they stop it.
    """
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

    ``weights``: a run folder or a weights file; ``teacher``: the run's teacher instead of its student.
    ``benchmark``: whose images; default: those of the training. ``split``: of them; default: the recipe's for
    validation. ``protocol``: which classes count, as in synthia16. ``limit``: only the first images.
    ``recompute_bn``: first recompute BatchNorm statistics on the unlabelled target.
    ``precision``: fp32, as published scores are, or bf16.
    UserError for a network, images or a name that are not there.
    """
    return measure(
        Path(weights), benchmark=benchmark, protocol=protocol, split=split, teacher=teacher,
        recompute_bn=recompute_bn, precision=precision, limit=limit,
    ).scores["all"]  # fmt: skip
