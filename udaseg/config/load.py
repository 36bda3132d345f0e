"""From a recipe's name to a checked recipe, or to a message that lists everything wrong with it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from udaseg.config.checks import inconsistencies
from udaseg.config.layers import chain, drop_nulls, flatten, is_texts, merge, normalise
from udaseg.config.plugins import BROKEN, load_installed, load_plugins
from udaseg.config.schema import DataSection, Recipe, Tree
from udaseg.errors import UserError
from udaseg.problems import KeyPath, Problem, explain, listed

ROUNDS = 5
STAND_INS = {("model", "encoder"): "tiny", ("model", "decoder"): "linear"}
"""For required components that were refused, while everything else is checked."""


@dataclass(frozen=True)
class Loaded:
    """A recipe with its flattened tree and, for each leaf, the file that set it."""

    recipe: Recipe
    tree: Tree
    origin: dict[KeyPath, str]


def load(name: str, **layers: Any) -> Loaded:
    """Find, flatten and check a recipe; a UserError lists *all* that is wrong with file, key and what is allowed."""
    return checked(*flatten(name, **layers))


def checked(tree: Tree, origin: dict[KeyPath, str], *, more: bool = True) -> Loaded:
    """Check a flattened tree; ``more``: also what no single key shows (not of one read back from a run folder).

    A run's plugins may have gone since: that is a problem where a component is missing now.
    """
    gone = use_plugins(tree)
    recipe, problems = validated(tree)
    problems += inconsistencies(recipe) if recipe and more else []
    if problems or recipe is None:
        missing = [f"plugin {name} is gone; put it back, or name its new place with --plugin" for name in gone]
        lines = "\n".join([listed(problems, origin), *(f"  {text}" for text in [*missing, *BROKEN.values()])])
        raise UserError(f"recipe {tree.get('name')!r} has {len(problems)} problem(s):\n{lines}")
    return Loaded(recipe, tree, origin)


def use_plugins(tree: Tree) -> list[str]:
    """Load the installed plugins and those of a flattened tree; the files among them that are gone."""
    plugins = named if is_texts(named := tree.get("plugins")) else []
    gone = [name for name in plugins if name.endswith(".py") and not Path(name).is_file()]
    load_installed()
    load_plugins(name for name in plugins if name not in gone)
    return gone


def validated(tree: Tree) -> tuple[Recipe | None, list[Problem]]:
    """The recipe and its problems. Refused values are left out, so that the rest can be checked at the same time."""
    tree = copy.deepcopy(tree)
    problems: list[Problem] = []
    for attempt in range(ROUNDS):
        try:
            return Recipe.model_validate(tree), problems
        except ValidationError as error:
            refused = explain(error, Recipe)
        problems += refused if attempt == 0 else []
        for path, _ in refused:
            remove(tree, path)
    return None, problems


def remove(tree: Tree, path: KeyPath) -> None:
    """Drop the refused value; a required component gets a stand-in, an emptied map goes as well."""
    *parents, last = path
    place: Any = tree
    for step in parents:
        place = place.get(step) if isinstance(place, dict) else None
    if path in STAND_INS:
        tree.setdefault("model", {})[last] = STAND_INS[path]
    elif isinstance(place, dict) and last in place:
        del place[last]
    elif parents:
        remove(tree, tuple(parents))


def benchmark_data(name: str) -> DataSection:
    """The checked data section of a benchmark by itself."""
    tree: Tree = {}
    origin: dict[KeyPath, str] = {}
    for source, layer in chain(name, "benchmarks"):
        merge(tree, normalise(layer), source, origin)
    try:
        return DataSection.model_validate(drop_nulls(tree).get("data", {}))
    except ValidationError as error:
        problems = explain(error, DataSection, ("data",))
        raise UserError(f"benchmark {name!r} has {len(problems)} problem(s):\n{listed(problems, origin)}") from None


def refuse(problems: list[Problem], loaded: Loaded) -> None:
    """A UserError that lists all problems with the file each key came from; nothing if there are none."""
    if problems:
        raise UserError(f"recipe {loaded.recipe.name!r} cannot run:\n{listed(problems, loaded.origin)}")
