"""Jitter and blur over many iterations: how often, in which order, how strong (docs/fidelity.md, "Class mix and colour
augmentation"). Frequencies are within five standard deviations of the
published ones.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations
from typing import Any

import pytest
import torch
from steps import NORMALISE, StubTeacher, build_context, rng, step
from torch import Tensor

from udaseg.core import augment
from udaseg.core.augment import HUE, ColourAugment, draw_jitter
from udaseg.core.context import Batch, PseudoLabels, StepRng
from udaseg.core.masking import Blocks
from udaseg.core.views import Masked, Mixed

ITERATIONS = 1500


class Calls:
    """Counts jitters and blurs instead of doing them; keeps what they are called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.orders: list[Tensor] = []
        self.factors: list[Tensor] = []
        self.sigmas: list[Tensor] = []
        monkeypatch.setattr(augment, "colour_jitter", self.jitter)
        monkeypatch.setattr(augment, "gaussian_blur", self.blur)

    def jitter(self, image: Tensor, order: Tensor, factors: Tensor) -> Tensor:
        self.orders.append(order)
        self.factors.append(factors)
        return image

    def blur(self, image: Tensor, sigma: Tensor) -> Tensor:
        self.sigmas.append(sigma)
        return image


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def published_augment() -> ColourAugment:
    """As the mixed view builds it from a recipe that says nothing."""
    return Mixed(build_context()).augment


def over_iterations(part: ColourAugment, **how: Any) -> None:
    image = torch.zeros(2, 3, 4, 4)
    for t in range(ITERATIONS):
        part(image, rng(t), **how)


def assert_share(count: int, probability: float, of: int = ITERATIONS) -> None:
    assert abs(count - of * probability) < 5 * math.sqrt(of * probability * (1 - probability))


@pytest.mark.parametrize("view", ["mixed", "masked"])
def test_four_of_five_batches_are_jittered_and_half_are_blurred(calls: Calls, view: str) -> None:
    context = build_context()
    part = Mixed(context).augment if view == "mixed" else Masked(context, masker=Blocks(context)).augment
    assert part.strength == 0.2
    over_iterations(part)
    assert_share(len(calls.orders), 0.8)
    assert_share(len(calls.sigmas), 0.5)


def test_jitter_and_blur_are_decided_apart() -> None:
    decided = [(draws.decide(0.8), draws.decide(0.5)) for draws in map(rng, range(ITERATIONS))]
    for jitter in (True, False):
        for blur in (True, False):
            assert_share(decided.count((jitter, blur)), (0.8 if jitter else 0.2) * 0.5)


def test_probabilities_of_zero_and_one(calls: Calls) -> None:
    for probability in (0.0, 1.0):
        over_iterations(ColourAugment(NORMALISE, jitter=0.2, jitter_probability=probability, blur_probability=0.5))
        assert len(calls.orders) == probability * ITERATIONS


def test_every_order_comes_equally_often() -> None:
    orders = torch.cat([draw_jitter(rng(t), 2, 0.2)[0] for t in range(ITERATIONS)])
    counts = Counter(map(tuple, orders.tolist()))
    assert set(counts) == set(permutations(range(4)))
    for count in counts.values():
        assert_share(count, 1 / 24, of=len(orders))


def test_factors_are_uniform_and_go_both_ways() -> None:
    factors = torch.cat([draw_jitter(rng(t), 2, 0.2)[1] for t in range(ITERATIONS)])
    assert_uniform(factors[:, :HUE], 0.8, 1.2)
    assert_uniform(factors[:, HUE:], -0.2, 0.2)
    correlation = torch.corrcoef(factors.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / math.sqrt(len(factors))


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    """(N, M), each of M columns: inside, near both ends, and a quarter in each quarter."""
    assert values.min() >= low and values.max() <= high
    for column in values.T:
        quarters = torch.histc(column, 4, low, high)
        for count in quarters.tolist():
            assert_share(int(count), 0.25, of=len(column))
        margin = (high - low) / 100
        assert column.min() < low + margin and column.max() > high - margin


def test_sigma_is_uniform_in_the_published_range(calls: Calls) -> None:
    over_iterations(published_augment())
    assert_uniform(torch.cat(calls.sigmas)[:, None], 0.15, 1.15)


def test_each_image_has_its_own_order_factors_and_sigma(calls: Calls) -> None:
    over_iterations(published_augment())
    same = [bool((order[0] == order[1]).all()) for order in calls.orders]
    assert_share(sum(same), 1 / 24, of=len(same))
    assert all((factors[0] != factors[1]).any() for factors in calls.factors)
    assert all(sigma[0] != sigma[1] for sigma in calls.sigmas)


def test_together_shares_order_and_sigma_but_not_the_factors(calls: Calls) -> None:
    """MIC's masked view."""
    over_iterations(published_augment(), together=True)
    assert all((order[0] == order[1]).all() for order in calls.orders)
    assert {tuple(order[0].tolist()) for order in calls.orders} == set(permutations(range(4)))
    assert all((factors[0] != factors[1]).any() for factors in calls.factors)
    assert all(sigma[0] == sigma[1] for sigma in calls.sigmas)
    assert_uniform(torch.stack(calls.sigmas)[:, :1], 0.15, 1.15)


@pytest.mark.parametrize(("view", "together"), [("mixed", False), ("masked", True)])
def test_only_the_masked_view_augments_its_images_together(
    monkeypatch: pytest.MonkeyPatch, view: str, together: bool
) -> None:
    asked: list[bool] = []

    def spy(part: ColourAugment, image: Tensor, draws: StepRng, *, together: bool = False) -> Tensor:
        asked.append(together)
        return image

    monkeypatch.setattr(ColourAugment, "__call__", spy)
    context, image, label = build_context(), torch.zeros(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.int64)
    build_view = Mixed(context) if view == "mixed" else Masked(context, masker=Blocks(context))
    weight = torch.zeros(label.shape)
    build_view(step(Batch(image, label, image), teacher=StubTeacher(), pseudo=PseudoLabels(label, weight, weight)))
    assert asked == [together]
