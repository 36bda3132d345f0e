"""Maskers: which pixels of an image the student gets to see (MIC eq. 3; baselines.md 5.4; OMUDA eq. 6, 7).

B images, H x W pixels. A masker receives the pseudo-labels; plain block and grid masks ignore them. Lengths are shares
of the crop's height: 64, 32 and 16 pixels at 512 are 0.125, 0.0625 and 0.03125.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.addons.omuda.foreground import THINGS, is_foreground
from udaseg.core.context import Draws
from udaseg.ranges import Extent, Share


class Masker(Protocol):
    """Label (B, H, W) and random numbers -> (B, 1, H, W) float, 1 where a pixel is kept, 0 where it is masked."""

    def __call__(self, label: Tensor, draws: Draws) -> Tensor: ...


class Blocks:
    """Every square block is masked with probability ``ratio``, on its own for every image.

    ``block``: its side: 1/16 is MIC's 64 pixels at 1024 and 32 at 512.
    """

    def __init__(self, *, block: Share = 0.0625, ratio: Share = 0.7) -> None:
        if not block > 0:
            raise ValueError(f"block {block}: a share of the crop's height above 0 is expected")
        self.block = block
        self.ratio = ratio

    def __call__(self, label: Tensor, draws: Draws) -> Tensor:
        batch, height, width = label.shape
        side = max(round(self.block * height), 1)
        seen = draws.per_image(batch, 1, max(round(height / side), 1), max(round(width / side), 1)) > self.ratio
        return F.interpolate(seen.float(), (height, width))  # nearest


class ContextAware:
    """OMUDA: blocks of one size over background, of another over foreground, by the pseudo-labels (eq. 6, 7).

    Two independent draws with one ``ratio``, of which the label chooses at every pixel; the ignore label counts as
    background. ``foreground``: names of classes; those that do not exist here mean nothing.
    """

    def __init__(
        self,
        *,
        names: tuple[str, ...],
        foreground: tuple[str, ...] = THINGS,
        foreground_block: Extent = 0.03125,
        background_block: Extent = 0.0625,
        ratio: Share = 0.7,
    ) -> None:
        self.foreground = [k for k, inside in enumerate(is_foreground(names, foreground)) if inside]
        self.fine = Blocks(block=foreground_block, ratio=ratio)
        self.coarse = Blocks(block=background_block, ratio=ratio)

    def __call__(self, label: Tensor, draws: Draws) -> Tensor:
        coarse, fine = self.coarse(label, draws), self.fine(label, draws)
        inside = torch.stack([label == k for k in self.foreground]).any(dim=0)  # B H W
        return torch.where(inside[:, None], fine, coarse)


class Grid:
    """One masked square in each cell of a regular grid, which every image shifts by its own offset (OMUDA, Table VI).

    After GridMask (Chen et al., 2020), without its rotation and with cells of one size: ``unit``, their side. The
    squares have the area ``ratio`` of a cell. The paper gives no settings for its "grid" row.
    """

    def __init__(self, *, unit: Extent = 0.125, ratio: Share = 0.7) -> None:
        self.unit = unit
        self.ratio = ratio

    def __call__(self, label: Tensor, draws: Draws) -> Tensor:
        batch, height, width = label.shape
        unit = max(round(self.unit * height), 1)
        square = round(unit * math.sqrt(self.ratio))
        offset = (draws.per_image(batch, 2, 1) * unit).floor()
        rows, columns = (
            (torch.arange(side, device=label.device) + offset[:, axis]) % unit < square  # B side
            for axis, side in enumerate((height, width))
        )
        return 1 - (rows[:, None, :, None] & columns[:, None, None, :]).float()


MASKERS: dict[str, Callable[..., Masker]] = {"blocks": Blocks, "context_aware": ContextAware, "grid": Grid}
