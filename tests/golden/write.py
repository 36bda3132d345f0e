"""Writes the golden files anew: every shipped recipe and benchmark as it is in effect, one line a key.

``python tests/golden/write.py`` from a checkout; `git diff` then shows what a change means for every recipe.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from udaseg.config.checks import components
from udaseg.config.layers import leaves, shipped
from udaseg.config.load import Loaded, benchmark_data, load
from udaseg.config.registry import walk
from udaseg.errors import UserError
from udaseg.yamls import read_yaml

TESTS = Path(__file__).parents[1]
RECIPES, BENCHMARKS = TESTS / "golden", TESTS / "golden" / "benchmarks"
ADDON_RECIPES = TESTS / "addons" / "golden"
COMMAND = "python tests/golden/write.py"


def main() -> None:
    """Write all of them; files of recipes that are gone are removed."""
    folders = {RECIPES: baselines(), ADDON_RECIPES: addon_recipes()}
    lines = {folder / f"{name}.yaml": recipe_lines(name) for folder, names in folders.items() for name in names}
    lines |= {BENCHMARKS / f"{name}.yaml": benchmark_lines(name) for name in shipped("benchmarks")}
    for folder in (*folders, BENCHMARKS):
        folder.mkdir(parents=True, exist_ok=True)
        for path in set(folder.glob("*.yaml")) - set(lines):
            path.unlink()
    for path, values in lines.items():
        path.write_text(text_of(values), encoding="utf-8")
    sys.stdout.write(f"{len(lines)} files written\n")


def baselines() -> list[str]:
    """Shipped recipes that need no add-on; without the package of add-ons the others do not load."""
    return [name for name in shipped() if not uses_addons(name)]


def addon_recipes() -> list[str]:
    return [name for name in shipped() if uses_addons(name)]


def uses_addons(name: str) -> bool:
    """Does a component of the recipe come from an add-on (or from none that is installed)?"""
    try:
        return any(".addons." in component.__module__ for component in used(load(name)))
    except UserError:
        return True


def used(loaded: Loaded) -> list[type]:
    """The classes of a recipe's views, terms, sampler and pseudo-label rule, and of the components within them."""
    return [component for _, kind, part in components(loaded.recipe) for _, component, _ in walk(kind, part)]


def recipe_lines(name: str) -> dict[str, Any]:
    """Key -> value of a recipe as `udaseg recipe show` lists it, without what only says how to run it."""
    tree = load(name).recipe.as_written()
    del tree["runtime"]
    return flat(tree)


def benchmark_lines(name: str) -> dict[str, Any]:
    return flat({"data": benchmark_data(name).model_dump()})


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Values as YAML reads them back: lists instead of tuples."""
    return {".".join(path): list(v) if isinstance(v, tuple) else v for path, v in leaves(tree)}


def text_of(values: dict[str, Any]) -> str:
    """YAML with one line a key."""
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True, width=10_000)


def compare(path: Path, lines: dict[str, Any]) -> None:
    """Fail with the keys that differ between a golden file and what is in effect now."""
    golden = read_yaml(path, "golden file")
    keys = [key for key in {**golden, **lines} if golden.get(key, "absent") != lines.get(key, "absent")]
    texts = [f"{key}: {golden.get(key, 'absent')} -> {lines.get(key, 'absent')}" for key in keys]
    if not texts and list(golden) != list(lines):
        texts = ["the order of the keys; that of the views is the order of the step"]
    if texts:
        differences = "\n  ".join(texts)
        pytest.fail(f"{path.name} says otherwise:\n  {differences}\nif that is meant: {COMMAND}, then read git diff")


if __name__ == "__main__":
    main()
