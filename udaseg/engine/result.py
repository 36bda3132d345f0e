"""``result.json`` of a finished run: its schema, and the one place that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from udaseg.data.classes import PROTOCOLS
from udaseg.errors import UserError
from udaseg.files import read_bytes
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
    """What is needed of the file; ``format`` is 1 where it does not say."""

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

    @model_validator(mode="after")
    def fits(self) -> Result:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"unknown protocol {self.protocol!r}")
        size = len(self.classes)
        if len(set(self.classes)) < size:
            raise ValueError("classes: a name occurs twice")
        for measured in (self.validation, self.oracle_selection):
            if measured and [len(row) for row in measured.confusion] != [size] * size:
                raise ValueError(f"counts that are not {size} x {size}")
        return self


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
