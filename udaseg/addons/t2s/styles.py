"""Random looks for domain generalisation (T2S-DA section 4.2): each image gets one of five augmentors.

A: FDA towards a style image. B, C: stylisation networks with public weights (``models.styling``). D: weather and light
(fog, snow, rain, contrast, brightness; the strengths are ours [choice]). E: a cartoon (edge-preserving smoothing, dark
edges). A, D and E are tensor code that needs nothing; without style images, A makes smooth random colours of its own.

B images, H x W pixels, RGB in [0, 1]. Every function gets one image (1, 3, H, W), uniform numbers (1, 4) and uniform
noise (1, 3, H, W), all of the iteration's draws.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.addons.t2s.style_networks import STYLE, adain, style_network
from udaseg.core.augment import Normalisation, swap_amplitude
from udaseg.core.context import Iteration
from udaseg.ranges import Share

Look = Callable[[Tensor, Tensor, Tensor], Tensor]
GREY = (0.299, 0.587, 0.114)


class Augmentors:
    """``use``: which augmentors. ``styles``: a folder of style images for A and C. ``weights``: a folder with
    checkpoint_transformer.pth and checkpoint_embeddings.pth for B, vgg_normalised.pth and decoder.pth for C. ``beta``:
    of FDA."""

    needs_target = False

    def __init__(
        self,
        *,
        normalise: Normalisation,
        pictures: Callable[[str], Tensor],
        use: tuple[Literal["A", "B", "C", "D", "E"], ...] = ("A", "D", "E"),
        styles: str | None = None,
        weights: str | None = None,
        beta: Share = 0.01,
    ) -> None:
        self.normalise = normalise
        self.beta = beta
        if not use:
            raise ValueError("use: at least one of A, B, C, D, E is expected")
        for name, setting, key in (("B", weights, "weights"), ("C", weights, "weights"), ("C", styles, "styles")):
            if name in use and setting is None:
                raise ValueError(f"use: {name} needs a folder `{key}`")
        self.styles = pictures(styles) if styles is not None and {"A", "C"} & set(use) else None
        folder = Path(weights or "").expanduser()
        self.network = style_network(folder) if "B" in use else None
        self.adain = adain(folder) if "C" in use else None
        own: dict[str, tuple[Look, ...]] = {"A": (self.fda,), "B": (self.network_look,), "C": (self.adain_look,)}
        self.looks = [(own | {"D": WEATHER, "E": (cartoon,)})[name] for name in use]

    def __call__(self, iteration: Iteration) -> Tensor:
        image, draws = self.normalise.undo(iteration.batch.source_image), iteration.draws
        numbers, noise = draws.per_image(len(image), 4), draws.per_image(*image.shape)
        done = []
        for i, (name, kind) in enumerate(draws.choices(len(image), 2)):
            looks = self.looks[int(name * len(self.looks))]
            look = looks[int(kind * len(looks))]
            done.append(look(image[i : i + 1], numbers[i : i + 1], noise[i : i + 1]))
        return self.normalise.redo(torch.cat(done).clamp(0, 1))

    def fda(self, image: Tensor, numbers: Tensor, noise: Tensor) -> Tensor:
        style = random_colours(noise) if self.styles is None else self.style(image, numbers)
        return swap_amplitude(image, style, self.beta)

    def network_look(self, image: Tensor, numbers: Tensor, noise: Tensor) -> Tensor:
        assert self.network is not None
        drawn = torch.special.ndtri(noise[:, 0].flatten(1)[:, :STYLE].clamp(1e-6, 1 - 1e-6))
        return self.network.to(image.device)(image, drawn)

    def adain_look(self, image: Tensor, numbers: Tensor, noise: Tensor) -> Tensor:
        assert self.adain is not None
        return self.adain.to(image.device)(image, self.style(image, numbers))

    def style(self, image: Tensor, numbers: Tensor) -> Tensor:
        """A random style image at the image's size."""
        assert self.styles is not None
        self.styles = self.styles.to(image.device)
        chosen = (numbers[:, 3] * len(self.styles)).long().clamp(max=len(self.styles) - 1)
        return F.interpolate(self.styles[chosen].float() / 255, image.shape[-2:], mode="bilinear")


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


WEATHER: tuple[Look, ...] = (fog, snow, rain, contrast, brightness)
