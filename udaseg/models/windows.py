"""Look at a large image through overlapping windows and average what they say (baselines.md 2.8).

Used twice: HRDA's detail branch slides over a crop, the evaluation over an image. Weights are uniform: where windows
overlap their logits are summed and divided by the number of visits.

Shapes: B images, K classes, H x W pixels of the image, h x w of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from udaseg.models.segmentor import Box


def grid(size: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> tuple[Box, ...]:
    """Windows that cover ``size`` = (H, W), row by row; the last of a row or column ends at the border.

    A window larger than the image is the image.
    """
    rows, columns = (_spans(*axis) for axis in zip(size, window, stride, strict=True))
    return tuple(Box(top, bottom, left, right) for top, bottom in rows for left, right in columns)


def slide(
    function: Callable[[Tensor], Tensor],
    image: Tensor,
    boxes: Sequence[Box],
    *,
    cell: int = 1,
    tiles: int | None = None,
) -> Tensor:
    """Average of ``function`` over the windows: image (B, 3, H, W) -> (B, K, H / cell, W / cell).

    ``function``: (n, 3, h, w) -> (n, K, h / cell, w / cell); the boxes lie on the grid of cells. ``tiles``: how many
    windows of single images go through it at once (at least one window of all images); None: all.
    """
    batch = image.shape[0]
    step = len(boxes) if tiles is None else max(tiles // batch, 1)
    total = visits = None
    for first in range(0, len(boxes), step):
        chosen = boxes[first : first + step]
        said = function(torch.cat([crop(image, box) for box in chosen])).unflatten(0, (len(chosen), batch))
        if total is None:
            total = said.new_zeros(batch, said.shape[2], image.shape[-2] // cell, image.shape[-1] // cell)
            visits = said.new_zeros(total.shape[-2:])
        assert visits is not None
        for box, logits in zip(chosen, said, strict=True):
            place = (..., slice(box.top // cell, box.bottom // cell), slice(box.left // cell, box.right // cell))
            total[place] += logits
            visits[place] += 1
    assert total is not None and visits is not None
    return total / visits


def crop(plane: Tensor, box: Box) -> Tensor:
    """The box of (..., H, W)."""
    return plane[..., box.top : box.bottom, box.left : box.right]


def _spans(length: int, window: int, stride: int) -> list[tuple[int, int]]:
    window = min(window, length)
    count = max(length - window + stride - 1, 0) // stride + 1
    ends = [min(i * stride + window, length) for i in range(count)]
    return [(end - window, end) for end in ends]
