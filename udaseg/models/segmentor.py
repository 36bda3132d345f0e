"""The contract between models and everything that uses them.

A segmentor turns an image into *branches* (encoder passes with their feature maps) and branches into *predictions*. A
plain network has one branch and one prediction. HRDA has two of each: context first, then detail. So loss terms need
not know the network: a cross-entropy is a loop over predictions, a feature distance reads the first branch.

A new network derives from ``Encoder``, ``Decoder`` or ``Wrapper``. The positional parameters of its constructor are
supplied by the program; its keyword-only parameters, their types and defaults are the settings a recipe may give.

Shapes: B images, 3 colour channels, H x W pixels of the view, K classes, C channels and h x w cells of a feature map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.models.renaming import encoder_part

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
    the view if the branch reads a crop or a reduced copy. ``box``: its part of the view, None for all of it.
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
    """The feature maps of a branch at training size, for components whose shape depends on them.

    ``image``: (height, width) of the pixels that go into the encoder. ``channels`` and ``strides`` of every map, finest
    first. ``read``: indices of the maps that the decoder reads. ``fused``: channels of the map that it fuses them into;
    None if it fuses none.
    """

    image: tuple[int, int]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    read: tuple[int, ...]
    fused: int | None = None


class InferencePass(NamedTuple):
    """A pass without loss: logits (B, K, H, W) at the image's own size, and the context they were made from."""

    logits: Tensor
    context: Encoded


class Encoder(nn.Module):
    """Base class of backbones: image (B, 3, H, W), normalised -> one map (B, C_i, h_i, w_i) a stage, finest first.

    Constructor: settings only. ``channels`` and ``strides`` (in input pixels) of the maps must be set.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    multiple: int = 1  # sides of training crops are rounded down to multiples of it; any image is accepted
    mean: tuple[float, float, float] = IMAGENET_MEAN  # how images are normalised, 0-255 scale
    std: tuple[float, float, float] = IMAGENET_STD

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are trained without weight decay."""
        return set()

    def learning_rate_scale(self, name: str) -> float | None:
        """Factor on the base learning rate of a parameter or buffer; None: not pretrained, it has the head's rate."""
        return 1.0

    def from_public(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's tensors of a weights file under its own names. ValueError if they cannot be its own.

        By default, the names are its own but for prefixes such as ``backbone.``.
        """
        return encoder_part(state)


class Decoder(nn.Module):
    """Base class of heads: the encoder's maps -> logits (B, K, h, w), not up-sampled.

    Constructor: ``(channels, strides, classes, *, settings)`` with channels and strides of the encoder's maps.
    """

    reads: ClassVar[tuple[int, ...] | None] = None
    """Indices of the maps it reads, negative ones from the end; None: all of them."""
    fuses: ClassVar[bool] = False
    """Does it combine the maps into a single one before the classifier, as ``fused`` returns it?"""
    fused_channels: int | None = None
    """Channels of that map; set by a decoder that fuses."""
    attention_settings: ClassVar[Mapping[str, Any]] = {}
    """Its settings where they differ when it predicts the scale attention of a wrapper."""

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        raise NotImplementedError

    def fused(self, features: tuple[Tensor, ...]) -> Tensor:
        """The single map (B, C, h, w) that is classified. NotImplementedError if the decoder has none."""
        raise NotImplementedError(f"{type(self).__name__} has no fused map (its `fuses` is False)")


class Segmentor(nn.Module):
    """Encoder and decoder; one branch, one prediction."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def encode(self, image: Tensor) -> tuple[Encoded, ...]:
        """The only pass over these pixels: image (B, 3, H, W), normalised -> branches."""
        return (Encoded(tuple(self.encoder(image)), image),)

    def decode(self, branches: tuple[Encoded, ...]) -> tuple[Decoded, ...]:
        """Branches (as encoded, or with features that a term has replaced) -> predictions."""
        return (Decoded(self.decoder(branches[0].features)),)

    def forward(self, image: Tensor, *, context_only: bool = False) -> Output:
        """One pass over an image (B, 3, H, W), normalised; ``context_only``: no detail, no predictions."""
        if context_only:
            pixels = self.context(image)
            return Output((Encoded(tuple(self.encoder(pixels)), pixels),), ())
        branches = self.encode(image)
        return Output(branches, self.decode(branches))

    def feature_maps(self, crop: tuple[int, int]) -> FeatureMaps:
        """The feature maps of a branch at a training crop of (height, width)."""
        channels, strides = tuple(self.encoder.channels), tuple(self.encoder.strides)
        indices = range(len(channels))
        reads = indices if self.decoder.reads is None else self.decoder.reads
        return FeatureMaps(crop, channels, strides, tuple(indices[i] for i in reads), self.decoder.fused_channels)

    def context(self, image: Tensor) -> Tensor:
        """The pixels that the first branch sees of an image."""
        return image

    def infer(self, image: Tensor) -> InferencePass:
        """Inference pass over an image (B, 3, H, W), normalised, as the teacher and the evaluation make it."""
        output = self(image)
        return InferencePass(upsample(output.predictions[0].logits, image.shape[-2:]), output.branches[0])

    def logits(self, image: Tensor) -> Tensor:
        """The logits (B, K, H, W) of ``infer``."""
        return self.infer(image).logits


class Wrapper(Segmentor):
    """Base class of segmentors that use an encoder and a decoder in their own way, such as at several resolutions.

    Constructor: ``(encoder, decoder, attention, crop, *, settings)``. ``attention``: a second decoder of the same kind
    with its ``attention_settings``. ``crop``: (height, width) of a training crop.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, attention: Decoder, crop: tuple[int, int]) -> None:
        super().__init__(encoder, decoder)
        self.attention = attention


def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize, align_corners False, in float32 at least.

    Contiguous: a softmax over K channels that lie side by side in memory is several times slower.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).contiguous()
    return logits if logits.shape[-2:] == tuple(size) else F.interpolate(logits, tuple(size), mode="bilinear")
