"""A training over time, class by class: what a run leaves behind, and measures of it (`udaseg analyze training`).

K classes, T moments. Validation counts come from the run's log, everything else from the checkpoints that it kept.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

from udaseg.component import Component
from udaseg.evaluation.features import Centres


class Training(Protocol):
    """What a run left: each method yields (finished iterations, what was found then), the earliest first."""

    def validations(self) -> Iterator[tuple[int, Tensor]]:
        """(K, K) counts of every validation of the student, as they were logged."""
        ...

    def centres(self) -> Iterator[tuple[int, Centres]]:
        """The student's features on labelled images, of every checkpoint."""
        ...

    def pseudo_labels(self) -> Iterator[tuple[int, Tensor]]:
        """(K, K) counts of the teacher's labels on labelled images, of every checkpoint; rows are truth."""
        ...


class Track(NamedTuple):
    """A number for each class over time: finished iterations (T,) and values (T, K), NaN where undefined."""

    iterations: list[int]
    values: Tensor


class TrainingMeasure(Component):
    """What to follow through the trainings of runs; ``label`` says what the number is, with its unit."""

    label: ClassVar[str]

    @abstractmethod
    def __call__(self, trainings: Mapping[str, Training]) -> Mapping[str, Track]:
        """Name of a line -> its track, from runs by their names; UserError if they left too little."""
