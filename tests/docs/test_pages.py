"""Every command line in the pages, the README and the headers of recipes is one that the program takes.

Nothing is run: options have to exist, and so have the recipes, benchmarks, studies and keys that a line names.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from udaseg.cli import app
from udaseg.config.layers import leaves, shipped
from udaseg.config.load import load
from udaseg.config.schema import Recipe
from udaseg.report.study import load_study

HOME = Path(__file__).parents[2]
GENERATED = ("commands.md", "keys.md", "components.md", "assumptions.md")  # made from the code
PAGES = [
    *(HOME / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((HOME / "examples").rglob("README.md")),
    *(page for page in sorted((HOME / "docs").glob("*.md")) if page.name not in GENERATED),
]
HEADERS = [*sorted((HOME / "recipes").rglob("*.yaml")), *sorted((HOME / "examples").rglob("*.yaml"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)
PLACEHOLDER = re.compile(r"[A-Z_]{1,}(\.\.\.)?$|.*\.\.\.$|\[.*|.*\]$|\|$")
"""What stands for something of the reader's own: RUN, FILE, [OPTIONS], a | b."""


class Line(NamedTuple):
    """A command line; ``whole``: it stands in a block, to be copied, and not in a sentence."""

    file: str
    text: str
    whole: bool


def lines() -> Iterator[Line]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for language, block in FENCE.findall(text):
            if language in ("", "sh", "bash"):
                yield from (Line(page.name, part, True) for part in commands_in(block))
        for span in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
            yield from (Line(page.name, part, False) for part in commands_in(" ".join(span.split())))
    for file in HEADERS:
        header = re.findall(r"^#   (.*)$", file.read_text(encoding="utf-8"), re.M)
        yield from (Line(file.name, part, True) for part in commands_in("\n".join(header)))


def commands_in(text: str) -> Iterator[str]:
    """The calls of udaseg in a piece of shell, without comments."""
    for line in text.replace("\\\n", " ").replace("$seed", "0").replace("$SLURM_ARRAY_TASK_ID", "0").splitlines():
        for part in re.split(r"&&|;", re.sub(r"(^|\s)# .*", "", line)):
            if found := re.search(r"(?:^|\bdo |\bsrun |-m )udaseg(?:\.cli)? (.+)", part.strip()):
                yield found[1].strip()


LINES = [*dict.fromkeys(lines())]


def test_there_are_lines() -> None:
    assert len([line for line in LINES if line.whole]) > 60 and len(LINES) > 150


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.file}: {line.text}"[:90])
def test_the_program_takes_it(line: Line) -> None:
    words = shlex.split(line.text)
    command, rest = command_of(words)
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in rest:
        if re.fullmatch(r"\[?--?[a-z].*", word):
            assert word.strip("[]").split("=")[0] in {*options, "--help"}, f"no option {word}; there are {options}"
    is_group = hasattr(command, "commands")  # its own options act as soon as they are parsed
    if not is_group and (line.whole or not any(PLACEHOLDER.match(word) for word in rest)):
        refuse_wrong_names(command, rest, line.whole)


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words begin with, and the words after it."""
    command = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]  # type: ignore[attr-defined]
    groups = getattr(command, "commands", {})
    assert not groups or not words or words[0].startswith("-") or words[0] in ("COMMAND", "..."), (
        f"{words}: {[*groups]}"
    )
    return command, words


def refuse_wrong_names(command: Any, words: list[str], whole: bool) -> None:
    """Of a whole line, also missing arguments are a mistake."""
    try:
        given = command.make_context(command.name, list(words)).params
    except Exception as error:  # typer brings its own copy of click, or uses the installed one
        if whole or type(error).__name__ != "MissingParameter":
            raise
        return
    for key, folder in (("recipe", ""), ("name", ""), ("benchmark", "benchmarks")):
        value = given.get(key)
        if command.name in ("submit", "new") or value is None or value.endswith(".yaml") or value.isupper():
            continue
        assert value in shipped(folder), f"{key} {value!r}"
    for study in [given.get("study"), *(given.get("studies") or [])]:
        if study and "=" not in study and not study.endswith(".yaml") and not study.isupper():
            load_study(study)
    recipe, changes = given.get("recipe") or given.get("name"), given.get("overrides") or []
    if recipe in shipped() and changes and not given.get("plugin"):
        load(recipe, overrides=changes)


@cache
def known_keys() -> set[str]:
    """Every key of every shipped recipe, whole and in part, below every view and term."""
    return {
        ".".join(path[:n]) for name in shipped() for path, _ in leaves(load(name).recipe.as_written()) for n in range(9)
    }


def keys() -> Iterator[tuple[str, str]]:
    sections = "|".join(Recipe.model_fields)
    for page in (page for page in PAGES if "examples" not in page.parts):  # plugins have keys of their own
        for span in re.findall(r"`([^`\s]+)`", FENCE.sub("", page.read_text(encoding="utf-8"))):
            if re.fullmatch(rf"({sections})(\.[a-z_]+)+(=.*)?", span):
                yield page.name, span.partition("=")[0]


@pytest.mark.parametrize(("page", "key"), sorted({*keys()}))
def test_the_key_exists(page: str, key: str) -> None:
    assert key in known_keys()
