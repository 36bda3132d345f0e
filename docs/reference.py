"""Writes the reference pages from the code: commands.md, keys.md, components.md. Run: `python docs/reference.py`.

Commands and their help are those of the command line; keys, types and meanings are the schema's; components are read
off the registries: their docstrings, and the keyword-only parameters of their constructors.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.models import ArgumentInfo, OptionInfo

from udaseg.cli import app
from udaseg.component import Needs
from udaseg.config.registry import REGISTRIES, Registry, hints, keyword_parameters, nested, settings_model
from udaseg.config.schema import Recipe
from udaseg.models.timm_encoders import TimmEncoder
from udaseg.ranges import ClassNames

HERE = Path(__file__).parent
RENEW = "python docs/reference.py"
MADE = f"This page is made from the code: `{RENEW}`."
INLINE = ("wrapper", "sampler", "pseudo_labels", "view", "masker", "engine", "term")
COMMANDS = f"""# Commands

{MADE}

`udaseg COMMAND --help` says the same in the terminal. Runs are given as run folders, as in
`runs/daformer-gta5_cityscapes-seed0`. Exit codes: 0 all is well; 2 something that you can mend, and the message says
how; 128 + N stopped by signal N.
"""
KEYS = f"""# Keys of a recipe

{MADE}

[recipes.md](recipes.md) explains how a recipe is written, [components.md](components.md) lists the components and their
settings. `udaseg recipe show R` prints all keys of a recipe, with the file that each value came from. On the command
line a key is written `train.batch=4`. "required": there is no default; benchmark and parent recipe supply the value.
"""
COMPONENTS = f"""# Components

{MADE}

A component is named by its kind: `data.sampler={{kind: rare_class, temperature: 0.1}}`. Views and terms are named by
their keys: `views.mixed.jitter=0.1`, `views.mixed.terms.rebuild.grid=8`. Every term has a `weight` (default 1), too.
"From" says who brings a component: the baselines, or the add-on of a paper. For your own see [method.md](method.md).
"""
PLACES = {
    "encoder": "`model.encoder`. `udaseg models` shows parameters, strides and licences.",
    "decoder": "`model.decoder`.",
    "wrapper": "`model.wrapper`.",
    "sampler": "`data.sampler`: how source images are drawn.",
    "pseudo_labels": "`pseudo_labels`: from the teacher's logits on the target to labels with weights.",
    "view": "`views.VIEW`: what the student sees at once. The order in the recipe is that of the step.",
    "masker": "A setting of the view `masked`: which pixels are hidden.",
    "engine": "A setting of the view `stylised`: source images in another style.",
    "term": "`views.VIEW.terms.TERM`: a loss on a view.",
    "measure": "Measures of `udaseg analyze discriminability`.",
    "training_measure": "Measures of `udaseg analyze training`.",
}


def pages() -> dict[str, str]:
    """File name -> text of every generated page."""
    return {"commands.md": commands_page(), "keys.md": keys_page(), "components.md": components_page()}


# commands


def commands_page() -> str:
    found = [*commands(app, "udaseg")]
    overview = ["| command | what it does |", "|---|---|"]
    overview += [row(f"[`{name}`](#{anchor(name)})", prose(call.__doc__)) for name, call in found]
    return joined([COMMANDS, "\n".join(overview), *(section(name, call) for name, call in found)])


def commands(group: typer.Typer, prefix: str) -> Iterator[tuple[str, Any]]:
    """(whole name, function) of all commands, first those that stand alone."""
    for command in group.registered_commands:
        if not command.hidden and command.callback:
            yield f"{prefix} {command.name or command.callback.__name__}", command.callback
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            yield from commands(inner.typer_instance, f"{prefix} {inner.name}")


def section(name: str, call: Any) -> str:
    known = typing.get_type_hints(call, include_extras=True)
    parameters = [
        (p, *typing.get_args(known[p.name])[:2])  # Annotated[type, Option or Argument]
        for p in inspect.signature(call).parameters.values()
    ]
    arguments = [part for part in parameters if isinstance(part[2], ArgumentInfo)]
    options = [part for part in parameters if isinstance(part[2], OptionInfo) and not part[2].hidden]
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *(argument_name(*part) for part in arguments)])
    lines = [f"## {name}", "", prose(call.__doc__), "", f"`{usage}`"]
    if parameters:
        lines += ["", "| argument or option | meaning | default |", "|---|---|---|"]
    lines += [row(f"`{argument_name(*part)}`", help_of(part[2]), "") for part in arguments]
    lines += [row(f"`{option_name(*part)}`", help_of(part[2]), default_of(*part)) for part in options]
    return "\n".join(lines)


def help_of(info: ArgumentInfo | OptionInfo) -> str:
    return (info.help or "").replace("<", "&lt;")


def argument_name(parameter: inspect.Parameter, hint: Any, info: ArgumentInfo) -> str:
    name = info.metavar or parameter.name.upper() + ("..." if typing.get_origin(hint) is list else "")
    return name if parameter.default is parameter.empty or name.startswith("[") else f"[{name}]"


def option_name(parameter: inspect.Parameter, hint: Any, info: OptionInfo) -> str:
    first = [info.default] if isinstance(info.default, str) else []  # Annotated: the first name stands in its place
    names = ", ".join([*first, *(info.param_decls or ())]) or "--" + parameter.name.replace("_", "-")
    inner = [part for part in typing.get_args(hint) if part is not type(None)] or [hint]
    if hint is bool:
        return names
    if typing.get_origin(hint) is Literal:
        return f"{names} {'|'.join(inner)}"
    kinds = {int: "N", float: "X", Path: "PATH"}
    return f"{names} {info.metavar or kinds.get(inner[0], parameter.name.upper())}"


def default_of(parameter: inspect.Parameter, hint: Any, info: OptionInfo) -> str:
    if parameter.default is parameter.empty:
        return "required"
    return "" if parameter.default in (None, False) and hint is not int else f"`{parameter.default}`"


# keys


def keys_page() -> str:
    parts = [KEYS, keys_table("Top level", "", Recipe, skip=("views",))]
    for name, field in Recipe.model_fields.items():
        if name != "views" and (inner := model_in(field.annotation)):
            parts += sections(name, inner)
    parts.insert(2, VIEWS)
    return joined(parts)


VIEWS = """## `views`

A map of views. Each view has its own settings ([components.md](components.md#view)) and `terms`, a map of terms. Each
term has a `weight` (default 1) and its own settings ([components.md](components.md#term)), or `shared_with`: the
earlier view whose term it is.

```yaml
views:
  mixed:
    jitter: 0.2
    terms:
      cross_entropy: {weight: 1.0}
```"""


def sections(path: str, model: type[BaseModel]) -> Iterator[str]:
    yield keys_table(f"`{path}`", path, model)
    seen: dict[type, str] = {}
    for name, field in model.model_fields.items():
        if inner := model_in(field.annotation):
            if inner in seen:
                continue
            same = [key for key, other in model.model_fields.items() if model_in(other.annotation) is inner]
            seen[inner] = name
            yield keys_table(", ".join(f"`{path}.{key}`" for key in same), f"{path}.{name}", inner)


def keys_table(title: str, path: str, model: type[BaseModel], skip: Iterable[str] = ()) -> str:
    lines = [f"## {title}", ""]
    if model.__doc__ and path:
        lines += [prose(model.__doc__), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name not in skip and not (path == "" and model_in(field.annotation)):
            hint = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            component = component_kind(name)
            kind = f"[{component}](components.md#{anchor(component)})" if component else words(hint)
            lines.append(row(f"`{name}`", kind, value(field.default, required=field.is_required()), field.description))
    return "\n".join(lines)


def component_kind(key: str) -> str | None:
    return key if key in ("encoder", "decoder", "wrapper", "sampler", "pseudo_labels") else None


def model_in(hint: Any) -> type[BaseModel] | None:
    """The section that a key holds, also where it may be null."""
    found = [kind for kind in (hint, *typing.get_args(hint)) if inspect.isclass(kind) and issubclass(kind, BaseModel)]
    return found[0] if found else None


# components


def components_page() -> str:
    overview = ["| kind | names |", "|---|---|"]
    for kind, registry in REGISTRIES.items():
        overview.append(row(f"[{kind}](#{anchor(kind)})", ", ".join(f"`{name}`" for name in registry.entries)))
    return joined([COMPONENTS, "\n".join(overview), *(kind_section(*item) for item in REGISTRIES.items())])


def kind_section(kind: str, registry: Registry) -> str:
    parts = [f"## {kind}", PLACES[kind]]
    groups: dict[Any, list[str]] = {}
    for name in registry.entries:
        key = registry.component(name) if kind == "encoder" else name
        groups.setdefault(key, []).append(name)
    for names in groups.values():
        parts += component(kind, ", ".join(f"`{name}`" for name in names), registry.entries[names[0]])
    if kind == "encoder":
        parts += component(kind, "`timm/NAME`", TimmEncoder, bound=("name",))
    return "\n\n".join(parts)


def component(kind: str, title: str, entry: Any, bound: Iterable[str] = ()) -> Iterator[str]:
    cls = getattr(entry, "func", entry)
    yield f"### {title} ({kind})"
    yield prose(cls.__doc__)
    facts = [f"From: {origin(cls)}."]
    if wanted := needs(getattr(cls, "needs", Needs())):
        facts.append(f"Needs: {wanted}.")
    yield " ".join(facts)
    names = [name for name in keyword_parameters(entry) if name not in bound]
    if names:
        model, inside = settings_model(entry), nested(entry)
        lines = ["| setting | type | default |", "|---|---|---|"]
        for name in names:
            field = model.model_fields[name]
            if name in inside:
                shown, default = f"[{inside[name]}](#{anchor(inside[name])})", f"`{field.default['kind']}`"
            else:
                shown, default = words(hints(entry)[name]), value(field.default, required=field.is_required())
            lines.append(row(f"`{name}`", shown, default))
        yield "\n".join(lines)


def origin(cls: type) -> str:
    """ "baselines", or an add-on with its title."""
    parts = cls.__module__.split(".")
    if "addons" not in parts:
        return f"the baselines (`{cls.__module__}`)"
    package = sys.modules[".".join(parts[:3])]
    title = prose(package.__doc__).partition(":")[0]
    return f"the add-on {title} (`{cls.__module__}`)"


def needs(wanted: Needs) -> str:
    parts = ["a target domain"] if wanted.target else []
    parts += ["the pretrained encoder"] if wanted.pretrained_encoder else []
    parts += [f"{count} more {network} pass{'es' if count > 1 else ''}" for network, count in wanted.passes.items()]
    return ", ".join(parts)


# words


def words(hint: Any) -> str:
    """A type as a reader of recipes calls it, with its range."""
    if hint is ClassNames:
        return "list of class names"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        limits = " ".join(limit for mark in arguments[1:] for limit in bounds(mark))
        plain, null, _ = words(arguments[0]).partition(" or null")
        return f"{plain} {limits}".strip() + null
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(words(part) for part in arguments)
    if origin in (list, tuple):
        several = arguments[-1] is Ellipsis or origin is list
        return f"list of {words(arguments[0])}" if several else f"list of {len(arguments)}: {words(arguments[0])}"
    if origin is dict:
        return "map"
    plain = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null", dict: "map"}
    if hint in plain:
        return plain[hint]
    if inspect.isclass(hint) and issubclass(hint, BaseModel):
        return "map of the keys below"
    raise TypeError(f"no words for {hint!r}; add them to docs/reference.py")


def bounds(mark: Any) -> Iterator[str]:
    signs = {"gt": "above", "ge": "from", "lt": "to below", "le": "to"}
    for part in getattr(mark, "metadata", [mark]):
        for name, word in signs.items():
            limit = getattr(part, name, None)
            if limit is not None and limit < 10**4:  # larger ones only keep mistakes out
                yield f"{word} {limit:g}"


def value(default: Any, *, required: bool) -> str:
    if required or default is PydanticUndefined or default is inspect.Parameter.empty:
        return "required"
    if isinstance(default, BaseModel):
        return ""
    if isinstance(default, dict) and set(default) == {"kind"}:
        return f"`{default['kind']}`"
    return f"`{json.dumps(default)}`" if not isinstance(default, str) else f"`{default}`"


def prose(docstring: str | None) -> str:
    """A docstring as Markdown."""
    text = inspect.cleandoc(docstring or "")
    text = re.sub(r"``([^`]*)``", r"`\1`", text)
    return re.sub(r"\[(\d+)\]", r"\\[\1\\]", text)


def row(*cells: str | None) -> str:
    return "| " + " | ".join((cell or "").replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"


def anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")
