"""Projected of feature maps and how the contrast draws from them: fixed shapes, nothing read from the device.

B images, h x w cells of a map, N cells in all, K classes, D channels, Q slots for queries. A draw without replacement
is a stretch of a random order; one that is longer than its pool goes round, so every cell comes once before any comes
twice.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.plugin import IGNORE


class Projected(NamedTuple):
    """Projected features (N, D) float32, not normalised, and their labels (N,): train ids or 255."""

    features: Tensor
    label: Tensor


class Slots(NamedTuple):
    """Q places for queries, filled class by class: class (Q,), number within the class (Q,), and whether it is used."""

    row: Tensor
    number: Tensor
    used: Tensor


class Members(NamedTuple):
    """For each row (class) the cells that belong to it: (K, N) int64 with members first, and their number (K,)."""

    order: Tensor
    size: Tensor


def cells(features: Tensor, label: Tensor) -> Projected:
    """Map (B, D, h, w) and label (B, H, W) -> cells."""
    flat = features.permute(0, 2, 3, 1).flatten(0, 2)
    return Projected(flat.float(), nearest(label, features.shape[-2:]).long())


def nearest(plane: Tensor, size: torch.Size) -> Tensor:
    """(B, H, W) -> its nearest values at the size (h, w), flattened to (B h w,) float."""
    return F.interpolate(plane[:, None].float(), size).flatten()


def members(belongs: Tensor, scores: Tensor) -> Members:
    """``belongs`` (K, N) bool; members come in the order of the random ``scores`` (N,) in [0, 1)."""
    return Members(torch.where(belongs, scores, 2.0).argsort(dim=1), belongs.sum(dim=1))


def pick(pool: Members, row: Tensor, position: Tensor) -> Tensor:
    """Projected at positions (Q, m) of the rows (Q,), going round; any cell where a row has no member."""
    at = position.remainder(pool.size.clamp(min=1)[row][:, None])
    return pool.order.flatten()[row[:, None] * pool.order.shape[1] + at]


def wanted_queries(counts: Tensor, n: int, balanced: bool) -> Tensor:
    """n_q (K,) from counts (K,) of cells by class: ceil(K p(c) n), eq. 16, or ``n`` for every class there is (CEQS)."""
    if not balanced:
        return n * (counts > 0)
    return ceil_share(len(counts) * n * counts, counts.sum())


def ceil_share(part: Tensor, whole: Tensor) -> Tensor:
    """ceil(part / whole) in integers, 0 where both are 0."""
    return -(-part // whole.clamp(min=1))


def slots(wanted: Tensor, places: int) -> Slots:
    """Places 0 .. Q - 1 handed to the classes in their order, ``wanted`` (K,) to each."""
    ends = wanted.cumsum(dim=0)
    place = torch.arange(places, device=wanted.device)
    row = torch.searchsorted(ends, place, right=True)
    used = row < len(wanted)
    row = row.clamp(max=len(wanted) - 1)
    return Slots(row, place - (ends - wanted)[row], used)


def class_counts(label: Tensor, classes: int) -> Tensor:
    """(K,) int64 cells of each class; ignored ones are not counted."""
    return one_hot(label, classes).sum(dim=1)


def one_hot(label: Tensor, classes: int) -> Tensor:
    """(K, N) bool."""
    return label == torch.arange(classes, device=label.device)[:, None]


def unreliable(confidence: Tensor, alpha: float) -> Tensor:
    """(N,) bool: confidence (N,) below the percentile 100 alpha of all, eq. 14."""
    return confidence < torch.quantile(confidence, alpha)


def negative_pools(
    key: Tensor, target: Tensor | None, doubtful: Tensor | None, classes: int, equal: bool
) -> list[Tensor]:
    """For each class the cells that are negatives, (K, N + M) bool: one pool, or with ``equal`` one of each domain.

    ``key`` (N,): labels of the cells with keys; those of other classes are negatives (eq. 12). ``target`` (M,):
    predicted labels, of which the ``doubtful`` ones of other classes are (eq. 13). Of two pools an empty one is as the
    other.
    """
    known = ~one_hot(key, classes) & (key != IGNORE)
    if target is None or doubtful is None:
        return [known]
    unsure = ~one_hot(target, classes) & doubtful
    if not equal:
        return [torch.cat([known, unsure], dim=1)]
    first, second = F.pad(known, (0, unsure.shape[1])), F.pad(unsure, (known.shape[1], 0))
    return [
        torch.where(first.any(dim=1, keepdim=True), first, second),
        torch.where(second.any(dim=1, keepdim=True), second, first),
    ]
