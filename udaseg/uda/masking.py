"""Maskers: which pixels of an image the student gets to see (MIC eq. 3; baselines.md 5.4).

B images, H x W pixels. A masker receives the pseudo-labels; block masks ignore them.
"""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from udaseg.ranges import Share
from udaseg.uda.types import Draws


class Masker(Protocol):
    """Label (B, H, W) and random numbers -> (B, 1, H, W) float, 1 where a pixel is kept, 0 where it is masked."""

    def __call__(self, label: Tensor, draws: Draws) -> Tensor: ...


class Blocks:
    """Every square block is masked with probability ``ratio``, on its own for every image.

    ``block``: its side as a share of the crop's height: 1/16 is MIC's 64 pixels at 1024 and 32 at 512.
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


MASKERS = {"blocks": Blocks}
