"""Feature analysis: equations on numbers that can be checked by hand, and streams that remember little."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from udaseg.evaluation import features
from udaseg.models.segmentor import Segmentor

CPU = torch.device("cpu")
Part = tuple[Tensor, Tensor]


def parts(*cells: tuple[float, float, int], size: int = 2) -> list[Part]:
    """Cells (x, y, class) as images of ``size`` cells."""
    rows = torch.tensor(cells, dtype=torch.float32)
    return [(part[:, :2], part[:, 2].long()) for part in rows.split(size)]


SQUARE = parts((1, 0, 0), (3, 0, 0), (0, 4, 1), (0, 6, 1), (0, 5, 1))
"""Centres (2, 0) and (0, 5); class 2 does not occur. Mean squared distances 1 and 2/3, between the centres 29."""


def test_centres_stream_over_images() -> None:
    found = features.centres(SQUARE, 3)
    assert found.mean[:2].tolist() == [[2.0, 0.0], [0.0, 5.0]] and found.mean[2].isnan().all()
    assert found.count.tolist() == [2.0, 3.0, 0.0] and found.present.tolist() == [True, True, False]


def test_similarity_is_the_cosine_of_the_centres() -> None:
    """Both domains at 45 degrees for class 0, the same direction for class 1, class 2 only in one."""
    source = features.centres(parts((1, 0, 0), (0, 2, 1), (1, 1, 2)), 3)
    target = features.centres(parts((2, 2, 0), (0, 9, 1)), 3)
    found = features.similarity(source, target)
    assert found[:2].tolist() == pytest.approx([math.sqrt(0.5), 1.0]) and found[2].isnan()


def test_sample_is_bounded_and_every_cell_as_likely() -> None:
    cells = parts(*((i, 0, int(i >= 8)) for i in range(12)), size=3)
    hits = torch.zeros(12)
    for seed in range(300):
        values, label = features.sample(cells, 3, 4, seed=seed)
        assert label.tolist() == [0] * 4 + [1] * 4 and (values[:4, 0] < 8).all()
        hits[values[:, 0].long()] += 1
    assert (hits[:8] / 300 - 0.5).abs().max() < 0.12 and (hits[8:] == 300).all()
    again = features.sample(cells, 3, 4, seed=1)
    assert torch.equal(again[0], features.sample(cells, 3, 4, seed=1)[0])


class Grid(nn.Module):
    """Each 2 x 2 pixels are a cell: their mean colour."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (nn.functional.avg_pool2d(image, 2),)


def test_cells_leave_out_what_is_ignored_and_are_made_one_image_at_a_time() -> None:
    label = torch.full((8, 8), 255, dtype=torch.uint8)
    label[0, 4], label[4, 0] = 3, 1
    made = 0

    def images() -> Iterator[dict[str, Tensor]]:
        nonlocal made
        for i in range(3):
            made += 1
            yield {"image": torch.full((3, 4, 4), i, dtype=torch.uint8), "label": label}

    stream = features.cells_of(Segmentor(Grid(), nn.Identity()), images(), lambda x: x.float(), device=CPU)
    values, found = next(iter(stream))
    assert found.tolist() == [3, 1] and values.shape == (2, 3) and made == 1
