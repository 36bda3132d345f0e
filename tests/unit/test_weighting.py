"""The share of sure pixels at its edges (docs/fidelity.md, "Pseudo-labels and teacher")."""

from __future__ import annotations

import pytest
import torch
from steps import build_context, step

from udaseg.core.context import Batch
from udaseg.core.weighting import ConfidenceShare


@pytest.mark.parametrize(("threshold", "share"), [(0.5, 1.0), (0.50001, 0.5), (1.0, 0.5)])
def test_confidence_at_the_threshold_is_enough(threshold: float, share: float) -> None:
    """Half of the pixels are certain, half of them between two classes."""
    logits = torch.zeros(1, 2, 4, 4)
    logits[:, 0, :, :2] = 100.0
    image, label = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    pseudo = ConfidenceShare(build_context(), threshold=threshold)(logits, step(Batch(image, label, image)))
    assert pseudo.confidence.unique().tolist() == [0.5, 1.0]
    assert pseudo.weight.unique().tolist() == [share]


@pytest.mark.parametrize(("share", "weights"), [("batch", (0.375, 0.375)), ("image", (0.5, 0.25))])
def test_the_share_is_of_the_batch_or_of_each_image(share: str, weights: tuple[float, float]) -> None:
    """Half of the first image is sure, a quarter of the second; over ranks, the batch's share is everybody's."""
    logits = torch.zeros(2, 2, 4, 4)
    logits[0, 0, :, :2] = logits[1, 0, :, :1] = 100.0
    image, label = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
    rule = ConfidenceShare(build_context(), threshold=0.9, share=share)  # type: ignore[arg-type]
    context = step(Batch(image, label, image))
    weight = rule(logits, context).weight
    assert [plane.unique().tolist() for plane in weight] == [[value] for value in weights]
    assert context.notes["confident"] == 0.375  # the log's number stays
    other = step(Batch(image, label, image), world=2)
    other.reduce = lambda value, operation="sum": value + 1  # another rank that is sure everywhere
    expected = [(1 + 0.375) / 2] * 2 if share == "batch" else weights
    assert rule(logits, other).weight[:, 0, 0].tolist() == pytest.approx(list(expected))


def test_margins_are_cut_after_the_share_is_taken() -> None:
    """Rows of the crop and the mask of the image at once; the share is that of all pixels."""
    logits = torch.zeros(1, 2, 6, 4)
    logits[:, 0, :1] = 100.0  # sure only where it does not count
    image, label = torch.zeros(1, 3, 6, 4), torch.zeros(1, 6, 4, dtype=torch.int64)
    valid = torch.ones(1, 6, 4, dtype=torch.uint8)
    valid[..., 0] = 0
    context = step(Batch(image, label, image, target_valid=valid))
    weight = ConfidenceShare(build_context(crop_margins=(1, 2)), threshold=0.9)(logits, context).weight[0]
    expected = torch.zeros(6, 4)
    expected[1:4, 1:] = 1 / 6
    torch.testing.assert_close(weight, expected)
