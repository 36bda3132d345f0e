"""Recipes at toy size: real parts, 64 x 64 crops of 64 x 32 scenes doubled, steps of a fraction of a second."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

from udaseg import cli
from udaseg.config import plugins
from udaseg.config.layers import flatten, shipped
from udaseg.config.load import Loaded, validated
from udaseg.config.load import load as load_recipe
from udaseg.config.registry import REGISTRIES

SIZES = (
    "data.source.size=[128,64]",
    "data.target.size=[128,64]",
    "data.validation.size=[128,64]",
    "data.crop=[64,64]",
    "data.min_pixels=20",
)
SMALL = (
    *SIZES,
    "model.weights=none",
    "train.batch=2",
    "train.precision=fp32",
    "optimiser.warmup=2",
    "runtime.workers=0",
    "runtime.threads=1",
    "runtime.device=cpu",
)
TINY = (*SMALL, "model.encoder=tiny", "model.decoder=fpn")
MIT = (*SMALL, "model.encoder=mit_b0", "model.decoder={kind: daformer, width: 32}")


UNKNOWN = tuple(f"unknown {registry.noun} " for registry in REGISTRIES.values())


@functools.cache
def recipes() -> tuple[str, ...]:
    """Shipped recipes whose components are all registered: every one, unless an add-on was deleted."""
    return tuple(name for name in shipped() if not missing_components(name))


def missing_components(name: str) -> list[str]:
    """What the recipe names and no registry knows, as the messages of its problems."""
    _, problems = validated(flatten(name)[0])
    return [problem.message for problem in problems if problem.message.startswith(UNKNOWN)]


def load(name: str, *overrides: str, base: tuple[str, ...] = TINY, **layers: Any) -> Loaded:
    """A recipe on the small `streets`."""
    if name.startswith("dg_"):  # there is no target whose size could be set
        base = tuple(text for text in base if not text.startswith("data.target"))
    return load_recipe(name, benchmark="streets", overrides=[*base, *overrides], **layers)


def small(name: str) -> tuple[str, ...]:
    """What makes a recipe small and leaves it its own decoder."""
    decoder = load_recipe(name).recipe.model.decoder["kind"]
    return MIT if decoder == "daformer" else (*SMALL, "model.encoder=tiny")


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
    for name in [name for name, module in sys.modules.items() if lies_here(module)]:
        del sys.modules[name]


def lies_here(module: object) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).is_relative_to(Path.cwd())
