"""Each operation of the photometric distortion alone, with the range it draws from (docs/fidelity.md, "Data pipeline").

Colours go through matplotlib's HSV in float64; the 8-bit HSV of the public code is within a few levels of it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

from udaseg.data.transforms import photometric_distortion

IMAGE = np.random.default_rng(0).integers(30, 226, (16, 16, 3), dtype=np.uint8)
BRIGHTNESS, CONTRAST_FIRST, CONTRAST, SATURATION, HUE = range(5)


class Script:
    """Generator whose coins are given (below 1/2: yes) and whose numbers lie at a share of what is asked for."""

    def __init__(self, coins: list[bool], share: float) -> None:
        self.coins, self.share = iter(coins), share
        self.asked: list[tuple[float, float]] = []

    def random(self) -> float:
        return 0.49 if next(self.coins) else 0.51

    def uniform(self, low: float, high: float) -> float:
        self.asked.append((low, high))
        return low + self.share * (high - low)

    def integers(self, low: int, high: int) -> int:
        self.asked.append((low, high))
        return low if self.share < 0.5 else high - 1


def distorted(coins: list[bool], share: float = 0.1) -> tuple[npt.NDArray[np.uint8], list[tuple[float, float]]]:
    script: Any = Script(coins, share)
    image = photometric_distortion(IMAGE, script)
    assert next(script.coins, None) is None, "not all coins were tossed"
    return image, script.asked


def in_hsv(channel: int, change: Any) -> npt.NDArray[np.float64]:
    hsv = rgb_to_hsv(IMAGE / 255)
    hsv[..., channel] = change(hsv[..., channel])
    return 255 * hsv_to_rgb(hsv)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_one_operation_at_a_time(share: float) -> None:
    """Coins: brightness, is contrast first?, (contrast), saturation, hue, (contrast)."""
    no = False
    unchanged, asked = distorted([no, no, no, no, no])
    assert np.array_equal(unchanged, IMAGE) and asked == []

    brighter, asked = distorted([True, no, no, no, no], share)
    assert asked == [(-32, 32)]
    np.testing.assert_array_equal(brighter, (IMAGE + np.float32(-32 + 64 * share)).clip(0, 255).astype(np.uint8))

    for coins in ([no, True, True, no, no], [no, no, no, no, True]):
        contrast, asked = distorted(coins, share)
        assert asked == [(0.5, 1.5)]
        np.testing.assert_array_equal(contrast, (IMAGE * np.float32(0.5 + share)).clip(0, 255).astype(np.uint8))

    saturated, asked = distorted([no, no, True, no, no], share)
    assert asked == [(0.5, 1.5)]
    np.testing.assert_allclose(saturated, in_hsv(1, lambda s: (s * (0.5 + share)).clip(0, 1)), atol=6)

    turned, asked = distorted([no, no, no, True, no], share)
    assert asked == [(-18, 18)]
    turn = -18 if share < 0.5 else 17
    np.testing.assert_allclose(turned, in_hsv(0, lambda h: (h + turn / 180) % 1), atol=6)


def test_contrast_comes_before_or_after_the_colours() -> None:
    """Dark again after saturation was cut, or cut after it was made dark: not the same."""
    first, asked = distorted([False, True, True, True, True], 0.9)
    last, asked_last = distorted([False, False, True, True, True], 0.9)
    assert asked == [(0.5, 1.5), (0.5, 1.5), (-18, 18)]
    assert asked_last == [(0.5, 1.5), (-18, 18), (0.5, 1.5)]
    assert not np.array_equal(first, last)


def test_half_of_all_decisions_are_yes() -> None:
    images = [photometric_distortion(IMAGE, np.random.default_rng(seed)) for seed in range(1600)]
    same = sum(np.array_equal(image, IMAGE) for image in images)
    assert abs(same - 100) < 5 * math.sqrt(100 * 15 / 16)  # none of four: one in sixteen
