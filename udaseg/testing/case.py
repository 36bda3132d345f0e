"""A component in a recipe at toy size, whether or not it is registered; and what a contract is."""

from __future__ import annotations

import functools
import inspect
import typing
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from udaseg.component import Needs
from udaseg.config.layers import Tree
from udaseg.config.load import Loaded
from udaseg.config.registry import REGISTRIES, needs_of, nested, settings_model, validate_component
from udaseg.engine.assembly import assemble
from udaseg.engine.trainer import Trainer
from udaseg.testing import toy

Factory = Callable[..., Any]
"""A component's class, or ``functools.partial`` of it as some encoders are registered."""
NETWORK = {"model": {"encoder": "tiny", "decoder": "fpn"}}


class Case:
    """A component with the settings that a recipe would give it; made by a contract.

    ``kind``: of its registry, found by its base class. ``name``: what the recipes here call it.
    """

    def __init__(self, component: Factory, settings: dict[str, Any]) -> None:
        self.component = component
        self.cls: Any = component.func if isinstance(component, functools.partial) else component
        self.kind = kind_of(self.cls)
        entries = REGISTRIES[self.kind].entries
        known = [name for name, entry in entries.items() if entry is component]
        self.name = known[0] if known else self.cls.__name__
        while not known and self.name in entries:
            self.name += "_"
        self.written = settings
        self.weight = settings.pop("weight", 1.0) if self.kind == "term" else None

    @functools.cached_property
    def part(self) -> dict[str, Any]:
        """{kind, settings...}, completed with defaults; UserError for settings that the component refuses."""
        return validate_component(self.kind, {"kind": self.name, **self.written})

    @property
    def needs(self) -> Needs:
        return needs_of(self.kind, self.part)

    def create(self, *supplied: Any) -> Any:
        """The component itself, with what the program supplies."""
        return REGISTRIES[self.kind].create(self.part, *supplied)

    def recipe(self, *overrides: str, target: bool = True) -> Loaded:
        """A small recipe that uses the component; without ``target``: one that knows no target domain."""
        below, without = ("dacs", ()) if target else ("source_only", ("data.target=null",))
        base = tuple(text for text in toy.SMALL if target or not text.startswith("data.target"))
        layers = [("udaseg.testing", NETWORK), ("udaseg.testing", self.host(target))]
        return toy.load(below, *without, *overrides, base=base, overlays=layers)

    def trainer(self, *overrides: str, target: bool = True) -> Trainer:
        """Everything for a run of that recipe."""
        return assemble(self.recipe(*overrides, target=target)).trainer

    @functools.cached_property
    def still(self) -> Trainer:
        """A trainer with four images of each domain that takes no step: for calls on a ``Scene``."""
        return self.trainer("train.batch=4")

    def host(self, target: bool) -> Tree:
        """Where the component stands: a term on the source view and, beside a target, on the mixed one."""
        part = {"kind": self.name, **self.written}
        if self.kind == "term":
            term = {"terms": {self.name: {"weight": self.weight, **self.written}}}
            return {"views": {view: term for view in ("source", "mixed") if target or view == "source"}}
        if self.kind == "view":
            return {"views": {self.name: {**self.written, "terms": {"cross_entropy": {}}}}}
        if self.kind in ("masker", "engine"):
            view, setting = socket(self.kind)
            return {"views": {view: {setting: part, "terms": {"cross_entropy": {}}}}}
        places = {"sampler": "data", "encoder": "model", "decoder": "model", "wrapper": "model"}
        return {places[self.kind]: {self.kind: part}} if self.kind in places else {self.kind: part}


def kind_of(cls: Any) -> str:
    """The kind of component that a class is."""
    for kind, registry in REGISTRIES.items():
        if inspect.isclass(cls) and issubclass(cls, registry.base):
            return kind
    bases = ", ".join(registry.base.__name__ for registry in REGISTRIES.values())
    raise AssertionError(f"{cls!r} is no component: it must derive from one of {bases} (udaseg.plugin)")


def socket(kind: str) -> tuple[str, str]:
    """(view, setting): the first view that has a setting for a component of this kind."""
    for view, entry in REGISTRIES["view"].entries.items():
        for setting, inside in nested(entry).items():
            if inside == kind:
                return view, setting
    raise AssertionError(f"no registered view takes a {REGISTRIES[kind].noun}; check a view of your own that does")


@contextmanager
def registered(case: Case) -> Iterator[None]:
    """Inside, recipes know the component by ``case.name`` and data is the small `streets`."""
    registry = REGISTRIES[case.kind]
    before = registry.entries
    if case.name not in before:
        registry.entries = ChainMap({case.name: case.component}, before)  # type: ignore[arg-type]
    try:
        with toy.living_at(toy.data_home()):
            yield
    finally:
        registry.entries = before


def contract(*kinds: str) -> Callable[[Callable[[Case], None]], Contract]:
    """Makes a check of a ``Case`` a public function ``(component, **settings)`` for components of these kinds."""

    def public(check: Callable[[Case], None]) -> Contract:
        return Contract(check, kinds)

    return public


class Contract:
    """A promise of components of some ``kinds``, called with one and its settings; its docstring says what it is."""

    def __init__(self, check: Callable[[Case], None], kinds: tuple[str, ...]) -> None:
        self._check, self.kinds = check, kinds
        self.__name__, self.__doc__ = check.__name__, check.__doc__

    def __call__(self, component: Factory, **settings: Any) -> None:
        """AssertionError that says what is wrong and what to do."""
        self.hold(Case(component, settings))

    def hold(self, case: Case) -> None:
        """The same for a case that other contracts are held to, too."""
        if case.kind not in self.kinds:
            raise AssertionError(f"{self.__name__} is for {', '.join(self.kinds)}; {case.cls.__name__} is: {case.kind}")
        with registered(case):
            try:
                self._check(case)
            except AssertionError as error:
                raise AssertionError(f"{case.cls.__name__}: {self.__name__}: {error}") from None


def require(condition: object, sentence: str) -> None:
    """AssertionError with a sentence that says what is wrong and what to do."""
    if not condition:
        raise AssertionError(sentence)


def same(a: Tensor, b: Tensor) -> bool:
    """Bit by bit; NaN is like NaN."""
    return torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


ALL = tuple(REGISTRIES)


@contract(*ALL)
def has_described_settings(case: Case) -> None:
    """Settings are keyword-only, each with a type and a default of that type (or given here); the class says what it
    does in a docstring of its own."""
    require(
        vars(case.cls).get("__doc__"), "it has no docstring; say in a sentence what it does and what its settings mean"
    )
    own = parameters(case.cls)
    supplied = [p.name for p in own if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    loose = [p.name for p in own if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty]
    require(not loose, f"{', '.join(loose)}: settings are keyword-only; put them behind a bare * in the constructor")
    base = [p.name for p in parameters(REGISTRIES[case.kind].base)]
    expected = SUPPLIED.get(case.kind, base)
    require(
        len(supplied) == len(expected), f"the program supplies ({', '.join(expected)}), not ({', '.join(supplied)})"
    )
    hints = typing.get_type_hints(case.cls.__init__, include_extras=True)
    bare = [p.name for p in own if p.kind is p.KEYWORD_ONLY and p.name not in hints]
    require(not bare, f"{', '.join(bare)}: without a type no recipe can be checked; annotate the setting")
    fields = settings_model(case.component).model_fields
    missing = [name for name, field in fields.items() if field.is_required() and name not in case.written]
    require(not missing, f"{', '.join(missing)}: no default; give one, or give the setting to this check")
    completed = validate_component(case.kind, {"kind": case.name, **case.written})
    again = validate_component(case.kind, completed)
    require(completed == again, "settings written into a run folder would be read back differently")


SUPPLIED = {"decoder": ["channels", "strides", "classes"]}
"""Where the base class has no constructor that says it."""


def parameters(cls: Any) -> list[inspect.Parameter]:
    """Of the constructor, without self."""
    if cls.__init__ is object.__init__:
        return []
    wanted = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for p in list(inspect.signature(cls.__init__).parameters.values())[1:] if p.kind not in wanted]
