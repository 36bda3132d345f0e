"""Tables, and each way to write one. Text and numbers go in as they are; escaping is the renderers' business."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.text import Text

from udaseg.console import out
from udaseg.console import table as print_table

Mark = Literal["", "best", "second"]
SHORT = {
    "sidewalk": "s.walk", "building": "build.", "traffic light": "light", "traffic sign": "sign",
    "vegetation": "veget.", "terrain": "terr.", "motorcycle": "m.bike", "bicycle": "bike",
}  # fmt: skip
"""Column headers where there is little room."""
MANY = 8  # columns of numbers; with more, deviations of single classes are left out where there is little room


@dataclass(frozen=True)
class Cell:
    """A number with its deviation over seeds, or a text. ``signed``: a difference. ``digits`` None: just enough."""

    value: float | None = None
    std: float | None = None
    text: str = ""
    mark: Mark = ""
    signed: bool = False
    digits: int | None = 1

    def number(self) -> str:
        """The value for the eye; the text without one."""
        if self.value is None:
            return clean(self.text)
        if self.digits is None:
            return f"{self.value:g}"
        shown = f"{self.value:{'+' if self.signed else ''}.{self.digits}f}"
        return shown.replace("-0.0", "+0.0") if self.signed and float(shown) == 0 else shown

    def plus_minus(self, sign: str = "±") -> str:
        return "" if self.std is None else f"{sign}{self.std:.{1 if self.digits is None else self.digits}f}"


@dataclass(frozen=True)
class Table:
    """The first ``left`` columns are text, the others numbers.

    ``remarks``: what a reader must know; they go wherever the table goes. ``notes``: how it stands with the runs.
    ``commands``: what fills the missing cells.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: int = 1
    lead: str = ""
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()

    @property
    def wide(self) -> bool:
        return len(self.header) - self.left > MANY


def clean(text: str) -> str:
    """One line of printable characters: names come from other people's files."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


STYLES = {"": "", "best": "bold", "second": "underline"}


def terminal(table: Table) -> None:
    """Print it, with notes and commands; side by side what has room, the rest below."""
    texts = [[cell.number() + thrifty(table, i, cell) for i, cell in enumerate(row)] for row in table.rows]
    for number, columns in enumerate(blocks(table, texts, out.width)):
        print_table(
            [SHORT.get(table.header[i], clean(table.header[i])) for i in columns],
            [[Text(t[i], STYLES[row[i].mark]) for i in columns] for t, row in zip(texts, table.rows, strict=True)],
            title="" if number else clean(table.title),
            left=table.left,
        )
        out.print()
    if lines := [clean(line) for line in (table.lead, *table.remarks, *table.notes) if line]:
        out.print("\n".join(lines))
    if table.commands:
        out.print("\nmissing; these fill it:\n" + "\n".join(f"  {command}" for command in table.commands))


def thrifty(table: Table, position: int, cell: Cell) -> str:
    """A cell's deviation where it has room."""
    single = table.wide and not table.header[position].startswith("mIoU")
    return "" if single else cell.plus_minus()


# --- terminal ------------------------------------------------------------------------------------------------------


def blocks(table: Table, texts: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Columns that have room beside one another; the texts are in each block."""
    widths = [
        max(len(SHORT.get(name, name)), *(len(row[i]) for row in texts), 0) + 2 for i, name in enumerate(table.header)
    ]
    groups = [list(range(table.left))]
    for i in range(table.left, len(table.header)):
        if len(groups[-1]) > table.left and sum(widths[j] for j in [*groups[-1], i]) > width:
            groups.append(list(range(table.left)))
        groups[-1].append(i)
    return groups


# --- Markdown ------------------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """GitHub's tables."""
    lines = [f"### {in_markdown(table.title)}", ""]
    lines += [in_markdown(table.lead), ""] if table.lead else []
    lines.append(as_line(in_markdown(name) for name in table.header))
    lines.append(as_line(":--" if i < table.left else "--:" for i in range(len(table.header))))
    lines += [as_line(map(markdown_cell, row)) for row in table.rows]
    notes = (*table.remarks, *table.notes)
    lines += ["", *(f"- {in_markdown(note)}" for note in notes)] if notes else []
    lines += ["", "Missing; these fill it:", "", "```", *table.commands, "```"] if table.commands else []
    return "\n".join(lines) + "\n"


def as_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown_cell(cell: Cell) -> str:
    text = in_markdown(cell.number() + cell.plus_minus())
    return {"": text, "best": f"**{text}**", "second": f"<u>{text}</u>"}[cell.mark]


def in_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", clean(text))


# --- LaTeX ---------------------------------------------------------------------------------------------------------


LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "†": r"\textdagger{}", "–": "--", "—": "---", "→": r"$\rightarrow$",
    "±": r"$\pm$", "×": r"$\times$", "−": "$-$", '"': r"\textquotedbl{}", "'": r"{\textquotesingle}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip


def latex(table: Table) -> str:
    """A table for a document with ``booktabs``, if it is wide ``graphicx``, and before LaTeX of 2020 ``textcomp``."""
    columns = "l" * table.left + "r" * (len(table.header) - table.left)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{in_latex(f'{table.title}. {table.lead}'.strip())}}}"]
    lines += [r"\resizebox{\textwidth}{!}{%"] if table.wide else []
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [latex_line([in_latex(SHORT.get(name, name)) for name in table.header]), r"\midrule"]
    lines += [latex_line([latex_cell(table, i, cell) for i, cell in enumerate(row)]) for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}" + ("}" if table.wide else "")]
    lines += [rf"\par\smallskip{{\footnotesize {in_latex(remark)}}}" for remark in table.remarks]
    lines += [r"\end{table}"]
    comments = [*table.notes, *(f"missing: {command}" for command in table.commands)]
    return "\n".join([*lines, *(f"% {clean(comment)}" for comment in comments)]) + "\n"


def latex_line(cells: Sequence[str]) -> str:
    return " & ".join(f"{{{cell}}}" if cell.startswith(("[", "*")) else cell for cell in cells) + r" \\"


def latex_cell(table: Table, position: int, cell: Cell) -> str:
    text = in_latex(cell.number())
    if cell.value is not None and text.startswith(("+", "-")):
        text = f"${text}$"
    text = {"": text, "best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}"}[cell.mark]
    return text + in_latex(thrifty(table, position, cell))


def in_latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in clean(text))


# --- CSV -----------------------------------------------------------------------------------------------------------


def comma_separated(table: Table) -> str:
    """Plain numbers, four digits behind the point; deviations in columns of their own; remarks as lines with "# "."""
    with_std = [any(row[i].std is not None for row in table.rows) for i in range(len(table.header))]

    def line(pairs: Iterable[tuple[str, str]]) -> list[str]:
        return [text for pair, two in zip(pairs, with_std, strict=True) for text in pair[: 1 + two]]

    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(line((name, f"{name} std") for name in table.header))
    writer.writerows(line((plain(cell), rounded(cell.std)) for cell in row) for row in table.rows)
    writer.writerows([f"# {clean(remark)}"] for remark in table.remarks)
    return buffer.getvalue()


def plain(cell: Cell) -> str:
    return clean(cell.text) if cell.value is None else rounded(cell.value)


def rounded(value: float | None) -> str:
    return "" if value is None else f"{round(value, 4):.10g}"
