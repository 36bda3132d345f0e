"""``result.json`` of a finished run, its evaluations on other images, and the one place that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from udaseg.data.classes import PROTOCOLS
from udaseg.errors import UserError
from udaseg.files import read_bytes, write_json
from udaseg.problems import first_problem

FORMAT = 1
Whole = Annotated[int, Field(ge=0, lt=2**63)]


class Validation(BaseModel):
    """Pixels by class, in truth (rows) and prediction (columns), after an iteration."""

    model_config = ConfigDict(strict=True)

    iteration: Whole
    confusion: list[list[Whole]]

    def counts(self) -> npt.NDArray[np.float64]:
        return np.array(self.confusion, np.float64)


class Result(BaseModel):
    """What is needed of the file; ``format`` is 1 where it does not say.

    ``validation``: the student at the last iteration with its running BatchNorm statistics; ``recomputed_bn``: the same
    with those of the target, where the recipe asks for it (``evaluation.bn``).
    """

    model_config = ConfigDict(strict=True)

    format: Literal[1] = 1
    recipe: str
    benchmark: str | None
    seed: Whole
    fingerprint: str
    iterations: Whole
    finished: str = ""
    classes: Annotated[list[str], Field(min_length=1, max_length=255)]
    protocol: str
    validation: Validation | None
    oracle_selection: Validation | None
    recomputed_bn: Validation | None = None

    @model_validator(mode="after")
    def fits(self) -> Result:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"unknown protocol {self.protocol!r}")
        size = len(self.classes)
        if len(set(self.classes)) < size:
            raise ValueError("classes: a name occurs twice")
        for measured in (self.validation, self.oracle_selection, self.recomputed_bn):
            if measured and [len(row) for row in measured.confusion] != [size] * size:
                raise ValueError(f"counts that are not {size} x {size}")
        return self


class Evaluation(BaseModel):
    """``evaluation-<domain>.json``: counts of a finished run on the images of a domain of its recipe.

    ``fingerprint`` and ``finished`` are those of the result that was evaluated.
    """

    model_config = ConfigDict(strict=True)

    format: Literal[1] = 1
    fingerprint: str
    finished: str
    what: str
    confusion: list[list[Whole]]


def evaluation_file(folder: Path, domain: str) -> Path:
    return folder / f"evaluation-{domain}.json"


def read_evaluation(folder: Path, domain: str) -> npt.NDArray[np.float64] | None:
    """Counts (K, K) of a finished run on a domain; None where that result was not evaluated on it. UserError for a
    damaged file."""
    path, result = evaluation_file(folder, domain), read_result(folder)
    if not path.is_file():
        return None
    try:
        evaluation = Evaluation.model_validate_json(read_bytes(path))
        size = len(result.classes)
        if [len(row) for row in evaluation.confusion] != [size] * size:
            raise UserError(f"{path}: confusion: counts that are not {size} x {size}; delete it")
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}; delete it") from None
    of_this_result = (evaluation.fingerprint, evaluation.finished) == (result.fingerprint, result.finished)
    return np.array(evaluation.confusion, np.float64) if of_this_result else None


def write_evaluation(folder: Path, domain: str, what: str, confusion: list[list[int]]) -> None:
    """Keep counts of a finished run on the images of a domain; ``what``: of which network, on which images."""
    result = read_result(folder)
    evaluation = Evaluation(fingerprint=result.fingerprint, finished=result.finished, what=what, confusion=confusion)
    write_json(evaluation_file(folder, domain), evaluation.model_dump(), indent=None)


def read_result(folder: Path) -> Result:
    """result.json of a finished run; UserError where there is none or it is damaged."""
    path = folder / "result.json"
    if not path.is_file():
        raise UserError(f"{folder}: has no result yet; finish it: udaseg train --resume --out {folder}")
    try:
        return Result.model_validate_json(read_bytes(path))
    except ValidationError as error:
        remedy = f"delete it and the run can be finished again: udaseg train --resume --out {folder}"
        raise UserError(f"{path}: {first_problem(error)}; {remedy}") from None
