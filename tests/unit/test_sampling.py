"""Samplers: probabilities, strictness, dropped classes."""

from __future__ import annotations

import numpy as np
import pytest

from udaseg.data.sampling import SAMPLERS, Choice, LabelStatistics, RareClass, Sampler, Uniform
from udaseg.errors import UserError

COUNTS = np.array([[9000, 3000, 0, 10], [5000, 3001, 0, 0], [0, 9000, 0, 10]], np.int64)
NAMES = ("road", "sky", "car", "bus")


def statistics(min_pixels: int) -> LabelStatistics:
    return LabelStatistics(COUNTS, NAMES, min_pixels)


def draws(sampler: Sampler, n: int = 3000) -> list[Choice]:
    rng = np.random.default_rng(0)
    return [sampler.draw(rng) for _ in range(n)]


def test_images_need_strictly_more_pixels() -> None:
    sampler = RareClass(statistics(3000), temperature=np.inf)
    assert {(c.image, c.wanted) for c in draws(sampler)} == {(0, 0), (1, 0), (1, 1), (2, 1)}
    assert {c.min_pixels for c in draws(sampler, 5)} == {1500.0}


def test_class_without_an_image_is_dropped() -> None:
    sampler = RareClass(statistics(3000), temperature=np.inf)
    assert sampler.probabilities.tolist() == [0.5, 0.5, 0, 0]
    with pytest.raises(UserError, match="more than 9000"):
        RareClass(statistics(9000))


def test_frequencies_follow_the_probabilities() -> None:
    sampler = RareClass(statistics(5), temperature=0.5)
    shares = np.bincount([c.wanted or 0 for c in draws(sampler)], minlength=4) / 3000
    assert np.abs(shares - sampler.probabilities).max() < 0.03
    assert sampler.probabilities[2] == 0 and sampler.probabilities[3] > sampler.probabilities[0]


def test_low_temperature_prefers_the_rarest() -> None:
    sampler = RareClass(statistics(5), temperature=0.01)
    assert sampler.probabilities[3] > 0.999


def test_ratio_zero_checks_no_crop() -> None:
    sampler = RareClass(statistics(5), min_crop_ratio=0)
    assert all(c.wanted is None for c in draws(sampler, 10))


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"temperature": float("nan")}, {"min_crop_ratio": -1.0}])
def test_values_out_of_range(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match="rare_class"):
        RareClass(statistics(5), **bad)


def test_uniform_and_table() -> None:
    assert {c.image for c in draws(Uniform(statistics(0)), 100)} == {0, 1, 2}
    for kind in SAMPLERS.values():
        sampler = kind(statistics(5))
        assert sampler.draw(np.random.default_rng(4)) == sampler.draw(np.random.default_rng(4))
