"""Which rows of a study an override of the command line changes: all that have what it names, or it is refused.

A table whose rows were changed in part compares nothing. A row *has* a key if its recipe, with all defaults filled in,
has the component or section that the key belongs to and, in a component, the setting itself. Rows without it stay as
they are: a setting of a method's term must neither add the term to the control nor drop the control. A key that no row
has adds something, to the rows that have the view it stands in, or else to all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from udaseg.config.checks import components
from udaseg.config.layers import COMPONENT_KEYS, flatten, parse_override
from udaseg.config.load import use_plugins, validated
from udaseg.config.registry import walk
from udaseg.config.schema import Recipe
from udaseg.errors import UserError
from udaseg.problems import KeyPath, suggest
from udaseg.report.study import Row

EVERY_VIEW = "terms"
"""First step of a key that means a term on every view that has it."""


@dataclass(frozen=True)
class Reach:
    """``of``: row -> the overrides that it gets, with whole keys. ``left_alone``: override -> rows without its part."""

    of: dict[str, list[str]]
    left_alone: dict[str, list[str]] = field(default_factory=dict)


def reach(overrides: Sequence[str], rows: Sequence[Row], benchmark: str, chosen: Collection[str]) -> Reach:
    """Which of the rows each override changes. UserError for one that misses rows, of the ``chosen`` ones, which have
    the component it is about in another place."""
    result = Reach({row.name: [] for row in rows})
    recipes = {row.name: recipe_of(row, benchmark, []) for row in rows}
    for text in overrides:
        path, spots = parse_override(text)[0], spots_of(text, recipes)
        refuse_partial(text, recipes, spots, overrides, chosen)
        for row in rows:
            keys = spots.get(row.name, []) if recipes[row.name] else [path]  # what is wrong with it is said later
            result.of[row.name] += [f"{'.'.join(key)}={text.partition('=')[2]}" for key in keys]
            if keys and in_a_component(keys[0]):
                recipes[row.name] = recipe_of(row, benchmark, result.of[row.name])
        if alone := [name for name, recipe in recipes.items() if recipe and name not in spots and name in chosen]:
            result.left_alone[text] = alone
    return result


def recipe_of(row: Row, benchmark: str, overrides: Sequence[str]) -> Recipe | None:
    """A row's recipe without what is refused in it; None where there is none."""
    if row.recipe is None:
        return None
    try:
        tree, _ = flatten(row.recipe, benchmark=benchmark, overrides=[*row.overrides, *overrides])
        use_plugins(tree)
        return validated(tree)[0]
    except UserError:
        return None


def in_a_component(path: KeyPath) -> bool:
    return path[0] == "views" or any(path[: len(key)] == key for key in COMPONENT_KEYS)


# --- where an override goes ----------------------------------------------------------------------------------------


def spots_of(text: str, recipes: Mapping[str, Recipe | None]) -> dict[str, list[KeyPath]]:
    """Row -> the keys of its recipe that an override sets, for the rows that it changes."""
    path = parse_override(text)[0]
    trees = {name: recipe.as_written() for name, recipe in recipes.items() if recipe}
    spots = {name: found for name, tree in trees.items() if (found := [k for k in meant(path, tree) if has(tree, k)])}
    if spots:
        return spots
    if path[0] == EVERY_VIEW:
        raise UserError(f"override {text!r}: no row has it; {near(path, trees.values())}")
    wider = [path[:length] for length in (4, 2) if path[0] == "views" and len(path) > length]
    adding = next((rows for part in wider if (rows := [n for n, tree in trees.items() if has(tree, part)])), trees)
    return {name: [path] for name in adding}


def meant(path: KeyPath, tree: Mapping[str, Any]) -> list[KeyPath]:
    """The key itself; of ``terms.TERM...`` one for each view with the term."""
    if path[0] != EVERY_VIEW:
        return [path]
    return [("views", view, *path) for view, own in tree["views"].items() if path[1:] and path[1] in own["terms"]]


def near(path: KeyPath, trees: Collection[Mapping[str, Any]]) -> str:
    """What may have been meant by a term, or by a setting of it, that no row has."""
    found = [own["terms"] for tree in trees for own in tree["views"].values()]
    known = {key for terms in found for key in terms}
    if path[1:2] and path[1] in known:
        known = {key for terms in found for key in terms.get(path[1], {})}
        return f"settings of {path[1]}: {suggest('.'.join(path[2:]), sorted(known))}"
    return suggest(".".join(path[1:2]), sorted(known))


def has(tree: Mapping[str, Any], path: KeyPath) -> bool:
    """Is there a component with that setting or, of other keys, the section that the key stands in?"""
    place: Any = tree
    for step in path if in_a_component(path) else path[:-1]:
        if not isinstance(place, dict) or (step not in place and in_a_component(path)):
            return False
        place = place.get(step)
    return place is not None or in_a_component(path)


# --- whom it misses ------------------------------------------------------------------------------------------------


def refuse_partial(
    text: str,
    recipes: Mapping[str, Recipe | None],
    spots: Mapping[str, list[KeyPath]],
    overrides: Sequence[str],
    chosen: Collection[str],
) -> None:
    """UserError where rows have the component, but in a place in which not all the rows that are reached have it."""
    reached = {name: dict(places(recipe)) for name, recipe in recipes.items() if recipe and name in spots}
    owners = {(where[path[:n]], path[n:]) for name, where in reached.items() for path in spots[name]
              if (n := owner(path, where))}  # fmt: skip
    given = {parse_override(other)[0] for other in overrides}
    missed: dict[str, list[str]] = {}
    for name, recipe in recipes.items():
        if recipe is None or name in spots or name not in chosen:
            continue
        tree = recipe.as_written()
        for place, component in places(recipe):
            keys = {(*place, *rest) for one, rest in owners if one is component and has(tree, (*place, *rest))} - given
            if keys and not all(place in where for where in reached.values()):
                missed.setdefault(name, []).extend(sorted(".".join(key) for key in keys))
    if missed:
        raise UserError(partial_message(text, missed, len(spots)))


def places(recipe: Recipe) -> Iterator[tuple[KeyPath, type]]:
    """(key, class) of every component of views, terms, sampler and pseudo-label rule, those within others too."""
    for path, kind, part in components(recipe):
        for where, component, _ in walk(kind, part, path):
            yield where, component


def owner(path: KeyPath, where: Mapping[KeyPath, type]) -> int:
    """Steps of the longest beginning of a key that is a component; 0 if none is."""
    return max((n for n in range(1, len(path) + 1) if path[:n] in where), default=0)


def partial_message(text: str, missed: Mapping[str, list[str]], reached: int) -> str:
    path, value = parse_override(text)[0], text.partition("=")[2]
    lines = [f"override {text!r} changes {reached} rows of the study and misses {len(missed)} that have the same "
             "component elsewhere; one table would mix both:"]  # fmt: skip
    lines += [f"  {name}: {', '.join(keys)}" for name, keys in missed.items()]
    every = f"{'.'.join(path[2:])}={value} (the term on every view), or " if path[2:3] == (EVERY_VIEW,) else ""
    return "\n".join([*lines, f"give {every}these keys as well, or --only with the rows that you mean"])
