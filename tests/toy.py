# ruff: noqa: F401 - this file hands names on
"""Recipes at toy size (``udaseg.testing.toy``), which of them are whole, and the command in this process."""

from __future__ import annotations

import functools

from udaseg import cli
from udaseg.config.layers import flatten, shipped
from udaseg.config.load import validated
from udaseg.config.registry import REGISTRIES
from udaseg.testing.toy import MIT, SIZES, SMALL, TINY, load, small

UNKNOWN = tuple(f"unknown {registry.noun} " for registry in REGISTRIES.values())


@functools.cache
def recipes() -> tuple[str, ...]:
    """Shipped recipes whose components are all registered: every one, unless an add-on was deleted."""
    return tuple(name for name in shipped() if not missing_components(name))


def missing_components(name: str) -> list[str]:
    """What the recipe names and no registry knows, as the messages of its problems."""
    _, problems = validated(flatten(name)[0])
    return [problem.message for problem in problems if problem.message.startswith(UNKNOWN)]


def run(*arguments: str) -> int:
    """The command in this process; its exit code."""
    try:
        cli.main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
