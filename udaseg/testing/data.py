"""Contracts of what works before or after the training: samplers and feature measures."""

from __future__ import annotations

import numpy as np
import torch

from udaseg.data.classes import CITYSCAPES
from udaseg.data.index import load_index
from udaseg.data.sampling import Choice, LabelStatistics, Sampler
from udaseg.evaluation.features import centres
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
