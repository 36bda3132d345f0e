"""OMUDA's maskers: one that looks at the labels, and the grid (eq. 6, 7 and Table VI)."""

from __future__ import annotations

import pytest
import torch
from steps import assert_masks_do_not_depend_on_ranks, build_context, rng

from udaseg.addons.omuda.context_aware import ContextAwareMasker, GridMasker
from udaseg.core.base import Masker
from udaseg.core.masking import Blocks

CONTEXT = build_context("road", "car")


def test_foreground_and_background_are_masked_by_their_own_rng() -> None:
    """eq. 7: x_m = x_tb [label in K_b] + x_tf [label in K_f], with M_b and M_f those of eq. 6."""
    label = torch.zeros(3, 64, 64, dtype=torch.int64)
    label[:, :, 32:] = 1
    label[0, :8] = 255  # where a source image is ignored: background
    masker = ContextAwareMasker(CONTEXT, foreground_block=1 / 16, background_block=1 / 8, ratio=0.4)
    found = masker(label, rng())
    both = rng()
    coarse, fine = (
        Blocks(CONTEXT, block=1 / 8, ratio=0.4)(label, both),
        Blocks(CONTEXT, block=1 / 16, ratio=0.4)(label, both),
    )
    assert found.shape == (3, 1, 64, 64) and not torch.equal(coarse, fine)
    cars = (label == 1)[:, None]
    assert torch.equal(found[cars], fine[cars]) and torch.equal(found[~cars], coarse[~cars])


def test_block_sizes_are_shares_of_the_height() -> None:
    """At 512: 16 pixels over foreground, 32 over background, 0.7 of each hidden."""
    masker = ContextAwareMasker(CONTEXT)
    for k, side in ((0, 32), (1, 16)):
        mask = masker(torch.full((4, 512, 512), k), rng())[:, 0]
        cells = mask[:, ::side, ::side]
        assert torch.equal(cells.repeat_interleave(side, 1).repeat_interleave(side, 2), mask)
        assert 1 - cells.mean().item() == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("k", [0, 1])
def test_a_single_class_or_no_foreground_is_one_plain_mask(k: int) -> None:
    found = ContextAwareMasker(CONTEXT)(torch.full((1, 64, 64), k), rng())
    assert 0 < found.mean() < 1
    with pytest.raises(ValueError, match="no class is called so; there are road, sky"):
        ContextAwareMasker(build_context("road", "sky"))


def test_grid_hides_one_square_a_cell_shifted_for_each_image() -> None:
    """Cells of 64 at 512, squares of 64 sqrt(0.49) = 45 pixels (44.8): 45^2 of 64^2 hidden in whole cells."""
    mask = GridMasker(CONTEXT, unit=0.125, ratio=0.49)(torch.zeros(4, 512, 512, dtype=torch.int64), rng())[:, 0]
    for one in mask:
        assert torch.equal(one[64:], one[:-64]) and torch.equal(one[:, 64:], one[:, :-64])
        assert (1 - one[:64, :64]).sum() == 45 * 45
    assert len({tuple(one[:64, :64].flatten().tolist()) for one in mask}) == 4


@pytest.mark.parametrize("masker", [ContextAwareMasker(CONTEXT), GridMasker(CONTEXT)])
def test_masks_do_not_depend_on_the_number_of_ranks(masker: Masker) -> None:
    assert_masks_do_not_depend_on_ranks(masker)
