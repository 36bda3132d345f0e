"""Class decoupling masking: OMUDA's equations 13 to 15 by hand, both readings of beta, the running mean, ranks."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from steps import build_context, step
from torch import Tensor

from udaseg.addons.omuda.class_decoupling import ClassDecoupledCrossEntropy
from udaseg.core.context import View
from udaseg.core.terms.cross_entropy import cross_entropy
from udaseg.models.segmentor import Box, Decoded, Output

CONTEXT = build_context("road", "car", "bus")
LABEL = torch.tensor([[[0, 0, 0, 1, 255]]])  # one row of five pixels
PROBABILITIES = torch.tensor(
    [[0.5, 0.3, 0.2], [0.25, 0.5, 0.25], [0.125, 0.75, 0.125], [0.5, 0.125, 0.375], [0.1, 0.1, 0.8]]
)
LOGITS = PROBABILITIES.double().log().T[None, :, None]  # cross-entropies 1, 2, 3 (road) and 3 (car) times ln 2
LN2 = math.log(2)


def term(**options: Any) -> ClassDecoupledCrossEntropy:
    return ClassDecoupledCrossEntropy(CONTEXT, **options)


def loss(
    part: ClassDecoupledCrossEntropy, logits: Tensor = LOGITS, label: Tensor = LABEL, weight: Tensor | None = None
) -> Tensor:
    return part(View(label, label, weight), Output((), (Decoded(logits),)), step()).value


def sure_of(label: Tensor, classes: int = 3) -> Tensor:
    """Logits that predict the label, 255 as class 0."""
    return 2.0 * torch.nn.functional.one_hot(label % 255, classes).movedim(3, 1).double()


def test_classes_are_averaged_and_weighed_by_hand() -> None:
    """eq. 13: road (1 + 2 + 3) / 3 = 2, car 3, in ln 2. eq. 14: the student agrees on one road pixel of three and on no
    car: beta 2/3 and 1. eq. 15, divided by the sum of beta: (2/3 * 2 + 1 * 3) / (5/3) = 2.6. Bus is absent."""
    assert loss(term(momentum=0.0)).item() == pytest.approx(2.6 * LN2, rel=1e-6)


def test_the_other_reading_of_beta() -> None:
    """beta = agreement: road 1/3, car 0: the mean of road alone."""
    assert loss(term(beta="agreement", momentum=0.0)).item() == pytest.approx(2 * LN2, rel=1e-6)


def test_pixel_weights_multiply_but_do_not_divide() -> None:
    """road (1 * 1 + 0.5 * 2 + 0 * 3) / 3 = 2/3, car 0.5 * 3 = 1.5: (2/3 * 2/3 + 1 * 1.5) / (5/3) = 7/6."""
    weight = torch.tensor([[[1, 0.5, 0, 0.5, 1]]])
    assert loss(term(momentum=0.0), weight=weight).item() == pytest.approx(7 / 6 * LN2, rel=1e-6)


def test_first_iteration_is_its_own_mean_and_later_ones_are_mixed_in() -> None:
    """momentum 1/2, road agrees 1/3 and then 1: (1/3 / 4 + 1 / 2) / (1/4 + 1/2) = 7/9. Car is absent the second time:
    its mean stays 0; bus was never seen."""
    part = term(momentum=0.5)
    assert loss(part).item() == pytest.approx(2.6 * LN2, rel=1e-6)
    assert part.total.tolist() == pytest.approx([1 / 6, 0, 0]) and part.seen.tolist() == [0.5, 0.5, 0]
    road = torch.zeros_like(LABEL)
    loss(part, sure_of(road), road)
    assert (part.total / part.seen)[:2].tolist() == pytest.approx([7 / 9, 0]) and part.seen.tolist() == [0.75, 0.5, 0]


def test_beta_comes_from_the_running_mean() -> None:
    """After an iteration in which road agreed wholly (momentum 1/2): road (1 / 4 + 1/3 / 2) / (3/4) = 5/9, beta 4/9."""
    part = term(momentum=0.5)
    road = torch.zeros_like(LABEL)
    loss(part, sure_of(road), road)
    assert loss(part).item() == pytest.approx((4 / 9 * 2 + 3) / (4 / 9 + 1) * LN2, rel=1e-6)


def test_a_single_class_is_plain_cross_entropy() -> None:
    for label in (torch.zeros_like(LABEL), torch.full_like(LABEL, 2)):
        for reading in ("disagreement", "agreement"):
            found = loss(term(beta=reading, momentum=0.0), LOGITS, label)
            torch.testing.assert_close(found, cross_entropy(LOGITS, label), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("label", "reading"),
    [
        (torch.full_like(LABEL, 255), "disagreement"),  # nothing is labelled
        (LABEL, "disagreement"),  # agreement everywhere: all beta are 0
        (torch.full_like(LABEL, 1), "agreement"),  # and nowhere
    ],
)
def test_nothing_to_weigh_is_zero_with_zero_gradient(label: Tensor, reading: str) -> None:
    logits = sure_of(torch.zeros_like(LABEL) if reading == "agreement" else label).requires_grad_()
    found = loss(term(beta=reading, momentum=0.0), logits, label)
    found.backward()
    assert found == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("reading", ["disagreement", "agreement"])
def test_gradcheck(reading: str) -> None:
    torch.manual_seed(0)
    label = torch.randint(3, (2, 6, 6))
    label[0, :2] = 255
    logits = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)  # up-sampled to the label
    part, weight = term(beta=reading, momentum=0.0), torch.rand(2, 6, 6).double()
    assert torch.autograd.gradcheck(lambda x: loss(part, x, label, weight), logits)


def spelt_out(logits: Tensor, label: Tensor, beta: list[float]) -> float:
    """eq. 15 class by class, divided by the sum of beta over the classes present."""
    pixels = torch.nn.functional.cross_entropy(logits, label, ignore_index=255, reduction="none")
    present = [k for k in range(len(beta)) if (label == k).any()]
    return sum(beta[k] * pixels[label == k].mean().item() for k in present) / sum(beta[k] for k in present)


def test_predictions_count_by_their_coefficients_and_share_one_statistic() -> None:
    """HRDA: beta is the fused prediction's; the detail is averaged over its own box, in which a class may be absent."""
    torch.manual_seed(1)
    label = torch.randint(2, (2, 8, 8))
    label[:, :4, :4] = 2
    fused, detail = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
    box = Box(4, 8, 4, 8)
    output = Output((), (Decoded(fused, coefficient=0.9), Decoded(detail, box, 0.1)))
    part = term(momentum=0.0)
    found = part(View(label, label), output, step()).value
    beta = [1 - (fused.argmax(1) == label)[label == k].double().mean().item() for k in range(3)]
    assert not (label[:, 4:, 4:] == 2).any()
    expected = 0.9 * spelt_out(fused, label, beta) + 0.1 * spelt_out(detail, label[:, 4:, 4:], beta)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert (1 - part.total).tolist() == pytest.approx(beta, rel=1e-5)


def test_two_ranks_equal_one_with_the_whole_batch() -> None:
    """The mean of the ranks' losses (gradients are averaged) and every buffer."""
    torch.manual_seed(2)
    label, logits = torch.randint(2, (4, 8, 8)), torch.randn(4, 3, 8, 8)
    label[:2][label[:2] == 1] = 0  # cars on the second rank only
    whole, barrier, said = term(), threading.Barrier(2, timeout=30), {}
    parts, found = [term(), term()], [torch.zeros(())] * 2

    def work(rank: int) -> None:
        def together(value: Tensor, operation: str = "sum") -> Tensor:
            said[rank] = value
            barrier.wait()
            total = said[0] + said[1]
            barrier.wait()
            return total

        mine = slice(2 * rank, 2 * rank + 2)
        view, output = View(label[mine], label[mine]), Output((), (Decoded(logits[mine]),))
        found[rank] = parts[rank](view, output, step(reduce=together, world=2)).value

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(sum(found) / 2, loss(whole, logits, label))
    for part in parts:
        torch.testing.assert_close(part.state_dict(), whole.state_dict())


def test_the_statistic_is_in_the_state() -> None:
    assert set(term().state_dict()) == {"total", "seen"}
