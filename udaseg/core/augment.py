"""Colour jitter and blur with the semantics of kornia 0.5.8 for whole batches on the device (docs/fidelity.md,
"Class mix and colour augmentation").

B images, 3 channels, H x W pixels. torchvision's and newer kornia's jitter are *different* augmentations: here
brightness is additive, contrast is a plain product without centring, saturation and hue act in HSV.
What differs from the public code: colours outside [0, 1] are cut at every turn, also before saturation and hue (kornia
0.5.8 cuts only what brightness, contrast and saturation give); factors and order are drawn for each image but applied
to all images at once, and the blur is two 1-D passes of at most 17 taps instead of one dense 51 x 51 or 103 x 103
filter (sigma <= 1.15: the taps left out carry less than 1e-10 of the mass).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.core.context import Normalisation, StepRng

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
SIGMA = (0.15, 1.15)
_MAX_RADIUS = 8


class ColourAugment:
    """Jitter and blur of normalised images; each is decided once for the batch."""

    def __init__(
        self, normalise: Normalisation, *, jitter: float, jitter_probability: float, blur_probability: float
    ) -> None:
        self.normalise = normalise
        self.strength = jitter
        self.jitter_probability = jitter_probability
        self.blur_probability = blur_probability

    def __call__(self, image: Tensor, rng: StepRng, *, together: bool = False) -> Tensor:
        """Normalised (B, 3, H, W) -> the same. ``together``: the batch shares order and sigma (MIC's masked view)."""
        count = image.shape[0]
        if self.strength > 0 and rng.decide(self.jitter_probability):
            order, factors = draw_jitter(rng, count, self.strength, together)
            image = self.normalise.redo(colour_jitter(self.normalise.undo(image), order, factors))
        if rng.decide(self.blur_probability):
            drawn = rng.shared(count) if together else rng.per_image(count)
            image = gaussian_blur(image, SIGMA[0] + (SIGMA[1] - SIGMA[0]) * drawn)
        return image


def draw_jitter(rng: StepRng, images: int, strength: float, together: bool = False) -> tuple[Tensor, Tensor]:
    """Order and factors of the four operations, each (B, 4); factors ~ U(1-s, 1+s), for hue ~ U(-s, s)."""
    order = rng.shared(images, 4) if together else rng.per_image(images, 4)
    factors = strength * (2 * rng.per_image(images, 4) - 1)
    factors[:, :HUE] += 1
    return order.argsort(dim=1), factors


def colour_jitter(image: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """RGB (B, 3, H, W) in [0, 1] -> the same; ``order`` (B, 4) holds operations, ``factors`` (B, 4) their numbers.

    Brightness and contrast are one affine map, saturation and hue one trip through HSV; an image whose turn is the
    other kind passes through unchanged.
    """
    brightness, contrast, saturation, hue = (f[:, None, None, None] for f in factors.unbind(1))
    for turn in order.unbind(1):
        operation = turn[:, None, None, None]
        shift = torch.where(operation == BRIGHTNESS, brightness - 1, 0.0)
        scale = torch.where(operation == CONTRAST, contrast, 1.0)
        image = ((image + shift) * scale).clamp(0, 1)
        shifted = shift_hsv(
            image,
            torch.where(operation == SATURATION, saturation, 1.0),
            torch.where(operation == HUE, 2 * math.pi * hue, 0.0),
        )
        image = torch.where(operation >= SATURATION, shifted, image)
    return image


def shift_hsv(image: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Multiply the saturation (clamped to [0, 1]) and turn the hue (radians) of RGB (B, 3, H, W) in [0, 1]."""
    h, s, v = rgb_to_hsv(image)
    return hsv_to_rgb(torch.fmod(h + hue, 2 * math.pi), (s * saturation).clamp(0, 1), v)


def rgb_to_hsv(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3, H, W) -> hue in [0, 2 pi), saturation = delta / (max + 1e-6), value; each (B, 1, H, W)."""
    red, green, blue = image.split(1, dim=1)
    value = image.amax(dim=1, keepdim=True)
    delta = value - image.amin(dim=1, keepdim=True)
    safe = torch.where(delta == 0, 1.0, delta)
    past_green = torch.where(green == value, (blue - red) / safe + 2, (red - green) / safe + 4)
    sixth = torch.where(red == value, (green - blue) / safe, past_green)
    return (sixth / 6).remainder(1.0) * (2 * math.pi), delta / (value + 1e-6), value


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The inverse: channel n = v - v s clamp(min(k, 4 - k), 0, 1), k = (n + 6 h) mod 6 for n = 5, 3, 1, h in turns."""
    turn = hue * (3 / math.pi)
    offset = torch.arange(5, 0, -2, device=hue.device)[:, None, None]
    k = (offset + turn).remainder(6.0)
    return value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1)


def gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image (B, C, H, W) with its own sigma (B,), reflecting at the borders; values are not clamped."""
    batch, channels, height, width = image.shape
    rows = gaussian_kernel(sigma, kernel_size(height)).repeat_interleave(channels, 0)  # B C, taps
    columns = gaussian_kernel(sigma, kernel_size(width)).repeat_interleave(channels, 0)
    ry, rx = rows.shape[1] // 2, columns.shape[1] // 2
    flat = F.pad(image.reshape(1, batch * channels, height, width), (rx, rx, ry, ry), mode="reflect")
    flat = F.conv2d(flat, rows[:, None, :, None], groups=batch * channels)
    flat = F.conv2d(flat, columns[:, None, None, :], groups=batch * channels)
    return flat.view(batch, channels, height, width)


def gaussian_kernel(sigma: Tensor, taps: int) -> Tensor:
    """Normalised (B, taps) Gaussians for sigma (B,) in pixels; more than 17 taps are cut to 17."""
    radius = min(taps // 2, _MAX_RADIUS)
    position = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    kernel = torch.exp(-(position**2) / (2 * sigma[:, None] ** 2))
    return kernel / kernel.sum(dim=1, keepdim=True)


def kernel_size(length: int) -> int:
    """Taps along a side of ``length`` pixels: about a tenth of it, odd (512 -> 51, 1024 -> 103)."""
    tenth = math.ceil(0.1 * length)
    return math.floor(tenth - 0.5 + tenth % 2)
