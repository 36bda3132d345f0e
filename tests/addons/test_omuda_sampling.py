"""OMUDA's samplers: equations 3 to 5 by hand, and the row of Table V that they are compared with."""

from __future__ import annotations

import math

import numpy as np
import pytest

from udaseg.addons.omuda.context_aware import ContextAwareSampler, FixedRatio
from udaseg.data.sampling import Choice, LabelStatistics, Sampler
from udaseg.errors import UserError

NAMES = ("road", "sky", "car", "bus")
STREET = np.array([[40, 0, 15, 0], [20, 20, 0, 5]], np.int64)  # shares: road 0.6, sky 0.2, car 0.15, bus 0.05


def statistics(min_pixels: int) -> LabelStatistics:
    return LabelStatistics(STREET, NAMES, min_pixels)


def draws(sampler: Sampler, n: int = 3000) -> list[Choice]:
    rng = np.random.default_rng(0)
    return [sampler.draw(rng) for _ in range(n)]


@pytest.mark.parametrize("kind", [ContextAwareSampler, FixedRatio])
def test_the_same_state_gives_the_same_choice(kind: type[Sampler]) -> None:
    sampler = kind(statistics(4), foreground=("bus",))  # type: ignore[call-arg]
    assert sampler.draw(np.random.default_rng(4)) == sampler.draw(np.random.default_rng(4))


def test_context_aware_probabilities_by_hand() -> None:
    """eq. 3: f = 60/100, 20/100, 15/100, 5/100. eq. 4: P_b(road) = e^0.4 / (e^0.4 + e^0.8) = 1 / (1 + e^0.4).
    eq. 5: P_f(car) = e^(0.85/0.7) / (e^(0.85/0.7) + e^(0.95/0.7)) = 1 / (1 + e^(0.1/0.7))."""
    sampler = ContextAwareSampler(statistics(4))
    road, car = 1 / (1 + math.exp(0.4)), 1 / (1 + math.exp(0.1 / 0.7))
    expected = [0.5 * road, 0.5 * (1 - road), 0.5 * car, 0.5 * (1 - car)]
    assert sampler.probabilities == pytest.approx(expected, rel=1e-5)
    assert [round(p, 4) for p in expected] == [0.2007, 0.2993, 0.2322, 0.2678]
    shares = np.bincount([c.wanted for c in draws(sampler)], minlength=4) / 3000
    assert np.abs(shares - expected).max() < 0.03


def test_context_aware_temperatures_and_share_belong_to_their_group() -> None:
    sampler = ContextAwareSampler(
        statistics(4), foreground_temperature=0.1, background_temperature=np.inf,
        foreground_share=0.2,
    )  # fmt: skip
    bus = 1 / (1 + math.exp(-0.1 / 0.1))
    assert sampler.probabilities == pytest.approx([0.4, 0.4, 0.2 * (1 - bus), 0.2 * bus], rel=1e-5)


def test_context_aware_draws_an_image_with_the_class_and_checks_the_crop() -> None:
    found = draws(ContextAwareSampler(statistics(4), min_crop_ratio=0.25), 200)
    assert {(c.image, c.wanted) for c in found} == {(0, 0), (1, 0), (1, 1), (0, 2), (1, 3)}
    assert {c.min_pixels for c in found} == {1.0}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_group_without_a_class_to_draw_leaves_all_to_the_other(share: float) -> None:
    no_cars = ContextAwareSampler(statistics(15), foreground_share=share)
    assert no_cars.probabilities.sum() == pytest.approx(1) and no_cars.probabilities[2:].tolist() == [0, 0]
    only = ContextAwareSampler(LabelStatistics(STREET[:, 2:3], ("car",), 4), foreground_share=share)
    assert only.probabilities.tolist() == [1]


def test_groups_are_named_classes() -> None:
    roads = ContextAwareSampler(statistics(4), foreground=("road", "horse"), foreground_share=1.0)
    assert roads.probabilities.tolist() == [1, 0, 0, 0]
    for kind in (ContextAwareSampler, FixedRatio):
        with pytest.raises(ValueError, match=r"\['horse'\].*there are road, sky, car, bus"):
            kind(statistics(4), foreground=("horse",))
        with pytest.raises(UserError, match="more than 99 pixels"):
            kind(statistics(99))


def test_fixed_ratio_draws_images_with_foreground() -> None:
    counts = np.array([[9, 9, 0, 0]] * 9 + [[9, 0, 9, 0]], np.int64)  # a car in one image of ten
    found = draws(FixedRatio(LabelStatistics(counts, NAMES, 4), foreground_share=0.4))
    assert np.mean([c.image == 9 for c in found]) == pytest.approx(0.4 + 0.6 * 0.1, abs=0.03)
    assert all(c.wanted is None for c in found)
