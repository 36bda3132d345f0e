"""Small data sets written to disk in exactly the official formats."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from udaseg.data.classes import CITYSCAPES_COLOURS, CITYSCAPES_NAMES
from udaseg.data.index import Index
from udaseg.data.sampling import LabelStatistics


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


def png(array: np.ndarray, *, interlace: int = 0) -> bytes:
    """A PNG of (h,w,3 or 4) in 8 or 16 bits, which Pillow cannot write; the five filters take turns line by line."""
    h, w, channels = array.shape
    step = channels * array.itemsize
    big = array.astype(array.dtype.newbyteorder(">"))
    prior = np.zeros(w * step, np.int64)
    lines = []
    for y in range(h):
        line = np.frombuffer(big[y].tobytes(), np.uint8).astype(np.int64)
        left, corner = (np.concatenate([np.zeros(step, np.int64), x[:-step]]) for x in (line, prior))
        distances = abs(np.stack([prior - corner, left - corner, left + prior - 2 * corner]))
        paeth = np.choose(distances.argmin(0), [left, prior, corner])
        guess = (0 * line, left, prior, (left + prior) // 2, paeth)[y % 5]
        lines.append(bytes([y % 5]) + ((line - guess) % 256).astype(np.uint8).tobytes())
        prior = line
    head = struct.pack(">IIBBBBB", w, h, 8 * array.itemsize, {3: 2, 4: 6}[channels], 0, 0, interlace)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def synthia_label(ids: np.ndarray) -> bytes:
    """As SYNTHIA ships: 16 bits, the class in red, instance numbers in green and blue."""
    instances = np.arange(ids.size, dtype=np.uint16).reshape(ids.shape)
    return png(np.stack([ids.astype(np.uint16), instances, 7 * instances], -1))


def synthia(root: Path, n: int = 3, size: tuple[int, int] = (63, 41), seed: int = 2) -> Path:
    rng = np.random.default_rng(seed)
    for i in range(n):
        save(root / f"RGB/{i:07d}.png", photo(rng, size))
        path = root / f"GT/LABELS/{i:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(synthia_label(labels(rng, size, 23)))
    return root


def anonymous(root: Path, folder: str, n: int = 2, kinds: tuple[str, ...] = ("labelTrainIds",), seed: int = 3) -> Path:
    """A folder below `rgb_anon` and `gt` as ACDC and Dark Zurich have them; without kinds, no labels."""
    rng = np.random.default_rng([seed, *folder.encode()])
    for i in range(n):
        stem = f"{folder}/GOPR0475/GOPR0475_frame_{i:06d}"
        save(root / f"rgb_anon/{stem}_rgb_anon.png", photo(rng, (48, 27)))
        for kind in kinds:
            high = 19 if kind == "labelTrainIds" else 34
            save(root / f"gt/{stem}_gt_{kind}.png", labels(rng, (48, 27), high))
    return root


def camvid(root: Path, size: tuple[int, int] = (48, 36), seed: int = 4) -> Path:
    rng = np.random.default_rng(seed)
    names = {
        "train": ("0001TP_006690", "0001TP_006720", "0006R0_f00930", "0016E5_00390"),
        "val": ("0016E5_07959",),
        "test": ("0001TP_008550", "Seq05VD_f00000"),
    }
    for split, stems in names.items():
        for stem in stems:
            save(root / f"{split}/{stem}.png", photo(rng, size))
            save(root / f"{split}annot/{stem}.png", labels(rng, size, 12))
    return root


def polygons(path: Path, objects: list[dict], size: tuple[int, int] = (64, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"imgHeight": size[1], "imgWidth": size[0], "objects": objects}))
    return path


def truncate(path: Path, share: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def statistics(index: Index, min_pixels: int = 20) -> LabelStatistics:
    """What a sampler gets of an index with Cityscapes' classes."""
    return LabelStatistics(index.counts, CITYSCAPES_NAMES, min_pixels)
