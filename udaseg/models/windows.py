"""Look at a large image through overlapping windows and average what they say (baselines.md 2.8).

Used twice: HRDA's detail branch slides over a crop, the evaluation over an image. Weights are uniform: where windows
overlap their logits are summed and divided by the number of visits.

Shapes: B images, K classes, H x W pixels of the image, h x w of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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
    batch, height, width = image.shape[0], image.shape[-2] // cell, image.shape[-1] // cell
    step = len(boxes) if tiles is None else max(tiles // batch, 1)
    total = visits = torch.zeros(())
    for first in range(0, len(boxes), step):
        chosen = boxes[first : first + step]
        said = function(torch.cat([crop(image, box) for box in chosen])).unflatten(0, (len(chosen), batch))
        said = said.to(torch.promote_types(said.dtype, torch.float32))  # half precision would round every sum
        if first == 0:
            total, visits = said.new_zeros(batch, said.shape[2], height, width), said.new_zeros(height, width)
        for box, logits in zip(chosen, said, strict=True):
            place = (..., slice(box.top // cell, box.bottom // cell), slice(box.left // cell, box.right // cell))
            total[place] += logits
            visits[place] += 1
    return total / visits


def slide_down(
    function: Callable[[Tensor], Tensor], image: Tensor, boxes: Sequence[Box], *, tiles: int | None = None
) -> Iterator[Tensor]:
    """What ``slide`` gives (cell 1), in bands of rows (B, K, r, W) from the top, each as soon as it is final.

    So no more than one row of windows is held. The boxes are those of ``grid``.
    """
    rows: dict[tuple[int, int], list[Box]] = {}
    for box in boxes:
        rows.setdefault((box.top, box.bottom), []).append(Box(0, box.bottom - box.top, box.left, box.right))
    nexts = [*(top for top, _ in list(rows)[1:]), image.shape[-2]]
    held = visited = None  # of rows that the next windows see, too: the sum so far, and how many it is of
    for (top, bottom), until in zip(rows, nexts, strict=True):
        total = slide(function, image[..., top:bottom, :], rows[top, bottom], tiles=tiles)
        visits = total.new_ones(bottom - top, 1)
        if held is not None and visited is not None:
            total[..., : len(visited), :] += held
            visits[: len(visited)] += visited
        final = until - top
        yield total[..., :final, :] / visits[:final]
        held, visited = total[..., final:, :], visits[final:]


def crop(plane: Tensor, box: Box) -> Tensor:
    """The box of (..., H, W)."""
    return plane[..., box.top : box.bottom, box.left : box.right]


def _spans(length: int, window: int, stride: int) -> list[tuple[int, int]]:
    window = min(window, length)
    count = max(length - window + stride - 1, 0) // stride + 1
    ends = [min(i * stride + window, length) for i in range(count)]
    return [(end - window, end) for end in ends]
