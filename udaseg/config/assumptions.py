"""The page docs/assumptions.md: what papers leave open, read off the components (``Component.assumptions``)."""

from __future__ import annotations

import inspect
import json
import sys
import typing
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, Literal

from udaseg.component import Assumption, Component
from udaseg.config.layers import COMPONENT_KEYS, flatten, shipped
from udaseg.config.registry import REGISTRIES, hints, nested, settings_model
from udaseg.config.schema import Recipe

HEAD = """# Assumptions

The papers behind the add-ons leave questions open. This page lists each question, how we read the paper, the recipe
keys that change it with their defaults, and what the reading rests on. It is generated from the code:
`udaseg recipe assumptions > docs/assumptions.md`.

- "silent" means that the paper does not say. The reading is then ours.
- "public module" means that it was read in the authors' public code.
- A key is written as on the command line: `udaseg train --recipe R key=value`. "–" means that there is no key.
- "of `NAME`" behind a key: a setting of that component, as in `data.sampler={kind: NAME, ...}`.
- "default" is that of the key; recipes may set another value, `udaseg recipe show R` tells.
"""
COLUMNS = ("question", "our reading", "key", "default", "alternatives", "rests on")
BAR = r"\|"  # in a cell
Keys = list[tuple[str, str]]  # (kind, name) of the components that have an assumption


def assumptions_markdown() -> str:
    """The whole page: a section for each method, which is a package (or module) with components."""
    methods: dict[ModuleType, dict[Assumption, Keys]] = {}
    for kind, registry in REGISTRIES.items():
        for name in registry.entries:
            component = registry.component(name)
            for assumption in getattr(component, "assumptions", ()):  # encoders need not be Components
                methods.setdefault(method_of(component), {}).setdefault(assumption, []).append((kind, name))
    order = sorted(methods, key=lambda module: module.__name__)
    return "\n".join([HEAD, *("\n".join(section(module, methods[module])) for module in order)])


def method_of(component: type[Component]) -> ModuleType:
    """The package that the component's module is in, or its module if that is in none."""
    package = component.__module__.rpartition(".")[0]
    return sys.modules[package or component.__module__]


def section(module: ModuleType, found: dict[Assumption, Keys]) -> Iterator[str]:
    """Heading and text from the module's docstring, "NAME: what it is. ...", and a row for each assumption."""
    title, _, text = inspect.cleandoc(module.__doc__ or module.__name__).partition(": ")
    yield f"## {title}\n"
    yield f"{text[:1].upper()}{text[1:]}\n"
    yield line(COLUMNS)
    yield line(["---"] * len(COLUMNS))
    for assumption, components in found.items():
        yield line(row(assumption, components))
    yield ""


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"


def row(assumption: Assumption, components: Keys) -> tuple[str, ...]:
    keys, defaults, others = [], [], []
    for key in assumption.keys:
        if "." in key:
            keys.append(f"`{key}`")
            defaults.append(plain_default(key))
            continue
        for kind, name in components:
            entry = REGISTRIES[kind].entries[name]
            field = settings_model(entry).model_fields[key]
            keys.append(f"`{place(kind, name)}.{key}`" + ("" if kind in ("view", "term") else f" (of `{name}`)"))
            defaults.append("" if field.is_required() else f"`{shown(field.default)}`")
            others += [f"`{value}`" for value in choices(hints(entry)[key]) if value != field.default]
    return (
        assumption.question,
        assumption.reading,
        "<br>".join(keys) or "–",
        "<br>".join(defaults if len(set(defaults)) > 1 else defaults[:1]),
        "; ".join(filter(None, [", ".join(dict.fromkeys(others)), assumption.alternatives])),
        assumption.rests_on,
    )


def plain_default(key: str) -> str:
    """The default of a key that is no component's; empty where a recipe or a benchmark sets it."""
    part: Any = Recipe
    field: Any = None
    for step in key.split("."):
        field = getattr(part, "model_fields", {}).get(step)
        part = field and field.annotation
    return "" if field is None or field.is_required() else f"`{shown(field.default)}`"


def choices(hint: Any) -> list[Any]:
    """The values of a ``Literal`` within ``hint``; none of any other type, or of a list of them."""
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    inside = typing.get_args(hint) if typing.get_origin(hint) is not tuple else ()
    return [value for part in inside for value in choices(part)]


def place(kind: str, name: str) -> str:
    """The key at which a recipe names a component of that kind; of a term, in the first shipped recipe that has it."""
    direct = {path[-1]: ".".join(path) for path in COMPONENT_KEYS}
    if kind in direct:
        return direct[kind]
    if kind == "view":
        return f"views.{name}"
    if kind == "term":
        return f"views.{view_of(name)}.terms.{name}"
    for outer in ("view", "term"):
        for owner, entry in REGISTRIES[outer].entries.items():
            for key, inside in nested(entry).items():
                if inside == kind:
                    return f"{place(outer, owner)}.{key}"
    return kind


def view_of(term: str) -> str:
    """The view that the term stands on in the first shipped recipe with it."""
    for recipe in shipped():
        for view, stage in flatten(recipe)[0].get("views", {}).items():
            if term in stage.get("terms", {}):
                return str(view)
    return "VIEW"


def shown(value: Any) -> str:
    """A value as in YAML."""
    if isinstance(value, dict):
        return str(value["kind"])  # a component
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(shown, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
