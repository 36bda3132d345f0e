"""Components: everything a recipe can name, and what each of them declares.

A component is a class. Its constructor follows one rule: **positional parameters are supplied by the program,
keyword-only parameters are the settings of a recipe**; their types and defaults are the schema. A setting that is a
component itself is annotated ``Annotated[Masker, Default("blocks")]``; the constructor gets the object.

What a component needs is known before it is built, so that a recipe can be refused, priced and prepared for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Settings = Mapping[str, Any]
"""A component's settings, complete and checked; components among them as {kind, settings...}."""


class Default(NamedTuple):
    """The component that a setting names when a recipe says nothing."""

    kind: str


class Assumption(NamedTuple):
    """A question that a paper leaves open, and how a component answers it (docs/assumptions.md is made of these).

    ``keys``: settings of the component, or whole keys of a recipe, that change the ``reading``. Defaults and the other
    values of a choice are read from the code; ``alternatives`` says what else there is. ``rests_on``: where the reading
    comes from, "silent" if from us alone.
    """

    question: str
    reading: str
    rests_on: str
    keys: tuple[str, ...] = ()
    alternatives: str = ""


class ImageCrop(NamedTuple):
    """What the loader takes of one image: its path below the root, the size (w, h) it counts as, and the crop's box.

    ``pixels``: any box (data.transforms.Crop) of the image at that size -> (h, w, 3) uint8 RGB. It is decoded already.
    """

    image: Path
    size: tuple[int, int]
    box: Any
    pixels: Callable[[Any], npt.NDArray[np.uint8]]


class SampleExtra(Protocol):
    """One more image that the loader adds to every source sample, for one component."""

    def missing(self, dataset: str, images: Sequence[Path]) -> tuple[str, str] | None:
        """(setting, message) of what is not there for these images of the data set; None if all is there."""
        ...

    def __call__(self, source: ImageCrop, target: ImageCrop | None, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """The source crop's pixels (h, w, 3) uint8 RGB, not flipped, not padded: the loader does as with the source.

        ``target``: the sample's, None without a target domain. ``rng``: the extra's own, a function of the sample.
        """
        ...


@dataclass(frozen=True)
class Needs:
    """What a component asks of a run.

    ``target``: a target domain, hence a teacher that labels it. ``pretrained_encoder``: the frozen encoder.
    ``passes``: network ("student", "teacher") -> further encoder passes in a step. ``extras``: name in
    ``Batch.extras`` -> what the loader adds.
    """

    target: bool = False
    pretrained_encoder: bool = False
    passes: Mapping[str, int] = field(default_factory=dict)
    extras: Mapping[str, SampleExtra] = field(default_factory=dict)

    def __or__(self, other: Needs) -> Needs:
        """Both: passes add up."""
        networks = dict.fromkeys([*self.passes, *other.passes])
        return Needs(
            target=self.target or other.target,
            pretrained_encoder=self.pretrained_encoder or other.pretrained_encoder,
            passes={name: self.passes.get(name, 0) + other.passes.get(name, 0) for name in networks},
            extras={**self.extras, **other.extras},
        )

    @property
    def teacher(self) -> bool:
        """Is there a teacher at all?"""
        return self.target or self.passes.get("teacher", 0) > 0


class Plan(NamedTuple):
    """What is known of a run before anything is built.

    ``decoder``: its name; ``decoders``: the class behind every such name. ``images``: of each domain in a process's
    step.
    """

    decoder: str
    decoders: Mapping[str, Any]
    images: int

    @property
    def fusing(self) -> list[str]:
        """The decoders that combine the maps into one."""
        return [name for name, decoder in self.decoders.items() if decoder.fuses]


class Component:
    """Base of everything that a recipe can name."""

    needs: ClassVar[Needs] = Needs()
    assumptions: ClassVar[tuple[Assumption, ...]] = ()

    @classmethod
    def needs_with(cls, settings: Settings) -> Needs:
        """``needs``, for a component whose needs depend on its settings."""
        return cls.needs

    @classmethod
    def unused(cls, settings: Settings) -> frozenset[str]:
        """Settings that name a component which these settings leave idle, so that it needs nothing."""
        return frozenset()

    @classmethod
    def problems(cls, settings: Settings, plan: Plan) -> list[tuple[str, str]]:
        """(setting, message) of what no setting shows by itself; the recipe is refused."""
        return []

    @classmethod
    def warnings(cls, settings: Settings, plan: Plan) -> list[str]:
        """Warnings about settings that are allowed."""
        return []
