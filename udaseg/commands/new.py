"""`udaseg new`: a component of one's own, with recipe, study and test, that works as it stands."""

from __future__ import annotations

import importlib.util
import keyword
import re
from importlib.resources import files
from pathlib import Path
from string import Template

from udaseg.config.registry import REGISTRIES, nested
from udaseg.console import out
from udaseg.errors import UserError
from udaseg.files import write_text
from udaseg.problems import suggest

KINDS = ("term", "view", "masker", "sampler", "engine", "encoder", "decoder")
FILES = {
    "recipe.yaml": "{name}.yaml",
    "small.yaml": "{name}_small.yaml",
    "study.yaml": "study.yaml",
    "test.py": "test_{name}.py",
}
IMAGENET = "Needs the ImageNet weights mit_b5.pth, as daformer does."
SCRATCH = "Trains from scratch: `model.weights` may name a file of pretrained weights."


def make(kind: str, name: str) -> None:
    """Write the folder ``name`` here; UserError for a name that cannot be used or a folder that exists."""
    refuse_names(kind, name)
    folder = Path(name)
    try:
        folder.mkdir()
    except FileExistsError:
        raise UserError(f"{folder} exists; choose another name") from None
    words = {**placeholders(kind, name), "name": name, "Class": class_name(name)}
    templates = files("udaseg.commands") / "templates" / "new"
    for template, target in {f"{kind}.py": "{name}.py", **FILES}.items():
        text = (templates / f"{template}.txt").read_text(encoding="utf-8")
        write_text(folder / target.format(name=name), Template(text).substitute(words))
    show(name)


def refuse_names(kind: str, name: str) -> None:
    if kind not in KINDS:
        raise UserError(f"new {kind!r}: {suggest(kind, KINDS)}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"name {name!r}: small letters, digits and _ are allowed, as in my_loss")
    if name in REGISTRIES[kind]:
        raise UserError(f"{REGISTRIES[kind].noun} {name!r} exists already; choose another name")
    if importlib.util.find_spec(name) is not None:
        raise UserError(f"name {name!r}: Python has a module of that name already; choose another one")


def class_name(name: str) -> str:
    """my_loss -> MyLoss."""
    return "".join(part.capitalize() for part in name.split("_"))


def placeholders(kind: str, name: str) -> dict[str, str]:
    """What the recipes of a kind say: where the component stands, and what takes it out again."""
    small = {"encoder": "decoder: fpn, weights: none", "decoder": "encoder: tiny, weights: none"}
    words = {"small_model": small.get(kind, "encoder: tiny, decoder: fpn, weights: none"), "weights": IMAGENET}
    if kind == "term":
        part, without = f"views: {{mixed: {{terms: {{{name}: {{weight: 0.1}}}}}}}}", f"views.mixed.terms.{name}=null"
    elif kind == "view":
        part, without = f"views: {{{name}: {{terms: {{cross_entropy: {{}}}}}}}}", f"views.{name}=null"
    elif kind == "sampler":
        part, without = f"data: {{sampler: {name}}}", "data.sampler=uniform"
    elif kind == "encoder":
        part, without = f"model: {{encoder: {name}, weights: none}}", "model.encoder=tiny"
        words["weights"] = SCRATCH
    elif kind == "decoder":
        part, without = f"model: {{decoder: {name}}}", "model.decoder=fpn"
    else:
        view, setting = view_with(kind)
        part, without = (
            f"views: {{{view}: {{{setting}: {name}, terms: {{cross_entropy: {{}}}}}}}}",
            f"views.{view}=null",
        )
    return {**words, "part": part, "without": without}


def view_with(kind: str) -> tuple[str, str]:
    """The first view that has a setting for a component of the kind, and that setting."""
    entries = REGISTRIES["view"].entries
    fitting = ((view, key) for view in entries for key, inner in nested(entries[view]).items() if inner == kind)
    if (place := next(fitting, None)) is None:
        raise UserError(f"new {kind}: no view has a place for it")
    return place


def show(name: str) -> None:
    out.print(f"{name}/{name}.py is the component; beside it lie its recipes, a study and a test.")
    out.print("Try it as it stands; leave train.iterations=3 out to compare in earnest:\n")
    for command in (
        "udaseg prepare streets",
        f"udaseg train --recipe {name}/{name}_small.yaml train.iterations=3",
        f"python -m pytest {name}",
        f"udaseg ablate {name}/study.yaml train.iterations=3",
        f"udaseg report {name}/study.yaml train.iterations=3",
    ):
        out.print(f"  {command}", soft_wrap=True, highlight=False)
