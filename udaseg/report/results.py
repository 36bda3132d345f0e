"""Run folders -> what was measured in them. A folder that cannot be read is a run that says what is wrong.

Nothing is written. A thousand folders take seconds: of a finished run only ``result.json`` is parsed, of a recipe only
its head.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError

from udaseg.config.schema import TrainSection
from udaseg.data.classes import PROTOCOLS
from udaseg.engine.domains import class_set
from udaseg.engine.result import read_evaluation, read_result
from udaseg.engine.runlog import held, parse_row
from udaseg.engine.runs import read_recipe
from udaseg.errors import UserError
from udaseg.evaluation.confusion import Scores, scores
from udaseg.files import read_bytes
from udaseg.problems import first_problem
from udaseg.yamls import parse_yaml

State = Literal["finished", "running", "interrupted", "failed", "damaged", "missing"]
Which = Literal["counts", "recomputed", "oracle"]
Counts = npt.NDArray[np.float64]
OF_A_RUN = {"recipe.yaml", "result.json", "metrics.jsonl", "failure.json"}
INSIDE = {"checkpoints", "debug", "mlflow", "tensorboard", "wandb"}
TAIL = 2**17  # bytes at the end of metrics.jsonl that hold a whole row


class Head(BaseModel):
    """What is read of the recipe of a run that is not finished."""

    class Train(BaseModel):
        iterations: Annotated[int, Field(ge=0, lt=2**53)] = TrainSection().iterations

    name: str | None
    benchmark: str | None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None
    train: Train | None


NO_MEMORY = "out of memory"
"""The kind of failure that is a result: a table shows it."""


class Failure(BaseModel):
    """What is kept of a run that failed, in its folder's ``failure.json`` (a bare run's has no message: ``phase``)."""

    kind: str
    message: str = ""
    iteration: int = 0
    time: str = ""
    log: str = ""
    phase: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.message or f'in phase {self.phase}'}" if self.message or self.phase else self.kind


@dataclass(frozen=True, eq=False)
class Run:
    """``problem``: of a damaged run. ``reached``: the last iteration in its log. ``changed``: seconds since 1970.

    ``fingerprint``: of a run that is finished or ran out of memory. ``family``: equal for runs that differ in nothing
    but their seed. ``counts`` are those of the last iteration, ``recomputed`` of the same student with BatchNorm
    statistics of the target, ``oracle`` of the iteration that was best on the validation split.
    """

    folder: Path
    state: State
    problem: str = ""
    failure: Failure | None = None
    recipe: str = ""
    benchmark: str = ""
    seed: int | None = None
    reached: int = 0
    total: int | None = None
    changed: float = 0.0
    fingerprint: str = ""
    family: str = ""
    protocol: str = "all"
    classes: tuple[str, ...] = ()
    counts: Counts | None = field(default=None, repr=False)
    recomputed: Counts | None = field(default=None, repr=False)
    oracle: Counts | None = field(default=None, repr=False)

    @property
    def out_of_memory(self) -> bool:
        return self.failure is not None and self.failure.kind == NO_MEMORY

    def scores(self, protocol: str | None = None, *, of: Which = "counts") -> Scores:
        """IoU of the protocol's classes (None: the run's own protocol); no classes where nothing was validated."""
        counts: Counts | None = getattr(self, of)
        if counts is None:
            return Scores((), ())
        return scores(counts, self.classes, PROTOCOLS[protocol or self.protocol])


def on(run: Run, domain: str) -> Run:
    """A run with its counts on a domain's images; without counts where it was not evaluated on them. "validation" are
    the images of its own result."""
    if domain == "validation" or run.state != "finished":
        return run
    try:
        return replace(run, counts=read_evaluation(run.folder, domain), recomputed=None, oracle=None)
    except (UserError, OSError) as error:
        return replace(run, state="damaged", problem=str(error).removeprefix(f"{run.folder}{os.sep}"))


def scan(root: Path) -> list[Run]:
    """All runs in a folder and the folders in it, the folder itself included, by path. UserError if there is none."""
    if not root.is_dir():
        raise UserError(f"--runs {root}: no such folder; give the one that holds the run folders")
    runs: list[Run] = []

    def unreadable(error: OSError) -> None:
        runs.append(Run(Path(error.filename), "damaged", f"cannot be looked into: {error.strerror}"))

    for place, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = [name for name in folders if name not in INSIDE and not name.startswith(".")]
        if OF_A_RUN.intersection(files):
            runs.append(read(Path(place)))
    return sorted(runs, key=lambda run: run.folder)


def read(folder: Path) -> Run:
    """One run, whatever its condition."""
    changed = 0.0
    try:
        changed = max((path.stat().st_mtime for name in OF_A_RUN if (path := folder / name).is_file()), default=0.0)
        if (folder / "result.json").is_file():
            return finished(folder, changed)
        return unfinished(folder, changed)
    except OSError as error:
        problem = f"{Path(error.filename or folder).name} cannot be read: {error.strerror}"
    except UserError as error:
        problem = str(error).removeprefix(f"{folder}{os.sep}")
    except ValidationError as error:
        problem = f"recipe.yaml: {first_problem(error)}"
    except (ValueError, TypeError, KeyError) as error:
        problem = f"recipe.yaml: {' '.join(str(error).split())}"
    return Run(folder, "damaged", problem, changed=changed)


def finished(folder: Path, changed: float) -> Run:
    result = read_result(folder)
    return Run(
        folder, "finished", recipe=result.recipe, benchmark=result.benchmark or "", seed=result.seed,
        reached=result.iterations, total=result.iterations, changed=changed, fingerprint=result.fingerprint,
        family=family(sections(folder)), protocol=result.protocol, classes=tuple(result.classes),
        counts=result.validation.counts() if result.validation else None,
        recomputed=result.recomputed_bn.counts() if result.recomputed_bn else None,
        oracle=result.oracle_selection.counts() if result.oracle_selection else None,
    )  # fmt: skip


def unfinished(folder: Path, changed: float) -> Run:
    """A run that has not begun, goes on, was interrupted, or failed."""
    failure = read_failure(folder / "failure.json")
    state: State = "running" if held(folder) else "failed" if failure else "interrupted"
    failure = failure if state == "failed" else None
    if not (folder / "recipe.yaml").is_file() and (state != "interrupted" or not changed):  # refused, or not begun
        return Run(folder, "missing" if state == "interrupted" else state, failure=failure, changed=changed)
    parts = sections(folder)
    keys = {key: parse_yaml(parts.get(key, f"{key}: null"))[key] for key in Head.model_fields}
    head = Head.model_validate(keys)
    return Run(
        folder, state, failure=failure, recipe=str(head.name), benchmark=head.benchmark or "", seed=head.seed or 0,
        reached=reached(folder), total=(head.train or Head.Train()).iterations, changed=changed, family=family(parts),
        fingerprint=read_recipe(folder).recipe.fingerprint() if failure and failure.kind == NO_MEMORY else "",
    )  # fmt: skip


def read_failure(path: Path) -> Failure | None:
    if not path.is_file():
        return None
    try:
        return Failure.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return Failure(kind="unknown", message="failure.json cannot be read")


def sections(folder: Path) -> dict[str, str]:
    """Top-level key -> its part of recipe.yaml, as text."""
    text = read_bytes(folder / "recipe.yaml").decode()
    parts = re.split(r"^(?=[^\s#])", text, flags=re.MULTILINE)
    return {part.partition(":")[0]: part for part in parts if part}


def family(parts: dict[str, str]) -> str:
    """Identifies the recipe but for its seed; its name and ``runtime`` change nothing that is computed."""
    kept = sorted(text for key, text in parts.items() if key not in ("seed", "name", "runtime"))
    return hashlib.sha256("".join(kept).encode()).hexdigest()


def reached(folder: Path) -> int:
    """The last iteration in the log; 0 without one."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return 0
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().splitlines()
    return next((row["iteration"] for line in reversed(lines) if (row := parse_row(line))), 0)


# --- curves --------------------------------------------------------------------------------------------------------

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curves:
    """(iteration, value) of each loss term, and of the mIoU (%) of the run's protocol."""

    losses: dict[str, Points]
    miou: Points

    @property
    def loss(self) -> Points:
        """The sum of all terms where all were measured."""
        rows: dict[float, list[float]] = {}
        for points in self.losses.values():
            for x, y in points:
                rows.setdefault(x, []).append(y)
        return [(x, sum(values)) for x, values in sorted(rows.items()) if len(values) == len(self.losses)]


def curves(run: Run) -> Curves:
    """The log of a run; rows that cannot be read are left out."""
    path = run.folder / "metrics.jsonl"
    try:
        lines = path.read_bytes().splitlines() if path.is_file() else []
    except OSError:
        lines = []
    classes, protocol = judged_by(run)
    losses: dict[str, Points] = {}
    miou: Points = []
    for row in filter(None, map(parse_row, lines)):
        for name, value in row.get("losses", {}).items():
            if value is not None and math.isfinite(value):
                losses.setdefault(name, []).append((row["iteration"], value))
        value = mean_of(row.get("validation"), classes, protocol)
        if math.isfinite(value):
            miou.append((row["iteration"], value))
    return Curves(losses, miou)


def judged_by(run: Run) -> tuple[tuple[str, ...], str]:
    """Classes and protocol of a run: its result's or, without one, its recipe's."""
    if run.classes:
        return run.classes, run.protocol
    try:
        recipe = read_recipe(run.folder).recipe
        return tuple(class_set(recipe).names), recipe.data.protocol
    except (UserError, OSError):
        return (), run.protocol


def mean_of(confusion: Sequence[Sequence[int]] | None, classes: Sequence[str], protocol: str) -> float:
    """mIoU (%) of a row's counts; NaN where there are none that fit."""
    size = len(classes)
    if not confusion or [len(row) for row in confusion] != [size] * size:
        return math.nan
    return scores(np.array(confusion, np.float64), classes, PROTOCOLS[protocol]).miou
