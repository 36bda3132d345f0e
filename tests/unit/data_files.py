"""Small data sets written to disk in exactly the official formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from udaseg.data.classes import CITYSCAPES_COLOURS


def photo(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(H,W,3) uint8 noise of size (w, h)."""
    return rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def labels(rng: np.random.Generator, size: tuple[int, int], high: int = 34, block: int = 8) -> np.ndarray:
    """(H,W) uint8 blocks of label ids below `high`."""
    w, h = size
    grid = rng.integers(0, high, (h // block + 1, w // block + 1), dtype=np.uint8)
    return grid.repeat(block, 0).repeat(block, 1)[:h, :w]


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def save_palette(path: Path, ids: np.ndarray) -> Path:
    """A palette PNG as GTA5 ships: the index is the label id."""
    colours = np.zeros((256, 3), np.uint8)
    for colour, value in CITYSCAPES_COLOURS.items():
        colours[value] = colour
    picture = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
    picture.putpalette(colours.ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def gta5(root: Path, n: int = 4, size: tuple[int, int] = (64, 40), seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for i in range(1, n + 1):
        save(root / f"images/{i:05d}.png", photo(rng, size))
        save_palette(root / f"labels/{i:05d}.png", labels(rng, size))
    return root


def cityscapes(
    root: Path,
    split: str = "train",
    n: int = 3,
    size: tuple[int, int] = (64, 32),
    kind: str | None = "labelIds",
    seed: int = 1,
) -> Path:
    rng = np.random.default_rng(seed)
    for city in ("ulm", "aachen"):
        for i in range(n):
            stem = f"{city}/{city}_{i:06d}_000019"
            save(root / f"leftImg8bit/{split}/{stem}_leftImg8bit.png", photo(rng, size))
            if kind:
                high = 19 if kind == "labelTrainIds" else 34
                save(root / f"gtFine/{split}/{stem}_gtFine_{kind}.png", labels(rng, size, high))
    return root


def truncate(path: Path, share: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
