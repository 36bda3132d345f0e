"""Components by name: a constructor's signature is the schema of its settings."""

from __future__ import annotations

import functools
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError
from steps import build_context

from udaseg.component import Component
from udaseg.config.registry import REGISTRIES, Registry, keyword_parameters, register
from udaseg.core.masking import Blocks
from udaseg.core.views import Masked
from udaseg.errors import UserError
from udaseg.problems import Problem, collecting, explain, fields_at, suggest


class Brush(Component):
    """A component with settings and a value that the program supplies."""

    def __init__(self, canvas: object, *, colour: str, hairs: int = 7, kind_of: Literal["a", "b"] = "a") -> None:
        if hairs < 0:
            raise ValueError("hairs grow outwards")
        self.colour, self.hairs, self.kind_of, self.canvas = colour, hairs, kind_of, canvas


def plain(canvas: object, *, share: float | None = None, sizes: tuple[int, int] = (1, 2)) -> str:
    return f"{share} {sizes}"


TOOLS = Registry("tool", Brush, {"brush": Brush, "plain": plain, "red": functools.partial(Brush, colour="red")})
PATH = ("tools", "mine")


def check(name: object, **settings: object) -> tuple[dict[str, object], list[Problem]]:
    """Completed settings, or {} and all that is wrong with them."""
    done, problems = {}, []
    with collecting(problems, PATH):
        done = TOOLS.validate(name, settings)
    return done, problems


def test_defaults_are_filled_in_and_supplied_values_left_out() -> None:
    assert check("brush", colour="blue") == ({"colour": "blue", "hairs": 7, "kind_of": "a"}, [])
    assert check("plain") == ({"share": None, "sizes": (1, 2)}, [])


def test_what_partial_binds_is_no_longer_a_setting() -> None:
    assert check("red") == ({"hairs": 7, "kind_of": "a"}, [])
    _, problems = check("red", colour="green")
    assert "unknown key 'colour'" in problems[0].message
    assert list(keyword_parameters(TOOLS.entries["red"])) == ["hairs", "kind_of"]


@pytest.mark.parametrize("name", ["brsh", None, 5, ["brush"], {"brush": 1}, True])
def test_unknown_names_answer_with_noun_and_list(name: object) -> None:
    done, (problem,) = check(name)
    assert done == {} and problem.path == PATH
    assert f"unknown tool {name!r}" in problem.message and "allowed: brush, plain, red" in problem.message


def test_unknown_name_answers_with_the_nearest() -> None:
    assert "did you mean 'brush'?" in check("brsh")[1][0].message


def test_supplied_values_cannot_be_set_by_the_user() -> None:
    _, (problem,) = check("brush", colour="blue", canvas=3)
    assert problem.path == (*PATH, "canvas")
    assert "unknown key 'canvas'" in problem.message and "allowed: colour, hairs, kind_of" in problem.message


def test_all_problems_of_a_component_at_once() -> None:
    _, problems = check("brush", hairs="many", kind_of="c", hears=3)
    assert {p.path[-1] for p in problems} == {"colour", "hairs", "kind_of", "hears"}
    by_key = {p.path[-1]: p.message for p in problems}
    assert "missing" in by_key["colour"]
    assert "'many'" in by_key["hairs"] and "integer" in by_key["hairs"]
    assert "'a' or 'b'" in by_key["kind_of"]
    assert "did you mean 'hairs'?" in by_key["hears"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "much", [1]])
def test_numbers_are_finite_numbers(value: object) -> None:
    done, problems = check("plain", share=value)
    assert done == {} and [p.path for p in problems] == [(*PATH, "share")]


def test_create_passes_settings_and_what_is_supplied() -> None:
    canvas = object()
    made = TOOLS.create({"kind": "brush", "colour": "blue"}, canvas)
    assert (made.colour, made.hairs, made.canvas) == ("blue", 7, canvas)
    assert TOOLS.create({"kind": "plain", "sizes": (3, 4)}, canvas) == "None (3, 4)"
    assert TOOLS.create({"kind": "red"}, canvas).colour == "red"


def test_what_a_constructor_refuses_is_the_users_error() -> None:
    with pytest.raises(UserError, match="tool red: hairs grow outwards"):
        TOOLS.create({"kind": "red", "hairs": -1}, None)


def test_more_components_have_names_of_their_own_and_the_right_base() -> None:
    tools = Registry("tool", Brush)
    tools.add({"brush": Brush})
    assert "brush" in tools and tools.component("brush") is Brush
    assert str(tools.flaw("brush", Brush)).startswith("exists already")
    assert tools.flaw("blocks", Blocks) == "Blocks is no Brush"
    assert tools.flaw("other", Brush) is None


def test_a_table_is_registered_whole_or_not_at_all() -> None:
    before = [*REGISTRIES["masker"].entries]
    with pytest.raises(UserError, match="masker 'blocks': exists already"):
        register({"masker": {"new_blocks": Blocks, "blocks": Blocks}})
    assert [*REGISTRIES["masker"].entries] == before


def test_a_setting_may_be_a_component() -> None:
    views = REGISTRIES["view"]
    assert views.validate("masked", {})["masker"] == {"kind": "blocks", "block": 0.0625, "ratio": 0.7}
    settings = views.validate("masked", {"masker": {"ratio": 0.5}})
    assert settings == views.validate("masked", {"masker": {"kind": "blocks", "ratio": 0.5}})
    view = views.create({"kind": "masked", **settings}, build_context())
    assert isinstance(view, Masked) and isinstance(view.masker, Blocks) and view.masker.ratio == 0.5


@pytest.mark.parametrize(
    ("masker", "path", "message"),
    [
        ("blox", ("masker",), "unknown masker 'blox'; did you mean 'blocks'?"),
        (3, ("masker",), "3 is not allowed: a name or a map of keys is expected"),
        ({"raito": 1}, ("masker", "raito"), "unknown key 'raito'; did you mean 'ratio'? allowed: block, ratio"),
        ({"ratio": 2}, ("masker", "ratio"), "2 is not allowed: input should be less than or equal to 1"),
    ],
)
def test_problems_of_a_component_in_a_setting(masker: object, path: tuple[str, ...], message: str) -> None:
    problems: list[Problem] = []
    with collecting(problems, ("views", "masked")):
        REGISTRIES["view"].validate("masked", {"masker": masker})
    ((where, text),) = problems
    assert where == ("views", "masked", *path) and text.startswith(message)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: tuple[int, int] = (1, 1)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner | None = None
    table: dict[str, int] = {}


def test_keys_allowed_inside_a_nested_optional_section() -> None:
    assert fields_at(Outer, ()) == ["inner", "table"]
    assert fields_at(Outer, ("inner",)) == ["size"]
    assert fields_at(Outer, ("table",)) == [] == fields_at(Outer, ("nosuch",))


def explained(tree: object) -> dict[tuple[str, ...], str]:
    with pytest.raises(ValidationError) as error:
        Outer.model_validate(tree)
    return {p.path: p.message for p in explain(error.value, Outer, ("top",))}


def test_messages_name_the_value_and_what_is_expected_in_the_users_words() -> None:
    found = explained({"inner": {"size": 3, "sise": 1}, "table": 4, "innr": {}})
    assert found["top", "inner", "size"] == "3 is not allowed: a list is expected, as in [512, 512]"
    assert found["top", "table"] == "4 is not allowed: a map of keys is expected"
    assert "did you mean 'size'? allowed: size" in found["top", "inner", "sise"]
    assert "did you mean 'inner'? allowed: inner, table" in found["top", "innr"]
    assert explained({"inner": 3})["top", "inner"] == "3 is not allowed: a map of keys is expected"


def test_suggest() -> None:
    assert suggest("mit_b9", ["mit_b5", "tiny"]) == "did you mean 'mit_b5'? allowed: mit_b5, tiny"
    assert suggest("zzz", ["b", "a"]) == "allowed: a, b"
    assert suggest("x", []) == "nothing is allowed here"
