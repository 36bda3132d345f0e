"""Random styles for domain generalisation (T2S-DA section 4.2): each image gets one of five augmentors.

A: FDA towards a style image. B, C: stylisation networks with public weights (``style_networks``). D: weather and light
(fog, snow, rain, contrast, brightness). E: a cartoon (edge-preserving smoothing, dark edges). A, D and E are tensor
code that needs nothing; without style images, A makes smooth random colours of its own.

B images, H x W pixels, RGB in [0, 1]. Every function gets one image (1, 3, H, W), uniform numbers (1, 4) and uniform
noise (1, 3, H, W), all of the step's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.addons.t2s.fourier import swap_amplitude
from udaseg.addons.t2s.style_networks import STYLE, adain, style_network
from udaseg.plugin import (
    Assumption,
    BuildContext,
    Share,
    StepContext,
    TranslationEngine,
    UserError,
    list_images,
    read_image,
    resize_image,
    user_path,
)

Style = Callable[[Tensor, Tensor, Tensor], Tensor]
GREY = (0.299, 0.587, 0.114)


class Augmentors(TranslationEngine):
    """``use``: which augmentors. ``styles``: a folder of style images for A and C. ``weights``: a folder with
    checkpoint_transformer.pth and checkpoint_embeddings.pth for B, vgg_normalised.pth and decoder.pth for C. ``beta``:
    of FDA."""

    def __init__(
        self,
        context: BuildContext,
        *,
        use: tuple[Literal["A", "B", "C", "D", "E"], ...] = ("A", "D", "E"),
        styles: str | None = None,
        weights: str | None = None,
        beta: Share = 0.01,
    ) -> None:
        self.normalise = context.normalise
        self.beta = beta
        if not use:
            raise ValueError("use: at least one of A, B, C, D, E is expected")
        for name, setting, key in (("B", weights, "weights"), ("C", weights, "weights"), ("C", styles, "styles")):
            if name in use and setting is None:
                raise ValueError(f"use: {name} needs a folder `{key}`")
        self.pictures = style_images(styles) if styles is not None and {"A", "C"} & set(use) else None
        folder = user_path(weights or "")
        self.network = style_network(folder) if "B" in use else None
        self.adain = adain(folder) if "C" in use else None
        own: dict[str, tuple[Style, ...]] = {"A": (self.fda,), "B": (self.by_network,), "C": (self.by_adain,)}
        self.styles = [(own | {"D": WEATHER, "E": (cartoon,)})[name] for name in use]

    def __call__(self, context: StepContext) -> Tensor:
        image, rng = self.normalise.undo(context.batch.source_image), context.rng
        numbers, noise = rng.per_image(len(image), 4), rng.per_image(*image.shape)
        done = []
        for i, (name, kind) in enumerate(rng.choices(len(image), 2)):
            styles = self.styles[int(name * len(self.styles))]
            style = styles[int(kind * len(styles))]
            done.append(style(image[i : i + 1], numbers[i : i + 1], noise[i : i + 1]))
        return self.normalise.redo(torch.cat(done).clamp(0, 1))

    def fda(self, image: Tensor, numbers: Tensor, noise: Tensor) -> Tensor:
        style = random_colours(noise) if self.pictures is None else self.picture(image, numbers)
        return swap_amplitude(image, style, self.beta)

    def by_network(self, image: Tensor, numbers: Tensor, noise: Tensor) -> Tensor:
        assert self.network is not None
        drawn = torch.special.ndtri(noise[:, 0].flatten(1)[:, :STYLE].clamp(1e-6, 1 - 1e-6))
        return self.network.to(image.device)(image, drawn)

    def by_adain(self, image: Tensor, numbers: Tensor, noise: Tensor) -> Tensor:
        assert self.adain is not None
        return self.adain.to(image.device)(image, self.picture(image, numbers))

    def picture(self, image: Tensor, numbers: Tensor) -> Tensor:
        """A random style image at the image's size."""
        assert self.pictures is not None
        self.pictures = self.pictures.to(image.device)
        chosen = (numbers[:, 3] * len(self.pictures)).long().clamp(max=len(self.pictures) - 1)
        return F.interpolate(self.pictures[chosen].float() / 255, image.shape[-2:], mode="bilinear")

    assumptions = (
        Assumption(
            "DG: how often is an image augmented?",
            "once a step, by one style drawn for each image",
            "Figure 6 shows three augmentations of one image",
        ),
        Assumption(
            "DG: which styles",
            "A (FDA), D (weather), E (cartoon)",
            "five in the paper",
            ("use", "weights"),
            "B needs the weights of a style network; C needs AdaIN's weights and style images",
        ),
        Assumption(
            "DG: style images of A",
            "smooth random colours, unless a folder is given",
            "a style data set in the paper",
            ("styles",),
            "a folder",
        ),
        Assumption(
            "DG: weather",
            "fog, snow, rain, contrast and brightness of our own making, in tensor code",
            "the corruptions of Michaelis et al. in the paper",
        ),
        Assumption("DG: cartoon", "three bilateral filters, then dark edges", "Jung et al. in the paper"),
        Assumption(
            "DG: baseline",
            "plain training on the source, neither rare class sampling nor feature distance",
            '"fully-supervised manner"',
            ("data.sampler", "views.source.terms.feature_distance"),
        ),
    )


def style_images(folder: str) -> Tensor:
    """Style images: the first 256 of a folder, squeezed into (n, 3, 256, 256) uint8."""
    paths = sorted(list_images(user_path(folder)))[:256]
    if not paths:
        raise UserError(f"no images in {folder}; `styles` is a folder of style images (PNG or JPEG)")
    images = np.stack([resize_image(read_image(path), (256, 256)) for path in paths])
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def random_colours(noise: Tensor) -> Tensor:
    """Noise of four octaves, finer ones weaker, with a random mean and contrast in each channel."""
    size = noise.shape[-2:]
    field = sum(smooth(noise[..., :cells, :cells], size) / cells for cells in (2, 4, 8, 16))
    assert isinstance(field, Tensor)
    field = (field - field.mean(dim=(2, 3), keepdim=True)) / field.std(dim=(2, 3), keepdim=True).clamp(min=1e-3)
    mean, spread = noise[..., -1:, -1:], noise[..., -1:, -2:-1]
    return (0.2 + 0.6 * mean + (0.05 + 0.25 * spread) * field).clamp(0, 1)


def smooth(cells: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(cells, tuple(size), mode="bicubic", align_corners=True)


def fog(image: Tensor, numbers: Tensor, noise: Tensor) -> Tensor:
    """White fields of uneven density, 30 to 70 % on the whole."""
    size = image.shape[-2:]
    field = 0.5 * (smooth(noise[:, :1, :3, :3], size) + smooth(noise[:, :1, :9, :9], size))
    density = ((0.3 + 0.4 * value(numbers, 0)) * (0.6 + 0.8 * field)).clamp(0, 1)
    return image * (1 - density) + 0.9 * density


def snow(image: Tensor, numbers: Tensor, noise: Tensor) -> Tensor:
    """Paler, with flakes that fall aslant."""
    flakes = streaks(noise[:, :1], length=5, share=0.01 + 0.02 * value(numbers, 0))
    pale = image + (0.3 + 0.3 * value(numbers, 1)) * (1 - image)
    return torch.maximum(pale, flakes.clamp(max=1))


def rain(image: Tensor, numbers: Tensor, noise: Tensor) -> Tensor:
    """Darker, with long thin streaks."""
    drops = streaks(noise[:, :1], length=15, share=0.004 + 0.008 * value(numbers, 0))
    return image * (0.85 - 0.3 * value(numbers, 1)) + 0.35 * drops


def contrast(image: Tensor, numbers: Tensor, noise: Tensor) -> Tensor:
    """20 to 60 % of the contrast around the image's mean."""
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (0.2 + 0.4 * value(numbers, 0)) * (image - mean)


def brightness(image: Tensor, numbers: Tensor, noise: Tensor) -> Tensor:
    """Lighter by 0.1 to 0.4."""
    return image + 0.1 + 0.3 * value(numbers, 0)


def cartoon(image: Tensor, numbers: Tensor, noise: Tensor) -> Tensor:
    """Three bilateral filters of 5 x 5, then black where the brightness changes fast."""
    for _ in range(3):
        image = bilateral(image, spread=0.1)
    grey = F.pad(
        (image * image.new_tensor(GREY).view(3, 1, 1)).sum(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate"
    )
    across = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    down = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    edge = torch.hypot(across, down)
    threshold = 0.1 + 0.2 * value(numbers, 0)
    return image * (1 - ((edge - threshold) / 0.05).clamp(0, 1))


def bilateral(image: Tensor, *, spread: float, radius: int = 2) -> Tensor:
    """Mean of the neighbours within ``radius``, those of another colour (by ``spread``) counting less."""
    height, width = image.shape[-2:]
    around = F.pad(image, (radius,) * 4, mode="replicate")
    total, weights = torch.zeros_like(image), torch.zeros_like(image[:, :1])
    for y in range(2 * radius + 1):
        for x in range(2 * radius + 1):
            neighbour = around[..., y : y + height, x : x + width]
            weight = (-(neighbour - image).square().sum(dim=1, keepdim=True) / (2 * spread**2)).exp()
            total, weights = total + weight * neighbour, weights + weight
    return total / weights


def streaks(noise: Tensor, *, length: int, share: Tensor) -> Tensor:
    """Sparse points of (1, 1, H, W) noise drawn out aslant over ``length`` pixels, 0 to 1."""
    points = (noise < share).float()
    kernel = torch.eye(length, device=noise.device)
    return F.conv2d(points, kernel[None, None], padding="same").clamp(max=1)


def value(numbers: Tensor, place: int) -> Tensor:
    return numbers[:, place, None, None, None]


WEATHER: tuple[Style, ...] = (fog, snow, rain, contrast, brightness)
