"""Named phases of a step: which one is running, and what each took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Phases:
    """``with phases("name"):`` marks a phase. After an exception ``current`` is the innermost phase that failed.

    ``clock``: reads something that grows, such as seconds; None to measure nothing. ``spent``: by how much it grew in
    each phase, without the phases inside it.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.current = "start"
        self.spent: dict[str, float] = defaultdict(float)
        self._clock = clock
        self._stack: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._tick()
        self._stack.append(name)
        self.current = name
        yield
        self._tick()
        self._stack.pop()
        self.current = self._stack[-1] if self._stack else "end"

    def _tick(self) -> None:
        """Add what was spent since the last change to the innermost phase."""
        if self._clock is None:
            return
        now = self._clock()
        if self._stack:
            self.spent[self._stack[-1]] += now - self._since
        self._since = now
