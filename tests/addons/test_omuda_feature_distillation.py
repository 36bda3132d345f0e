"""Feature distillation masking: OMUDA's equations 8 to 12 by hand, gradients, the cases with nothing to relate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from steps import build_context, step
from torch import Tensor, nn

from udaseg.addons.omuda.feature_distillation import RelationalDistillation, distillation, masked_squares, relations
from udaseg.core.context import Batch, Loss, View
from udaseg.models.segmentor import Encoded, Output

CONTEXT = build_context("road", "car", "bus")
STUDENT = [(0.0, 0.0), (3.0, 4.0), (0.0, 8.0)]  # lengths 5 (0-1), 8 (0-2), 5 (1-2)
TEACHER = [(0.0, 0.0), (3.0, 0.0), (0.0, 4.0)]  # lengths 3, 4, 5


def points(values: list[tuple[float, float]]) -> Tensor:
    """One image a point: (B, 2, 1, 1)."""
    return torch.tensor(values, dtype=torch.float64)[:, :, None, None]


def everywhere(features: Tensor) -> Tensor:
    return torch.ones(len(features), *features.shape[-2:], dtype=features.dtype)


def both(values: list[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    return relations(points(values), everywhere(points(values)))


def test_lengths_by_hand() -> None:
    """eq. 8: divided by the sum over ordered pairs, 2 (5 + 8 + 5) = 36 and 2 (3 + 4 + 5) = 24."""
    expected = torch.tensor([[0, 5, 8], [5, 0, 5], [8, 5, 0]]).double()
    torch.testing.assert_close(both(STUDENT)[0], expected / 36)
    expected = torch.tensor([[0, 3, 4], [3, 0, 5], [4, 5, 0]]).double()
    torch.testing.assert_close(both(TEACHER)[0], expected / 24)


def test_angles_by_hand() -> None:
    """eq. 10. Student at 0: <(-3, -4), (0, -8)> / (5 * 8) = 0.8; at 1: <(3, 4), (3, -4)> / 25 = -0.28; at 2:
    <(0, 8), (-3, 4)> / 40 = 0.8. Teacher: 0, <(3, 0), (3, -4)> / 15 = 0.6, <(0, 4), (-3, 4)> / 20 = 0.8."""
    for values, at in ((STUDENT, (0.8, -0.28, 0.8)), (TEACHER, (0.0, 0.6, 0.8))):
        found, expected = both(values)[1], torch.zeros(3, 3, 3).double()
        for i, cosine in enumerate(at):
            j, k = (n for n in range(3) if n != i)
            expected[i, j, k] = expected[i, k, j] = cosine
        torch.testing.assert_close(found, expected)


def test_loss_by_hand() -> None:
    """eq. 9: length differences 5/36 - 3/24 = 1/72, 8/36 - 4/24 = 4/72, 5/36 - 5/24 = -5/72, each twice, 0.5 x^2:
    42/5184. eq. 11: cosine differences 0.8, -0.88, 0, each twice: 0.64 + 0.7744. eq. 12: their sum."""
    student, teacher = points(STUDENT), points(TEACHER)
    found = distillation(student, everywhere(student), teacher, everywhere(teacher))
    assert found.item() == pytest.approx(42 / 5184 + 0.64 + 0.7744, rel=1e-12)


def test_loss_is_linear_beyond_the_knee() -> None:
    """Teacher on a line, 0 in the middle: cosines -1, 1, 1. Differences 1.8, -1.28, -0.2, each twice: |x| - 0.5 for
    the first two. Lengths: 1, 1, 2 of 8 against 5, 8, 5 of 36: differences 1/72, 7/72, -8/72, each twice."""
    student, teacher = points(STUDENT), points([(0, 0), (1, 0), (-1, 0)])
    angles = 2 * (1.8 - 0.5) + 2 * (1.28 - 0.5) + 2 * 0.5 * 0.2**2
    lengths = (1 + 49 + 64) / 5184
    found = distillation(student, everywhere(student), teacher, everywhere(teacher))
    assert found.item() == pytest.approx(angles + lengths, rel=1e-12)


def test_the_mask_is_the_anchors() -> None:
    """Image 0 has foreground in its first cell, image 1 in its second: |1 - 4| = 3 and |30 - 10| = 20, of 23."""
    features = torch.tensor([[1.0, 10.0], [4.0, 30.0]])[:, None, None, :]
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[:, None, :]
    lengths, angles = relations(features, mask)
    torch.testing.assert_close(lengths, torch.tensor([[0, 3], [20, 0]]) / 23)
    assert not angles.any()  # two images: no triplets


def test_many_cells_and_channels_against_the_printed_formulas() -> None:
    torch.manual_seed(0)
    f, mask = torch.randn(4, 5, 3, 2).double(), (torch.rand(4, 3, 2) > 0.4).double()
    lengths, angles = relations(f, mask)
    vector = [[((f[i] - f[j]) * mask[i]).flatten() for j in range(4)] for i in range(4)]
    total = sum(vector[i][j].norm() for i in range(4) for j in range(4))
    for i in range(4):
        for j in range(4):
            assert lengths[i, j].item() == pytest.approx((vector[i][j].norm() / total).item())
            for k in range(4):
                cosine = torch.cosine_similarity(vector[i][j], vector[i][k], dim=0) if len({i, j, k}) == 3 else 0.0
                assert angles[i, j, k].item() == pytest.approx(float(cosine), abs=1e-12)


@pytest.mark.parametrize("images", [2, 3, 4])
def test_gradcheck(images: int) -> None:
    torch.manual_seed(images)
    student = torch.randn(images, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher, mask = torch.randn(images, 4, 2, 2).double(), (torch.rand(images, 2, 2) > 0.3).double()
    mask[0] = 0  # one image without foreground
    assert torch.autograd.gradcheck(lambda s: distillation(s, mask, teacher, mask), student)


@pytest.mark.parametrize("which", ["two equal", "all equal", "no foreground"])
def test_gradient_is_finite_where_lengths_are_zero(which: str) -> None:
    torch.manual_seed(0)
    student = torch.randn(3, 4, 2, 2)
    if which != "no foreground":
        student[1] = student[0]
    if which == "all equal":
        student[2] = student[0]
    mask = torch.full((3, 2, 2), float(which != "no foreground"))
    student.requires_grad_()
    loss = distillation(student, mask, torch.randn(3, 4, 2, 2), mask)
    loss.backward()
    assert student.grad is not None and loss.isfinite() and student.grad.isfinite().all()
    assert bool(student.grad.any()) == (which == "two equal")
    assert (loss == 0) == (which == "no foreground")


def test_memory_is_one_difference_a_pair() -> None:
    """Backward keeps B (B - 1) / 2 maps of C x h x w, not B^2 or B^3."""
    kept: list[Tensor] = []
    features, mask = torch.randn(4, 64, 8, 8, requires_grad=True), torch.ones(4, 8, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        masked_squares(features, mask)
    assert sum(t.numel() for t in kept) < 1.2 * 6 * 64 * 8 * 8


# --- the term ------------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """A frozen encoder that always answers the same, and counts."""

    def __init__(self, feature: Tensor) -> None:
        super().__init__()
        self.feature, self.calls = feature, 0

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        return (self.feature,)


class Halves(nn.Module):
    """A decoder whose fused map has the first two channels of its only level."""

    def fused(self, features: tuple[Tensor, ...]) -> Tensor:
        return nn.functional.interpolate(features[-1][:, :2], scale_factor=2.0)


def loss(label: Tensor, **options: Any) -> tuple[Loss, Tensor, Tensor]:
    """The term on random features of 2 x 2 cells, 8 x 8 pixels each; the frozen encoder's and the student's."""
    generator = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(len(label), 6, 2, 2, generator=generator) for _ in range(2))
    term = RelationalDistillation(CONTEXT, **options)
    segmentor = nn.Module()
    segmentor.decoder = Halves()
    image = torch.zeros(len(label), 3, 16, 16)
    context = step(Batch(image, label), segmentor=segmentor, pretrained_encoder=Constant(teacher))
    output = Output((Encoded((student.requires_grad_(),), image),), ())
    return term(View(image, label), output, context), teacher, student


def quarters(*classes: tuple[int, int, int, int]) -> Tensor:
    """(B, 16, 16) labels: each image's four cells of 8 x 8."""
    return torch.tensor(classes).view(-1, 2, 2).repeat_interleave(8, 1).repeat_interleave(8, 2)


def test_term_keeps_cells_that_foreground_covers() -> None:
    label = quarters((0, 1, 1, 255), (2, 0, 0, 0), (0, 0, 0, 1))
    label[0, 8:, :3] = 0  # five of eight columns are car: less than 0.75
    found, teacher, student = loss(label)
    mask = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]).view(3, 2, 2).float()
    assert found.present
    torch.testing.assert_close(found.value, distillation(student, mask, teacher, mask))
    half, _, _ = loss(label, min_ratio=0.5)
    mask[0, 1, 0] = 1
    torch.testing.assert_close(half.value, distillation(student, mask, teacher, mask))


def test_foreground_is_named() -> None:
    label = quarters((0, 0, 1, 1), (0, 1, 0, 1), (1, 1, 0, 0))
    found, teacher, student = loss(label, foreground=("road", "horse"))
    mask = (label[:, ::8, ::8] == 0).float()
    torch.testing.assert_close(found.value, distillation(student, mask, teacher, mask))
    with pytest.raises(ValueError, match="no class is called so"):
        loss(label, foreground=("horse",))


@pytest.mark.parametrize(
    ("label", "present"),
    [
        (quarters(*[(0, 0, 0, 0)] * 3), False),  # a single class, background
        (quarters(*[(1, 1, 1, 1)] * 3), True),  # a single class, foreground
        (quarters(*[(255, 255, 255, 255)] * 3), False),
        (quarters((0, 1, 1, 1)), False),  # one image has no pairs
        (quarters((0, 1, 1, 1), (0, 0, 0, 0)), True),
    ],
)
def test_nothing_to_relate_is_na_with_zero_gradient(label: Tensor, present: bool) -> None:
    found, _, student = loss(label)
    found.value.backward()
    assert found.present is not None and bool(found.present) == present
    assert student.grad is not None and student.grad.isfinite().all()
    assert present or (found.value == 0 and not student.grad.any())


def test_two_images_have_lengths_but_no_angles() -> None:
    found, teacher, student = loss(quarters((1, 0, 0, 1), (0, 1, 0, 0)))
    mask = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]]).view(2, 2, 2).float()
    ours, theirs = relations(student, mask)[0], relations(teacher, mask)[0]
    torch.testing.assert_close(found.value, 0.5 * (ours - theirs).square().sum())


def test_fused_neck_may_have_other_channels_and_size() -> None:
    label = quarters((1, 0, 0, 1), (0, 1, 0, 0), (2, 2, 0, 0))
    found, teacher, student = loss(label, neck="fused")
    mask = (label[:, ::8, ::8] > 0).float()
    wide = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    fused = Halves().fused((student,))
    torch.testing.assert_close(found.value, distillation(fused, wide, teacher, mask))


def test_the_frozen_encoder_sees_a_tensor_once() -> None:
    encoder = Constant(torch.ones(1, 2, 1, 1))
    one, other = torch.zeros(2, 1, 3, 4, 4)
    context = step(pretrained_encoder=encoder)
    assert context.features("pretrained", one) is context.features("pretrained", one)
    assert encoder.calls == 1
    context.features("pretrained", other)  # equal numbers, another view
    assert encoder.calls == 2
