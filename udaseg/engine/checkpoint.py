"""Checkpoints: everything a run needs to continue exactly.

Only tensors and plain values, so that loading runs no pickled code (``weights_only=True``). Written atomically; the
last ``runtime.keep_checkpoints`` are kept. Random numbers and the sampler's position need no state: both are functions
of (seed, iteration).
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from udaseg.errors import UserError
from udaseg.files import write_atomic
from udaseg.problems import first_problem
from udaseg.ranges import Momentum

FORMAT = 2
NAME = re.compile(r"step-(\d{7,})\.pt")
State = dict[str, Any]
Tensors = dict[str, Tensor]
Rate = Annotated[float, Field(ge=0, le=1e18)]


class Damaged(UserError):
    """A checkpoint of this run that cannot be continued from; the one before may be."""


class _Group(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    params: list[NonNegativeInt]
    name: str
    lr: Rate
    initial_lr: Rate
    weight_decay: Rate
    betas: tuple[Momentum, Momentum]
    eps: Rate


class _Moments(TypedDict):
    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class _Optimiser(TypedDict):
    state: dict[NonNegativeInt, _Moments]
    param_groups: list[_Group]


class _Meter(TypedDict):
    sums: Tensors
    counts: Tensors
    first_bad: Tensors


class _Measured(TypedDict):
    iteration: NonNegativeInt
    confusion: list[list[NonNegativeInt]]
    miou: float


class Checkpoint(TypedDict):
    """What the file holds. ``fingerprint``: of the run's recipe; files of before it was kept have none."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True, extra="forbid")  # type: ignore[misc]
    format: int
    iteration: int
    seed: int
    fingerprint: NotRequired[str | None]
    learner: Tensors
    teacher: Tensors | None
    optimiser: _Optimiser
    scaler: dict[str, float | int]
    meter: _Meter
    best: _Measured | None
    validation: _Measured | None


def save(folder: Path, state: State, keep: int = 2) -> Path:
    """Write ``step-NNNNNNN.pt`` for ``state["iteration"]`` finished iterations; delete all but the newest ``keep``."""
    path = folder / f"step-{state['iteration']:07d}.pt"
    write_atomic(path, lambda file: torch.save({"format": FORMAT, **state}, file))
    prune(folder, keep)
    return path


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints."""
    for old in listed(folder)[:-keep]:
        old.unlink(missing_ok=True)


def listed(folder: Path) -> list[Path]:
    """Checkpoints, oldest first; files with any other name are not ours."""
    own = [path for path in folder.glob("step-*.pt") if NAME.fullmatch(path.name) and path.is_file()]
    return sorted(own, key=step)


def step(path: Path) -> int:
    """The finished iterations that a checkpoint's name tells."""
    return int(path.stem.removeprefix("step-"))


def newest(folder: Path) -> Path | None:
    """The last checkpoint, None without any."""
    return next(reversed(listed(folder)), None)


def load(path: Path, device: torch.device | str = "cpu") -> State:
    """Read a checkpoint; ``Damaged`` if it is not one, UserError for another format."""
    try:
        with zipfile.ZipFile(path) as file:
            if part := file.testzip():  # torch does not compare checksums
                raise ValueError(f"the checksum of {part} is wrong")
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Damaged(f"{path}: not a readable checkpoint ({reason})") from None
    if isinstance(state, dict) and isinstance(state.get("format"), int) and state["format"] != FORMAT:
        raise UserError(
            f"{path}: not a checkpoint of this version of udaseg (format {FORMAT}). A run that an older version began "
            "is finished with that version; or train it anew in another folder with --out"
        )
    try:
        TypeAdapter(Checkpoint).validate_python(state, strict=True)
    except ValidationError as error:
        raise Damaged(f"{path}: damaged ({first_problem(error)})") from None
    return dict(state)


def refuse_misfit(path: Path, state: State, own: State, parameters: list[Tensor]) -> None:
    """``Damaged`` unless the state can be loaded where ``own`` is from; ``parameters``: the optimiser's, in order."""
    problems = []
    for key in ("learner", "teacher"):
        if shapes(state[key]) != shapes(own[key]):
            problems.append(f"{key}: tensors with other names or shapes")
    groups, own_groups = (s["optimiser"]["param_groups"] for s in (state, own))
    if [group["params"] for group in groups] != [group["params"] for group in own_groups]:
        problems.append("optimiser: other groups of parameters")
    for i, moments in state["optimiser"]["state"].items():
        wanted = parameters[i].shape if i < len(parameters) else None
        if not moments["exp_avg"].shape == moments["exp_avg_sq"].shape == wanted or moments["step"].ndim:
            problems.append(f"optimiser: moments of parameter {i} with another shape")
    if state["scaler"].keys() != own["scaler"].keys():
        problems.append("scaler: other keys")
    for key in ("best", "validation"):
        if (measured := state[key]) and (
            measured["iteration"] > state["iteration"]
            or {len(row) for row in measured["confusion"]} != {len(measured["confusion"])}
        ):
            problems.append(f"{key}: of a later iteration, or counts that are no square")
    meter = state["meter"]
    if meter["sums"].keys() != meter["counts"].keys() or any(t.ndim for part in meter.values() for t in part.values()):
        problems.append("meter: sums and counts that do not belong together")
    if problems:
        raise Damaged(f"{path}: does not fit this run ({problems[0]})")


def shapes(tensors: Tensors | None) -> dict[str, torch.Size] | None:
    return None if tensors is None else {key: value.shape for key, value in tensors.items()}
