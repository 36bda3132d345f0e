"""YAML read safely and strictly, and written so that it reads back the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.error import MarkedYAMLError

from udaseg.errors import UserError
from udaseg.files import refuse_special

LARGEST = 1_000_000
"""Bytes of a file that is parsed: pure Python takes a minute for 20 MB."""


class _Loader(yaml.SafeLoader):
    """Safe YAML without its traps: keys are text and occur once, 6e-5 is a number, no aliases (few make gigabytes)."""

    number_keys = False

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise MarkedYAMLError(problem=f"alias *{event.anchor}: write the value out", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str) and not (self.number_keys and type(name) is int):
                raise MarkedYAMLError(problem=f"key {name!r} is not text; quote it", problem_mark=key.start_mark)
            if name in seen:
                raise MarkedYAMLError(problem=f"key {name!r} occurs twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


class _NumbersLoader(_Loader):
    """Whole numbers are keys, too: `{0: soil, 1: crop}`."""

    number_keys = True


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads: every value out in full, and text that looks like 6e-5 in quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def read_yaml(path: Path, noun: str = "recipe", *, number_keys: bool = False) -> dict[str, Any]:
    """A YAML map, loaded safely; errors name file and line."""
    try:
        refuse_special(path)
        if (size := path.stat().st_size) > LARGEST:
            raise UserError(f"{path}: {size / 1e6:.1f} MB are too large for a {noun}: at most {LARGEST / 1e6:.0f} MB")
        tree = parse_yaml(path.read_text(encoding="utf-8"), number_keys=number_keys)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a {noun} is a map of keys, not {type(tree).__name__}")
    return tree


def parse_yaml(text: str, *, number_keys: bool = False) -> Any:
    """A YAML value; ValueError saying where and what is wrong."""
    try:
        return yaml.load(text, _NumbersLoader if number_keys else _Loader)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{place}{error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def as_yaml(tree: dict[str, Any]) -> str:
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
