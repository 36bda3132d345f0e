"""What is wrong with a file that a user wrote, in words for the user; pydantic's findings put so."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from typing_extensions import LiteralString

KeyPath = tuple[str, ...]
MAP = "a map of keys is expected"
EXPECTED = {
    "model_type": MAP,
    "dict_type": MAP,
    "list_type": "a list is expected, as in [this, that]",
    "tuple_type": "a list is expected, as in [512, 512]",
}
"""Pydantic's kinds of errors whose own words name Python's types."""
OWN = "user"
"""The type of errors that our validators raise: their message is complete."""


class Problem(NamedTuple):
    """One thing wrong: the key it is about, as a path, and what to do."""

    path: KeyPath
    message: str


class Strict(BaseModel):
    """A model without unknown keys, infinite numbers, and true for 1."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def refuse_booleans(cls, value: object, info: ValidationInfo) -> object:
        """Pydantic takes true for a number."""
        kinds = list(leaf_types(cls.model_fields[info.field_name or ""].annotation))
        if bool in kinds or not (int in kinds or float in kinds):
            return value
        parts = {(str(i),): part for i, part in enumerate(value)} if isinstance(value, list | tuple) else {(): value}
        wrong = {path: part for path, part in parts.items() if isinstance(part, bool)}
        if wrong:
            raise combined(
                Problem(path, f"{part} is not allowed: a number is expected") for path, part in wrong.items()
            )
        return value


def checked(schema: type[BaseModel], value: object) -> BaseModel:
    """``value`` as the schema, for use inside another schema's validator: errors carry their final message."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise combined(explain(error, schema)) from None


def explain(error: ValidationError, schema: type[BaseModel], path: KeyPath = ()) -> list[Problem]:
    """Pydantic's errors as problems: an unknown key gets the nearest valid one, a bad value what is allowed."""
    problems = []
    for detail in error.errors():
        where = tuple(str(step) for step in detail["loc"])
        if detail["type"] == OWN:
            message = detail["msg"]
        elif detail["type"] == "extra_forbidden":
            allowed = fields_at(schema, where[:-1])
            message = f"unknown key {where[-1]!r}; {suggest(where[-1], allowed)}"
        elif detail["type"] == "missing":
            message = "is missing and has no default"
        elif detail["type"] in EXPECTED:
            message = f"{detail['input']!r} is not allowed: {EXPECTED[detail['type']]}"
        else:
            message = f"{detail['input']!r} is not allowed: {lower_first(detail['msg'])}"
        problems.append(Problem(path + where, message))
    return problems


def first_problem(error: ValidationError) -> str:
    """What is wrong with a file that the program wrote, in a few words: the key, and why its value is refused."""
    problem = error.errors(include_url=False, include_input=False)[0]
    return ": ".join([*(str(step) for step in problem["loc"]), problem["msg"].removeprefix("Value error, ")])


@contextmanager
def collecting(problems: list[Problem], path: KeyPath) -> Iterator[None]:
    """Inside, errors of a validator become problems under ``path``."""
    try:
        yield
    except ValidationError as error:
        problems += explain(error, BaseModel, path)
    except PydanticCustomError as error:
        problems.append(Problem(path, error.message()))


def combined(problems: Iterable[Problem]) -> ValidationError:
    """What a validator raises to tell several problems at once."""
    lines = [InitErrorDetails(type=refuse(message), loc=path, input=None) for path, message in problems]
    return ValidationError.from_exception_data("recipe", lines)


def leaf_types(annotation: Any) -> Iterator[Any]:
    """The types that a type is made of: int and None of ``tuple[int, int] | None``."""
    inside = typing.get_args(annotation)
    for part in inside:
        yield from leaf_types(part)
    if not inside:
        yield annotation


def listed(problems: Iterable[Problem], origin: Mapping[KeyPath, str]) -> str:
    """One line a problem: file, key, what is wrong."""
    return "\n".join(f"  {set_by(p.path, origin)}: {'.'.join(p.path)}: {p.message}" for p in problems)


def set_by(path: KeyPath, origin: Mapping[KeyPath, str]) -> str:
    """The file that set a key, or the nearest key above it."""
    for length in range(len(path), 0, -1):
        if path[:length] in origin:
            return origin[path[:length]]
    return "recipe"


def refuse(message: str) -> PydanticCustomError:
    """What a validator raises with a message of its own."""
    return PydanticCustomError(OWN, literal(message))


def literal(message: str) -> LiteralString:
    return message


def fields_at(schema: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys allowed at a path inside a (nested) model."""
    model: Any = schema
    in_many = False
    for step in path:
        if in_many:  # the key of a map of models, or the place in a list of them
            in_many = False
            continue
        annotation = model.model_fields[step].annotation if step in model.model_fields else None
        in_many = typing.get_origin(annotation) in (dict, list)
        options = [annotation, *typing.get_args(annotation)]
        model = next((o for o in options if isinstance(o, type(BaseModel))), None)
        if model is None:
            return []
    return list(model.model_fields)


def suggest(name: str, allowed: Iterable[str]) -> str:
    """'did you mean x? allowed: ...', the end of every message about a wrong name."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, 1, cutoff=0.5)
    listing = f"allowed: {', '.join(names)}" if names else "nothing is allowed here"
    return f"did you mean {close[0]!r}? {listing}" if close else listing


def lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
