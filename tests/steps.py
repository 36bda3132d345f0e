# ruff: noqa: F401 - this file hands names on
"""What components are built with and called with (``udaseg.testing.steps``), and what masks promise."""

from __future__ import annotations

import torch

from udaseg.core.base import Masker
from udaseg.testing.steps import CPU, NORMALISE, StubTeacher, build_context, rng, step


def assert_masks_do_not_depend_on_ranks(masker: Masker) -> None:
    """One process with four images draws what two with two each draw, and another mask in another iteration."""
    label = torch.randint(2, (4, 64, 64), generator=torch.Generator().manual_seed(1))
    together = masker(label, rng(3))
    shared = [masker(label[2 * r : 2 * r + 2], rng(3, rank=r, world=2)) for r in (0, 1)]
    assert torch.equal(together, torch.cat(shared)) and set(together.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(together, masker(label, rng(4)))
