"""Views that change the image: what the masked view shows, and of which domain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from udaseg.core.context import Batch, Draws, Iteration, PseudoLabels, View
from udaseg.core.masking import Blocks
from udaseg.core.views import Masked
from udaseg.data.loading import Normalise
from udaseg.models.segmentor import IMAGENET_MEAN, IMAGENET_STD, Encoded, InferencePass, Segmentor

CPU = torch.device("cpu")


class Everything:
    """A masker that hides nothing."""

    def __call__(self, label: Tensor, draws: Draws) -> Tensor:
        return torch.ones(label.shape[0], 1, *label.shape[1:])


def iteration(images: int = 2, t: int = 0) -> Iteration:
    torch.manual_seed(t)
    shape = (images, 32, 32)
    source, target = torch.randn(images, 3, 32, 32), torch.randn(images, 3, 32, 32)
    pseudo = PseudoLabels(torch.full(shape, 7), torch.rand(shape), torch.full(shape, 0.25))
    asked: list[Tensor] = []

    def predict(image: Tensor) -> InferencePass:
        asked.append(image)
        return InferencePass(image, Encoded((image,), image))

    found = Iteration(
        t, Batch(source, torch.full(shape, 3), target), Draws(0, t, CPU), Segmentor(torch.nn.Identity(), None),  # type: ignore[arg-type]
        predict, lambda logits, it: pseudo,
    )  # fmt: skip
    found.asked = asked  # type: ignore[attr-defined]
    return found


def masked(masker: Any = None, **options: Any) -> Masked:
    quiet = {"jitter_probability": 0.0, "blur_probability": 0.0}
    return Masked(
        normalise=Normalise(IMAGENET_MEAN, IMAGENET_STD), masker=masker or Everything(), **{**quiet, **options}
    )


@pytest.mark.parametrize(
    ("images", "synthetic", "pair"),
    [("auto", True, False), ("auto", False, True), ("target", False, False), ("pair", True, True)],
)
def test_images_go_by_the_benchmark_unless_said(images: Any, synthetic: bool, pair: bool) -> None:
    assert masked(images=images, synthetic_source=synthetic).pair == pair


def test_target_mode_shows_the_target_with_the_steps_own_pseudo_labels() -> None:
    step = iteration()
    view = masked()(step)
    assert torch.equal(view.image, step.batch.target)
    assert view.label is step.pseudo_labels.label and view.weight is step.pseudo_labels.weight
    assert len(step.asked) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(("images", "sources"), [(1, 0), (2, 1), (3, 1), (4, 2)])
def test_pair_mode_shows_the_first_images_of_both_domains_unaugmented(images: int, sources: int) -> None:
    """MIC for adverse weather: source 0 with its label and weight 1, target 0 with pseudo-label and weight."""
    step = iteration(images)
    view = masked(images="pair", jitter_probability=1.0, blur_probability=1.0)(step)
    rest = images - sources
    assert torch.equal(view.image, torch.cat([step.batch.source_image[:sources], step.batch.target[:rest]]))
    assert view.label[:, 0, 0].tolist() == [3] * sources + [7] * rest
    assert view.weight is not None and view.weight[:, 0, 0].tolist() == [1.0] * sources + [0.25] * rest


def test_hidden_pixels_are_zero_after_normalisation_and_augmentation() -> None:
    view = masked(Blocks(block=0.25, ratio=0.5), jitter_probability=1.0, blur_probability=1.0)(iteration())
    hidden = (view.image == 0).all(dim=1)
    blocks = hidden.view(2, 4, 8, 4, 8).permute(0, 1, 3, 2, 4).flatten(3)
    assert torch.equal(blocks.all(dim=3), blocks.any(dim=3))
    assert 0 < hidden.float().mean() < 1
    assert not torch.equal(hidden[0], hidden[1])  # every image has its own mask


def test_augmentation_is_drawn_anew_and_shared_by_the_batch() -> None:
    """One order and one sigma for all images, their own factors (baselines.md 5.4)."""
    step = iteration()
    twin = step.batch.target[:1].expand(2, -1, -1, -1).clone()
    step.batch = Batch(step.batch.source_image, step.batch.source_label, twin)
    blurred = masked(blur_probability=1.0)(step).image
    assert torch.equal(blurred[0], blurred[1]) and not torch.equal(blurred, twin)
    jittered = masked(jitter_probability=1.0)(step).image
    assert not torch.equal(jittered[0], jittered[1])


def test_ratio_and_size_of_blocks() -> None:
    draws = Draws(0, 0, CPU)
    label = torch.zeros(8, 512, 512, dtype=torch.int64)
    mask = Blocks()(label, draws)
    assert mask.shape == (8, 1, 512, 512) and mask.mean().item() == pytest.approx(0.3, abs=0.03)
    cells = mask.view(8, 16, 32, 16, 32)
    assert torch.equal(cells.amax((2, 4)), cells.amin((2, 4)))  # 32 pixels at 512, in a 16 x 16 grid
    assert Blocks(ratio=0.0)(label[:1], draws).mean() > 0.99
    assert Blocks(ratio=1.0)(label[:1], draws).sum() == 0
    with pytest.raises(ValueError, match="above 0"):
        Blocks(block=0.0)


def test_a_view_is_a_view() -> None:
    assert isinstance(masked()(iteration()), View)
