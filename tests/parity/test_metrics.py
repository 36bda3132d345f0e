"""Confusion counts and IoU (docs/fidelity.md, "Metrics"; fixture metrics)."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from parity.rule import DATA
from udaseg.data.classes import CITYSCAPES, PROTOCOLS
from udaseg.evaluation.confusion import count, scores

REFERENCE = json.loads((DATA / "metrics_pipeline.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def confusion() -> np.ndarray:
    with np.load(DATA / "metrics.npz") as file:
        pairs = zip(torch.from_numpy(file["preds"]), torch.from_numpy(file["labels"]), strict=True)
        return sum(count(prediction, label, 19) for prediction, label in pairs).numpy()  # type: ignore[union-attr]


def test_areas_of_every_image() -> None:
    with np.load(DATA / "metrics.npz") as file:
        for expected, prediction, label in zip(REFERENCE["per_image"], file["preds"], file["labels"], strict=True):
            matrix = count(torch.from_numpy(prediction), torch.from_numpy(label), 19).numpy()
            assert np.diag(matrix).tolist() == expected["intersect"]
            assert matrix.sum(1).tolist() == expected["label"] and matrix.sum(0).tolist() == expected["pred"]
            assert (matrix.sum(0) + matrix.sum(1) - np.diag(matrix)).tolist() == expected["union"]


def test_iou_and_mean(confusion: np.ndarray) -> None:
    found = scores(confusion, CITYSCAPES.names)
    assert found.miou == pytest.approx(37.08, abs=0.005)
    assert found.counted == 18  # class 16 is in neither
    assert math.isnan(found.iou[16]) and found.iou[17] == 0 and found.iou[18] == 0


def test_protocols_are_means_over_fewer_classes_of_the_same_counts(confusion: np.ndarray) -> None:
    whole = dict(zip(CITYSCAPES.names, scores(confusion, CITYSCAPES.names).iou, strict=True))
    for name, size in (("cityscapes19", 19), ("synthia16", 16), ("synthia13", 13)):
        found = scores(confusion, CITYSCAPES.names, PROTOCOLS[name])
        assert len(found.iou) == size
        defined = [whole[n] for n in PROTOCOLS[name] if not math.isnan(whole[n])]
        assert found.miou == pytest.approx(np.mean(defined))
    assert {"terrain", "truck", "train"}.isdisjoint(PROTOCOLS["synthia16"])
    assert {"wall", "fence", "pole"}.isdisjoint(PROTOCOLS["synthia13"])


def test_ignored_pixels_are_not_counted() -> None:
    label = torch.tensor([[255, 0], [1, 255]])
    assert count(torch.zeros(2, 2).long(), label, 2).tolist() == [[1, 0], [1, 0]]


def test_counting_does_not_wait_for_the_device() -> None:
    prediction = torch.empty(4, 6, dtype=torch.int64, device="meta")  # whatever reads a value fails on it
    assert count(prediction, prediction.byte(), 19).shape == (19, 19)


def test_nothing_to_count_is_not_a_number() -> None:
    found = scores(np.zeros((19, 19)), CITYSCAPES.names)
    assert math.isnan(found.miou) and found.counted == 0
