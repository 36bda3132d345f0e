"""Building blocks that several networks share. Each initialises its own weights (docs/fidelity.md, "Models").

Shapes: B images, C channels, h x w cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBNReLU(nn.Module):
    """Convolution with "same" padding -> BatchNorm -> ReLU. Without a norm the convolution has a bias instead.

    Initialisation: Kaiming normal (fan_out, ReLU gain), bias 0.
    """

    def __init__(
        self,
        channels: int,
        *,
        to: int,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: bool = True,
        act: bool = True,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(channels, to, kernel, stride, padding, dilation, groups, bias=not norm)
        self.bn: nn.Module = nn.BatchNorm2d(to) if norm else nn.Identity()
        self.act = act
        # fan_out ignores groups: depthwise weights start as small as sqrt(2 / 9C)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(x, inplace=True) if self.act else x


class SeparableConv(nn.Module):
    """Depthwise 3x3, then pointwise 1x1; norm and ReLU after each."""

    def __init__(self, channels: int, *, to: int, dilation: int = 1, norm: bool = True) -> None:
        super().__init__()
        self.depthwise = ConvBNReLU(channels, to=channels, kernel=3, dilation=dilation, groups=channels, norm=norm)
        self.pointwise = ConvBNReLU(channels, to=to, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class DropPath(nn.Module):
    """Drops the whole residual branch of a sample with probability ``rate``; kept samples are scaled by 1 / (1 - rate).

    In train mode only. Draws from torch's default generator, once a call.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop path rate {rate}: allowed is 0 <= rate < 1")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        kept = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)  # (B, 1, ...)
        return x.div(keep) * kept

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4f}"


class ASPP(nn.Module):
    """Parallel branches over one map, concatenated, then a 3x3 bottleneck: (B, C, h, w) -> (B, to, h, w).

    Dilation 1 is a 1x1 convolution, any other a (separable) dilated 3x3; ``pool``: a branch with the map's mean.
    """

    def __init__(
        self,
        channels: int,
        *,
        to: int,
        dilations: Sequence[int],
        separable: bool = True,
        norm: bool = True,
        pool: bool = False,
    ) -> None:
        super().__init__()
        self.pool = ConvBNReLU(channels, to=to, norm=norm) if pool else None
        self.branches = nn.ModuleList()
        for dilation in dilations:
            if separable and dilation > 1:
                self.branches.append(SeparableConv(channels, to=to, dilation=dilation, norm=norm))
            else:
                kernel = 3 if dilation > 1 else 1
                self.branches.append(ConvBNReLU(channels, to=to, kernel=kernel, dilation=dilation, norm=norm))
        self.bottleneck = ConvBNReLU(to * (pool + len(dilations)), to=to, kernel=3, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        maps = [branch(x) for branch in self.branches]
        if self.pool is not None:
            maps.insert(0, self.pool(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:]))
        return self.bottleneck(torch.cat(maps, dim=1))


def each_stage(x: Tensor, stages: Iterable[nn.Module]) -> tuple[Tensor, ...]:
    """The outputs of all stages, each applied to the output of the one before."""
    maps = []
    for stage in stages:
        x = stage(x)
        maps.append(x)
    return tuple(maps)


def classifier(channels: int, *, classes: int, kernel: int = 1, dilation: int = 1) -> nn.Conv2d:
    """The last convolution of a head, initialised with N(0, 0.01) and bias 0."""
    conv = nn.Conv2d(channels, classes, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, align_corners False; the identity when the size is right already. x (B, C, h, w) -> (B, C, *size)."""
    height, width = size
    return x if x.shape[-2:] == (height, width) else F.interpolate(x, (height, width), mode="bilinear")
