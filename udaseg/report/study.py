"""Studies: one table of a paper, or of one's own, as a YAML file. A row is a run and what was printed for it.

Where the columns of a printed table are runs, too (two methods, two architectures), each cell is a row, and ``group``
is its printed column. Labels are as printed, without citations; "†" is the paper's mark for its own reproduction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PlainValidator, ValidationError
from pydantic_core import PydanticCustomError

from udaseg.config.layers import label, locate, parse_override, shipped
from udaseg.data.classes import PROTOCOLS
from udaseg.errors import UserError
from udaseg.problems import Problem, Strict, explain, suggest
from udaseg.yamls import read_yaml

OUT_OF_MEMORY = "OOM"
OWN_OPTIONS = {"seed": "--seeds", "benchmark": "--benchmark"}


def as_cell(value: Any) -> Any:
    if value is None or value == OUT_OF_MEMORY:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise PydanticCustomError("cell", "a number, OOM or null (nothing printed) is expected")


Cell = Annotated[float | str | None, PlainValidator(as_cell)]
Name = Annotated[str, Field(min_length=1)]


class Source(Strict):
    """Where the published numbers stand."""

    paper: Name
    reference: Name
    table: Name


class Row(Strict):
    """One run. Without a recipe it is published only; ``published`` and ``std`` are in the order of the columns.

    ``recipe``: a name or a file, also relative to the study's.
    """

    label: Name
    group: str = ""
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    published: list[Cell] | None = None
    std: list[Cell] | None = None

    @property
    def name(self) -> str:
        """What tells it from the study's other rows."""
        return f"{self.group}/{self.label}" if self.group else self.label


class Study(Strict):
    """Columns: classes (IoU in %), mIoU over the protocol's classes, mIoU* over SYNTHIA's 13, those
    in ``means``, and training FLOPs (``engine.profile.target_cost``); others are printed only.

    ``protocol`` None: the benchmark's. ``domain``: whose images the scores are of; on others than the validation's,
    runs are evaluated after training, so that such a study shares its runs with others. ``notes``: what a reader of
    the table must know; reports print them under it.
    """

    title: Name
    source: Source | None = Field(None, description="of the published numbers; None: a study of one's own")
    benchmark: Name
    protocol: str | None = None
    domain: Literal["validation", "source", "target"] = "validation"
    columns: list[Name] = Field(["mIoU"], min_length=1)
    seeds: list[NonNegativeInt] = Field([0, 1, 2], min_length=1)
    rows: list[Row] = Field(min_length=1)
    means: dict[Name, Annotated[list[Name], Field(min_length=1)]] = Field(
        {}, description="column -> the classes that it is the mean IoU of"
    )
    notes: list[Name] = Field([])


def load_study(name: str) -> Study:
    """A study by its name, a part of it, or its file's path.

    A UserError lists what is wrong with file and key: all wrong keys and values, or, where there are none, all that
    does not fit together.
    """
    path = find(name)
    tree = read_yaml(path, "study")
    try:
        study = Study.model_validate(tree)
        problems = [*flaws(study)]
    except ValidationError as error:
        problems = explain(error, Study)
    if problems:
        lines = "\n".join(f"  {label(path)}: {readable(p.path, tree)}: {p.message}" for p in problems)
        raise UserError(f"study {path.stem!r} has {len(problems)} problem(s):\n{lines}")
    return study.model_copy(update={"rows": [beside(row, path) for row in study.rows]})


def beside(row: Row, study: Path) -> Row:
    """The row with the path of its recipe, if that is a file relative to the study's."""
    file = study.parent / row.recipe if row.recipe and row.recipe.endswith((".yaml", ".yml")) else None
    return row.model_copy(update={"recipe": str(file)}) if file and file.is_file() else row


def find(name: str) -> Path:
    """The file at a path, or the shipped study that has this in its name, where - and _ are equal. UserError if several
    have it and it is no whole name."""
    part = name.replace("-", "_").lower()
    fitting = [] if Path(name).is_file() or not part else [known for known in studies() if part in known]
    if len(fitting) > 1 and part not in fitting:
        raise UserError(f"study {name!r} may be {', '.join(fitting)}; write more of its name")
    return locate(part if part in fitting else fitting[0] if fitting else name, "studies")


def studies() -> dict[str, Path]:
    """Name -> file of the shipped studies."""
    return shipped("studies")


def flaws(study: Study) -> Iterator[Problem]:
    """What no single key shows."""
    if study.protocol is not None and study.protocol not in PROTOCOLS:
        yield Problem(("protocol",), f"unknown protocol {study.protocol!r}; {suggest(study.protocol, PROTOCOLS)}")
    for key, values in (("columns", study.columns), ("seeds", study.seeds)):
        for value in repeated(values):
            yield Problem((key,), f"{value!r} occurs twice")
    for column in study.means.keys() - set(study.columns):
        yield Problem(("means", column), f"is no column; {suggest(column, study.columns)}")
    for group, text in repeated([(row.group, row.label) for row in study.rows]):
        yield Problem(("rows",), f"label {text!r} occurs twice" + (f" in group {group!r}" if group else ""))
    for index, row in enumerate(study.rows):
        for key, message in row_flaws(row, len(study.columns)):
            yield Problem(("rows", str(index), key), message)


def row_flaws(row: Row, columns: int) -> Iterator[tuple[str, str]]:
    """(key, message) of what is wrong in a row."""
    if row.recipe is None and row.published is None:
        yield "recipe", "is missing, and nothing is published: give one of the two"
    if row.recipe is None and row.overrides:
        yield "overrides", "need a recipe"
    if row.std is not None and row.published is None:
        yield "std", "needs published values"
    for key, cells in (("published", row.published), ("std", row.std)):
        if cells is not None and len(cells) != columns:
            yield key, f"{len(cells)} values for {columns} columns; null stands for a missing one"
    for text in row.overrides:
        try:
            if option := own_option(text):
                yield "overrides", f"{text!r}: it is the whole study's; see its keys, and {option}"
        except UserError as error:
            yield "overrides", str(error)


def own_option(override: str) -> str | None:
    """The option of a grid that is there for what an override sets. UserError if it is none."""
    return OWN_OPTIONS.get(parse_override(override)[0][0])


def repeated(values: list[Any]) -> list[Any]:
    """What occurs more than once."""
    return sorted({value for value in values if values.count(value) > 1})


def readable(path: tuple[str, ...], tree: dict[str, Any]) -> str:
    """A key in words: a row by its label, or by its number from 1 on where it has none."""
    if len(path) < 2 or path[0] != "rows":
        return ".".join(path)
    number = int(path[1])
    row = tree["rows"][number]
    text = row.get("label") if isinstance(row, dict) else None
    return ".".join(["rows", repr(text) if text else str(number + 1), *path[2:]])
