"""Logits of a whole image: in one pass, or in overlapping windows (``docs/fidelity.md``, "Classes and evaluation").

Shapes: B images, K classes, H x W pixels, already at the scale of training.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from udaseg.models.segmentor import Segmentor
from udaseg.models.windows import grid, slide


@dataclass(frozen=True)
class Inference:
    """``window``: (height, width) of sliding windows that overlap by half; None: one pass.

    ``batch``: windows that go through the network together.
    """

    window: tuple[int, int] | None = None
    batch: int = 3

    def __call__(self, segmentor: Segmentor, image: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) -> logits (B, K, H, W); windows are averaged in logit space."""
        if self.window is None:
            return segmentor.logits(image)
        boxes = grid(image.shape[-2:], self.window, [side // 2 for side in self.window])
        return slide(segmentor.logits, image, boxes, tiles=self.batch)


def inference(mode: str, crop: tuple[int, int] | None, batch: int = 3) -> Inference:
    """How a recipe or weights file has whole images predicted; windows have the size of the training crop."""
    return Inference(crop if mode == "slide" else None, batch)
