"""Block masks: which pixels of an image the student gets to see (MIC eq. 3; docs/fidelity.md, "MIC").

B images, H x W pixels. Lengths are shares of the crop's height: 64, 32 and 16 pixels at 512 are 0.125, 0.0625 and
0.03125.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from udaseg.core.base import Masker
from udaseg.core.context import BuildContext, StepRng
from udaseg.ranges import Share


class Blocks(Masker):
    """Every square block is masked with probability ``ratio``, on its own for every image; labels do not matter.

    ``block``: its side: 1/16 is MIC's 64 pixels at 1024 and 32 at 512.
    """

    def __init__(self, context: BuildContext, *, block: Share = 0.0625, ratio: Share = 0.7) -> None:
        if not block > 0:
            raise ValueError(f"block {block}: a share of the crop's height above 0 is expected")
        self.block = block
        self.ratio = ratio

    def __call__(self, label: Tensor, rng: StepRng) -> Tensor:
        batch, height, width = label.shape
        side = max(round(self.block * height), 1)
        seen = rng.per_image(batch, 1, max(round(height / side), 1), max(round(width / side), 1)) > self.ratio
        return F.interpolate(seen.float(), (height, width))  # nearest
