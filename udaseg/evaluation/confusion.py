"""Confusion counts and the scores computed from them (docs/fidelity.md, "Classes and evaluation").

K classes; rows are truth, columns prediction; ignored pixels are not counted. Only counts are stored: mIoU over 19, 16
or 13 classes is computed when it is asked for. A class absent from truth and prediction has no IoU (NaN) and is left
out of the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

IGNORE = 255


def count(prediction: Tensor, label: Tensor, classes: int) -> Tensor:
    """(K, K) int64 counts of a prediction and a label map (any equal shape), on their device."""
    number = classes**2
    pairs = torch.where(label != IGNORE, label.long() * classes + prediction.long(), number)
    # histc, unlike bincount and a mask as index, does not wait for a GPU; float64 counts whole numbers exactly
    counts = torch.histc(pairs.double(), number + 1, 0, number + 1)
    return counts[:number].long().view(classes, classes)


@dataclass(frozen=True)
class Scores:
    """Per-class IoU in percent (NaN where undefined) for named classes."""

    names: tuple[str, ...]
    iou: tuple[float, ...]

    @property
    def miou(self) -> float:
        """Mean over the classes that occur, in percent; NaN if none does."""
        defined = [value for value in self.iou if not np.isnan(value)]
        return float(np.mean(defined)) if defined else float("nan")

    @property
    def counted(self) -> int:
        """How many classes the mean is over."""
        return sum(not np.isnan(value) for value in self.iou)


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """IoU_c = TP / (prediction + truth - TP) in percent, (K,), from (K, K) counts; NaN for a class in neither."""
    matrix = np.asarray(confusion, dtype=np.float64)
    hits = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - hits
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(union > 0, 100 * hits / union, np.nan)


def scores(confusion: np.ndarray, names: Sequence[str], only: Sequence[str] | None = None) -> Scores:
    """``class_iou`` of the classes named in ``only`` (all by default)."""
    iou = class_iou(confusion)
    chosen = [name for name in (only or names) if name in names]
    return Scores(tuple(chosen), tuple(float(iou[list(names).index(name)]) for name in chosen))
