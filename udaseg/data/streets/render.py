"""From a drawn scene to an image: the clean look of a game and the look of a camera."""

from __future__ import annotations

import math
from functools import lru_cache
from random import Random
from typing import NamedTuple, get_args

import numpy as np
from PIL import Image, ImageFilter

from udaseg.data.streets.canvas import FARTHEST, LEVEL_RATIO, LEVELS, NEAREST, Camera, Canvas
from udaseg.data.streets.palette import GROUND, LABEL_IDS, TEXTURE, Domain
from udaseg.data.streets.scene import Scene

SMALLEST = 32
"""Least width and height of an image in pixels."""

NOISE_CELLS = ((2 / 128, 2 / 128), (5 / 128, 5 / 128), (16 / 128, 16 / 128), (14 / 128, 44 / 128))
"""Height and width of the cells of the noise for fine, middle and coarse texture and for shadows, in image heights."""

BANK_EXTENT = 1.5
HAZE = np.array([186, 190, 196], np.float32)

# what each tag of a drawn scene stands for
TAG_LABEL = np.repeat(np.array(list(LABEL_IDS.values()), np.uint8), LEVELS)
TAG_DISTANCE = np.tile((NEAREST * LEVEL_RATIO ** np.arange(LEVELS)).astype(np.float32), len(LABEL_IDS))
TAG_TEXTURE = np.repeat(np.array([TEXTURE.get(name, (0, 0, 0)) for name in LABEL_IDS], np.float32).T, LEVELS, axis=1)
TAG_ON_GROUND = np.isin(TAG_LABEL, [LABEL_IDS[name] for name in GROUND])
TAG_SHADED = TAG_LABEL != LABEL_IDS["sky"]


def draw(
    domain: Domain, seed: int, index: int, *, size: tuple[int, int] = (256, 128), gap: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Draw image `index` of a domain; a pure function of its arguments.

    Args:
        domain: "game" (source) or "camera" (target).
        seed: which data set; any integer.
        index: which image of the data set, from 0.
        size: (width, height) in pixels, each at least 32. Everything scales with the height.
        gap: how far the colours of the camera domain are from those of the game, from 0 (same) to 1 (real-looking).
            Changes neither the labels nor the game domain.

    Returns:
        The image, uint8 (height, width, 3) RGB, and its Cityscapes label ids, uint8 (height, width):
        the 19 evaluated classes, and 1 (ego vehicle) for the own car's bonnet.
    """
    check_choices(domain, seed, index, size, gap)
    geometry, colours, light = (Random(f"{domain}/{seed}/{index}/{part}") for part in ("geometry", "colours", "light"))
    canvas = Canvas(domain, size, gap, geometry, colours)
    Scene(canvas).paint()

    drawn = np.moveaxis(np.asarray(canvas.image), -1, 0)
    planes, tags = drawn[:3].astype(np.float32, order="C"), drawn[3].astype(np.intp, order="C")
    if domain == "game":
        looks = _game_look(planes, tags, _bank(size), light)
    else:
        looks = _camera_look(planes, tags, _bank(size), light, canvas.camera)
    return np.stack([_quantise(plane) for plane in looks], axis=-1), TAG_LABEL.take(tags)


def check_choices(domain: str, seed: int, index: int, size: tuple[int, int], gap: float) -> None:
    """Raise ValueError, naming the value and what is allowed, unless `draw` can use these."""
    if domain not in get_args(Domain):
        raise ValueError(f"domain is {domain!r}; allowed: {', '.join(map(repr, get_args(Domain)))}")
    if not isinstance(seed, int) or not isinstance(index, int) or index < 0:
        raise ValueError(f"seed is {seed!r} and index is {index!r}; allowed: integers, the index from 0")
    if len(size) != 2 or not all(isinstance(side, int) and side >= SMALLEST for side in size):
        raise ValueError(f"size is {size!r}; allowed: (width, height) in whole pixels, each at least {SMALLEST}")
    if not 0.0 <= gap <= 1.0:
        raise ValueError(f"gap is {gap!r}; allowed: a number from 0 to 1")


# ---- noise, made once ----


class Bank(NamedTuple):
    """Noise fields larger than the image, to be cropped at random, and the pixel coordinates; all float32."""

    textures: list[np.ndarray]  # fine, middle, coarse; mean 0, standard deviation 1
    shadow: np.ndarray
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
    """The noise for images of `size` (width, height); textures look alike at every resolution."""
    width, height = size
    generator = np.random.default_rng(7)
    rows = (np.arange(height, dtype=np.float32) / height - 0.5)[:, None]
    columns = (np.arange(width, dtype=np.float32) / width - 0.5)[None, :]
    shape = (math.ceil(BANK_EXTENT * height), math.ceil(BANK_EXTENT * width))
    *textures, shadow = (_value_noise(generator, cell, shape, height) for cell in NOISE_CELLS)
    return Bank(textures, shadow, generator.standard_normal(shape, dtype=np.float32), rows, columns)


def _value_noise(
    generator: np.random.Generator, cell: tuple[float, float], shape: tuple[int, int], height: int
) -> np.ndarray:
    """Smooth noise, float32 of `shape`, with cells of (height, width) in image heights."""
    down, right = (extent / height / side for extent, side in zip(shape, cell, strict=True))
    coarse = generator.standard_normal((math.ceil(down) + 1, math.ceil(right) + 1), dtype=np.float32)
    box = (0, 0, right, down)
    field = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC, box=box))
    return (field - field.mean()) / field.std()


# ---- the two looks: colour planes (3, H, W) float32, changed in place, and tags (H, W) ----


def _game_look(planes: np.ndarray, tags: np.ndarray, bank: Bank, random: Random) -> np.ndarray:
    """Clean and warm: a little fine texture and grain, exposure within 10 %."""
    fine = 0.5 * TAG_TEXTURE[0].take(tags) * bank.crop(bank.textures[0], random)
    planes += fine + 1.5 * bank.crop(bank.grain, random)
    planes *= _per_plane(random.uniform(0.9, 1.1) * np.array([1.04, 1.0, 0.95], np.float32))
    return planes


def _camera_look(planes: np.ndarray, tags: np.ndarray, bank: Bank, random: Random, camera: Camera) -> list[np.ndarray]:
    """Texture, uneven light, shadows, haze, exposure, white balance, vignetting, blur and sensor noise."""
    texture = np.zeros(tags.shape, np.float32)
    for strength, field in zip(TAG_TEXTURE, bank.textures, strict=True):
        texture += strength.take(tags) * bank.crop(field, random)
    planes += texture

    vignette = 1 - random.uniform(0.3, 0.8) * (bank.columns**2 + 1.2 * bank.rows**2)
    clear = _clearness(random.uniform(0.001, 0.009), tags, camera)
    planes *= _light(tags, bank, random) * clear * vignette
    planes += (1 - clear) * vignette * _per_plane(random.uniform(0.85, 1.05) * HAZE)
    balance = np.array([1.0, random.uniform(0.97, 1.03), random.uniform(0.93, 1.09)], np.float32)
    planes *= _per_plane(random.uniform(0.82, 1.15) * balance)

    blur = ImageFilter.GaussianBlur(random.uniform(0.35, 0.8) * math.sqrt(tags.shape[0] / 128))
    deviation = np.float32(random.uniform(1.0, 4.0))
    blurred = [np.asarray(Image.fromarray(_quantise(plane)).filter(blur)) for plane in planes]
    return [plane + deviation * bank.crop(bank.grain, random) for plane in blurred]


def _light(tags: np.ndarray, bank: Bank, random: Random) -> np.ndarray:
    """Brightness factor, float32 (H, W): a gradient over the image, and often soft shadows on the lower part of it."""
    light = 1 + random.uniform(-0.35, 0.35) * bank.columns + random.uniform(-0.2, 0.3) * bank.rows
    shadows, field = random.random() < 0.7, bank.crop(bank.shadow, random)
    threshold, darkness = random.uniform(0.2, 1.0), random.uniform(0.12, 0.38)
    if shadows:
        shadow = np.clip(4 * (field - threshold), 0, 1) * TAG_SHADED.take(tags) * np.clip(10 * bank.rows + 1, 0, 1)
        light = light * (1 - darkness * shadow)
    return light


def _clearness(haze: float, tags: np.ndarray, camera: Camera) -> np.ndarray:
    """Share of the light that comes through the haze, float32 (H, W), by distance.

    The distance of the ground is known by its row, that of everything else by its tag.
    """
    below = np.arange(tags.shape[0], dtype=np.float32)[:, None] + 0.5 - camera.horizon
    ground = np.minimum(camera.focal * camera.height / np.maximum(below, 1e-3), FARTHEST).astype(np.float32)
    return np.where(TAG_ON_GROUND.take(tags), np.exp(-haze * ground), np.exp(-haze * TAG_DISTANCE).take(tags))


def _per_plane(values: np.ndarray) -> np.ndarray:
    return values[:, None, None]


def _quantise(plane: np.ndarray) -> np.ndarray:
    """Clip to 0..255 and convert to uint8."""
    return np.clip(plane, 0, 255, out=plane).astype(np.uint8)
