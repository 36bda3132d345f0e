"""Views that change the image: what the masked view shows, and of which domain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from steps import StubTeacher, assert_masks_do_not_depend_on_ranks, build_context, rng
from steps import step as step_of
from torch import Tensor

from udaseg.core.base import Masker
from udaseg.core.context import Batch, PseudoLabels, StepContext, StepRng, View
from udaseg.core.masking import Blocks
from udaseg.core.views import Masked

CONTEXT = build_context()


class Everything(Masker):
    """Hides nothing."""

    def __call__(self, label: Tensor, rng: StepRng) -> Tensor:
        return torch.ones(label.shape[0], 1, *label.shape[1:])


def step(images: int = 2) -> StepContext:
    torch.manual_seed(0)
    shape = (images, 32, 32)
    source, target = torch.randn(images, 3, 32, 32), torch.randn(images, 3, 32, 32)
    pseudo = PseudoLabels(torch.full(shape, 7), torch.rand(shape), torch.full(shape, 0.25))
    return step_of(Batch(source, torch.full(shape, 3), target), teacher=StubTeacher(), pseudo=pseudo)


def masked(masker: Masker | None = None, *, synthetic_source: bool = True, **options: Any) -> Masked:
    quiet = {"jitter_probability": 0.0, "blur_probability": 0.0}
    context = build_context(synthetic_source=synthetic_source)
    return Masked(context, masker=masker or Everything(context), **{**quiet, **options})


@pytest.mark.parametrize(
    ("images", "synthetic", "pair"),
    [("auto", True, False), ("auto", False, True), ("target", False, False), ("pair", True, True)],
)
def test_images_go_by_the_benchmark_unless_said(images: Any, synthetic: bool, pair: bool) -> None:
    assert masked(images=images, synthetic_source=synthetic).pair == pair


def test_target_mode_shows_the_target_with_the_steps_own_pseudo_labels() -> None:
    context = step()
    view = masked()(context)
    assert torch.equal(view.image, context.batch.target)
    assert view.label is context.pseudo_labels.label and view.weight is context.pseudo_labels.weight
    assert len(context.teacher.seen) == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(("images", "sources"), [(1, 0), (2, 1), (3, 1), (4, 2)])
def test_pair_mode_shows_the_first_images_of_both_domains_unaugmented(images: int, sources: int) -> None:
    """MIC for adverse weather: source 0 with its label and weight 1, target 0 with pseudo-label and weight."""
    context = step(images)
    view = masked(images="pair", jitter_probability=1.0, blur_probability=1.0)(context)
    rest = images - sources
    assert torch.equal(view.image, torch.cat([context.batch.source_image[:sources], context.batch.target[:rest]]))
    assert view.label[:, 0, 0].tolist() == [3] * sources + [7] * rest
    assert view.weight is not None and view.weight[:, 0, 0].tolist() == [1.0] * sources + [0.25] * rest


def test_hidden_pixels_are_zero_after_normalisation_and_augmentation() -> None:
    view = masked(Blocks(CONTEXT, block=0.25, ratio=0.5), jitter_probability=1.0, blur_probability=1.0)(step())
    hidden = (view.image == 0).all(dim=1)
    blocks = hidden.view(2, 4, 8, 4, 8).permute(0, 1, 3, 2, 4).flatten(3)
    assert torch.equal(blocks.all(dim=3), blocks.any(dim=3))
    assert 0 < hidden.float().mean() < 1
    assert not torch.equal(hidden[0], hidden[1])  # every image has its own mask


def test_augmentation_is_drawn_anew_and_shared_by_the_batch() -> None:
    """One order and one sigma for all images, their own factors (docs/fidelity.md, "MIC")."""
    context = step()
    twin = context.batch.target[:1].expand(2, -1, -1, -1).clone()
    context.batch = Batch(context.batch.source_image, context.batch.source_label, twin)
    blurred = masked(blur_probability=1.0)(context).image
    assert torch.equal(blurred[0], blurred[1]) and not torch.equal(blurred, twin)
    jittered = masked(jitter_probability=1.0)(context).image
    assert not torch.equal(jittered[0], jittered[1])


def test_ratio_and_size_of_blocks() -> None:
    numbers = rng()
    label = torch.zeros(8, 512, 512, dtype=torch.int64)
    mask = Blocks(CONTEXT)(label, numbers)
    assert mask.shape == (8, 1, 512, 512) and mask.mean().item() == pytest.approx(0.3, abs=0.03)
    cells = mask.view(8, 16, 32, 16, 32)
    assert torch.equal(cells.amax((2, 4)), cells.amin((2, 4)))  # 32 pixels at 512, in a 16 x 16 grid
    assert Blocks(CONTEXT, ratio=0.0)(label[:1], numbers).mean() > 0.99
    assert Blocks(CONTEXT, ratio=1.0)(label[:1], numbers).sum() == 0
    with pytest.raises(ValueError, match="above 0"):
        Blocks(CONTEXT, block=0.0)


def test_masks_do_not_depend_on_the_number_of_ranks() -> None:
    assert_masks_do_not_depend_on_ranks(Blocks(CONTEXT))


def test_a_view_is_a_view() -> None:
    assert isinstance(masked()(step()), View)
