"""The decoders: DAFormer, SegFormer, DeepLab-V2 and -V3+, the FPN of the CPU demo, and a linear layer.

Same functions and parameters as the public code of the papers (docs/fidelity.md, "Models").

Shapes: B images, C_i channels of map i, D = width, K classes. h x w is the first map (stride 4 in MiT), except for
DeepLab-V2 and the linear head, whose logits lie on the last map.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.models.blocks import ASPP, ConvBNReLU, SeparableConv, classifier, resize
from udaseg.models.segmentor import Decoder

CONTEXT_STRIDE = 8  # of V3+'s ASPP; a coarser last map is upsampled to it

Fusion = Literal["sep_aspp", "aspp", "conv1"]


class FusingDecoder(Decoder):
    """A decoder that classifies one fused map. Subclasses write ``fused``, and set its channels and the two modules
    behind it."""

    fuses = True
    dropout: nn.Module
    classifier: nn.Module

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.classifier(self.dropout(self.fused(features)))


class DAFormerHead(FusingDecoder):
    """Context-aware fusion of all maps by a separable ASPP (Hoyer et al., CVPR 2022).

    ``fusion="sep_aspp"`` is the published head; the others are rows of the paper's decoder study, and ``"conv1"`` is
    also HRDA's scale attention.
    """

    attention_settings: ClassVar[Mapping[str, Any]] = {"fusion": "conv1"}

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        classes: int,
        *,
        width: int = 256,
        fusion: Fusion = "sep_aspp",
        dilations: tuple[int, ...] = (1, 6, 12, 18),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = Embed(channels, width=width)
        wide = width * len(channels)
        self.fuse: nn.Module
        if fusion == "conv1":
            self.fuse = ConvBNReLU(wide, to=width)
        elif fusion in ("sep_aspp", "aspp"):
            self.fuse = ASPP(wide, to=width, dilations=dilations, separable=fusion == "sep_aspp")
        else:
            raise ValueError(f"fusion {fusion!r}: allowed are sep_aspp, aspp, conv1")
        self.fused_channels = width
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width, classes=classes)

    def fused(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.fuse(self.embed(features))


class SegFormerHead(FusingDecoder):
    """All maps through linear layers and a 1x1 convolution (Xie et al., NeurIPS 2021).

    As in the DAFormer code base, maps are concatenated finest first. SegFormer's own code does it coarsest first, so
    the fusion weights of its released segmentors do not fit.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        classes: int,
        *,
        width: int = 768,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = Embed(channels, width=width)
        self.fuse = ConvBNReLU(width * len(channels), to=width)
        self.fused_channels = width
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, classes, 1)  # PyTorch's default initialisation, as in the public head

    def fused(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.fuse(self.embed(features))


class Embed(nn.Module):
    """A linear layer a map (PyTorch's default initialisation), each result resized to the first; finest first."""

    def __init__(self, channels: Sequence[int], *, width: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(c, width) for c in channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(B, C_i, h_i, w_i) each -> (B, maps * D, h, w)."""
        size = features[0].shape[-2:]
        levels = []
        for linear, feature in zip(self.linears, features, strict=True):
            level = linear(feature.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, D, h_i, w_i)
            levels.append(resize(level, size).to(level.dtype))  # autocast resizes in float32
        return torch.cat(levels, dim=1)


class DeepLabV2Head(Decoder):
    """Parallel dilated 3x3 classifiers on the last map, summed; no norm, no dropout (Chen et al., TPAMI 2018).

    Every published UDA row "DeepLab-V2" has only two dilations; the paper's four are (6, 12, 18, 24).
    """

    reads = (-1,)

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        classes: int,
        *,
        dilations: tuple[int, ...] = (6, 12),
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            classifier(channels[-1], classes=classes, kernel=3, dilation=dilation) for dilation in dilations
        )

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        return functools.reduce(torch.add, (branch(features[-1]) for branch in self.branches))


class DeepLabV3PlusHead(FusingDecoder):
    """Context from the last map, upsampled and refined with detail from the first (Chen et al., ECCV 2018).

    The published UDA rows have no norms; the usual variant with BatchNorm is ``norm=True``.
    """

    reads = (0, -1)

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        classes: int,
        *,
        width: int = 512,
        detail_width: int = 48,
        dilations: tuple[int, ...] = (1, 12, 24, 36),
        norm: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.scale = max(strides[-1] // CONTEXT_STRIDE, 1)
        self.context = ASPP(channels[-1], to=width, dilations=dilations, norm=norm, pool=True)
        self.detail = ConvBNReLU(channels[0], to=detail_width, norm=norm)
        self.refine = nn.Sequential(
            SeparableConv(width + detail_width, to=width, norm=norm), SeparableConv(width, to=width, norm=norm)
        )
        self.fused_channels = width
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width, classes=classes)

    def fused(self, features: tuple[Tensor, ...]) -> Tensor:
        last, first = features[-1], features[0]
        context = self.context(resize(last, [self.scale * side for side in last.shape[-2:]]))
        context = resize(context, first.shape[-2:])
        return self.refine(torch.cat([context, self.detail(first)], dim=1))


class FPNHead(FusingDecoder):
    """Every map to ``width`` channels, added from the coarsest up to the finest, then one separable convolution."""

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        classes: int,
        *,
        width: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.bn = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.pointwise = nn.Conv2d(width, width, 1)
        self.fused_channels = width
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width, classes=classes)

    def fused(self, features: tuple[Tensor, ...]) -> Tensor:
        x: Tensor | None = None
        for lateral, feature in zip(reversed(self.laterals), reversed(features), strict=True):
            own = lateral(feature)
            x = own if x is None else own + resize(x, own.shape[-2:])
        return self.pointwise(self.depthwise(F.relu(self.bn(x))))


class LinearHead(Decoder):
    """One 1x1 convolution on the last map."""

    reads = (-1,)

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.classifier = classifier(channels[-1], classes=classes)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.classifier(features[-1])
