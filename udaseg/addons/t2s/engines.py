"""Source images in another domain's style, with their own labels: the pseudo-target (T2S-DA section 3.2, table 11).

``Stylised`` is the view, an engine makes its image. B images, H x W pixels of the crop. FDA works on the step's own
crops, image i of the source with image i of the target: the paper takes a 1024 x 512 crop of both and cuts the training
crop out of the result afterwards, which would need a second, larger crop from the loader [choice]. ``beta`` is a share
of the side, so the frequencies that are swapped stay the same in cycles a pixel along the shorter side. Source and
translated image are the same pixels in either order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from udaseg.plugin import (
    SIGMA,
    TARGET,
    BuildContext,
    Default,
    Needs,
    NotNegative,
    Settings,
    Share,
    SourceCrop,
    StepContext,
    TranslationEngine,
    UserError,
    View,
    ViewBuilder,
    colour_jitter,
    draw_jitter,
    gaussian_blur,
    read_image,
    resize_image,
    user_path,
)


class Stylised(ViewBuilder):
    """The source crop in another style, with its own label."""

    def __init__(self, context: BuildContext, *, engine: Annotated[TranslationEngine, Default("fda")]) -> None:
        self.engine = engine

    def __call__(self, context: StepContext) -> View:
        return View(self.engine(context), context.batch.source_label)


class FDA(TranslationEngine):
    """Fourier domain adaptation (Yang and Soatto, CVPR 2020): the target's amplitude at low frequencies.

    ``beta``: half-width of the swapped window as a share of the shorter side, 0.01 to 0.15 in FDA's own experiments.
    """

    needs = TARGET

    def __init__(self, context: BuildContext, *, beta: Share = 0.01) -> None:
        self.normalise = context.normalise
        self.beta = beta

    def __call__(self, context: StepContext) -> Tensor:
        source, target = (self.normalise.undo(i) for i in (context.batch.source_image, context.batch.target))
        return self.normalise.redo(swap_amplitude(source, target, self.beta).clamp(0, 1))


class ColorJitter(TranslationEngine):
    """Brightness, contrast, saturation and hue of every image by factors of strength ``jitter`` [choice], always."""

    def __init__(self, context: BuildContext, *, jitter: NotNegative = 0.5) -> None:
        self.normalise = context.normalise
        self.jitter = jitter

    def __call__(self, context: StepContext) -> Tensor:
        image = self.normalise.undo(context.batch.source_image)
        order, factors = draw_jitter(context.rng, image.shape[0], self.jitter)
        return self.normalise.redo(colour_jitter(image, order, factors))


class GaussianBlur(TranslationEngine):
    """Every image blurred with a sigma of its own, drawn from that of the mixed view [choice]."""

    def __call__(self, context: StepContext) -> Tensor:
        image = context.batch.source_image
        drawn = context.rng.per_image(image.shape[0])
        return gaussian_blur(image, SIGMA[0] + (SIGMA[1] - SIGMA[0]) * drawn)


class Offline(TranslationEngine):
    """Images translated before the training, by CyCADA and the like: files in ``folder`` with the source's names.

    The loader reads them and cuts the same crop; they may have any size.
    """

    def __init__(self, context: BuildContext, *, folder: str) -> None:
        self.normalise = context.normalise
        self.extra = str(user_path(folder))

    @classmethod
    def needs_with(cls, settings: Settings) -> Needs:
        folder = user_path(settings["folder"])
        return Needs(extras={str(folder): TranslatedImages(folder)})

    def __call__(self, context: StepContext) -> Tensor:
        source = context.batch.source_image
        return torch.empty_like(source).copy_(self.normalise(context.batch.extras[self.extra]))  # its memory format


class TranslatedImages:
    """What the loader adds for ``Offline``: the source crop's box of the image with the same name in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def missing(self, dataset: str, images: Sequence[Path]) -> tuple[str, str] | None:
        lacking = [image for image in images if self.find(image) is None]
        if not lacking:
            return None
        count = f"{len(lacking)} of {len(images)} images of {dataset}"
        return "folder", f"{count} have no translation; {self.nowhere(lacking[0])}"

    def __call__(self, crop: SourceCrop) -> npt.NDArray[np.uint8]:
        path = self.find(crop.image)
        if path is None:
            raise UserError(self.nowhere(crop.image))
        return resize_image(read_image(path), crop.size, crop.box)

    def find(self, image: Path) -> Path | None:
        """Under the same path below the folder, or the same name in it."""
        return next((path for path in (self.folder / image, self.folder / image.name) if path.is_file()), None)

    def nowhere(self, image: Path) -> str:
        places = f"neither {self.folder / image} nor {self.folder / image.name}"
        return f"no translated image of {image} in {self.folder}: {places}"


class Untranslated(TranslationEngine):
    """The source as it is."""

    def __call__(self, context: StepContext) -> Tensor:
        return context.batch.source_image


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
