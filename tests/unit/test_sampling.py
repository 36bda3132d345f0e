"""Samplers: probabilities, strictness, dropped classes; OMUDA's equations 3 to 5 by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from udaseg.data.sampling import SAMPLERS, Choice, FixedRatio, Sampler, Uniform, context_aware, rare_class
from udaseg.errors import UserError

COUNTS = np.array([[9000, 3000, 0, 10], [5000, 3001, 0, 0], [0, 9000, 0, 10]], np.int64)
NAMES = ("road", "sky", "car", "bus")
STREET = np.array([[40, 0, 15, 0], [20, 20, 0, 5]], np.int64)  # shares: road 0.6, sky 0.2, car 0.15, bus 0.05


def draws(sampler: Sampler, n: int = 3000) -> list[Choice]:
    rng = np.random.default_rng(0)
    return [sampler.draw(rng) for _ in range(n)]


def test_images_need_strictly_more_pixels() -> None:
    sampler = rare_class(counts=COUNTS, min_pixels=3000, temperature=np.inf)
    assert {(c.image, c.wanted) for c in draws(sampler)} == {(0, 0), (1, 0), (1, 1), (2, 1)}
    assert {c.min_pixels for c in draws(sampler, 5)} == {1500.0}


def test_class_without_an_image_is_dropped() -> None:
    sampler = rare_class(counts=COUNTS, min_pixels=3000, temperature=np.inf)
    assert sampler.probabilities.tolist() == [0.5, 0.5, 0, 0]
    with pytest.raises(UserError, match="more than 9000"):
        rare_class(counts=COUNTS, min_pixels=9000)


def test_frequencies_follow_the_probabilities() -> None:
    sampler = rare_class(counts=COUNTS, min_pixels=5, temperature=0.5)
    shares = np.bincount([c.wanted or 0 for c in draws(sampler)], minlength=4) / 3000
    assert np.abs(shares - sampler.probabilities).max() < 0.03
    assert sampler.probabilities[2] == 0 and sampler.probabilities[3] > sampler.probabilities[0]


def test_low_temperature_prefers_the_rarest() -> None:
    sampler = rare_class(counts=COUNTS, min_pixels=5, temperature=0.01)
    assert sampler.probabilities[3] > 0.999


def test_ratio_zero_checks_no_crop() -> None:
    sampler = rare_class(counts=COUNTS, min_pixels=5, min_crop_ratio=0)
    assert all(c.wanted is None for c in draws(sampler, 10))


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"temperature": float("nan")}, {"min_crop_ratio": -1.0}])
def test_values_out_of_range(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match="rare_class"):
        rare_class(counts=COUNTS, min_pixels=5, **bad)


def test_uniform_and_table() -> None:
    assert {c.image for c in draws(Uniform(counts=COUNTS), 100)} == {0, 1, 2}
    for name, kind in SAMPLERS.items():
        given = {} if name in ("uniform", "rare_class") else {"names": NAMES, "foreground": ("bus",)}
        sampler = kind(counts=COUNTS, min_pixels=5, **given)
        assert sampler.draw(np.random.default_rng(4)) == sampler.draw(np.random.default_rng(4))


# --- OMUDA ---------------------------------------------------------------------------------------------------------


def test_context_aware_probabilities_by_hand() -> None:
    """eq. 3: f = 60/100, 20/100, 15/100, 5/100. eq. 4: P_b(road) = e^0.4 / (e^0.4 + e^0.8) = 1 / (1 + e^0.4).
    eq. 5: P_f(car) = e^(0.85/0.7) / (e^(0.85/0.7) + e^(0.95/0.7)) = 1 / (1 + e^(0.1/0.7))."""
    sampler = context_aware(counts=STREET, min_pixels=4, names=NAMES)
    road, car = 1 / (1 + math.exp(0.4)), 1 / (1 + math.exp(0.1 / 0.7))
    expected = [0.5 * road, 0.5 * (1 - road), 0.5 * car, 0.5 * (1 - car)]
    assert sampler.probabilities == pytest.approx(expected, rel=1e-5)
    assert [round(p, 4) for p in expected] == [0.2007, 0.2993, 0.2322, 0.2678]
    shares = np.bincount([c.wanted for c in draws(sampler)], minlength=4) / 3000
    assert np.abs(shares - expected).max() < 0.03


def test_context_aware_temperatures_and_share_belong_to_their_group() -> None:
    sampler = context_aware(
        counts=STREET, min_pixels=4, names=NAMES, foreground_temperature=0.1, background_temperature=np.inf,
        foreground_share=0.2,
    )  # fmt: skip
    bus = 1 / (1 + math.exp(-0.1 / 0.1))
    assert sampler.probabilities == pytest.approx([0.4, 0.4, 0.2 * (1 - bus), 0.2 * bus], rel=1e-5)


def test_context_aware_draws_an_image_with_the_class_and_checks_the_crop() -> None:
    found = draws(context_aware(counts=STREET, min_pixels=4, names=NAMES, min_crop_ratio=0.25), 200)
    assert {(c.image, c.wanted) for c in found} == {(0, 0), (1, 0), (1, 1), (0, 2), (1, 3)}
    assert {c.min_pixels for c in found} == {1.0}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_group_without_a_class_to_draw_leaves_all_to_the_other(share: float) -> None:
    no_cars = context_aware(counts=STREET, min_pixels=15, names=NAMES, foreground_share=share)
    assert no_cars.probabilities.sum() == pytest.approx(1) and no_cars.probabilities[2:].tolist() == [0, 0]
    only = context_aware(counts=STREET[:, 2:3], min_pixels=4, names=("car",), foreground_share=share)
    assert only.probabilities.tolist() == [1]


def test_groups_are_named_classes() -> None:
    roads = context_aware(counts=STREET, min_pixels=4, names=NAMES, foreground=("road", "horse"), foreground_share=1.0)
    assert roads.probabilities.tolist() == [1, 0, 0, 0]
    for kind in (context_aware, FixedRatio):
        with pytest.raises(ValueError, match=r"\['horse'\].*there are road, sky, car, bus"):
            kind(counts=STREET, min_pixels=4, names=NAMES, foreground=("horse",))
        with pytest.raises(UserError, match="more than 99 pixels"):
            kind(counts=STREET, min_pixels=99, names=NAMES)


def test_fixed_ratio_draws_images_with_foreground() -> None:
    counts = np.array([[9, 9, 0, 0]] * 9 + [[9, 0, 9, 0]], np.int64)  # a car in one image of ten
    found = draws(FixedRatio(counts=counts, min_pixels=4, names=NAMES, foreground_share=0.4))
    assert np.mean([c.image == 9 for c in found]) == pytest.approx(0.4 + 0.6 * 0.1, abs=0.03)
    assert all(c.wanted is None for c in found)
