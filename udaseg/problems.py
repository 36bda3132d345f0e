"""What is wrong with a file that a user wrote, in words for the user; pydantic's findings put so."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Iterable
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

KeyPath = tuple[str, ...]
MAP = "a map of keys is expected"
EXPECTED = {"model_type": MAP, "dict_type": MAP, "tuple_type": "a list is expected, as in [512, 512]"}
"""Pydantic's kinds of errors whose own words name Python's types."""
OWN = "user"
"""The type of errors that our validators raise: their message is complete."""


class Problem(NamedTuple):
    """One thing wrong: the key it is about, as a path, and what to do."""

    path: KeyPath
    message: str


def explain(error: ValidationError, schema: type[BaseModel], path: KeyPath = ()) -> list[Problem]:
    """Pydantic's errors as problems: an unknown key gets the nearest valid one, a bad value what is allowed."""
    problems = []
    for detail in error.errors():
        where = tuple(str(step) for step in detail["loc"])
        if detail["type"] == OWN:
            message = detail["msg"]
        elif detail["type"] == "extra_forbidden":
            allowed = detail.get("ctx", {}).get("allowed") or fields_at(schema, where[:-1])
            message = f"unknown key {where[-1]!r}; {suggest(where[-1], allowed)}"
        elif detail["type"] == "missing":
            message = "is missing and has no default"
        elif detail["type"] in EXPECTED:
            message = f"{detail['input']!r} is not allowed: {EXPECTED[detail['type']]}"
        else:
            message = f"{detail['input']!r} is not allowed: {lower_first(detail['msg'])}"
        problems.append(Problem(path + where, message))
    return problems
