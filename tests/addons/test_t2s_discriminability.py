"""CCD and PDD on numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from unit.test_features import SQUARE, parts

from udaseg.addons.t2s.discriminability import ClassCentreDistance, PixelDistance
from udaseg.evaluation.features import centres

CCD, PDD = ClassCentreDistance(), PixelDistance()


def test_eq_19_class_centre_distance() -> None:
    found = CCD(lambda: SQUARE, centres(SQUARE, 3))
    assert found[:2].tolist() == pytest.approx([1 / 29, (2 / 3) / 29]) and found[2].isnan()


def test_eq_19_is_a_mean_over_the_other_classes() -> None:
    """Class 0 spreads by 1 around (0, 0); centres at distances 2 and 4: (1/4 + 1/16) / 2."""
    cells = parts((1, 0, 0), (-1, 0, 0), (2, 0, 1), (0, 4, 2))
    assert CCD(lambda: cells, centres(cells, 4))[0].item() == pytest.approx((1 / 4 + 1 / 16) / 2)


def test_eq_20_pixel_distance() -> None:
    """Centres in the directions (1, 0) and (1, 1) / sqrt 2: a cell (1, 0) of class 0 has 1 / cos 45, one (1, 1) has
    cos 45 / 1; of class 1 the cell (1, 1) has 1 / cos 45."""
    root = math.sqrt(0.5)
    cells = parts((1, 0, 0), (1, 1, 0), (2, 2, 1))
    found = centres(cells, 3)
    found.total[0] = torch.tensor([7.0, 0.0])
    distance = PDD(lambda: cells, found)
    assert distance[:2].tolist() == pytest.approx([1 - (1 / root + root) / 2, 1 - 1 / root])
    assert distance[2].isnan()
