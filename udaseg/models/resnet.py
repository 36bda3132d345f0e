"""ResNet-V1c 50 and 101 with output stride 8: the encoder of the DeepLab baselines.

He et al., CVPR 2016; "V1c" is the stem of three 3x3 convolutions, ``stem="plain"`` the original 7x7 one, for
torchvision's weights. The last two stages trade their stride for dilation, and their first block has half the dilation
of the others ("contracted"; torchvision dilates in the same way). All BatchNorms train (docs/fidelity.md, "Models").
``renaming`` translates the public names of parameters.

Shapes: B images, C channels. Maps have 256, 512, 1024, 2048 channels at strides 4, 8, 8, 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.models.blocks import ConvBNReLU, each_stage
from udaseg.models.renaming import encoder_from_public
from udaseg.models.segmentor import Encoder

STRIDES = (1, 2, 1, 1)
DILATIONS = (1, 1, 2, 4)
EXPANSION = 4

Stem = Literal["deep", "plain"]


class Bottleneck(nn.Module):
    """1x1 down, 3x3 (stride and dilation are here), 1x1 up, plus the shortcut."""

    def __init__(self, channels: int, *, width: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        to = EXPANSION * width
        self.reduce = ConvBNReLU(channels, to=width)
        self.conv = ConvBNReLU(width, to=width, kernel=3, stride=stride, dilation=dilation)
        self.expand = ConvBNReLU(width, to=to, act=False)
        nn.init.zeros_(self.expand.bn.weight)  # type: ignore[arg-type]  # every block starts as its shortcut
        self.shortcut: nn.Module = nn.Identity()
        if channels != to or stride != 1:
            self.shortcut = ConvBNReLU(channels, to=to, stride=stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.expand(self.conv(self.reduce(x)))
        return F.relu(residual + self.shortcut(x), inplace=True)


class ResNet(Encoder):
    """Image (B, 3, H, W) -> maps at strides 4, 8, 8, 8. ``depths``: (3, 4, 6, 3) is R50, (3, 4, 23, 3) R101.

    All parameters have weight decay, BatchNorms too, as in the published ResNet baselines.
    """

    channels = (256, 512, 1024, 2048)
    strides = (4, 8, 8, 8)

    def __init__(self, *, depths: tuple[int, ...], stem: Stem = "deep") -> None:
        super().__init__()
        self.stem = _stem(stem)
        self.pool = nn.MaxPool2d(3, 2, 1)
        inputs = (64, *self.channels)
        self.stages = nn.ModuleList(
            _stage(inputs[i], depth=depth, width=self.channels[i] // EXPANSION, index=i)
            for i, depth in enumerate(depths)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return each_stage(self.pool(self.stem(image)), self.stages)

    def from_public(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return encoder_from_public(state, "resnet")


def _stem(kind: Stem) -> nn.Module:
    """(B, 3, H, W) -> (B, 64, H / 2, W / 2)."""
    if kind == "plain":
        return ConvBNReLU(3, to=64, kernel=7, stride=2)
    return nn.Sequential(
        ConvBNReLU(3, to=32, kernel=3, stride=2), ConvBNReLU(32, to=32, kernel=3), ConvBNReLU(32, to=64, kernel=3)
    )


def _stage(channels: int, *, depth: int, width: int, index: int) -> nn.Sequential:
    dilation = DILATIONS[index]
    first = Bottleneck(channels, width=width, stride=STRIDES[index], dilation=max(dilation // 2, 1))
    rest = (Bottleneck(EXPANSION * width, width=width, dilation=dilation) for _ in range(depth - 1))
    return nn.Sequential(first, *rest)
