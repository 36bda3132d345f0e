"""Properties of resize, crop, flip, pad and colour on random sizes."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from udaseg.data import transforms as T

SEEDS = range(12)


def case(seed: int) -> tuple[np.random.Generator, np.ndarray, tuple[int, int]]:
    rng = np.random.default_rng(seed)
    w, h, out_w, out_h = (int(v) for v in rng.integers(1, 90, 4))
    return rng, rng.integers(0, 256, (h, w, 3), dtype=np.uint8), (out_w, out_h)


def whole_of(size: tuple[int, int]) -> T.Crop:
    return T.Crop(0, size[1], 0, size[0])


@pytest.mark.parametrize(
    "size, target, out",
    [
        ((1914, 1052), (1280, 720), (1280, 704)),
        ((1914, 1052), (2560, 1440), (2560, 1407)),
        ((1914, 1046), (1280, 720), (1280, 700)),
        ((2048, 1024), (1024, 512), (1024, 512)),
        ((1052, 1914), (1280, 720), (704, 1280)),
        ((100, 100), (1280, 720), (720, 720)),
    ],
)
def test_keep_ratio_size(size: tuple[int, int], target: tuple[int, int], out: tuple[int, int]) -> None:
    assert T.keep_ratio_size(size, target) == out


@pytest.mark.parametrize("seed", SEEDS)
def test_resize_image_is_half_pixel_bilinear(seed: int) -> None:
    _, image, size = case(seed)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    exact = torch.nn.functional.interpolate(x, size=size[::-1], mode="bilinear", align_corners=False)
    difference = T.resize_image(image, size) - exact[0].permute(1, 2, 0).numpy()
    assert np.abs(difference).max() < 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_box_of_the_resized_image_is_the_same_pixels(seed: int) -> None:
    rng, image, size = case(seed)
    y1, x1 = int(rng.integers(0, size[1])), int(rng.integers(0, size[0]))
    box = T.Crop(y1, int(rng.integers(y1, size[1])) + 1, x1, int(rng.integers(x1, size[0])) + 1)
    assert np.array_equal(T.resize_image(image, size, box), T.cut(T.resize_image(image, size), box))


@pytest.mark.parametrize("seed", SEEDS)
def test_resize_label_invents_nothing(seed: int) -> None:
    _, image, size = case(seed)
    label = image[..., 0]
    out = T.resize_label(label, size)
    h, w = label.shape
    assert out.shape == size[::-1]
    for y, x in ((0, 0), (size[1] - 1, size[0] - 1), (size[1] // 2, size[0] // 3)):
        assert out[y, x] == label[y * h // size[1], x * w // size[0]]
    assert np.array_equal(T.resize_label(label, (w, h)), label)
    assert np.array_equal(T.resize_label(label.repeat(2, 0).repeat(2, 1), (w, h)), label)


def test_constant_image_stays_constant() -> None:
    for level in (0, 1, 127, 255):
        assert set(T.resize_image(np.full((13, 17, 3), level, np.uint8), (41, 29)).ravel()) == {level}


def test_boxes_reach_both_ends_and_stay_inside() -> None:
    rng = np.random.default_rng(0)
    boxes = [T.random_box((7, 5), (3, 4), rng) for _ in range(300)]
    assert {b.y1 for b in boxes} == {0, 1, 2} and {b.x1 for b in boxes} == {0, 1, 2, 3}
    assert {(b.y2 - b.y1, b.x2 - b.x1) for b in boxes} == {(3, 4)}
    assert T.random_box((7, 5), (9, 3), rng)[:2] == (0, 5)


class Counted:
    """A generator that counts the boxes drawn from it."""

    def __init__(self) -> None:
        self.rng, self.draws = np.random.default_rng(0), 0

    def integers(self, low: int, high: int) -> int:
        self.draws += 1
        return int(self.rng.integers(low, high))


def test_hopeless_crop_is_redrawn_ten_times() -> None:
    rng = Counted()
    T.draw_crop((64, 64), (8, 8), rng, label=np.zeros((64, 64), np.uint8), cat_max_ratio=0.75)
    assert rng.draws == 2 * 11
    rng = Counted()
    T.draw_crop((64, 64), (8, 8), rng, label=np.zeros((64, 64), np.uint8), cat_max_ratio=1.0)
    assert rng.draws == 2


def test_varied_is_strict_and_leaves_out_ignored_pixels() -> None:
    def label(*counts: tuple[int, int]) -> np.ndarray:
        return np.concatenate([np.full(n, value, np.uint8) for value, n in counts])[None]

    assert T.varied(label((0, 74), (1, 26)), 0.75)
    assert not T.varied(label((0, 75), (1, 25)), 0.75)
    assert not T.varied(label((0, 10), (255, 90)), 0.75)
    assert not T.varied(label((255, 9)), 0.75)
    assert T.varied(label((0, 5), (1, 5), (255, 90)), 0.75)


def test_pad_and_flip() -> None:
    _, image, _ = case(3)
    h, w = image.shape[:2]
    padded = T.pad(image, (h + 3, w + 2), T.MEAN_COLOUR)
    assert np.array_equal(padded[:h, :w], image) and (padded[h:] == T.MEAN_COLOUR).all()
    assert (padded[:, w:] == T.MEAN_COLOUR).all() and padded.shape == (h + 3, w + 2, 3)
    assert T.pad(image, (1, 1), 0) is image
    assert np.array_equal(T.flip(image)[:, 0], image[:, -1])


@pytest.mark.parametrize("size", [(2048, 1024), (1024, 512), (300, 151)])
def test_margins_are_the_resized_and_cut_mask(size: tuple[int, int]) -> None:
    mask = np.zeros((1024, 2048), np.uint8)
    mask[30:-240, 30:-30] = 1
    margins = T.Margins(30, 240, 30, 30, at=(2048, 1024))
    whole = T.resize_label(mask, size)
    assert np.array_equal(margins.valid(size, whole_of(size)), whole)
    box = T.Crop(3, 140, 1, 200)
    assert np.array_equal(margins.valid(size, box), T.cut(whole, box))
    if size == (1024, 512):
        assert [int(whole[:, 500].argmax()), int(whole[::-1, 500].argmax())] == [15, 120]
    assert T.Margins(at=(8, 8)).valid((4, 4), whole_of((4, 4))).all()
    assert not T.Margins(bottom=11, at=(8, 8)).valid((4, 4), whole_of((4, 4))).any()


def test_hsv_follows_the_8_bit_convention() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    hsv = T.rgb_to_hsv(colours)
    assert hsv[..., 0].max() < 180
    for rgb, got in zip(colours.reshape(-1, 3)[:300], hsv.reshape(-1, 3)[:300], strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(rgb / 255))
        assert min(abs(h * 180 - got[0]), 180 - abs(h * 180 - got[0])) <= 0.6
        assert abs(s * 255 - got[1]) <= 0.51 and v * 255 == pytest.approx(got[2])
    pure = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0], [9, 9, 9], [255, 255, 0]]], np.uint8)
    assert T.rgb_to_hsv(pure)[0, :, 0].tolist() == [0, 60, 120, 0, 0, 30]
    assert np.array_equal(T.hsv_to_rgb(T.rgb_to_hsv(pure)), pure)
    back = T.hsv_to_rgb(hsv).astype(int) - colours
    assert np.abs(back).max() <= 6 and np.abs(back).mean() < 1  # hue has only 180 steps


def test_photometric_distortion_is_a_function_of_the_generator() -> None:
    _, image, _ = case(5)
    runs = [T.photometric_distortion(image, np.random.default_rng(s)) for s in range(40)]
    again = [T.photometric_distortion(image, np.random.default_rng(s)) for s in range(40)]
    assert all(np.array_equal(a, b) for a, b in zip(runs, again, strict=True))
    assert all(r.dtype == np.uint8 and r.shape == image.shape for r in runs)
    unchanged = sum(np.array_equal(r, image) for r in runs)
    assert 0 < unchanged < 12  # nothing happens with probability 1/16
    gray = np.full((4, 4, 3), 100, np.uint8)
    levels = {int(T.photometric_distortion(gray, np.random.default_rng(s))[0, 0, 0]) for s in range(300)}
    assert min(levels) >= 34 and max(levels) <= 198 and len(levels) > 50
