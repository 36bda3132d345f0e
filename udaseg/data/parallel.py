"""The same work on many files, in several processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called with (files done, files in all)."""

SAVE_EVERY = 10.0  # seconds

_work: Callable[[Any], Any] | None = None  # of a worker process: sent once, not with every job


def results(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int | None,
    *,
    progress: Progress | None = None,
    done: int = 0,
    save: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """`work(job)` of each job, in their order, from `workers` processes (0, 1: this one; None: as many as are of use).

    After each result was used, `progress` is told; `done` jobs were finished before. `save` is called now and then, so
    that an interrupted program can go on where it was. Closing cancels pending jobs.
    """
    saved = time.monotonic()
    for finished, result in enumerate(_computed(work, jobs, workers), done + 1):
        yield result
        if progress is not None:
            progress(finished, done + len(jobs))
        if save is not None and time.monotonic() - saved > SAVE_EVERY:
            save()
            saved = time.monotonic()


def _computed(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int | None) -> Iterator[Result]:
    if workers is None:
        workers = min(_cores(), 16) if len(jobs) > 64 else 0  # a pool costs more than a few dozen files
    if workers < 2 or len(jobs) < 2:
        yield from map(work, jobs)
        return
    # spawn: the caller may hold threads (torch, progress bar) that a forked child would inherit in a bad state
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _start, (work,)) as pool:
        try:
            yield from pool.map(_call, jobs, chunksize=max(1, min(16, len(jobs) // (4 * workers))))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work


def _call(job: Any) -> Any:
    assert _work is not None
    return _work(job)
