"""The input pipeline against arrays of the public pipeline (OpenCV resize, crop, flip, normalise, pad, conversion)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from unit.data_files import polygons, synthia_label

from parity.rule import rng_for
from udaseg.data.classes import CITYSCAPES, CITYSCAPES_IDS, CITYSCAPES_VOID, IGNORE, SYNTHIA_IDS, SYNTHIA_VOID, lookup
from udaseg.data.images import Pixels, count_values, read_label
from udaseg.data.index import fold
from udaseg.data.layouts import Encoding
from udaseg.data.loading import Normalise
from udaseg.data.sampling import LabelStatistics, RareClass
from udaseg.data.transforms import (
    MEAN_COLOUR,
    Crop,
    Margins,
    cut,
    draw_crop,
    flip,
    keep_ratio_size,
    pad,
    resize_image,
    resize_label,
)
from udaseg.models.segmentor import IMAGENET_MEAN, IMAGENET_STD

DATA = Path(__file__).parent / "data"
META = json.loads((DATA / "metrics_pipeline.json").read_text())
ARRAYS = np.load(DATA / "pipeline.npz")
CASES = list(META["pipeline"])


def scene(key: str, h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """(BGR image, label) by the rule of the fixtures."""
    g = rng_for(key)
    colour = g.integers(0, 256, size=(h // 16 + 2, w // 16 + 2, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    noise = g.integers(-20, 21, size=(h, w, 3))
    grid = g.integers(0, 20, size=(h // 24 + 2, w // 24 + 2))
    label = np.where(grid == 19, 255, grid).repeat(24, 0).repeat(24, 1)[:h, :w].astype(np.uint8)
    return np.clip(colour[:h, :w].astype(np.int64) + noise, 0, 255).astype(np.uint8), label


def sha(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.parametrize("case", CASES)
def test_pipeline(case: str) -> None:
    meta = META["pipeline"][case]
    image, label = scene(meta["input_key"], *meta["input_hw"])
    assert sha(image) == meta["sha256_input_img"] and sha(label) == meta["sha256_input_lab"]
    size = keep_ratio_size((image.shape[1], image.shape[0]), tuple(meta["img_scale_w_h"]))
    assert size == (meta["resized_shape"][1], meta["resized_shape"][0])
    resized, small = resize_image(image, size), resize_label(label, size)
    difference = np.abs(resized[::7, ::7].astype(int) - ARRAYS[f"{case}_resized_img_s7"])
    assert difference.max() == 0, f"{(difference > 0).mean():.2%} of the values differ, by up to {difference.max()}"
    assert sha(resized) == meta["sha256_resized_img"]
    assert sha(small) == meta["sha256_resized_lab"]
    box = Crop(*meta["crop_y1_y2_x1_x2"])
    check_final(case, meta, resize_image(image, size, box), cut(small, box))


def check_final(case: str, meta: dict, image: np.ndarray, label: np.ndarray) -> None:
    side = tuple(meta["pad_size"])
    if meta["flip"]:
        image, label = flip(image), flip(label)
    padded = pad(image[..., ::-1], side, MEAN_COLOUR)
    normal = (
        Normalise(IMAGENET_MEAN, IMAGENET_STD)(torch.from_numpy(padded.transpose(2, 0, 1).copy())[None])[0]
        .permute(1, 2, 0)
        .numpy()
    )
    expected = ARRAYS[f"{case}_final_img_s8"]
    tolerance = 1e-5 if padded.shape == image.shape else 0.0085  # a padded pixel is the mean rounded to uint8
    assert np.abs(normal[::8, ::8] - expected).max() < tolerance
    inside = (slice(0, -(-image.shape[0] // 8)), slice(0, -(-image.shape[1] // 8)))
    assert np.abs(normal[::8, ::8][inside] - expected[inside]).max() < 1e-5
    assert sha(pad(label, side, IGNORE)) == meta["sha256_final_lab"]


def test_valid_mask() -> None:
    meta = META["pipeline"]["csHR"]
    valid = flip(Margins(30, 240, 30, 30, at=(2048, 1024)).valid((2048, 1024), Crop(*meta["crop_y1_y2_x1_x2"])))
    assert valid.sum() == meta["valid_sum"]
    assert np.array_equal(valid[::4, ::4], ARRAYS["csHR_valid_s4"])


class Recorded:
    """The legacy draws that the public code makes, behind the method that `draw_crop` calls."""

    def __init__(self, seed: int) -> None:
        self.state = np.random.RandomState(seed)

    def integers(self, low: int, high: int) -> int:
        return int(self.state.randint(low, high))


def test_random_crop_boxes() -> None:
    _, label = scene("image/crop", 704, 1280)
    label[:, :900] = 0
    for case in META["random_crop"]:
        drawn = draw_crop((1280, 704), (512, 512), Recorded(case["np_seed"]), label=label, cat_max_ratio=0.75)
        assert tuple(drawn) == tuple(case["used"]), case["np_seed"]


@pytest.mark.parametrize("temperature", ["0.01", "0.1", "1.0"])
def test_rare_class_probabilities(temperature: str) -> None:
    rcs = json.loads((DATA / "uda_pieces.json").read_text())["rcs"]
    counts = np.zeros((len(rcs["stats"]), 19), dtype=np.int64)
    for row, image in zip(counts, rcs["stats"], strict=True):
        for name, pixels in image.items():
            if name != "file":
                row[int(name)] = pixels
    expected = rcs[f"T{temperature}"]
    sampler = RareClass(LabelStatistics(counts, CITYSCAPES.names, 0), temperature=float(temperature))
    assert sampler.probabilities.dtype == np.float32
    np.testing.assert_allclose(sampler.probabilities[expected["classes"]], expected["probs"], rtol=1e-5)


@pytest.mark.parametrize("number", [1, 2])
def test_gta5_counts(number: int) -> None:
    gta = json.loads((DATA / "convert.json").read_text())["gta"]
    stats = next(s for s in gta["stats"] if f"{number:05d}" in s["file"])
    raw = gta5_label(number)
    counts = fold(np.bincount(raw.ravel(), minlength=256)[None], Encoding(CITYSCAPES_IDS, CITYSCAPES_VOID), 19)[0]
    assert {str(c): int(n) for c, n in enumerate(counts) if n} == {k: v for k, v in stats.items() if k != "file"}
    assert sha(lookup(CITYSCAPES_IDS)[raw]) in gta["sha256_out"]


def gta5_label(number: int) -> np.ndarray:
    grid = rng_for(f"conv/gta/{number - 1}").integers(0, 35, size=(1052 // 24 + 2, 1914 // 24 + 2))
    return grid.repeat(24, 0).repeat(24, 1)[:1052, :1914].astype(np.uint8)


@pytest.mark.parametrize("number", [0, 3])
def test_synthia_counts(number: int, tmp_path: Path) -> None:
    synthia = json.loads((DATA / "convert.json").read_text())["synthia"]
    grid = rng_for(f"conv/synthia/{number}").integers(0, 23, size=(760 // 24 + 2, 1280 // 24 + 2))
    path = tmp_path / "label.png"
    path.write_bytes(synthia_label(grid.repeat(24, 0).repeat(24, 1)[:760, :1280]))
    stats = next(s for s in synthia["stats"] if f"{number:07d}" in s["file"])
    raw, _ = count_values(path, Pixels("red"))
    counts = fold(raw[None], Encoding(SYNTHIA_IDS, SYNTHIA_VOID), 19)[0]
    assert {str(c): int(n) for c, n in enumerate(counts) if n} == {k: v for k, v in stats.items() if k != "file"}
    assert sha(lookup(SYNTHIA_IDS)[read_label(path, Pixels("red"))]) in synthia["sha256_out"]


@pytest.mark.parametrize(("split", "number"), [("train", 0), ("train", 2), ("val", 1)])
def test_cityscapes_polygons(split: str, number: int, tmp_path: Path) -> None:
    expected = json.loads((DATA / "convert.json").read_text())["cityscapes"]["out"]
    label = lookup(CITYSCAPES_IDS)[read_label(official_polygons(split, number, tmp_path), Pixels("polygons"))]
    assert sha(label) == next(v for k, v in expected.items() if f"{split}/aachen/aachen_{number:06d}" in k)


def official_polygons(split: str, number: int, folder: Path) -> Path:
    """The generated scene of the fixtures."""
    streets = ["road", "sidewalk", "building", "car", "sky", "person", "rider", "bus", "train", "ego vehicle"]
    names = [*streets, "cargroup", "license plate", "static", "traffic light", "pole", "rail track", "vegetation"]
    g = rng_for(f"conv/cs/{split}/{number}")
    objects = []
    for _ in range(60):
        c, r, a = g.integers(0, [2048, 1024]), g.integers(20, 400, size=(6, 2)), np.sort(g.random(6)) * 2 * np.pi
        name = names[int(g.integers(0, len(names)))]
        points = [[int(c[0] + r[k, 0] * np.cos(a[k])), int(c[1] + r[k, 1] * np.sin(a[k]))] for k in range(6)]
        objects.append({"label": name, "polygon": points})
    return polygons(folder / "x_gtFine_polygons.json", objects, (2048, 1024))
