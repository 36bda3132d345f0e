"""What a person sees: progress of long work, tables, messages. The only file that prints, besides the commands."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_WIDE = None if sys.stdout.isatty() else 160  # a file or pipe has no width of its own
# No markup and no :emoji: - names of files and recipes may hold [brackets] and colons.
out = Console(highlight=False, soft_wrap=True, width=_WIDE, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


class _Rate(ProgressColumn):
    """Items a second since the start."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "-")


def bar(console: Console) -> Progress:
    """A progress bar with rate and remaining time."""
    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), MofNCompleteColumn(), _Rate(),
        TimeRemainingColumn(), console=console, transient=True, speed_estimate_period=120,
    )  # fmt: skip


class Counting:
    """Context manager giving ``callback(done, total)`` for counted work; without a terminal, a line now and then.

    It goes to standard error: standard output may be a table or JSON that a program reads.
    """

    def __init__(self, description: str) -> None:
        self.description = description
        self._bar = bar(err) if err.is_terminal else None
        self._task: Any = None
        self._said = time.monotonic()

    def __enter__(self) -> Callable[[int, int], None]:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=None)
        return self._update

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _update(self, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            err.print(f"{self.description}: {done}/{total}")


class Watching:
    """Live progress of a training run: a bar on a terminal, a line a row in a log."""

    def __init__(self, title: str, images_per_step: int, miou: Callable[[Any], float], rows: bool = True) -> None:
        self.title, self.images, self.miou, self.rows = title, images_per_step, miou, rows
        self._bar = bar(out) if out.is_terminal else None
        self._task: Any = None
        self._last = self._total = 0

    def begin(self, first: int, total: int) -> None:
        self._last, self._total = first, total
        if first:
            out.print(f"{self.title}: continuing at iteration {first} of {total}")
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.title, completed=first, total=total)

    def row(self, row: Mapping[str, Any]) -> None:
        if not self.rows:
            return
        if "confusion" in row:
            out.print(f"{row['iteration']:>7}  validation mIoU {row['miou']:.2f}")
            return
        steps = row["iteration"] - self._last
        rate = steps * self.images / row["seconds"]
        left = (self._total - row["iteration"]) * row["seconds"] / max(steps, 1)
        self._last = row["iteration"]
        losses = "  ".join(f"{name} {number(value)}" for name, value in row["losses"].items())
        notes = "  ".join(f"{name} {number(value)}" for name, value in row["notes"].items())
        memory = f"  {row['memory_gb']:.2f} GB" if row["memory_gb"] else ""
        pace = f"{rate:.1f} images/s  waiting {100 * row['waiting']:.0f} %{memory}  {duration(left)} left"
        rest = f"{notes}  lr {row['lr']:.2e}  {pace}"
        out.print(Text.assemble(f"{row['iteration']:>7}  {losses}  ", (rest, "dim")))

    def advance(self, iteration: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=iteration)

    def note(self, text: str) -> None:
        out.print(text, style="yellow")

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()


class Silent:
    """Progress that nobody watches (ranks other than the first)."""

    def begin(self, first: int, total: int) -> None: ...

    def row(self, row: Mapping[str, Any]) -> None: ...

    def advance(self, iteration: int) -> None: ...

    def note(self, text: str) -> None: ...

    def end(self) -> None: ...


def number(value: float | None) -> str:
    """A loss for the eye; n/a for a term that had nothing to measure."""
    return "n/a" if value is None else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds, for the eye."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def percent(value: float) -> str:
    """An IoU for the eye; - where it is undefined."""
    return "-" if value != value else f"{value:.1f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str | Text]], *, title: str = "", left: int = 1) -> None:
    """Print a table; the first ``left`` columns are text, the others numbers."""
    grid = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for position, name in enumerate(header):
        grid.add_column(name, justify="left" if position < left else "right", no_wrap=position >= left, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    out.print(grid)
