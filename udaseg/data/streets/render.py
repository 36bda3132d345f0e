"""From a drawn scene to an image: the clean look of a game and the look of a camera."""

from __future__ import annotations

import math
from functools import lru_cache
from random import Random
from typing import NamedTuple, get_args

import numpy as np
from PIL import Image, ImageFilter

from udaseg.data.streets.canvas import Camera, Canvas, Paint, tag_tables
from udaseg.data.streets.palette import GROUND, LAYOUTS, SKY, TEXTURE, Domain
from udaseg.data.streets.scene import paint_scene

SMALLEST = 32
"""Least width and height of an image in pixels."""

TEXTURE_CELLS = ((2 / 128, 2 / 128), (5 / 128, 5 / 128), (16 / 128, 16 / 128))
SHADOW_CELL = (14 / 128, 44 / 128)
"""Height and width of the cells of the noise that textures and shadows are made of, in image heights."""

BANK_EXTENT = 1.5
HAZE = np.array([186, 190, 196], np.float32)


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
    layout, name = LAYOUTS[domain], f"{domain}/{seed}/{index}"
    geometry, colours, light = (Random(f"{name}/{part}") for part in ("geometry", "colours", "light"))
    camera = Camera.sample(layout, geometry, size)
    canvas = Canvas(size, camera, geometry, Paint(domain, colours, gap))
    paint_scene(canvas, layout)

    drawn = np.asarray(canvas.image)
    tags, scene = drawn[..., 3], drawn[..., :3].astype(np.float32)
    look = _game_look if domain == "game" else _camera_look
    return look(scene, tags, camera, _bank(size), light), _tables().label[tags]


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


# ---- tables and noise, made once ----


class _Tables(NamedTuple):
    label: np.ndarray  # uint8 (256,)
    distance: np.ndarray  # float32 (256,), metres
    texture: np.ndarray  # float32 (3, 256), grey levels
    ground: np.ndarray  # bool (256,)
    shaded: np.ndarray  # bool (256,): everything but the sky


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    """What each tag of a drawn scene stands for."""
    label, distance = tag_tables()
    texture = np.array([TEXTURE.get(int(each), (0.0, 0.0, 0.0)) for each in label], np.float32).T
    return _Tables(label, distance, np.ascontiguousarray(texture), np.isin(label, GROUND), label != SKY)


class Bank(NamedTuple):
    """Noise fields larger than the image, to be cropped at random, and the pixel coordinates; all float32."""

    textures: tuple[np.ndarray, ...]  # fine, middle, coarse; mean 0, standard deviation 1
    shadow: np.ndarray
    grain: np.ndarray  # white noise
    rows: np.ndarray  # (height, 1), from -0.5 to 0.5
    columns: np.ndarray  # (1, width), from -0.5 to 0.5


@lru_cache(maxsize=2)
def _bank(size: tuple[int, int]) -> Bank:
    """The noise for images of `size` (width, height); textures look alike at every resolution."""
    width, height = size
    generator = np.random.default_rng(7)
    rows = (np.arange(height, dtype=np.float32) / height - 0.5)[:, None]
    columns = (np.arange(width, dtype=np.float32) / width - 0.5)[None, :]
    shape = (math.ceil(BANK_EXTENT * height), math.ceil(BANK_EXTENT * width))
    fields = [_value_noise(generator, cell, shape, height) for cell in (*TEXTURE_CELLS, SHADOW_CELL)]
    grain = generator.standard_normal(shape, dtype=np.float32)
    return Bank(tuple(fields[:3]), fields[3], grain, rows, columns)


def _value_noise(
    generator: np.random.Generator, cell: tuple[float, float], shape: tuple[int, int], height: int
) -> np.ndarray:
    """Smooth noise, float32 of `shape`, with cells of (height, width) in image heights."""
    cells = [math.ceil(extent / height / side) + 1 for extent, side in zip(shape, cell, strict=True)]
    coarse = Image.fromarray(generator.standard_normal(cells, dtype=np.float32))
    right, bottom = shape[1] / height / cell[1], shape[0] / height / cell[0]
    field = np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC, box=(0, 0, right, bottom)))
    return (field - field.mean()) / field.std()


def _crop(field: np.ndarray, bank: Bank, random: Random) -> np.ndarray:
    """A random, perhaps mirrored, part of a noise field, of the image's size."""
    height, width = bank.rows.shape[0], bank.columns.shape[1]
    top = int(random.random() * (field.shape[0] - height))
    left = int(random.random() * (field.shape[1] - width))
    part = field[top : top + height, left : left + width]
    return part[:, ::-1] if random.random() < 0.5 else part


# ---- the two looks: (scene float32 (H, W, 3), tags uint8 (H, W)) to uint8 (H, W, 3) ----


def _game_look(scene: np.ndarray, tags: np.ndarray, camera: Camera, bank: Bank, random: Random) -> np.ndarray:
    """Clean and warm: a little fine texture and grain, exposure within 10 %."""
    fine = 0.5 * _tables().texture[0][tags] * _crop(bank.textures[0], bank, random)
    scene += (fine + 1.5 * _crop(bank.grain, bank, random))[..., None]
    scene *= random.uniform(0.9, 1.1) * np.array([1.04, 1.0, 0.95], np.float32)
    return _quantise(scene)


def _camera_look(scene: np.ndarray, tags: np.ndarray, camera: Camera, bank: Bank, random: Random) -> np.ndarray:
    """Texture, uneven light, shadows, haze, exposure, white balance, vignetting, blur and sensor noise."""
    texture = np.zeros(tags.shape, np.float32)
    for strength, field in zip(_tables().texture, bank.textures, strict=True):
        texture += strength[tags] * _crop(field, bank, random)
    scene += texture[..., None]

    vignette = 1 - random.uniform(0.3, 0.8) * (bank.columns**2 + 1.2 * bank.rows**2)
    clear = np.exp(-random.uniform(0.001, 0.009) * _distance(tags, camera))
    scene *= (_light(tags, bank, random) * clear * vignette)[..., None]
    scene += ((1 - clear) * vignette)[..., None] * (random.uniform(0.85, 1.05) * HAZE)
    balance = np.array([1.0, random.uniform(0.97, 1.03), random.uniform(0.93, 1.09)], np.float32)
    scene *= random.uniform(0.82, 1.15) * balance

    blur = random.uniform(0.35, 0.8) * math.sqrt(tags.shape[0] / 128)
    blurred = np.asarray(Image.fromarray(_quantise(scene)).filter(ImageFilter.GaussianBlur(blur)))
    deviation = np.float32(random.uniform(1.0, 4.0))
    noise = np.stack([_crop(bank.grain, bank, random) for _ in range(3)], axis=-1)
    return _quantise(blurred + deviation * noise)


def _light(tags: np.ndarray, bank: Bank, random: Random) -> np.ndarray:
    """Brightness factor, float32 (H, W): a gradient over the image, and often soft shadows on the lower part of it."""
    light = 1 + random.uniform(-0.35, 0.35) * bank.columns + random.uniform(-0.2, 0.3) * bank.rows
    shadows, field = random.random() < 0.7, _crop(bank.shadow, bank, random)
    threshold, darkness = random.uniform(0.2, 1.0), random.uniform(0.12, 0.38)
    if shadows:
        shadow = np.clip(4 * (field - threshold), 0, 1) * _tables().shaded[tags] * np.clip(10 * bank.rows + 1, 0, 1)
        light = light * (1 - darkness * shadow)
    return light


def _distance(tags: np.ndarray, camera: Camera) -> np.ndarray:
    """Distance in metres, float32 (H, W): of the ground by its row, of everything else by its tag."""
    below = np.arange(tags.shape[0], dtype=np.float32)[:, None] + 0.5 - camera.horizon
    ground = np.minimum(camera.focal * camera.height / np.maximum(below, 1e-3), 110.0).astype(np.float32)
    return np.where(_tables().ground[tags], ground, _tables().distance[tags])


def _quantise(scene: np.ndarray) -> np.ndarray:
    """Clip to 0..255 and convert to uint8."""
    return np.clip(scene, 0, 255, out=scene).astype(np.uint8)
