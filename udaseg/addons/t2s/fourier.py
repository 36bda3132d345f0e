"""Fourier domain adaptation (Yang and Soatto, CVPR 2020), as T2S-DA uses it: eq. 6-8 and section 4, "Training".

A source image keeps its phase and gets the amplitude of a target image at low frequencies. The paper resizes GTA5 to
1280x720, takes a random crop of 1024x512, translates it with a target image of 1024x512, and cuts the training crop of
512x512 out of both. ``scope`` "image" does that: the loader has both images before they are cropped. Here the training
crop is drawn first, by the sampler's rules, then the region around it, uniformly among all places that contain it:
given the crop, that is what the paper's order gives.

B images, C channels, H x W pixels of what is transformed, h x w of the training crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from udaseg.addons.t2s.engines import of_loader
from udaseg.plugin import (
    TARGET,
    Assumption,
    BuildContext,
    Crop,
    ImageCrop,
    Needs,
    Settings,
    Share,
    StepContext,
    TranslationEngine,
    cut,
    random_box,
    resize_image,
)

Times = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class FDA(TranslationEngine):
    """The target's amplitude at low frequencies.

    ``beta``: half-width of the swapped window as a share of the shorter side, 0.01 to 0.15 in FDA's own experiments.
    ``scope``: translate the image (a region of it) before it is cropped, or the crop. ``region``: height and width of
    the region in training crops; [1, 2] is the paper's 512 x 1024 for crops of 512.
    """

    def __init__(
        self,
        context: BuildContext,
        *,
        beta: Share = 0.01,
        scope: Literal["image", "crop"] = "image",
        region: tuple[Times, Times] = (1.0, 2.0),
    ) -> None:
        self.normalise = context.normalise
        self.beta = beta
        self.extra = TranslatedRegion(beta, region).name if scope == "image" else None

    @classmethod
    def needs_with(cls, settings: Settings) -> Needs:
        if settings["scope"] == "crop":
            return TARGET
        extra = TranslatedRegion(settings["beta"], settings["region"])
        return Needs(target=True, extras={extra.name: extra})

    def __call__(self, context: StepContext) -> Tensor:
        if self.extra is not None:
            return of_loader(self.extra, context, self.normalise)
        source, target = (self.normalise.undo(i) for i in (context.batch.source_image, context.batch.target))
        return self.normalise.redo(swap_amplitude(source, target, self.beta).clamp(0, 1))

    assumptions = (
        Assumption(
            "What does FDA see?",
            "a region of the source image around the training crop and as much of the target image, before they are "
            "cropped; its height and width in training crops are `region`. `crop`: the training crops themselves, "
            "image i of the source with image i of the target; along the rows, the same window is then twice as wide "
            "in cycles a pixel",
            'section 4, "Training": random crops of 1024x512, FDA, then the training crop of 512x512',
            ("scope", "region"),
        ),
        Assumption(
            "Size of FDA's window",
            "half-width floor(beta min(H, W)) in both directions, as in FDA's code",
            "eq. 7: beta H by beta W, the same for square images only; value: silent, FDA's smallest",
            ("beta",),
            "0.01 to 0.15 in the FDA paper",
        ),
        Assumption("Range after FDA", "clamped to 0..1", "silent"),
        Assumption("Flips under FDA", "both images are as stored; the result is flipped with its source", "silent"),
    )


class TranslatedRegion:
    """What the loader adds for ``FDA``: the source crop's box, cut out of a translated region around it.

    A side of the region is that of the image where the image is shorter. The style is a random crop of the sample's
    target image of the region's size, or all there is of the target, resized, where it is smaller.
    """

    def __init__(self, beta: float, region: Sequence[float]) -> None:
        self.beta, self.region = beta, (region[0], region[1])
        self.name = f"fda beta={beta:g} region={region[0]:g}x{region[1]:g}"

    def missing(self, dataset: str, images: Sequence[Path]) -> None:
        """Nothing: all is in the sample's own images."""

    def __call__(self, source: ImageCrop, target: ImageCrop | None, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        assert target is not None, "FDA needs a target"
        region = around(source.box, self.region, source.size, rng)
        size = (region.y2 - region.y1, region.x2 - region.x1)
        style = resize_image(target.pixels(random_box(target.size, size, rng)), size[::-1])
        return cut(with_amplitude(source.pixels(region), style, self.beta), inside(source.box, region))


def around(box: Crop, times: tuple[float, float], size: tuple[int, int], rng: np.random.Generator) -> Crop:
    """A random region of ``times`` the box's height and width in an image of ``size`` (w, h) that contains the box."""
    height = min(round(times[0] * (box.y2 - box.y1)), size[1])
    width = min(round(times[1] * (box.x2 - box.x1)), size[0])
    y = int(rng.integers(max(box.y2 - height, 0), min(box.y1, size[1] - height) + 1))
    x = int(rng.integers(max(box.x2 - width, 0), min(box.x1, size[0] - width) + 1))
    return Crop(y, y + height, x, x + width)


def inside(box: Crop, region: Crop) -> Crop:
    """The box in the region's own pixels."""
    return Crop(box.y1 - region.y1, box.y2 - region.y1, box.x1 - region.x1, box.x2 - region.x1)


def with_amplitude(source: npt.NDArray[np.uint8], style: npt.NDArray[np.uint8], beta: float) -> npt.NDArray[np.uint8]:
    """``swap_amplitude`` of one image (H, W, 3) in 0..255, clamped and rounded, with a worker's single thread.

    The transform is linear and the window small, so only what changes in it is transformed back and added.
    """
    height, width = source.shape[:2]
    widest = int(beta * min(height, width))
    row = np.arange(height)
    rows, columns = np.flatnonzero(np.minimum(row, height - row) <= widest), np.arange(min(widest, width // 2) + 1)
    own, other = (low_frequencies(image, rows, columns) for image in (source, style))
    change = np.zeros((height, len(columns), 3), own.dtype)
    change[rows] = np.abs(other) * np.exp(1j * np.angle(own)) - own
    changed = source + np.fft.irfft(np.fft.ifft(change, axis=0), n=width, axis=1)
    return np.rint(changed.clip(0, 255)).astype(np.uint8)


def low_frequencies(
    image: npt.NDArray[np.uint8], rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]
) -> npt.NDArray[np.complexfloating]:
    """(H, W, 3) -> those rows and columns of its half spectrum."""
    return np.fft.fft(np.fft.rfft(image.astype(np.float32), axis=1)[:, columns], axis=0)[rows]


def swap_amplitude(source: Tensor, style: Tensor, beta: float) -> Tensor:
    """T2S-DA eq. 6-8 for (B, C, H, W): phase of ``source``, amplitude of ``style`` where both frequencies are at most
    floor(beta * min(H, W)), of ``source`` elsewhere. Half spectra are enough: images are real and the window symmetric.
    """
    height, width = source.shape[-2:]
    widest = int(beta * min(height, width))
    spectrum, other = torch.fft.rfft2(source.float()), torch.fft.rfft2(style.float())
    row = torch.arange(height, device=source.device)
    low = torch.minimum(row, height - row)[:, None] <= widest
    low = low & (torch.arange(width // 2 + 1, device=source.device) <= widest)
    swapped = torch.polar(other.abs(), spectrum.angle())
    return torch.fft.irfft2(torch.where(low, swapped, spectrum), s=(height, width))
