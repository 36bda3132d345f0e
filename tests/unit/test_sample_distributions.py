"""Which image, crop and flip a training sample gets, over many samples (docs/fidelity.md, "Crops and sampling").

Images show where they come from: red is the column, green the row, blue the number of the image.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from torch import Tensor

from udaseg.data.dataset import Decoded, Domain, TrainingPairs
from udaseg.data.sampling import Choice, Uniform
from udaseg.data.transforms import Margins

SAMPLES, SIDE = 2000, 4
HEIGHT, WIDTH = SIDE + 2, SIDE + 4  # three rows and five columns where a crop may begin


class Ramps:
    """A domain of ``count`` images; the label is ``label`` everywhere, or classes 0 and 1 in turn."""

    def __init__(self, count: int, label: int | None = None) -> None:
        self.count, self.label = count, label
        self.index = SimpleNamespace(pairs=[SimpleNamespace(image=Path(f"{i}.png")) for i in range(count)])

    def __len__(self) -> int:
        return self.count

    taken = Domain.taken

    def decode(self, i: int) -> Decoded:
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        image = np.stack([columns, rows, np.full_like(rows, i)], axis=2).astype(np.uint8)
        label = (rows + columns) % 2 if self.label is None else np.full_like(rows, self.label)
        return Decoded(image, (WIDTH, HEIGHT), label.astype(np.uint8))


class Place(NamedTuple):
    """What a crop says of itself."""

    image: int
    top: int
    left: int
    flipped: bool


def place(crop: Tensor) -> Place:
    red, green, blue = crop.numpy()
    return Place(int(blue[0, 0]), int(green.min()), int(red.min()), bool(red[0, 0] > red[0, -1]))


def pairs(source: Ramps, target: Ramps | None = None, sampler: Any = None, **more: Any) -> TrainingPairs:
    uniform = Uniform(SimpleNamespace(counts=np.zeros((len(source), 2))))  # type: ignore[arg-type]
    return TrainingPairs(
        source, target, sampler=sampler or uniform, crop=(SIDE, SIDE), seed=5, length=SAMPLES, **more  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture(scope="module")
def places() -> dict[str, list[Place]]:
    samples = pairs(Ramps(5), Ramps(7))
    keys = ("source_image", "target_image")
    return {key: [place(samples[k][key]) for k in range(SAMPLES)] for key in keys}


def assert_uniform(values: list[Any], choices: int) -> None:
    """Each of the choices comes with a share of 1 / choices, within five standard deviations."""
    counts = np.array([*Counter(values).values()])
    share = 1 / choices
    assert len(counts) == choices
    assert np.abs(counts - len(values) * share).max() < 5 * math.sqrt(len(values) * share * (1 - share))


@pytest.mark.parametrize(("key", "images"), [("source_image", 5), ("target_image", 7)])
def test_image_place_and_flip_are_uniform(places: dict[str, list[Place]], key: str, images: int) -> None:
    drawn = places[key]
    assert_uniform([p.image for p in drawn], images)
    assert_uniform([p.top for p in drawn], HEIGHT - SIDE + 1)
    assert_uniform([p.left for p in drawn], WIDTH - SIDE + 1)
    assert_uniform([p.flipped for p in drawn], 2)


def test_source_and_target_are_drawn_apart(places: dict[str, list[Place]]) -> None:
    source, target = places["source_image"], places["target_image"]
    assert_uniform([(s.flipped, t.flipped) for s, t in zip(source, target, strict=True)], 4)
    assert_uniform([(s.left, t.left) for s, t in zip(source, target, strict=True)], 25)
    assert_uniform([(s.image, t.image) for s, t in zip(source, target, strict=True)], 35)


def test_labels_and_margins_go_with_their_image() -> None:
    samples = pairs(Ramps(1), Ramps(1), margins=Margins(left=3, bottom=1, at=(WIDTH, HEIGHT)))
    for k in range(50):
        sample = samples[k]
        red, green, _ = sample["source_image"].numpy()
        assert np.array_equal(sample["source_label"].numpy(), (red + green) % 2)
        red, green, _ = sample["target_image"].numpy()
        assert np.array_equal(sample["target_valid"].numpy(), (red >= 3) & (green < HEIGHT - 1))


class Wants(Uniform):
    """Asks for more than half a crop of class 1."""

    def __init__(self) -> None: ...

    def draw(self, rng: np.random.Generator) -> Choice:
        return Choice(0, 1, SIDE * SIDE / 2)


def test_a_wanted_class_is_looked_for_ten_times(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, draws = pairs(Ramps(1, label=0), sampler=Wants()), []
    original = samples._draw
    monkeypatch.setattr(samples, "_draw", lambda *given: draws.append(1) or original(*given))
    samples[0]
    assert len(draws) == 11  # ten are checked, the next one is used unchecked
    monkeypatch.setattr(samples, "source", Ramps(1, label=1))
    samples[0]
    assert len(draws) == 12
