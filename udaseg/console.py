"""What a person sees: progress of long work, tables, messages. The only file that prints, besides the commands.

Progress bars go to standard error and only to a terminal: standard output may be a table or JSON that a program reads.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm


class Screen(Console):
    """A rich console that takes progress bars off the screen while it prints."""

    def print(self, *objects: Any, **options: Any) -> None:
        with tqdm.external_write_mode():
            super().print(*objects, **options)
            self.file.flush()


_WIDE = None if sys.stdout.isatty() else 160  # a file or pipe has no width of its own
# No markup and no :emoji: - names of files and recipes may hold [brackets] and colons.
out = Screen(highlight=False, soft_wrap=True, width=_WIDE, markup=False, emoji=False)
err = Screen(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def table(header: Sequence[str], rows: Sequence[Sequence[str | Text]], *, title: str = "", left: int = 1) -> None:
    """Print a table; the first ``left`` columns are text, the others numbers."""
    grid = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for position, name in enumerate(header):
        grid.add_column(name, justify="left" if position < left else "right", no_wrap=position >= left, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    out.print(grid)


class Counting:
    """Context manager giving ``callback(done, total)`` for counted work; without a terminal, a line every 10 s."""

    def __init__(self, description: str) -> None:
        self.description = description

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar = Bar(self.description)
        self._printed_at = time.monotonic()
        return self._update

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _update(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if self._bar.disable and time.monotonic() - self._printed_at > 10:
            self._printed_at = time.monotonic()
            err.print(f"{self.description}: {done}/{total}")


class Watching:
    """Live progress of a training run: a line for each log row (unless ``rows`` is False) and, on a terminal, a bar."""

    def __init__(self, title: str, images_per_step: int, rows: bool = True) -> None:
        self.title, self.images, self.rows = title, images_per_step, rows

    def begin(self, first: int, total: int) -> None:
        if first:
            out.print(f"{self.title}: continuing at iteration {first} of {total}")
        self._last, self._total = first, total
        self._bar = Bar(self.title, first, total)

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
        self._bar.update(iteration - self._bar.n)

    def note(self, text: str) -> None:
        out.print(text, style="yellow")

    def end(self) -> None:
        self._bar.close()


class Silent:
    """No-op progress (ranks other than the first)."""

    def begin(self, first: int, total: int) -> None: ...

    def row(self, row: Mapping[str, Any]) -> None: ...

    def advance(self, iteration: int) -> None: ...

    def note(self, text: str) -> None: ...

    def end(self) -> None: ...


class Bar(tqdm):
    """A progress bar whose remaining time follows from the average pace; ``disable`` is set without a terminal."""

    monitor_interval = 0  # no thread that redraws: data loading forks this process

    def __init__(self, description: str, done: int = 0, total: int | None = None) -> None:
        super().__init__(
            desc=description, initial=done, total=total, leave=False, disable=not sys.stderr.isatty(), smoothing=0,
            miniters=1, dynamic_ncols=True,
        )  # fmt: skip


def number(value: float | None) -> str:
    """A loss as text; n/a for a term that had nothing to measure."""
    return "n/a" if value is None else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds, as text."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def percent(value: float) -> str:
    """An IoU as text; - where it is undefined."""
    return "-" if value != value else f"{value:.1f}"
