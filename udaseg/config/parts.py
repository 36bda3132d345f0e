"""Named parts: from a name and settings in a recipe to an object.

A part is a class (or function) whose keyword-only parameters are its settings. Their types and defaults are the schema;
parameters listed in ``Table.supplied`` (number of classes, statistics, the frozen encoder) come from the program. So a
new part is one class and one row in a table, and its settings are checked without being written down twice.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from udaseg.errors import UserError

MAP = "a map of keys is expected"
EXPECTED = {"model_type": MAP, "dict_type": MAP, "tuple_type": "a list is expected, as in [512, 512]"}
"""Pydantic's kinds of errors whose own words name Python's types."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a recipe: the key it is about, as a path, and what to do."""

    path: tuple[str, ...]
    message: str


@dataclass(frozen=True)
class Table:
    """All parts for one socket: ``noun`` names it in messages, ``supplied`` lists parameters the user does not set.

    ``inner``: parameters that are parts themselves, each with its table and its name when nothing is said.
    ``near``: what to suggest for an unknown name; None: every row.
    """

    noun: str
    rows: Mapping[str, Callable[..., Any]]
    supplied: frozenset[str] = frozenset()
    inner: Mapping[str, tuple[Table, str]] = field(default_factory=dict)
    near: Callable[[str], Iterable[str]] | None = None

    def check(
        self, name: object, settings: Mapping[str, Any], path: tuple[str, ...]
    ) -> tuple[dict[str, Any], list[Problem]]:
        """Settings completed with their defaults, and what is wrong with them (or with the name)."""
        if not isinstance(name, str) or name not in self.rows:
            known = self.near(str(name)) if self.near else self.rows
            return {}, [Problem(path, f"unknown {self.noun} {name!r}; {suggest(str(name), known)}")]
        schema = settings_schema(self.rows[name], self.supplied.union(self.inner))
        own = dict(settings)
        parts, problems = self._check_inner(self.rows[name], own, path)
        try:
            return {**schema.model_validate(own).model_dump(), **parts}, problems
        except ValidationError as error:
            return {}, [*explain(error, schema, path), *problems]

    def _check_inner(
        self, row: Callable[..., Any], settings: dict[str, Any], path: tuple[str, ...]
    ) -> tuple[dict[str, Any], list[Problem]]:
        """Takes the inner parts out of ``settings``: each as {kind, its settings with defaults}."""
        parts, problems = {}, []
        for key in self.inner.keys() & keyword_parameters(row).keys():
            table, default = self.inner[key]
            given = settings.pop(key, default)
            part = {"kind": given} if isinstance(given, str) else given
            if not isinstance(part, dict):
                problems.append(Problem((*path, key), f"{given!r} is not allowed: a name or {MAP}"))
                continue
            kind = part.get("kind", default)
            rest = {name: value for name, value in part.items() if name != "kind"}
            done, found = table.check(kind, rest, (*path, key))
            parts[key] = {"kind": kind, **done}
            problems += found
        return parts, problems

    def make(self, name: str, settings: Mapping[str, Any], **supplied: Any) -> Any:
        """The object; of the supplied values it gets those its constructor asks for. Its ValueError is the user's."""
        part = self.rows[name]
        parameters = inspect.signature(part).parameters
        wanted = {key: value for key, value in supplied.items() if key in parameters}
        given = dict(settings)
        for key in self.inner.keys() & given.keys():
            inner = dict(given[key])
            given[key] = self.inner[key][0].make(inner.pop("kind"), inner, **supplied)
        try:
            return part(**given, **wanted)
        except ValueError as error:
            raise UserError(f"{self.noun} {name}: {error}") from None


def keyword_parameters(part: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters a caller may still set (those bound by ``functools.partial`` are settled)."""
    bound = part.keywords if isinstance(part, functools.partial) else {}
    parameters = inspect.signature(part).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in bound}


@functools.cache
def settings_schema(part: Callable[..., Any], supplied: frozenset[str]) -> type[BaseModel]:
    """A strict pydantic model of a part's settings."""
    target = part.func if isinstance(part, functools.partial) else part
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in keyword_parameters(part).items()
        if name not in supplied
    }
    return create_model("Settings", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)


def explain(error: ValidationError, schema: type[BaseModel], path: tuple[str, ...] = ()) -> list[Problem]:
    """Pydantic's findings as problems: an unknown key gets the nearest valid one, a bad value what is allowed."""
    problems = []
    for found in error.errors():
        where = tuple(str(step) for step in found["loc"])
        if found["type"] == "extra_forbidden":
            allowed = fields_at(schema, where[:-1])
            message = f"unknown key {where[-1]!r}; {suggest(where[-1], allowed)}"
        elif found["type"] == "missing":
            message = "is missing and has no default"
        elif found["type"] in EXPECTED:
            message = f"{found['input']!r} is not allowed: {EXPECTED[found['type']]}"
        else:
            message = f"{found['input']!r} is not allowed: {lower_first(found['msg'])}"
        problems.append(Problem(path + where, message))
    return problems


def fields_at(schema: type[BaseModel], path: tuple[str, ...]) -> list[str]:
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
        model = next((o for o in options if inspect.isclass(o) and issubclass(o, BaseModel)), None)
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
