"""Recipes at toy size: real parts, 64 x 64 crops of 64 x 32 scenes doubled, steps of a fraction of a second."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from udaseg.config.layers import flatten
from udaseg.config.load import Loaded
from udaseg.config.load import load as load_recipe
from udaseg.data.prepare import prepare
from udaseg.data.streets import write_streets

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


def load(name: str, *overrides: str, base: tuple[str, ...] = TINY, **layers: Any) -> Loaded:
    """A recipe, shipped or a file, on the small `streets`; UserError as for every recipe."""
    tree, _ = flatten(name, benchmark="streets", overrides=overrides, **layers)
    if "target" not in tree["data"]:  # there is none whose size could be set
        base = tuple(text for text in base if not text.startswith("data.target"))
    return load_recipe(name, benchmark="streets", overrides=[*base, *overrides], **layers)


def small(name: str) -> tuple[str, ...]:
    """What makes a recipe small and leaves it its own decoder."""
    decoder = load_recipe(name).recipe.model.decoder["kind"]
    return MIT if decoder == "daformer" else (*SMALL, "model.encoder=tiny")


@functools.cache
def data_home() -> Path:
    """A data home with a small, prepared `streets`: 24 source, 12 + 6 target scenes of 64 x 32; one a process."""
    folder = tempfile.TemporaryDirectory(prefix="udaseg-testing-")
    _kept.append(folder)
    home = Path(folder.name)
    write_streets(home / "streets", size=(64, 32), source=24, target_train=12, target_val=6, source_val=2, workers=1)
    with living_at(home):
        for name in ("streets_source", "streets_target"):
            prepare(name, workers=1)
    return home


_kept: list[tempfile.TemporaryDirectory[str]] = []
"""Deleted when the process ends."""


@contextmanager
def living_at(home: Path) -> Iterator[None]:
    """Inside, data sets are looked for there."""
    before = os.environ.get("UDASEG_DATA")
    os.environ["UDASEG_DATA"] = str(home)
    try:
        yield
    finally:
        os.environ.pop("UDASEG_DATA") if before is None else os.environ.update(UDASEG_DATA=before)
