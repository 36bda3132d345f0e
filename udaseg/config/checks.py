"""Checks of a recipe that no single key shows, and what its components need. Nothing is read from disk."""

from __future__ import annotations

from collections.abc import Iterator

from udaseg.component import Needs, Plan
from udaseg.config.plugins import Plugin, plugins_of
from udaseg.config.registry import REGISTRIES, Settings, needs_of, problems_of, walk
from udaseg.config.schema import SHARED, DomainSection, ModelSection, Recipe
from udaseg.data.classes import PROTOCOLS
from udaseg.data.layouts import DATASETS, DataSetSpec, dataset_spec
from udaseg.errors import UserError
from udaseg.problems import KeyPath, Problem, suggest


def inconsistencies(recipe: Recipe) -> list[Problem]:
    """Unknown data sets and protocols, views that need a target there is none of, values that exclude others."""
    problems, known = [*class_problems(recipe), *range_problems(recipe)], plan(recipe)
    for path, kind, component in components(recipe):
        problems += problems_of(kind, component, known, path)
        if recipe.data.target is None and path[0] == "views" and needs_of(kind, component).target:
            problems.append(Problem(path, NO_TARGET))
    if recipe.data.target is None and recipe.data.labelled == "target":
        problems.append(Problem(("data", "labelled"), NO_TARGET))
    if recipe.data.target is None and recipe.evaluation.bn == "recompute":
        problems.append(Problem(("evaluation", "bn"), NO_TARGET))
    return problems


NO_TARGET = "needs a target domain, but data.target is none; choose a --benchmark or a recipe that has one"


def class_problems(recipe: Recipe) -> list[Problem]:
    """Data sets, protocol and merges that do not exist or do not fit one another."""
    data, problems = recipe.data, []
    own: dict[str, tuple[str, ...]] = {}
    named: dict[KeyPath, str] = {(key, "dataset"): section.dataset for key, section in domains(recipe).items()}
    if data.classes:
        named["classes",] = data.classes
    for path, name in named.items():
        try:
            own[path[0]] = known_dataset(name).classes.names
        except UserError as error:
            problems.append(Problem(("data", *path), str(error)))
    names = own.get("classes" if data.classes else "source")
    for key, section in domains(recipe).items():
        for name, wanted in section.merge.items():
            for given, allowed in ((name, own.get(key)), (wanted, names and (*names, "ignore"))):
                if allowed and given not in allowed:
                    message = f"no class {given!r}; {suggest(given, allowed)}"
                    problems.append(Problem(("data", key, "merge", name), message))
    if data.protocol not in PROTOCOLS:
        message = f"unknown protocol {data.protocol!r}; {suggest(data.protocol, PROTOCOLS)}"
        problems.append(Problem(("data", "protocol"), message))
    elif names and (strange := [name for name in PROTOCOLS[data.protocol] if name not in names]):
        message = f"{data.protocol} counts classes that are not learnt here: {', '.join(strange)}; `all` always fits"
        problems.append(Problem(("data", "protocol"), message))
    return problems


def range_problems(recipe: Recipe) -> Iterator[Problem]:
    """Values that are wrong only beside others: a rate below its minimum, margins that leave nothing."""
    data, optimiser = recipe.data, recipe.optimiser
    if optimiser.minimum > optimiser.lr:
        message = f"{optimiser.minimum:g} is above optimiser.lr={optimiser.lr:g}: the rate would rise"
        yield Problem(("optimiser", "minimum"), message)
    if data.margins == "crop" and sum(data.crop_margins) >= data.crop[0]:
        message = f"{list(data.crop_margins)} hides all {data.crop[0]} rows of data.crop"
        yield Problem(("data", "crop_margins"), message)
    if image := data.image_margins:
        sides = (("left", "right", image.at[0]), ("top", "bottom", image.at[1]))
        for one, other, length in sides:
            if (hidden := getattr(image, one) + getattr(image, other)) >= length:
                message = f"with {other} hides {hidden} of the {length} pixels of data.image_margins.at"
                yield Problem(("data", "image_margins", one), message)


def known_dataset(name: str) -> DataSetSpec:
    """The data set of that name or YAML file; a UserError in the words of a recipe's other problems."""
    if name.endswith((".yaml", ".yml")) or name.replace("-", "_") in DATASETS:
        return dataset_spec(name)
    raise UserError(f"unknown data set {name!r}; {suggest(name, DATASETS)}, or a YAML file")


def domains(recipe: Recipe) -> dict[str, DomainSection]:
    """The domains that the recipe has."""
    sections = {key: getattr(recipe.data, key) for key in ("source", "target", "validation")}
    return {key: section for key, section in sections.items() if section is not None}


def components(recipe: Recipe) -> Iterator[tuple[KeyPath, str, Settings]]:
    """(key, kind, {kind, settings...}) of every view and term, the sampler and the pseudo-label rule.

    A term on several views comes once, with the view that has its settings.
    """
    for name, stage in recipe.views.items():
        yield ("views", name), "view", {"kind": name, **stage.options}
        for term, settings in stage.terms.items():
            if SHARED not in settings:
                yield ("views", name, "terms", term), "term", {"kind": term, **settings}
    yield ("data", "sampler"), "sampler", recipe.data.sampler
    yield ("pseudo_labels",), "pseudo_labels", recipe.pseudo_labels


def network_parts(model: ModelSection) -> Iterator[tuple[str, Settings]]:
    """(kind, {kind, settings...}) of what the network is made of."""
    for kind in ("encoder", "decoder", "wrapper"):
        if (part := getattr(model, kind)) is not None:
            yield kind, part


def plugins(recipe: Recipe) -> list[Plugin]:
    """The plugins that any of the recipe's components come from."""
    return plugins_of([*((kind, part) for _, kind, part in components(recipe)), *network_parts(recipe.model)])


def plan(recipe: Recipe, images: int | None = None) -> Plan:
    """What components may know of the recipe; ``images``: of each domain in a process's step, None for all."""
    decoders = {name: REGISTRIES["decoder"].component(name) for name in REGISTRIES["decoder"].entries}
    return Plan(recipe.model.decoder["kind"], decoders, recipe.train.batch if images is None else images)


def warnings(recipe: Recipe, images: int | None = None) -> list[str]:
    """Warnings about a configuration that is allowed."""
    texts = []
    if recipe.model.weights == "none" and recipe.model.start is None:
        texts.append("no encoder weights loaded (model.weights=none): training from scratch")
        if needs(recipe).pretrained_encoder:
            texts.append("a loss compares with an encoder that was never trained")
    if (warmup := recipe.optimiser.warmup) > recipe.train.iterations:
        texts.append(
            f"optimiser.warmup={warmup} is longer than the run of {recipe.train.iterations} iterations: the learning "
            "rate never reaches optimiser.lr"
        )
    known = plan(recipe, images)
    for _, kind, part in components(recipe):
        for _, component, settings in walk(kind, part):
            texts += component.warnings(settings, known)
    return texts


def needs(recipe: Recipe) -> Needs:
    """What the recipe's views and terms need together."""
    total = Needs()
    for path, kind, component in components(recipe):
        if path[0] == "views":
            total |= needs_of(kind, component)
    return total
