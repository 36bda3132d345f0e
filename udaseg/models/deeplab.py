"""DeepLab-V2 and DeepLab-V3+ heads (Chen et al., TPAMI 2018 and ECCV 2018).

Every published UDA row "DeepLab-V2" has only the dilations 6 and 12; the four of the paper are
``dilations=(6, 12, 18, 24)``. DeepLab-V3+ is used without norms in those rows, hence ``norm=False``; the usual variant
with BatchNorm is ``norm=True`` (docs/fidelity.md, "Models").

Shapes: B images, C channels, K classes. h x w is the map the logits live on: the last for V2, the first for V3+.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from udaseg.models.blocks import ASPP, ConvBNReLU, SeparableConv, classifier, resize
from udaseg.models.segmentor import Decoder, FusingDecoder

CONTEXT_STRIDE = 8  # of V3+'s ASPP; a coarser last map is upsampled to it


class DeepLabV2Head(Decoder):
    """Parallel dilated 3x3 classifiers on the last map, summed. No norm, no dropout."""

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
    """Context from the last map, upsampled and refined with detail from the first -> logits (B, K, h, w)."""

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
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width, classes=classes)

    def fused(self, features: tuple[Tensor, ...]) -> Tensor:
        """(B, width, h, w)."""
        last, first = features[-1], features[0]
        context = self.context(resize(last, [self.scale * side for side in last.shape[-2:]]))
        context = resize(context, first.shape[-2:])
        return self.refine(torch.cat([context, self.detail(first)], dim=1))
