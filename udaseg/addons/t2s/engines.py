"""Source images in another domain's style, with their own labels: the pseudo-target (T2S-DA section 3.2, table 11).

``Stylised`` is the view, an engine makes its image; the paper's own engine is in ``fourier``. B images, H x W pixels of
the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import PositiveFloat
from torch import Tensor
from torchvision.transforms.v2 import functional

from udaseg.plugin import (
    Assumption,
    BuildContext,
    Default,
    HalfTurn,
    ImageCrop,
    Needs,
    Normalisation,
    NotNegative,
    Settings,
    Share,
    StepContext,
    TranslationEngine,
    UserError,
    View,
    ViewBuilder,
    kernel_size,
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

    assumptions = (
        Assumption("Colours of the stylised view", "no jitter and no blur", "silent"),
        Assumption(
            "Cross-entropy on the stylised view",
            "none in the method",
            "Table 7",
            ("views.stylised.terms.cross_entropy",),
            "`views.stylised.terms.cross_entropy={}`",
        ),
        Assumption(
            '"CE: p. target" in Tables 3, 5, 7, 11',
            "**instead of** the source's cross-entropy; the source images keep their feature distance and are pasted "
            "as before",
            'section 4.3: "where the (3) cross-entropy loss should be applied", where other rows say "source"; Table '
            '11: it "is applied on the pseudo-target domain"',
            ("views.source.terms.cross_entropy",),
            "besides it: `views.source.terms.cross_entropy={}`",
        ),
    )


class ColorJitter(TranslationEngine):
    """SimCLR's colour jitter (T2S-DA section 4.3), torchvision's, for each image with ``probability``.

    In a random order: factors of ``brightness``, ``contrast`` and ``saturation`` s, uniform in [max(0, 1 - s), 1 + s],
    and a turn of the hue in [-``hue``, ``hue``].
    """

    def __init__(
        self,
        context: BuildContext,
        *,
        brightness: NotNegative = 0.8,
        contrast: NotNegative = 0.8,
        saturation: NotNegative = 0.8,
        hue: HalfTurn = 0.2,
        probability: Share = 0.8,
    ) -> None:
        self.normalise, self.probability = context.normalise, probability
        self.strengths = (brightness, contrast, saturation)
        self.hue = hue

    def __call__(self, context: StepContext) -> Tensor:
        images = self.normalise.undo(context.batch.source_image)
        drawn = context.rng.choices(len(images), 9)
        return self.normalise.redo(torch.stack([self.jitter(*pair) for pair in zip(images, drawn, strict=True)]))

    def jitter(self, image: Tensor, drawn: Sequence[float]) -> Tensor:
        """One image (3, H, W) in [0, 1]; ``drawn``: whether, four numbers for the factors, four for the order."""
        if drawn[0] >= self.probability:
            return image
        factors = [between(max(0.0, 1 - s), 1 + s, u) for s, u in zip(self.strengths, drawn[1:4], strict=True)]
        turns = (
            partial(functional.adjust_brightness, brightness_factor=factors[0]),
            partial(functional.adjust_contrast, contrast_factor=factors[1]),
            partial(functional.adjust_saturation, saturation_factor=factors[2]),
            partial(functional.adjust_hue, hue_factor=between(-self.hue, self.hue, drawn[4])),
        )
        for i in sorted(range(4), key=lambda i: drawn[5 + i]):
            image = turns[i](image)
        return image

    assumptions = (
        Assumption(
            "Table 11, ColorJitter",
            "SimCLR's, torchvision's, drawn for each image",
            'section 4.3: "the same with SimCLR"',
            ("brightness", "contrast", "saturation", "hue", "probability"),
        ),
    )


class GaussianBlur(TranslationEngine):
    """SimCLR's blur (T2S-DA section 4.3), for each image with ``probability``, sigma uniform in ``sigma`` pixels."""

    def __init__(
        self,
        context: BuildContext,
        *,
        sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0),
        probability: Share = 0.5,
    ) -> None:
        self.sigma, self.probability = sigma, probability

    def __call__(self, context: StepContext) -> Tensor:
        images = context.batch.source_image
        drawn = context.rng.choices(len(images), 2)
        return torch.stack([self.blur(image, *numbers) for image, numbers in zip(images, drawn, strict=True)])

    def blur(self, image: Tensor, whether: float, sigma: float) -> Tensor:
        """One image (3, H, W)."""
        if whether >= self.probability:
            return image
        taps = [kernel_size(side) for side in image.shape[:0:-1]]  # torchvision: of the width first
        return functional.gaussian_blur(image, taps, [between(*self.sigma, sigma)])

    assumptions = (
        Assumption(
            "Table 11, GaussianBlur",
            "SimCLR's, drawn for each image; taps: a tenth of the side",
            'section 4.3: "the same with SimCLR"',
            ("sigma", "probability"),
        ),
    )


def between(low: float, high: float, share: float) -> float:
    """The number at that share of the way from ``low`` to ``high``."""
    return low + (high - low) * share


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
        return of_loader(self.extra, context, self.normalise)

    assumptions = (
        Assumption(
            "Table 11, CyCADA and Wang et al.",
            "a folder of translated images with the names of the source images",
            "trained GANs, which are not part of this project",
            ("folder",),
        ),
    )


def of_loader(extra: str, context: StepContext, normalise: Normalisation) -> Tensor:
    """The images (B, 3, H, W) that the loader has added for an engine, normalised, in the source's memory format."""
    return torch.empty_like(context.batch.source_image).copy_(normalise(context.batch.extras[extra]))


class TranslatedImages:
    """What the loader adds for ``Offline``: the source crop's box of the image with the same name in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def missing(self, dataset: str, images: Sequence[Path]) -> tuple[str, str] | None:
        if not self.folder.is_dir():
            return "folder", f"no such folder: {self.folder.absolute()}; it is to hold translated images of {dataset}"
        lacking = [image for image in images if self.find(image) is None]
        if not lacking:
            return None
        count = f"{len(lacking)} of {len(images)} images of {dataset}"
        return "folder", f"{count} have no translation; {self.nowhere(lacking[0])}"

    def __call__(self, source: ImageCrop, target: ImageCrop | None, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        path = self.find(source.image)
        if path is None:
            raise UserError(self.nowhere(source.image))
        return resize_image(read_image(path), source.size, source.box)

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
