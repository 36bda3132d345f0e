# ruff: noqa: F401 - this file hands names on
"""Recipes at toy size (``udaseg.testing.toy``), which of them are whole, and the command in this process."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from udaseg import cli
from udaseg.config import plugins
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


SHIPPED = {kind: registry.entries for kind, registry in REGISTRIES.items()}


def forget_plugins() -> None:
    """As a new process begins; the modules of plugins are those in the working folder."""
    for kind, registry in REGISTRIES.items():
        registry.entries = SHIPPED[kind]
    plugins.LOADED.clear()
    plugins.BROKEN.clear()
    plugins.load_installed.cache_clear()
    for name in [name for name, module in sys.modules.items() if lies_here(module)]:
        del sys.modules[name]


def lies_here(module: object) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).is_relative_to(Path.cwd())
