"""Put a large image through a network in overlapping windows and average the logits.

Used by HRDA's detail branch (over a crop), by the evaluation and by `udaseg predict` (over an image). Weights are
uniform: where windows overlap, their logits are summed and divided by the number of windows
(``docs/fidelity.md``, "Classes and evaluation").

Shapes: B images, K classes, H x W pixels of the image, h x w of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
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
    """Average of ``function`` over the windows: image (B, 3, H, W) -> (B, K, H / cell, W / cell); see ``bands``."""
    return torch.cat([*bands(function, image, boxes, cell=cell, tiles=tiles)], dim=-2)


def bands(
    function: Callable[[Tensor], Tensor],
    image: Tensor,
    boxes: Sequence[Box],
    *,
    cell: int = 1,
    tiles: int | None = None,
) -> Iterator[Tensor]:
    """``slide`` in bands of rows (B, K, r, W / cell) from the top, each as soon as it is final: less memory.

    ``function``: (n, 3, h, w) -> (n, K, h / cell, w / cell). ``boxes``: those of ``grid``, on the grid of cells.
    ``tiles``: how many windows of single images go through it at once (at least one window of all images); None: all.
    """
    batch, height, width = image.shape[0], image.shape[-2], image.shape[-1] // cell
    step = len(boxes) if tiles is None else max(tiles // batch, 1)
    top, total, visits = 0, torch.zeros(()), torch.zeros(())  # of the rows from `top` that are not final
    for first in range(0, len(boxes), step):
        chosen = boxes[first : first + step]
        logits = function(torch.cat([crop(image, box) for box in chosen])).unflatten(0, (len(chosen), batch))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision would round every sum
        bottom = chosen[-1].bottom // cell - top
        if first == 0:
            total, visits = logits.new_zeros(batch, logits.shape[2], bottom, width), logits.new_zeros(bottom, width)
        elif bottom > len(visits):
            more = (0, 0, 0, bottom - len(visits))
            total, visits = F.pad(total, more), F.pad(visits, more)
        for pixels, part in zip(chosen, logits, strict=True):
            box = Box(*(side // cell for side in pixels))
            place = (..., slice(box.top - top, box.bottom - top), slice(box.left, box.right))
            total[place] += part
            visits[place] += 1
        final = (boxes[first + step].top if first + step < len(boxes) else height) // cell - top
        if final:
            yield total[..., :final, :] / visits[:final]
            top, total, visits = top + final, total[..., final:, :], visits[final:].clone()  # autograd keeps the others


def crop(plane: Tensor, box: Box) -> Tensor:
    """The box of (..., H, W)."""
    return plane[..., box.top : box.bottom, box.left : box.right]


def _spans(length: int, window: int, stride: int) -> list[tuple[int, int]]:
    window = min(window, length)
    count = max(length - window + stride - 1, 0) // stride + 1
    ends = [min(i * stride + window, length) for i in range(count)]
    return [(end - window, end) for end in ends]
