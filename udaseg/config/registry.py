"""Registries: the components of each kind by name, the schema of their settings, and how they are made.

A component's settings are the keyword-only parameters of its constructor: a pydantic model is built from them. What a
recipe names, ``{kind, settings...}``, is a union discriminated by ``kind``; its members are looked up when a recipe is
read, so a plugin's components are members like all others. Positional parameters are supplied by the program.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import typing
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, create_model

import udaseg
from udaseg.component import Component, Default, Needs, Plan
from udaseg.core.base import Masker, PseudoLabelRule, Term, TranslationEngine, ViewBuilder
from udaseg.core.components import COMPONENTS
from udaseg.data.sampling import SAMPLERS, Sampler
from udaseg.errors import UserError
from udaseg.evaluation.features import FeatureMeasure
from udaseg.evaluation.training import TrainingMeasure
from udaseg.models.multires import WRAPPERS
from udaseg.models.segmentor import Decoder, Encoder, Wrapper
from udaseg.models.zoo import DECODERS, ENCODERS
from udaseg.problems import MAP, KeyPath, Problem, Strict, checked, refuse, suggest

Settings = dict[str, Any]


@dataclass
class Registry:
    """Components of one kind. ``noun`` names them in messages; ``near``: what to suggest for an unknown name.

    ``supplied``: the positional parameters of their constructors.
    """

    noun: str
    base: type
    entries: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    near: Callable[[str], Iterable[str]] | None = None
    supplied: tuple[str, ...] = ("context",)

    def add(self, entries: Mapping[str, type]) -> None:
        """More components, of an add-on or plugin."""
        self.entries = ChainMap({**entries}, cast(MutableMapping[str, Any], self.entries))

    def flaw(self, name: str, component: object) -> str | None:
        """Why a component cannot stand under that name; None if it can."""
        if not str(name).isidentifier():
            return "the name may have letters, digits and _ only"
        if name in self.entries:
            return f"exists already (in {self.component(name).__module__}); choose another name"
        if not (inspect.isclass(component) and issubclass(component, self.base)):
            return f"{getattr(component, '__name__', component)} is no {self.base.__name__}"
        methods = {key: getattr(component, key, None) for key in dir(component)}
        if lacking := [key for key, method in methods.items() if getattr(method, "__isabstractmethod__", False)]:
            return f"{component.__name__} lacks {', '.join(lacking)}, which every {self.base.__name__} has"
        return None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.entries

    def component(self, name: str) -> Any:
        """The class of that name."""
        entry = self.entries[name]
        return entry.func if isinstance(entry, functools.partial) else entry

    def validate(self, name: object, settings: Mapping[str, Any]) -> Settings:
        """Settings completed with their defaults; pydantic's ValidationError says all that is wrong with them."""
        if not isinstance(name, str) or name not in self.entries:
            known = dict.fromkeys([*(self.near(str(name)) if self.near else ()), *self.entries])
            raise refuse(f"unknown {self.noun} {name!r}; {suggest(str(name), known)}")
        return checked(settings_model(self.entries[name]), dict(settings)).model_dump()

    def create(self, part: Mapping[str, Any], *supplied: Any) -> Any:
        """The object that ``part``, {kind, settings...} as validated, describes. A ValueError becomes the user's."""
        settings = dict(part)
        name = settings.pop("kind")
        for key, kind in nested(self.entries[name]).items():
            settings[key] = REGISTRIES[kind].create(settings[key], *supplied)
        try:
            return self.entries[name](*supplied, **settings)
        except ValueError as error:
            raise UserError(f"{self.noun} {name}: {error}") from None


REGISTRIES: dict[str, Registry] = {
    "encoder": Registry("encoder", Encoder, ENCODERS, ENCODERS.near, ()),
    "decoder": Registry("decoder", Decoder, DECODERS, supplied=("channels", "strides", "classes")),
    "wrapper": Registry("segmentor wrapper", Wrapper, WRAPPERS, supplied=("encoder", "decoder", "attention", "crop")),
    "sampler": Registry("sampler", Sampler, SAMPLERS, supplied=("statistics",)),
    "pseudo_labels": Registry("weighting rule", PseudoLabelRule),
    "view": Registry("view", ViewBuilder),
    "masker": Registry("masker", Masker),
    "engine": Registry("translation engine", TranslationEngine),
    "term": Registry("term", Term),
    "measure": Registry("feature measure", FeatureMeasure, supplied=()),
    "training_measure": Registry("training measure", TrainingMeasure, supplied=()),
}


def register(components: Mapping[str, Mapping[str, type]]) -> None:
    """Put a table ``COMPONENTS`` (kind -> name -> class) into the registries: all of it, or by a UserError nothing."""
    refuse_flaws(components)
    for kind, entries in components.items():
        REGISTRIES[kind].add(entries)


def refuse_flaws(components: Mapping[str, Mapping[str, type]]) -> None:
    """UserError for unknown kinds, names that are taken, and classes of another kind."""
    for kind, entries in components.items():
        if kind not in REGISTRIES:
            raise UserError(f"COMPONENTS: unknown kind {kind!r}; {suggest(kind, REGISTRIES)}")
        for name, component in entries.items():
            if flaw := REGISTRIES[kind].flaw(name, component):
                raise UserError(f"{REGISTRIES[kind].noun} {name!r}: {flaw}")


register(COMPONENTS)
for _module in pkgutil.iter_modules([f"{folder}/addons" for folder in udaseg.__path__]):
    register(importlib.import_module(f"udaseg.addons.{_module.name}").COMPONENTS)


@functools.cache
def settings_model(component: Callable[..., Any]) -> type[BaseModel]:
    """A strict pydantic model of a component's settings."""
    inner = nested(component)
    fields: dict[str, Any] = {}
    for name, parameter in keyword_parameters(component).items():
        default = ... if parameter.default is parameter.empty else parameter.default
        hint = hints(component)[name]
        if name in inner:
            marker = next(mark for mark in hint.__metadata__ if isinstance(mark, Default))
            fields[name] = (filled_in(inner[name], marker), {"kind": marker.kind})
        else:
            fields[name] = (hint, default)
    return create_model("Settings", __base__=Strict, __cls_kwargs__={"validate_default": bool(inner)}, **fields)


def validate_component(kind: str, part: object) -> Settings:
    """What a recipe's key names, a name or a map {kind, settings...}, checked and completed."""
    part = {"kind": part} if isinstance(part, str) else part
    if not isinstance(part, dict):
        raise refuse(f"{part!r} is not allowed: a name or {MAP}")
    settings = {key: value for key, value in part.items() if key != "kind"}
    name = part.get("kind")
    return {"kind": name, **REGISTRIES[kind].validate(name, settings)}


def filled_in(kind: str, default: Default) -> Any:
    """The type of a nested component: a map without ``kind`` means the default one."""

    def validate(part: object) -> Settings:
        return validate_component(kind, {"kind": default.kind, **part} if isinstance(part, dict) else part)

    return Annotated[dict[str, Any], BeforeValidator(validate)]


@functools.cache
def nested(component: Callable[..., Any]) -> dict[str, str]:
    """Settings that are components themselves, with their kind."""
    bases = {registry.base: kind for kind, registry in REGISTRIES.items()}
    return {
        name: bases[hints(component)[name].__origin__]
        for name in keyword_parameters(component)
        if typing.get_origin(hints(component)[name]) is Annotated and hints(component)[name].__origin__ in bases
    }


@functools.cache
def hints(component: Callable[..., Any]) -> dict[str, Any]:
    target = component.func if isinstance(component, functools.partial) else component
    return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)


def settings_of_type(component: Callable[..., Any], kind: Any) -> list[str]:
    """Settings whose annotation is this very type of ``udaseg.ranges`` (or None)."""
    known = hints(component)
    return [name for name in keyword_parameters(component) if kind in (known[name], *typing.get_args(known[name]))]


def keyword_parameters(component: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters a recipe may set (those bound by ``functools.partial`` are settled)."""
    bound = component.keywords if isinstance(component, functools.partial) else {}
    parameters = inspect.signature(component).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in bound}


def needs_of(kind: str, part: Mapping[str, Any]) -> Needs:
    """What a component and those within it need."""
    needs = Needs()
    for _, component, settings in walk(kind, part):
        needs |= component.needs_with(settings)
    return needs


def walk(kind: str, part: Mapping[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, type[Component], Settings]]:
    """(path, class, settings) of a component and of those within it that its settings use."""
    registry, name = REGISTRIES[kind], part["kind"]
    component, settings = registry.component(name), {key: value for key, value in part.items() if key != "kind"}
    yield path, component, settings
    for key, inside in nested(registry.entries[name]).items():
        if key not in component.unused(settings):
            yield from walk(inside, settings[key], (*path, key))


def problems_of(kind: str, part: Mapping[str, Any], plan: Plan, path: KeyPath) -> list[Problem]:
    """What a component says of its settings (``Component.problems``), as problems under ``path``."""
    return [
        Problem((*where, key), message)
        for where, component, settings in walk(kind, part, path)
        for key, message in component.problems(settings, plan)
    ]
