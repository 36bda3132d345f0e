"""Contracts of what works before or after the training: samplers and measures of features and trainings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from udaseg.data.classes import CITYSCAPES
from udaseg.data.index import load_index
from udaseg.data.sampling import Choice, LabelStatistics, Sampler
from udaseg.evaluation.features import Centres, centres
from udaseg.testing.case import Case, contract, require, same
from udaseg.testing.guards import other_numbers

DRAWS = 50


def statistics() -> LabelStatistics:
    """Of the small `streets`."""
    return LabelStatistics(load_index("streets_source", "train").counts, CITYSCAPES.names, 20)


@contract("sampler")
def draws_images_that_exist(case: Case) -> None:
    """``Choice(image, wanted, min_pixels)``: an image of the data set, a class or None."""
    known = statistics()
    sampler: Sampler = case.create(known)
    images, classes = known.counts.shape
    for i in range(DRAWS):
        choice = sampler.draw(np.random.default_rng(i))
        require(
            isinstance(choice, Choice), f"draw returns {type(choice).__name__}, not Choice(image, wanted, min_pixels)"
        )
        require(0 <= choice.image < images, f"image {choice.image} of {images}")
        require(choice.wanted is None or 0 <= choice.wanted < classes, f"class {choice.wanted} of {classes}")


@contract("sampler")
def draws_from_the_given_generator(case: Case) -> None:
    """The same generator gives the same choice, whatever was drawn before: sample k is a function of (seed, k)."""
    used: Sampler = case.create(statistics())
    first = [used.draw(np.random.default_rng(i)) for i in range(DRAWS)]
    with other_numbers():
        second = [case.create(statistics()).draw(np.random.default_rng(i)) for i in reversed(range(DRAWS))]
    require(
        first == second[::-1],
        "another choice with the same generator: draw only from the given one, and remember nothing from draw to draw "
        "(workers and resumed runs begin anywhere)",
    )


@contract("measure")
def measures_every_class(case: Case) -> None:
    """(K,) numbers from streamed features, the same when they are streamed again."""
    generator = torch.Generator().manual_seed(0)
    images = [(torch.randn(40, 8, generator=generator), torch.randint(4, (40,), generator=generator)) for _ in range(3)]
    known = centres(images, 5)  # the fifth class does not occur
    found = case.create()(lambda: iter(images), known)
    require(found.shape == (5,), f"the shape is {tuple(found.shape)}; one number a class, (5,), is expected")
    require(found[:4].isfinite().all(), "not finite for classes that occur")
    require(same(found, case.create()(lambda: iter(images), known)), "another result for the same features")


class Left:
    """What a training of three moments left, of four classes; the last one never occurs."""

    def validations(self) -> Iterator[tuple[int, Tensor]]:
        yield from ((t, torch.tensor([[9, 2, t, 0], [1, t, 1, 0], [2, 0, 7, 0], [0, 0, 0, 0]])) for t in (5, 10, 15))

    def centres(self) -> Iterator[tuple[int, Centres]]:
        label = torch.arange(30) % 3
        for t in (5, 10, 15):
            yield t, centres([(torch.randn(30, 8, generator=torch.Generator().manual_seed(t)), label)], 4)

    pseudo_labels = validations


@contract("training_measure")
def follows_every_class_over_time(case: Case) -> None:
    """Tracks: (T,) iterations, rising, and (T, K) values; ``label`` says what they are."""
    tracks = case.create()({"first": Left(), "second": Left()})
    require(bool(case.cls.label), "label is empty; it is the title of the chart")
    require(len(tracks) > 0, "no track; one for each run, or one of all, is expected")
    for name, (iterations, values) in tracks.items():
        shape = (len(iterations), 4)
        require(sorted(set(iterations)) == list(iterations), f"{name}: iterations {iterations} do not rise")
        require(tuple(values.shape) == shape, f"{name}: the shape is {tuple(values.shape)}; {shape} is expected")
        require(values[:, :3].isfinite().all(), f"{name}: not finite for classes that occur")
