"""Training pairs and evaluation images as torch data sets.

Source: ``docs/fidelity.md``, "Crops and sampling". What differs from the public code: sample k is a pure function of
(seed, k), so workers and resuming change nothing; a rare-class re-crop cuts the decoded image again instead of reading
it again; crops are chosen on the label alone and only the chosen box of the image is resized; target labels are never
decoded.

H, W native size, h, w crop size. Images (H,W,3) uint8 RGB, labels (H,W) uint8 train ids with 255 = ignore.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from udaseg.component import ImageCrop, SampleExtra
from udaseg.data import cache
from udaseg.data.classes import IGNORE
from udaseg.data.images import Bytes, read_image, read_label
from udaseg.data.index import Index
from udaseg.data.sampling import Choice, Sampler
from udaseg.data.transforms import (
    MEAN_COLOUR,
    Crop,
    Margins,
    Size,
    cut,
    draw_crop,
    flip,
    keep_ratio_size,
    pad,
    photometric_distortion,
    resize_image,
    resize_label,
)
from udaseg.errors import UserError

Turn = Callable[[Bytes], Bytes]
TRIES = 10  # checked crops, of a wanted class; the next one is used unchecked


class Decoded(NamedTuple):
    """One decoded pair: the image as stored, the size it counts as (w, h), and its label at that size."""

    image: Bytes  # (H,W,3)
    size: Size
    label: Bytes | None

    def patch(self, box: Crop | None = None) -> Bytes:
        """The box (default: all) of the resized image."""
        return resize_image(self.image, self.size, box)


class Domain:
    """The images of one index at training size, with labels as train ids if wanted."""

    def __init__(
        self,
        index: Index,
        *,
        lut: npt.NDArray[np.uint8] | None = None,
        size: Size | None = None,
        labels: bool = True,
        cache_bytes: int = 0,
    ) -> None:
        """`size` (w, h) bounds the keep-ratio resize (None: native). `lut` defaults to the index's own.

        `cache_bytes` > 0 keeps resized pairs in memory until they fill it (in each worker process). Raises UserError
        when labels are wanted and the index has none.
        """
        if labels and not index.labelled:
            raise UserError(
                f"Data set {index.dataset!r} ({index.split}) in {index.root} has no labels; "
                "it can be a target, not a source or an evaluation set."
            )
        self.index, self.size, self.labels = index, size, labels
        self.lut = index.lut() if lut is None else lut
        self.pixels = index.format.pixels
        self.copy = cache.find(index, size)  # made by `udaseg prepare --cache`: the same pixels without decoding
        self._cache: dict[int, Decoded] = {}
        self._room = cache_bytes

    def __len__(self) -> int:
        return len(self.index)

    def load(self, i: int) -> tuple[Bytes, Bytes | None]:
        """(image, label or None), both resized."""
        decoded = self.decode(i)
        return decoded.patch(), decoded.label

    def decode(self, i: int) -> Decoded:
        """Image i read, its label resized and mapped; from the copy or the memory where they are there.

        Raises UserError for an unreadable file.
        """
        if i in self._cache:
            return self._cache[i]
        decoded = self.read_image(i)
        if self.labels:
            decoded = decoded._replace(label=self._label(i, decoded))
        if self._room > 0:
            decoded = decoded._replace(image=decoded.patch())
            need = decoded.image.nbytes + (0 if decoded.label is None else decoded.label.nbytes)
            if need <= self._room:
                self._room -= need
                self._cache[i] = decoded
        return decoded

    def read_image(self, i: int) -> Decoded:
        """Image i without its label."""
        if self.copy is not None:
            return Decoded(self.copy.image(i), self.copy.sizes[i], None)
        image = read_image(self.index.root / self.index.pairs[i].image)
        native = (image.shape[1], image.shape[0])
        return Decoded(image, native if self.size is None else keep_ratio_size(native, self.size), None)

    def taken(self, i: int, decoded: Decoded, box: Crop) -> ImageCrop:
        """A box of image i, as extras of a sample get it."""
        return ImageCrop(self.index.pairs[i].image, decoded.size, box, decoded.patch)

    def native_label(self, i: int) -> Bytes:
        """(H,W) train ids at the size of the label file."""
        return self.lut[self._raw_label(i)]

    def _raw_label(self, i: int) -> Bytes:
        path = self.index.pairs[i].label
        assert path is not None, "checked in __init__"
        return read_label(self.index.root / path, self.pixels)

    def _label(self, i: int, decoded: Decoded) -> Bytes:
        raw = self.copy.label(i) if self.copy is not None else self._raw_label(i)
        assert raw is not None, "checked in __init__"
        if self.copy is None and raw.shape != decoded.image.shape[:2]:
            label = self.index.root / str(self.index.pairs[i].label)
            raise UserError(f"{label} is not of the size of its image; prepare the data set again.")
        return self.lut[resize_label(raw, decoded.size)]


class TrainingPairs(Dataset[dict[str, Tensor]]):
    """Sample k: a source crop with its label and, with a target, a target crop; independent of every other sample."""

    def __init__(
        self,
        source: Domain,
        target: Domain | None = None,
        *,
        sampler: Sampler,
        crop: tuple[int, int],
        seed: int,
        length: int,
        cat_max_ratio: float = 0.75,
        photometric: bool = False,
        margins: Margins | None = None,
        extras: Mapping[str, SampleExtra] | None = None,
    ) -> None:
        """`crop` (h, w); `photometric` distorts the colours of the source (source-only and oracle runs).

        `extras`: name -> one more image of every source crop, for one component. Each has a generator of its own, so
        that none of them changes a crop or another extra.
        """
        self.source, self.target, self.sampler = source, target, sampler
        self.crop, self.seed, self.length = crop, seed, length
        self.cat_max_ratio, self.photometric, self.margins = cat_max_ratio, photometric, margins
        self.extras = extras or {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        """`source_image` (3,h,w), `source_label` (h,w) and, with a target, `target_image`, with margins `target_valid`
        (1 = reliable), and `extra/NAME` (3,h,w) for every extra; all uint8."""
        if not 0 <= k < self.length:
            raise IndexError(k)
        sample, source, turn = self._source(np.random.default_rng([self.seed, k, 0]))
        target = None
        if self.target is not None:
            more, target = self._target(self.target, np.random.default_rng([self.seed, k, 1]))
            sample |= more
        for name, extra in self.extras.items():
            image = turn(extra(source, target, np.random.default_rng([self.seed, k, 2])))
            sample[f"extra/{name}"] = _channels_first(pad(image, self.crop, MEAN_COLOUR))
        return sample

    def _source(self, rng: np.random.Generator) -> tuple[dict[str, Tensor], ImageCrop, Turn]:
        """The tensors, what was taken, and how it was turned."""
        choice = self.sampler.draw(rng)
        decoded = self.source.decode(choice.image)
        assert decoded.label is not None, "a source domain has labels"
        box, flipped = self._choose(decoded.size, decoded.label, choice, rng)
        turn = flip if flipped else np.asarray
        image, label = turn(decoded.patch(box)), turn(cut(decoded.label, box))
        if self.photometric:
            image = photometric_distortion(image, rng)
        sample = {
            "source_image": _channels_first(pad(image, self.crop, MEAN_COLOUR)),
            "source_label": _tensor(pad(label, self.crop, IGNORE)),
        }
        return sample, self.source.taken(choice.image, decoded, box), turn

    def _choose(self, size: Size, label: Bytes, choice: Choice, rng: np.random.Generator) -> tuple[Crop, bool]:
        """A box and a flip; both are drawn again, at most TRIES times, until the wanted class fills enough of it."""
        for _ in range(TRIES if choice.wanted is not None else 0):
            box, flipped = self._draw(size, label, rng)
            if np.count_nonzero(cut(label, box) == choice.wanted) > choice.min_pixels:
                return box, flipped
        return self._draw(size, label, rng)

    def _draw(self, size: Size, label: Bytes, rng: np.random.Generator) -> tuple[Crop, bool]:
        box = draw_crop(size, self.crop, rng, label=label, cat_max_ratio=self.cat_max_ratio)
        return box, bool(rng.random() < 0.5)

    def _target(self, target: Domain, rng: np.random.Generator) -> tuple[dict[str, Tensor], ImageCrop]:
        """The tensors, and what was taken."""
        i = int(rng.integers(len(target)))
        decoded = target.decode(i)
        box = draw_crop(decoded.size, self.crop, rng)
        turn = flip if rng.random() < 0.5 else np.asarray
        sample = {"target_image": _channels_first(pad(turn(decoded.patch(box)), self.crop, MEAN_COLOUR))}
        if self.margins is not None:
            sample["target_valid"] = _tensor(pad(turn(self.margins.valid(decoded.size, box)), self.crop, 0))
        return sample, target.taken(i, decoded, box)


class EvaluationImages(Dataset[dict[str, Tensor | str]]):
    """Whole images at test size with labels at their native size, in the order of the index."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def __len__(self) -> int:
        return len(self.domain)

    def __getitem__(self, i: int) -> dict[str, Tensor | str]:
        """`image` uint8 (3,h,w), `name` (path below the root) and, if the domain has labels, `label` uint8 (H,W)."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        item: dict[str, Tensor | str] = {
            "image": _channels_first(self.domain.read_image(i).patch()),
            "name": self.domain.index.pairs[i].image.as_posix(),
        }
        if self.domain.labels:
            item["label"] = _tensor(self.domain.native_label(i))
        return item


def _tensor(array: Bytes) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _channels_first(image: Bytes) -> Tensor:
    """(h,w,3) -> (3,h,w)."""
    return _tensor(image.transpose(2, 0, 1))
