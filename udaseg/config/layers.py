"""Recipes in layers: YAML files that extend one another, flattened, with the file each value came from.

Layers, lowest first: the benchmark (what data, which sizes, classes, protocol), then the chain of recipes from the root
parent to the named file, then ``key=value`` overrides. Maps merge, lists replace, null removes. A component may be
written as a name (``encoder: mit_b5``) or as a map (``encoder: {kind: mit_b5, drop_path: 0}``); another kind replaces
the map. What the keys mean is the schema's business; this file needs no torch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

from udaseg.errors import UserError
from udaseg.files import user_path
from udaseg.problems import KeyPath, suggest
from udaseg.yamls import parse_yaml, read_yaml

Tree = dict[str, Any]
COMPONENT_KEYS: tuple[KeyPath, ...] = (
    ("model", "encoder"),
    ("model", "decoder"),
    ("model", "wrapper"),
    ("data", "sampler"),
    ("pseudo_labels",),
)
"""Keys that name a component; views and terms are named by their keys."""
OVERRIDE = "command line"


def flatten(
    name: str,
    *,
    benchmark: str | None = None,
    overrides: Iterable[str] = (),
    overlays: Iterable[tuple[str, Tree]] = (),
    plugins: Iterable[str] = (),
) -> tuple[Tree, dict[KeyPath, str]]:
    """All layers as one tree, and where each value came from. ``overlays`` lie between recipe and overrides.

    Lists of ``plugins`` add up, unlike all other lists.
    """
    layers = chain(name)
    parsed = [parse_override(text) for text in overrides]
    on_top = [*overlays, *((OVERRIDE, as_layer(path, value)) for path, value in parsed)]
    on_top += [(OVERRIDE, {"plugins": plugin_places([*plugins], OVERRIDE)})] if plugins else []
    if benchmark is not None:
        on_top.append((OVERRIDE, {"benchmark": benchmark}))
    chosen = None
    for source, tree in [*layers, *on_top]:
        chosen = one_name(tree.get("benchmark", chosen), f"{source}: benchmark")
    below = chain(chosen, "benchmarks") if chosen is not None else []
    merged: Tree = {}
    origin: dict[KeyPath, str] = {}
    for source, layer in [*below, (layers[-1][0], {"name": Path(name).stem}), *layers, *on_top]:
        merge(merged, normalise(layer), source, origin)
    if chosen is not None:
        merged["benchmark"] = Path(chosen).stem
    lists = [layer["plugins"] for _, layer in [*layers, *on_top] if "plugins" in layer]
    if lists and all(is_texts(named) for named in lists):
        merged["plugins"] = list(dict.fromkeys(plugin for named in lists for plugin in named))
    return drop_nulls(merged), origin


def is_texts(value: object) -> TypeGuard[list[str]]:
    """A list of texts; anything else is for the schema to refuse."""
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def plugin_places(plugins: list[str], source: str, folder: Path = Path()) -> list[str]:
    """Files among the plugins that a layer names as absolute paths; UserError for one that is not there."""
    places = []
    for plugin in plugins:
        path = (folder / user_path(plugin)).resolve()
        if plugin.endswith(".py") and not path.is_file():
            raise UserError(f"{source}: plugins: {plugin}: no such file ({path})")
        places.append(str(path) if plugin.endswith(".py") else plugin)
    return places


def chain(name: str, folder: str = "") -> list[tuple[str, Tree]]:
    """The file's tree behind its parents', root first, each with its file's name."""
    layers: list[tuple[str, Tree]] = []
    path: Path | None = locate(name, folder)
    seen: list[Path] = []
    while path is not None:
        if path.resolve() in seen:
            raise UserError(f"{path}: extends itself: {' <- '.join(p.name for p in [*seen, path])}")
        seen.append(path.resolve())
        tree = read_yaml(path)
        if is_texts(tree.get("plugins")):
            tree["plugins"] = plugin_places(tree["plugins"], label(path), path.parent)
        parent = one_name(tree.pop("extends", None), f"{path}: extends")
        below = None if folder else one_name(tree.get("benchmark"), f"{path}: benchmark")
        if below is not None:
            tree["benchmark"] = str(locate(below, "benchmarks", near=path))
        layers.insert(0, (label(path), tree))
        path = locate(parent, folder, near=path) if parent is not None else None
    return layers


def one_name(value: Any, key: str) -> str | None:
    """A name or path, or nothing; UserError for anything else."""
    if value is not None and not isinstance(value, str):
        raise UserError(f"{key}: {value!r} is not allowed: one name or path is expected")
    return value


def locate(name: str, folder: str = "", near: Path | None = None) -> Path:
    """The file meant by a name, a name with .yaml, or a path (also relative to the file that says ``extends``)."""
    bases = ([near.parent] if near else []) + [Path()]
    for candidate in [base / name for base in bases] + [base / f"{name}.yaml" for base in bases if "/" in name]:
        if candidate.suffix in (".yaml", ".yml") and candidate.is_file():
            return candidate
    known = shipped(folder)
    stem = name.removesuffix(".yaml")
    if stem in known:
        return known[stem]
    what = {"": "recipe", "benchmarks": "benchmark", "studies": "study"}[folder]
    command = "ablate --list" if folder == "studies" else "recipe ls"
    raise UserError(f"no {what} {name!r}: not a file, and {suggest(stem, known)}. `udaseg {command}` lists them.")


def shipped(folder: str = "") -> dict[str, Path]:
    """Name -> file of the shipped recipes (``folder`` "benchmarks", "studies": of those)."""
    return {path.stem: path for path in sorted((recipe_folder() / folder).glob("*.yaml"))}


def recipe_folder() -> Path:
    """Where the shipped recipes lie: inside the wheel, or beside the package in a checkout."""
    inside = Path(__file__).parents[1] / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def label(path: Path) -> str:
    """How a file is called in messages: shipped ones relative to the recipes, others as given."""
    folder = recipe_folder()
    return f"recipes/{path.relative_to(folder)}" if path.is_relative_to(folder) else str(path)


def parse_override(text: str) -> tuple[KeyPath, Any]:
    """``key.sub=value`` with a YAML value."""
    key, equals, value = text.partition("=")
    if not equals or not key or any(not step for step in key.split(".")):
        raise UserError(f"override {text!r}: expected key=value or key.sub=value, as in train.batch=4")
    if not value.strip():
        raise UserError(f"override {text!r}: the value is empty; {key}=null goes back to the default")
    try:
        return tuple(key.split(".")), parse_yaml(value)
    except ValueError as error:
        raise UserError(f"override {text!r}: {value!r} is not a valid YAML value: {error}") from None


def as_layer(path: KeyPath, value: Any) -> Tree:
    for step in reversed(path):
        value = {step: value}
    return dict(value)


def normalise(tree: Tree) -> Tree:
    """Components named by a string become maps; views and terms given as null or {} stay as they are."""
    tree = copy.deepcopy(tree)
    for *parents, last in COMPONENT_KEYS:
        place: Any = tree
        for step in parents:
            place = place.get(step) if isinstance(place, dict) else None
        if isinstance(place, dict) and isinstance(place.get(last), str):
            place[last] = {"kind": place[last]}
    return tree


def merge(below: Tree, above: Tree, source: str, origin: dict[KeyPath, str], path: KeyPath = ()) -> None:
    """Put ``above`` on top of ``below`` in place, noting for each value which file it came from."""
    for key, value in above.items():
        here = (*path, str(key))
        old = below.get(key)
        if value is None:
            below[key] = None
            forget(origin, here)
            origin[here] = source
        elif isinstance(value, dict):
            replaces = not isinstance(old, dict) or ("kind" in value and value["kind"] != old.get("kind"))
            if replaces:
                below[key] = {}
                forget(origin, here)
            origin.setdefault(here, source)
            merge(below[key], value, source, origin, here)
        else:
            below[key] = value
            forget(origin, here)
            origin[here] = source


def forget(origin: dict[KeyPath, str], path: KeyPath) -> None:
    for key in [k for k in origin if k[: len(path)] == path]:
        del origin[key]


def drop_nulls(tree: Tree) -> Tree:
    """null removes a key."""
    return {k: drop_nulls(v) if isinstance(v, dict) else v for k, v in tree.items() if v is not None}


def difference(old: Tree, new: Tree, path: KeyPath = ()) -> list[str]:
    """Readable lines ``key: old -> new`` for every value that differs."""
    lines = []
    for key in sorted({*old, *new}):
        a, b, here = old.get(key), new.get(key), (*path, key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += difference(a, b, here)
        elif a != b:
            lines.append(f"{'.'.join(here)}: {a!r} -> {b!r}")
    if set(old) == set(new) and list(old) != list(new):
        lines.append(f"{'.'.join(path)}: order {', '.join(old)} -> {', '.join(new)}")
    return lines


def leaves(tree: Tree, path: KeyPath = ()) -> Iterable[tuple[KeyPath, Any]]:
    """(path, value) of everything that is not a map, in order."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value
