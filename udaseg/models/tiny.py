"""The encoder of the CPU demo, a small ResNet: with the FPN head 1.6 M parameters, trained from scratch.

Shapes: B images. Maps have 32, 64, 128, 160 channels at strides 4, 8, 16, 32.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.models.blocks import ConvBNReLU, each_stage
from udaseg.models.segmentor import Encoder

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
