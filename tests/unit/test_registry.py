"""Named parts: a constructor's signature is the schema of its settings."""

from __future__ import annotations

import functools
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from udaseg.problems import Problem, explain, fields_at, suggest


class Brush:
    """A part with settings and two values that the program supplies."""

    def __init__(
        self, width: int = 0, /, *, colour: str, hairs: int = 7, kind_of: Literal["a", "b"] = "a", canvas: object
    ) -> None:
        self.colour, self.hairs, self.kind_of, self.canvas = colour, hairs, kind_of, canvas


def plain(*, share: float | None = None, sizes: tuple[int, int] = (1, 2)) -> str:
    return f"{share} {sizes}"


TABLE = Table(
    "tool", {"brush": Brush, "plain": plain, "red": functools.partial(Brush, colour="red")}, frozenset({"canvas"})
)
PATH = ("tools", "mine")


def check(name: object, **settings: object) -> tuple[dict[str, object], list[Problem]]:
    return TABLE.check(name, settings, PATH)


def test_defaults_are_filled_in_and_supplied_values_left_out() -> None:
    assert check("brush", colour="blue") == ({"colour": "blue", "hairs": 7, "kind_of": "a"}, [])
    assert check("plain") == ({"share": None, "sizes": (1, 2)}, [])


def test_what_partial_binds_is_no_longer_a_setting() -> None:
    assert check("red") == ({"hairs": 7, "kind_of": "a"}, [])
    _, problems = check("red", colour="green")
    assert "unknown key 'colour'" in problems[0].message
    assert list(keyword_parameters(TABLE.rows["red"])) == ["hairs", "kind_of", "canvas"]


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


def test_all_problems_of_a_part_at_once() -> None:
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


def test_make_passes_settings_and_of_the_supplied_values_those_asked_for() -> None:
    canvas = object()
    made = TABLE.make("brush", {"colour": "blue"}, canvas=canvas, unasked=1)
    assert (made.colour, made.hairs, made.canvas) == ("blue", 7, canvas)
    assert TABLE.make("plain", {"sizes": (3, 4)}, canvas=canvas) == "None (3, 4)"
    assert TABLE.make("red", {}, canvas=canvas).colour == "red"


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
