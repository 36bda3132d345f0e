"""Training samples a second on one core, against a loader that does what the public code does.

    python tests/bench/loader_speed.py [samples]

The public way (docs/fidelity.md, "Data pipeline"): every sample is decoded and resized whole, the target's label too; a
rare-class crop that does not hold enough of its class is made again from the files. With OpenCV where it is installed,
otherwise with Pillow and our own resize. Both loaders draw the same images, boxes and flips from the same random
numbers, so they do the same work; the samples are compared. Targets: 1.5 times at DAFormer's sizes, 2 at HRDA's. How
often a crop is made again depends on the scenes (printed: crops a sample), so uniform sampling, where that never
happens, is shown as well. What bounds our loader is the decoding of its two PNGs (about three quarters of a sample;
`udaseg prepare --cache` removes it). torchvision's decoder is no faster and a flipped byte in a file ends its process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import scenes

from udaseg.config.load import load
from udaseg.engine.domains import domain

try:
    import cv2

    cv2.setNumThreads(1)
except ImportError:
    cv2 = None


def read(path: Path) -> np.ndarray:
    """(H,W,3): BGR as mmcv reads, or RGB without OpenCV."""
    from udaseg.data.images import read_image

    if cv2 is None:
        return read_image(path)
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)


def resized(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    from udaseg.data.transforms import resize_image, resize_label

    if cv2 is None:
        return resize_image(image, size), resize_label(label, size)
    return (
        cv2.resize(image, size, interpolation=cv2.INTER_LINEAR),
        cv2.resize(label, size, interpolation=cv2.INTER_NEAREST),
    )


class Public:
    """One sample a call; `crops` counts source crops, so how often the public code decodes is known."""

    def __init__(self, pairs: Any) -> None:
        self.pairs, self.crops = pairs, 0

    def load(self, domain: Any, i: int) -> tuple[np.ndarray, np.ndarray]:
        from PIL import Image

        from udaseg.data.transforms import keep_ratio_size

        pair, root = domain.index.pairs[i], domain.index.root
        image, label = read(root / pair.image), np.array(Image.open(root / pair.label))
        image, label = resized(image, label, keep_ratio_size(image.shape[1::-1], domain.size))
        return image, domain.index.lut()[label]

    def crop(self, domain: Any, i: int, rng: np.random.Generator, ratio: float) -> tuple[np.ndarray, np.ndarray]:
        from udaseg.data.transforms import cut, draw_crop

        self.crops += ratio < 1
        image, label = self.load(domain, i)
        box = draw_crop(label.shape[::-1], self.pairs.crop, rng, label=label, cat_max_ratio=ratio)
        image, label = cut(image, box), cut(label, box)
        return (image[:, ::-1], label[:, ::-1]) if rng.random() < 0.5 else (image, label)

    def sample(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pairs = self.pairs
        rng = np.random.default_rng([pairs.seed, k, 0])
        choice = pairs.sampler.draw(rng)
        image, label = self.crop(pairs.source, choice.image, rng, pairs.cat_max_ratio)
        for _ in range(10 if choice.wanted is not None else 0):
            if (label == choice.wanted).sum() > choice.min_pixels:
                break
            image, label = self.crop(pairs.source, choice.image, rng, pairs.cat_max_ratio)
        rng = np.random.default_rng([pairs.seed, k, 1])
        target, _ = self.crop(pairs.target, int(rng.integers(len(pairs.target))), rng, 1.0)
        return self.normalised(image), label.astype(np.int64), self.normalised(target)

    def normalised(self, image: np.ndarray) -> np.ndarray:
        """As the public loader does on the CPU: float32, RGB, (x - mean) / std, channels first."""
        from udaseg.models.segmentor import IMAGENET_MEAN as MEAN
        from udaseg.models.segmentor import IMAGENET_STD as STD

        image = image.astype(np.float32)
        mean, scale = np.array(MEAN, np.float64).reshape(1, -1), 1 / np.array(STD, np.float64).reshape(1, -1)
        if cv2 is None:
            image = (image - mean.astype(np.float32)) * scale.astype(np.float32)
        else:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            cv2.subtract(image, mean, image)
            cv2.multiply(image, scale, image)
        return np.ascontiguousarray(image.transpose(2, 0, 1))


def training_pairs(scale: int, rare: bool = True) -> Any:
    """The samples of `daformer` on GTA5 -> Cityscapes at `data.scale`; HRDA asks for four times the pixels."""
    from udaseg.data.dataset import TrainingPairs
    from udaseg.data.sampling import LabelStatistics, RareClass, Uniform

    data = load("daformer", benchmark="gta5_cityscapes").recipe.data
    source = domain(data.source, scale, None, labels=True)
    target = domain(data.target, scale, None, labels=False)
    ratio = 0.5 if scale == 1 else 2.0
    statistics = LabelStatistics(source.index.counts, (), 3000)
    sampler: Any = RareClass(statistics, min_crop_ratio=ratio) if rare else Uniform(statistics)
    crop = (512 * scale, 512 * scale)
    return TrainingPairs(source, target, sampler=sampler, crop=crop, seed=0, length=10**6)


def check(pairs: Any, public: Public) -> None:
    """The two loaders make the same samples (our resize is OpenCV's to the pixel)."""
    from udaseg.data.loading import Normalise
    from udaseg.models.segmentor import IMAGENET_MEAN, IMAGENET_STD

    for k in range(2):
        image, label, target = public.sample(k)
        ours = pairs[k]
        assert np.array_equal(ours["source_label"].numpy(), label)
        for theirs, name in ((image, "source_image"), (target, "target_image")):
            assert np.abs(Normalise(IMAGENET_MEAN, IMAGENET_STD)(ours[name]).numpy() - theirs).max() < 1e-4, name


def main(samples: int) -> None:
    from udaseg.data import prepare

    scenes.home(24)
    for name in ("gta5", "cityscapes"):
        prepare.prepare(name)
    print(scenes.machine(), f"OpenCV {cv2.__version__}" if cv2 else "no OpenCV: Pillow and our resize")
    for title, scale, rare in (
        ("DAFormer", 1, True), ("HRDA", 2, True), ("DAFormer's sizes, uniform", 1, False),
        ("HRDA's sizes, uniform", 2, False),
    ):  # fmt: skip
        pairs = training_pairs(scale, rare)
        public = Public(pairs)
        check(pairs, public)
        public.crops = 0
        times: list[tuple[float, float]] = []
        for part in range(3):  # in turns, so that other work on the machine hits both
            numbers = range(part * samples, (part + 1) * samples)
            ours = scenes.timed(lambda n=numbers, p=pairs: [p[k] for k in n])
            theirs = scenes.timed(lambda n=numbers, p=public: [p.sample(k) for k in n])
            times.append((ours, theirs))
        ours, theirs = (3 * samples / sum(column) for column in zip(*times, strict=True))
        print(
            f"{title:<26}ours {ours:5.2f} samples/s a core, public way {theirs:5.2f}: {ours / theirs:.2f} x "
            f"({', '.join(f'{b / a:.2f}' for a, b in times)}); {public.crops / (3 * samples):.2f} crops a sample"
        )
        bound(pairs)


def bound(pairs: Any) -> None:
    """How much of a sample is the decoding of its two images."""
    from udaseg.data.images import read_image, read_label

    jobs = []
    for images, with_label in ((pairs.source, True), (pairs.target, False)):
        for pair in images.index.pairs[:8]:
            jobs.append((images.index.root / pair.image, images.index.root / pair.label if with_label else None))
    images = scenes.timed(lambda: [read_image(image) for image, _ in jobs]) / 8
    labels = scenes.timed(lambda: [read_label(label) for _, label in jobs if label]) / 8
    whole = scenes.timed(lambda: [pairs[k] for k in range(8)]) / 8
    print(
        f"{'':<26}a sample takes {1000 * whole:.0f} ms: decoding its two images {1000 * images:.0f}, its label "
        f"{1000 * labels:.0f}"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
