"""Two processes of a run, played by two threads: everything but the network between them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from udaseg.core.context import Reduce

Result = TypeVar("Result")
PATIENCE = 10.0  # seconds that a rank waits for the other


class TwoRanks(Generic[Result]):
    """Runs ``work(rank, reduce)`` for ranks 0 and 1 at the same time; ``results`` are theirs.

    AssertionError if the ranks do not reduce equally often: real processes would wait for one another for ever.
    """

    def __init__(self, work: Callable[[int, Reduce], Result]) -> None:
        self.meeting = threading.Barrier(2, timeout=PATIENCE)
        self.values: list[Tensor] = [torch.empty(0)] * 2
        self.calls = [0, 0]
        self.errors: list[BaseException] = []
        self.found: dict[int, Result] = {}
        threads = [threading.Thread(target=self._run, args=(work, rank), daemon=True) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in sorted(self.errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            if isinstance(error, threading.BrokenBarrierError):
                break
            raise error
        if self.errors or self.calls[0] != self.calls[1]:
            raise AssertionError(
                "one process calls context.reduce and the other does not, so that they would wait for ever: call it "
                "in every step, whatever is in the batch"
            )
        self.results = [self.found[rank] for rank in (0, 1)]

    def _run(self, work: Callable[[int, Reduce], Result], rank: int) -> None:
        def reduce(value: Tensor, operation: str = "sum") -> Tensor:
            self.calls[rank] += 1
            self.values[rank] = value
            self.meeting.wait()
            both = torch.stack(self.values)
            self.meeting.wait()  # before the next value takes the place
            return both.sum(dim=0) if operation == "sum" else both.amax(dim=0)

        try:
            self.found[rank] = work(rank, reduce)
        except BaseException as error:
            self.errors.append(error)
            self.meeting.abort()
