"""The contract between models and everything that uses them.

Shapes: B images, 3 colour channels, H x W pixels of the view, K classes, C channels and h x w cells of a feature map.

A segmentor turns an image into *branches* (what the encoder saw and made of it) and branches into *predictions*. A
plain network has one branch and one prediction. HRDA has two of each: context first, then detail. Loss terms therefore
never ask which network they look at: a cross-entropy is a loop over predictions, a feature distance reads the first
branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
"""Statistics of ImageNet, RGB, on the 0-255 scale."""


class Box(NamedTuple):
    """Half-open pixel rectangle of a view: rows top..bottom, columns left..right."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True)
class Encoded:
    """One encoder pass: its feature maps and the exact pixels that went in.

    ``features``: one (B, C_i, h_i, w_i) map a stage, finest first. ``image``: (B, 3, h, w), normalised; smaller than
    the view when the branch looks at a crop or a reduced copy. ``box``: the part of the view it shows, None for all of
    it.
    """

    features: tuple[Tensor, ...]
    image: Tensor
    box: Box | None = None


@dataclass(frozen=True)
class Decoded:
    """Logits (B, K, h, w) at any resolution for ``box`` of the view (None: all of it), and their share in the loss."""

    logits: Tensor
    box: Box | None = None
    coefficient: float = 1.0


@dataclass(frozen=True)
class Output:
    """What one student pass gives: ``branches[0]`` shows the whole view, ``predictions[0]`` is the final one."""

    branches: tuple[Encoded, ...]
    predictions: tuple[Decoded, ...]


class FeatureMaps(NamedTuple):
    """The feature maps of a branch at training size, for parts that are built to their measure.

    ``image``: (height, width) of the pixels that go into the encoder. ``channels`` and ``strides`` of every map, finest
    first. ``read``: indices of the maps that the decoder looks at.
    """

    image: tuple[int, int]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    read: tuple[int, ...]


class InferencePass(NamedTuple):
    """A pass without loss: logits (B, K, H, W) at the image's own size, and the context they were made from."""

    logits: Tensor
    context: Encoded


class Encoder(Protocol):
    """Any backbone: image (B, 3, H, W) -> one map a stage, finest first. Encoders inherit what is the same for most."""

    channels: tuple[int, ...]  # of each map
    strides: tuple[int, ...]  # of each map, in input pixels
    multiple: int = 1  # sides of training crops are rounded down to multiples of it; any image is accepted
    mean: tuple[float, float, float] = IMAGENET_MEAN  # how images are normalised, 0-255 scale
    std: tuple[float, float, float] = IMAGENET_STD

    def no_weight_decay(self) -> set[str]: ...

    def learning_rate_scale(self, name: str) -> float | None:
        """Factor on the base learning rate of a parameter or buffer; None: not pretrained, it has the head's rate."""
        return 1.0

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]: ...


class Segmentor(nn.Module):
    """Encoder and decoder; one branch, one prediction.

    ``decoder``: the encoder's maps -> logits (B, K, h, w), not up-sampled. One that looks at some of the maps only has
    ``reads``, their indices; one that fuses them to a single map has ``fused``.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def encode(self, image: Tensor) -> tuple[Encoded, ...]:
        """The only pass over these pixels: image (B, 3, H, W), normalised -> branches."""
        return (Encoded(tuple(self.encoder(image)), image),)

    def decode(self, branches: tuple[Encoded, ...]) -> tuple[Decoded, ...]:
        """Branches (as encoded, or with features that a term has rebuilt) -> predictions."""
        return (Decoded(self.decoder(branches[0].features)),)

    def forward(self, image: Tensor, *, context_only: bool = False) -> Output:
        """One pass over an image (B, 3, H, W), normalised; ``context_only``: no detail, no predictions."""
        if context_only:
            pixels = self.context(image)
            return Output((Encoded(tuple(self.encoder(pixels)), pixels),), ())
        branches = self.encode(image)
        return Output(branches, self.decode(branches))

    def feature_maps(self, crop: tuple[int, int]) -> FeatureMaps:
        """What a branch is made of at a training crop of (height, width)."""
        channels, strides = tuple(self.encoder.channels), tuple(self.encoder.strides)  # type: ignore[arg-type]
        every = range(len(channels))
        return FeatureMaps(crop, channels, strides, tuple(every[i] for i in getattr(self.decoder, "reads", every)))

    def context(self, image: Tensor) -> Tensor:
        """The pixels that the first branch sees of an image."""
        return image

    def infer(self, image: Tensor) -> InferencePass:
        """What the teacher and the evaluation look at."""
        output = self(image)
        return InferencePass(upsample(output.predictions[0].logits, image.shape[-2:]), output.branches[0])

    def logits(self, image: Tensor) -> Tensor:
        """The logits of ``look``."""
        return self.infer(image).logits


def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, align_corners False (baselines.md section 6), in float32 at least.

    Contiguous: a softmax over K channels that lie side by side in memory is several times slower.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).contiguous()
    return logits if logits.shape[-2:] == tuple(size) else F.interpolate(logits, tuple(size), mode="bilinear")
