"""docs/assumptions.md is made from the code, and every key in it is one that a recipe can have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from toy import run

from udaseg.config import assumptions
from udaseg.config.layers import leaves, shipped
from udaseg.config.load import load
from udaseg.config.registry import REGISTRIES, Registry, keyword_parameters
from udaseg.plugin import Assumption, BuildContext, Masker, Term

PAGE = Path(__file__).parents[2] / "docs" / "assumptions.md"
COMMAND = "udaseg recipe assumptions > docs/assumptions.md"


def test_the_page_is_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipe", "assumptions") == 0
    assert capsys.readouterr().out == PAGE.read_text(encoding="utf-8"), f"renew it: {COMMAND}"


def listed() -> Iterator[tuple[Registry, str, Assumption]]:
    for registry in REGISTRIES.values():
        for name in registry.entries:
            for assumption in getattr(registry.component(name), "assumptions", ()):
                yield registry, name, assumption


def test_every_key_is_a_setting_or_a_key_of_a_shipped_recipe() -> None:
    known = {
        ".".join(path[:n]) for name in shipped() for path, _ in leaves(load(name).recipe.as_written()) for n in range(9)
    }
    for registry, name, assumption in listed():
        for key in assumption.keys:
            own = keyword_parameters(registry.entries[name])
            assert (key in known) if "." in key else (key in own), f"{name}: {assumption.question}: {key}"


def test_every_setting_that_a_mode_adds_is_explained() -> None:
    """A choice between words in an add-on is one that its paper leaves open, or one of its ablations."""
    explained = {(id(registry), name, key) for registry, name, found in listed() for key in found.keys}
    for registry in REGISTRIES.values():
        for name, entry in registry.entries.items():
            if ".addons." in registry.component(name).__module__:
                for key in keyword_parameters(entry):
                    if assumptions.choices(assumptions.hints(entry)[key]):
                        assert (id(registry), name, key) in explained, f"{name}.{key}"


class Clipped(Term):
    """A plugin's term."""

    assumptions = (
        Assumption("Which norm?", "the usual | one", "silent", ("norm", "data.min_pixels"), "any other"),
        Assumption("Which way?", "up", "section 2"),
    )

    def __init__(self, context: BuildContext, *, norm: str = "two", clip: bool = False) -> None:
        super().__init__(context)


class Half(Masker):
    """A plugin's masker."""

    assumptions = (Assumption("Which half?", "the left one", "silent", ("side",)),)

    def __init__(self, context: BuildContext, *, side: Literal["left", "right"] = "left") -> None: ...


def test_a_plugin_is_a_section_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, name, component in (("term", "clipped", Clipped), ("masker", "half", Half)):
        monkeypatch.setattr(REGISTRIES[kind], "entries", {**REGISTRIES[kind].entries, name: component})
    page = assumptions.assumptions_markdown()
    own = page.partition("## docs/assumptions.md is made from the code")[2].partition("\n## ")[0]
    assert [line.split(" | ") for line in own.splitlines() if line.startswith("| Wh")] == [
        ["| Which half?", "the left one", "`views.masked.masker.side` (of `half`)", "`left`", "`right`", "silent |"],
        ["| Which norm?", r"the usual \| one", "`views.VIEW.terms.clipped.norm`<br>`data.min_pixels`",
         "`two`<br>`3000`", "any other", "silent |"],
        ["| Which way?", "up", "–", "", "", "section 2 |"],
    ]  # fmt: skip
