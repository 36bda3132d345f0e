"""From a drawn scene to an image: clean as in a game, or with the flaws of a camera."""

from __future__ import annotations

import math
from functools import lru_cache
from random import Random
from typing import NamedTuple, get_args

import numpy as np
from PIL import Image, ImageFilter

from udaseg.data.streets.canvas import FARTHEST, LEVEL_RATIO, LEVELS, NEAREST, Canvas
from udaseg.data.streets.palette import GROUND, LABEL_IDS, TEXTURE, Domain
from udaseg.data.streets.scene import Scene

SMALLEST = 32  # least width and height of an image in pixels
LARGEST = 4096  # a process needs some 2 GB for an image of 4096 x 4096
BANK_EXTENT = 1.5  # size of the noise fields in images
NOISE_CELLS = ((2 / 128, 2 / 128), (5 / 128, 5 / 128), (16 / 128, 16 / 128), (14 / 128, 44 / 128))
"""Height and width of the cells of the noise for fine, middle and coarse texture and for shadows, in image heights."""

# what each tag of a drawn scene stands for
TAG_LABEL = np.repeat(np.array(list(LABEL_IDS.values()), np.uint8), LEVELS)
TAG_DISTANCE = np.tile((NEAREST * LEVEL_RATIO ** np.arange(LEVELS)).astype(np.float32), len(LABEL_IDS))
TAG_TEXTURE = np.repeat(np.array([TEXTURE.get(name, (0, 0, 0)) for name in LABEL_IDS], np.float32).T, LEVELS, axis=1)
TAG_ON_GROUND = np.isin(TAG_LABEL, [LABEL_IDS[name] for name in GROUND])
TAG_SHADED = np.isin(TAG_LABEL, LABEL_IDS["sky"], invert=True)


def draw(
    domain: Domain, seed: int, index: int, *, size: tuple[int, int] = (256, 128), gap: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Draw image `index` of the data set `seed`; a pure function of its arguments.

    `size` is (width, height) in pixels, each from 32 to 4096; everything scales with the height. `gap`, from 0 to 1, is
    how far the camera's colours are from the game's; it changes neither the labels nor the game. Returns the image,
    uint8 (height, width, 3) RGB, and its Cityscapes label ids, uint8 (height, width): 19 classes and 1, the own bonnet.
    """
    check_choices(domain, seed, index, size, gap)
    geometry, colours, light = (Random(f"{domain}/{seed}/{index}/{part}") for part in ("geometry", "colours", "light"))
    canvas = Canvas(domain, size, gap, geometry, colours)
    Scene(canvas).paint()
    drawn = np.moveaxis(np.asarray(canvas.image), -1, 0)
    planes, tags = drawn[:3].astype(np.float32, order="C"), drawn[3].astype(np.intp, order="C")
    develop = _as_game if domain == "game" else _as_camera
    develop(planes, tags, canvas, _bank(size), light)
    return np.stack([_quantise(plane) for plane in planes], axis=-1), TAG_LABEL.take(tags)


def check_choices(domain: str, seed: int, index: int, size: tuple[int, int], gap: float) -> None:
    """Raise ValueError, naming the value and what is allowed, unless `draw` can use these."""
    if domain not in get_args(Domain):
        raise ValueError(f"domain is {domain!r}; allowed: {', '.join(map(repr, get_args(Domain)))}")
    if not isinstance(seed, int) or abs(seed) >= 2**63 or not isinstance(index, int) or index < 0:
        raise ValueError(f"seed is {seed!r} and index is {index!r}; allowed: integers of 64 bits, the index from 0")
    if len(size) != 2 or not all(isinstance(side, int) and SMALLEST <= side <= LARGEST for side in size):
        raise ValueError(
            f"size is {size!r}; allowed: (width, height) in whole pixels, each from {SMALLEST} to {LARGEST}"
        )
    if not 0.0 <= gap <= 1.0:
        raise ValueError(f"gap is {gap!r}; allowed: a number from 0 to 1")


class Bank(NamedTuple):
    """Noise fields larger than the image, to be cropped at random, and the pixel coordinates; all float32."""

    smooth: list[np.ndarray]  # one for each of NOISE_CELLS; mean 0, standard deviation 1
    grain: np.ndarray  # white noise
    rows: np.ndarray  # (height, 1), from -0.5 to 0.5
    columns: np.ndarray  # (1, width), from -0.5 to 0.5

    def crop(self, field: np.ndarray, random: Random) -> np.ndarray:
        """A random, perhaps mirrored, part of a noise field, of the image's size."""
        height, width = self.rows.size, self.columns.size
        top = int(random.random() * (field.shape[0] - height))
        left = int(random.random() * (field.shape[1] - width))
        part = field[top : top + height, left : left + width]
        return part[:, ::-1] if random.random() < 0.5 else part


@lru_cache(maxsize=2)
def _bank(size: tuple[int, int]) -> Bank:
    """The noise for images of `size` (width, height), made once; textures look alike at every resolution."""
    (width, height), generator, smooth = size, np.random.default_rng(7), []
    shape = (math.ceil(BANK_EXTENT * height), math.ceil(BANK_EXTENT * width))
    for cell in NOISE_CELLS:
        down, right = (extent / height / side for extent, side in zip(shape, cell, strict=True))
        coarse = generator.standard_normal((math.ceil(down) + 1, math.ceil(right) + 1), dtype=np.float32)
        box = (0, 0, right, down)
        field = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC, box=box))
        smooth.append((field - field.mean()) / field.std())
    rows, columns = (np.arange(extent, dtype=np.float32) / extent - 0.5 for extent in (height, width))
    return Bank(smooth, generator.standard_normal(shape, dtype=np.float32), rows[:, None], columns[None, :])


# ---- these two change the colour planes (3, H, W; float32) of a scene with these tags (H, W) in place ----


def _as_game(planes: np.ndarray, tags: np.ndarray, canvas: Canvas, bank: Bank, random: Random) -> None:
    """Clean and warm: a little fine texture and grain, exposure within 10 %."""
    fine = 0.5 * TAG_TEXTURE[0].take(tags) * bank.crop(bank.smooth[0], random)
    planes += fine + 1.5 * bank.crop(bank.grain, random)
    planes *= random.uniform(0.9, 1.1) * _each_plane(1.04, 1.0, 0.95)


def _as_camera(planes: np.ndarray, tags: np.ndarray, canvas: Canvas, bank: Bank, random: Random) -> None:
    """Texture, uneven light, shadows, haze, exposure, white balance, vignetting, blur and sensor noise."""
    fields = zip(TAG_TEXTURE, bank.smooth, strict=False)
    planes += sum(strength.take(tags) * bank.crop(field, random) for strength, field in fields)
    vignette = 1 - random.uniform(0.3, 0.8) * (bank.columns**2 + 1.2 * bank.rows**2)
    clear = _clearness(random.uniform(0.001, 0.009), tags, canvas)
    planes *= _light(tags, bank, random) * clear * vignette
    planes += (1 - clear) * vignette * (random.uniform(0.85, 1.05) * _each_plane(186, 190, 196))
    balance = _each_plane(1.0, random.uniform(0.97, 1.03), random.uniform(0.93, 1.09))
    planes *= random.uniform(0.82, 1.15) * balance

    blur = ImageFilter.GaussianBlur(random.uniform(0.35, 0.8) * math.sqrt(canvas.height / 128))
    deviation = np.float32(random.uniform(1.0, 4.0))
    for plane in planes:
        blurred = np.asarray(Image.fromarray(_quantise(plane)).filter(blur))
        np.add(blurred, deviation * bank.crop(bank.grain, random), out=plane)


def _light(tags: np.ndarray, bank: Bank, random: Random) -> np.ndarray:
    """Brightness factor, float32 (H, W): a gradient over the image, and often soft shadows on the lower part of it."""
    light = 1 + random.uniform(-0.35, 0.35) * bank.columns + random.uniform(-0.2, 0.3) * bank.rows
    shadows, field = random.random() < 0.7, bank.crop(bank.smooth[3], random)
    threshold, darkness = random.uniform(0.2, 1.0), random.uniform(0.12, 0.38)
    if shadows:
        shadow = np.clip(4 * (field - threshold), 0, 1) * TAG_SHADED.take(tags) * np.clip(10 * bank.rows + 1, 0, 1)
        light *= 1 - darkness * shadow
    return light


def _clearness(haze: float, tags: np.ndarray, canvas: Canvas) -> np.ndarray:
    """Share of the light that comes through the haze, float32 (H, W): by row on the ground, elsewhere by tag."""
    below = np.arange(canvas.height, dtype=np.float32)[:, None] + 0.5 - canvas.horizon
    ground = np.minimum(canvas.focal * canvas.eye / np.maximum(below, 1e-3), FARTHEST)
    return np.where(TAG_ON_GROUND.take(tags), np.exp(-haze * ground), np.exp(-haze * TAG_DISTANCE).take(tags))


def _each_plane(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None, None]


def _quantise(plane: np.ndarray) -> np.ndarray:
    return np.clip(plane, 0, 255, out=plane).astype(np.uint8)
