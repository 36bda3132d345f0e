"""The network of the CPU demo: a small ResNet and an FPN head, 1.6 M parameters together, trained from scratch.

No paper's numbers depend on it.

Shapes: B images, C channels, K classes. Maps have 32, 64, 128, 160 channels at strides 4, 8, 16, 32.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.models.blocks import ConvBNReLU, classifier, each_stage, resize
from udaseg.models.segmentor import Encoder, FusingDecoder

DEPTHS = (1, 2, 2, 2)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions plus the shortcut."""

    def __init__(self, channels: int, *, to: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvBNReLU(channels, to=to, kernel=3, stride=stride)
        self.conv2 = ConvBNReLU(to, to=to, kernel=3, act=False)
        self.shortcut: nn.Module = nn.Identity()
        if channels != to or stride != 1:
            self.shortcut = ConvBNReLU(channels, to=to, stride=stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x), inplace=True)


class TinyEncoder(Encoder):
    """Image (B, 3, H, W) -> maps at strides 4, 8, 16, 32."""

    strides = (4, 8, 16, 32)

    def __init__(self, *, widths: tuple[int, ...] = (32, 64, 128, 160)) -> None:
        super().__init__()
        self.channels = tuple(widths)
        stem = max(widths[0] // 2, 1)
        self.stem = nn.Sequential(
            ConvBNReLU(3, to=stem, kernel=3, stride=2), ConvBNReLU(stem, to=widths[0], kernel=3, stride=2)
        )
        self.stages = nn.ModuleList()
        channels = widths[0]
        for i, (width, depth) in enumerate(zip(widths, DEPTHS, strict=True)):
            first = BasicBlock(channels, to=width, stride=2 if i else 1)
            self.stages.append(nn.Sequential(first, *(BasicBlock(width, to=width) for _ in range(depth - 1))))
            channels = width

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return each_stage(self.stem(image), self.stages)

    def no_weight_decay(self) -> set[str]:
        """Everything with one dimension (norms): only convolution weights decay."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}


class FPNHead(FusingDecoder):
    """Every map to ``width`` channels, added from the coarsest up to the finest, one separable convolution.

    Logits have the first map's stride.
    """

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
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width, classes=classes)

    def fused(self, features: tuple[Tensor, ...]) -> Tensor:
        """(B, width, h, w)."""
        x: Tensor | None = None
        for lateral, feature in zip(reversed(self.laterals), reversed(features), strict=True):
            own = lateral(feature)
            x = own if x is None else own + resize(x, own.shape[-2:])
        return self.pointwise(self.depthwise(F.relu(self.bn(x))))
