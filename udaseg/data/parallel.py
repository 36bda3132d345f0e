"""The same work on many files, in several processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

_work: Callable[[Any], Any] | None = None  # of a worker process: sent once, not with every job


def usable_workers(asked: int | None, jobs: int) -> int:
    """Processes to use; 0 = none but this one (a pool costs more than a few dozen files)."""
    if asked is not None:
        return asked if asked > 1 else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 16) if jobs > 64 and cores > 1 else 0


def results(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """`work(job)` of each job, in their order. What is not begun when the iterator is closed never is."""
    if workers == 0 or len(jobs) < 2:
        yield from map(work, jobs)
        return
    # spawn: the caller may hold threads (torch, progress bar) that a forked child would inherit in a bad state
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _start, (work,)) as pool:
        try:
            yield from pool.map(_call, jobs, chunksize=max(1, min(16, len(jobs) // (4 * workers))))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work


def _call(job: Any) -> Any:
    assert _work is not None
    return _work(job)
