"""Recipes: YAML files that extend one another, checked strictly, flattened, with the file each value came from.

Layers, lowest first: the benchmark (what data, which sizes, classes, protocol), then the chain of recipes from the root
parent to the named file, then ``key=value`` overrides. Maps merge, lists replace, null removes. A *part* may be written
as a name (``encoder: mit_b5``) or as a map (``encoder: {kind: mit_b5, drop_path: 0}``); another kind replaces the map.

This file knows the structure of a recipe; which parts exist is told to it (``sockets``), so it imports no torch.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from udaseg.config.parts import MAP, Problem, Table, explain, suggest
from udaseg.errors import UserError
from udaseg.yamls import parse_yaml, read_yaml

Tree = dict[str, Any]
KeyPath = tuple[str, ...]
PART_KEYS: tuple[KeyPath, ...] = (
    ("model", "encoder"),
    ("model", "decoder"),
    ("model", "wrapper"),
    ("data", "sampler"),
    ("pseudo_labels",),
)
OVERRIDE = "command line"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class DomainSection(Section):
    """One domain: a data set, its split, where it lies (None: the default folders) and the size it is resized into."""

    dataset: str = Field(description="a data set's name, or a YAML file that describes one")
    split: str = "train"
    root: str | None = None
    size: tuple[PositiveInt, PositiveInt] | None = Field(None, description="(width, height), ratio kept; None: native")
    merge: dict[str, str] = Field({}, description="class of the data set -> class of the recipe, where names differ")


class MarginsSection(Section):
    """Pixels of the target that cannot be trusted, at image size ``at`` = (width, height)."""

    top: NonNegativeInt = 0
    bottom: NonNegativeInt = 0
    left: NonNegativeInt = 0
    right: NonNegativeInt = 0
    at: tuple[PositiveInt, PositiveInt]


class DataSection(Section):
    """``scale`` multiplies sizes and crop (HRDA: 2). ``labelled``: the domain that supplies labels (oracle: target).

    Classes of different data sets are matched by name; those without a partner are ignored.
    """

    source: DomainSection
    target: DomainSection | None = None
    validation: DomainSection | None = None
    classes: str | None = Field(None, description="the data set whose classes are learnt; None: the source's")
    protocol: str = "cityscapes19"
    crop: tuple[PositiveInt, PositiveInt] = Field(description="(height, width)")
    scale: PositiveInt = 1
    synthetic_source: bool = Field(True, description="rendered source images; decides what MIC masks")
    labelled: Literal["source", "target"] = "source"
    cat_max_ratio: float = Field(0.75, gt=0, le=1)
    photometric: bool = False
    min_pixels: PositiveInt = Field(3000, description="pixels of a class at native size that make an image count")
    crop_margins: tuple[NonNegativeInt, NonNegativeInt] = Field(
        (0, 0), description="(top, bottom) rows of the crop at scale 1"
    )
    image_margins: MarginsSection | None = None
    margins: Literal["none", "crop", "image"] = "none"
    sampler: dict[str, Any] = {"kind": "uniform"}


class ModelSection(Section):
    """``weights``: auto (the encoder's official file), none or a path; ``start``: a whole model's weights, or a run,
    in whose path {seed} is this run's seed.

    ``wrapper``: how encoder and decoder are used together, if not plainly (hrda).
    """

    encoder: dict[str, Any]
    decoder: dict[str, Any]
    wrapper: dict[str, Any] | None = None
    weights: str = "auto"
    start: str | None = None


class TeacherSection(Section):
    alpha: float = Field(0.999, ge=0, le=1)


class OptimiserSection(Section):
    lr: float = Field(6e-5, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    head_lr_factor: float = Field(10.0, gt=0)
    decay_one_dimensional: bool = Field(True, description="False: no weight decay on biases and norms anywhere")
    warmup: int = Field(1500, ge=0)
    power: float = 1.0
    minimum: float = Field(0.0, ge=0)


class TrainSection(Section):
    iterations: PositiveInt = 40000
    batch: PositiveInt = Field(2, description="images per domain and step, over all devices")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    channels_last: bool = True


class EvaluationSection(Section):
    """``slide``: windows of the training crop's size, half overlapping; ``window_batch`` of them at once."""

    every: PositiveInt = 4000
    mode: Literal["whole", "slide"] = "whole"
    window_batch: PositiveInt = 3


class RuntimeSection(Section):
    """How to run, not what: these keys may change when a run is resumed."""

    device: str = "auto"
    workers: int = Field(4, ge=0)
    threads: PositiveInt | None = None
    cache_gb: float = Field(0.0, ge=0, description="decoded images each loading process may keep in memory")
    checkpoint_minutes: float = Field(10.0, ge=0)
    log_every: PositiveInt = 50
    tensorboard: bool = False


class StageSection(Section):
    options: dict[str, Any] = {}
    terms: dict[str, dict[str, Any]] = {}
    weights: dict[str, float] = {}


class Recipe(Section):
    """A complete, checked recipe. ``views`` keeps its order: that is the order of the step."""

    name: str
    benchmark: str | None = None
    seed: int = Field(0, ge=0, lt=2**63)
    data: DataSection
    model: ModelSection
    views: dict[str, StageSection]
    pseudo_labels: dict[str, Any] = {"kind": "confidence_share"}
    teacher: TeacherSection = TeacherSection()
    optimiser: OptimiserSection = OptimiserSection()
    train: TrainSection = TrainSection()
    evaluation: EvaluationSection = EvaluationSection()
    runtime: RuntimeSection = RuntimeSection()

    def fingerprint(self) -> str:
        """Identifies what is computed (in which order, too): equal where only name or ``runtime`` differ."""
        text = json.dumps(self.model_dump(exclude={"name", "runtime"}))
        return hashlib.sha256(text.encode()).hexdigest()


Checks = Callable[[Recipe], list[Problem]]


@dataclass(frozen=True)
class Loaded:
    """A recipe with its flattened tree and, for each leaf, the file that set it."""

    recipe: Recipe
    tree: Tree
    origin: dict[KeyPath, str]


def recipe_folder() -> Path:
    """Where the shipped recipes lie: inside the wheel, or beside the package in a checkout."""
    inside = Path(__file__).parents[1] / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def shipped(folder: str = "") -> dict[str, Path]:
    """Name -> file of the shipped recipes (``folder`` "benchmarks", "studies": of those)."""
    return {path.stem: path for path in sorted((recipe_folder() / folder).glob("*.yaml"))}


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
    """Parts named by a string become maps; views and terms given as null or {} stay as they are."""
    tree = copy.deepcopy(tree)
    for *parents, last in PART_KEYS:
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


def flatten(
    name: str,
    *,
    benchmark: str | None = None,
    overrides: Iterable[str] = (),
    overlays: Iterable[tuple[str, Tree]] = (),
) -> tuple[Tree, dict[KeyPath, str]]:
    """All layers as one tree, and where each value came from. ``overlays`` lie between recipe and overrides."""
    layers = chain(name)
    parsed = [parse_override(text) for text in overrides]
    on_top = [*overlays, *((OVERRIDE, as_layer(path, value)) for path, value in parsed)]
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
    return drop_nulls(merged), origin


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


def load(sockets: Mapping[str, Table], name: str, more: Checks = lambda recipe: [], **layers: Any) -> Loaded:
    """Flatten and check; a UserError lists *all* that is wrong with file, key and what is allowed."""
    tree, origin = flatten(name, **layers)
    return checked(tree, origin, sockets, more)


def checked(
    tree: Tree, origin: dict[KeyPath, str], sockets: Mapping[str, Table], more: Checks = lambda recipe: []
) -> Loaded:
    """Check a flattened tree (one read back from a run folder, too); ``more`` finds what no single key shows."""
    problems: list[Problem] = []
    prepared = complete_parts(copy.deepcopy(tree), sockets, problems)
    recipe = None
    try:
        recipe = Recipe.model_validate(prepared)
    except ValidationError as error:
        problems = [*explain(error, Recipe), *problems]
        recipe = without(prepared, error)
    problems += more(recipe) if recipe else []
    if problems or recipe is None:
        raise UserError(f"recipe {tree.get('name')!r} has {len(problems)} problem(s):\n{listed(problems, origin)}")
    return Loaded(recipe, tree, origin)


def without(tree: Tree, error: ValidationError) -> Recipe | None:
    """The recipe with every refused value at its default, so that all other problems can be told at the same time."""
    for found in error.errors():
        *parents, last = found["loc"]
        place: Any = tree
        for step in parents:
            place = place.get(step) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.pop(last, None)
    try:
        return Recipe.model_validate(tree)
    except ValidationError:
        return None


def listed(problems: Iterable[Problem], origin: Mapping[KeyPath, str]) -> str:
    """One line a problem: file, key, what is wrong."""
    return "\n".join(f"  {found_in(p.path, origin)}: {'.'.join(p.path)}: {p.message}" for p in problems)


def found_in(path: KeyPath, origin: Mapping[KeyPath, str]) -> str:
    """The file that set a key, or the nearest key above it."""
    for length in range(len(path), 0, -1):
        if path[:length] in origin:
            return origin[path[:length]]
    return "recipe"


def complete_parts(tree: Tree, sockets: Mapping[str, Table], problems: list[Problem]) -> Tree:
    """Check every part's settings against its constructor, fill in defaults, split views into options and terms."""
    for *parents, last in PART_KEYS:
        place: Any = tree
        for step in parents:
            place = place.get(step) if isinstance(place, dict) else None
        part = place.get(last) if isinstance(place, dict) else None
        if isinstance(part, dict):
            settings = {k: v for k, v in part.items() if k != "kind"}
            done, found = sockets[last].check(part.get("kind"), settings, (*parents, last))
            place[last] = {"kind": part.get("kind"), **done}
            problems += found
    views = tree.get("views")
    if not isinstance(views, dict) or not views:
        problems.append(Problem(("views",), f"a recipe needs at least one view; {suggest('', sockets['view'].rows)}"))
        return {**tree, "views": {}}
    return {**tree, "views": {name: stage(name, view, sockets, problems) for name, view in views.items()}}


def stage(name: str, view: object, sockets: Mapping[str, Table], problems: list[Problem]) -> Tree:
    """A view as written -> its options and terms, checked."""
    if not isinstance(view, dict):
        problems.append(Problem(("views", name), f"{view!r} is not allowed: {MAP}"))
        return {}
    settings = dict(view)
    terms = settings.pop("terms", None) or {}
    options, found = sockets["view"].check(name, settings, ("views", name))
    problems += found
    if not isinstance(terms, dict) or not terms:
        problems.append(
            Problem(("views", name, "terms"), f"needs at least one term; {suggest('', sockets['term'].rows)}")
        )
        terms = {}
    section: Tree = {"options": options, "terms": {}, "weights": {}}
    for key, term in terms.items():
        where = ("views", name, "terms", key)
        if not isinstance(term, dict):
            problems.append(Problem(where, f"{term!r} is not allowed: {MAP}, as in {{weight: 0.5}}"))
            continue
        weight = term.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            problems.append(Problem((*where, "weight"), f"{weight!r} is not allowed: a number from 0 on is expected"))
            weight = 1.0
        section["weights"][key] = weight
        settings = {k: v for k, v in term.items() if k != "weight"}
        section["terms"][key], found = sockets["term"].check(key, settings, where)
        problems += found
    return section


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
