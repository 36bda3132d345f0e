"""The reference pages are made from the code, and every key of a recipe says what it means."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from udaseg.config.schema import Recipe
from udaseg.ranges import ClassNames, Share

DOCS = Path(__file__).parents[2] / "docs"
SECTIONS = {"data", "model", "views", "teacher", "optimiser", "train", "evaluation", "runtime"}


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """docs/reference.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["commands.md", "keys.md", "components.md"])
def test_the_page_is_what_the_code_says(reference: ModuleType, name: str) -> None:
    made = reference.pages()[name]
    assert (DOCS / name).read_text(encoding="utf-8") == made, f"renew docs/{name}: {reference.RENEW}"


def keys(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, str | None]]:
    for name, field in model.model_fields.items():
        inner = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if is_model(kind)]
        if not (path == "" and name in SECTIONS):
            yield f"{path}{name}", field.description
        for section in inner if name != "views" else ():  # written in another way than it is kept
            yield from keys(section, f"{path}{name}.")


def is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def test_every_key_says_what_it_means() -> None:
    found = dict(keys(Recipe))
    assert len(found) > 50
    assert [key for key, text in found.items() if not text] == [], "give them a description in config/schema.py"


def test_types_in_words(reference: ModuleType) -> None:
    for hint, expected in (
        (Share, "number from 0 to 1"),
        (Annotated[int | None, Field(gt=0)], "whole number above 0 or null"),
        (tuple[int, int] | None, "list of 2: whole number or null"),
        (tuple[float, ...], "list of number"),
        (ClassNames, "list of class names"),
        (Literal["a", "b"], "`a` or `b`"),
    ):
        assert reference.words(hint) == expected
    with pytest.raises(TypeError, match=r"docs/reference\.py"):
        reference.words(object)
