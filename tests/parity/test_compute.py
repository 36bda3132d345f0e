"""Multiply-adds of networks at 512 x 512 (docs/fidelity.md, "Training step"); nothing is computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from parity.rule import segmentor
from udaseg.engine.profile import counting
from udaseg.models.multires import HRDA
from udaseg.models.zoo import DECODERS


def forward(module: Callable[..., object], *inputs: object) -> float:
    """G multiply-adds of one forward pass on the meta device."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize(
    ("encoder", "decoder", "body", "head"),
    [("mit_b5", "daformer", 69.4, 56.9), ("mit_b5", "segformer", 69.4, 40.5), ("resnet101", "deeplabv2", 178.5, 2.9)],
)
def test_forward_passes(encoder: str, decoder: str, body: float, head: float) -> None:
    with torch.device("meta"):
        model = segmentor(encoder, decoder).eval()
        image = torch.empty(1, 3, 512, 512)
        features = tuple(model.encoder(image))
    assert forward(model.encoder, image) == pytest.approx(body, abs=0.05)
    assert forward(model.decoder, features) == pytest.approx(head, abs=0.05)


def test_hrda_passes() -> None:
    """At B5, 2 images of 1024: a student pass 515, its backward twice that, the teacher 2536."""
    with torch.device("meta"):
        plain = segmentor("mit_b5", "daformer")
        shape = {"channels": plain.encoder.channels, "strides": plain.encoder.strides, "classes": 19}
        attention = DECODERS["daformer"](**shape, fusion="conv1")
        model = HRDA(encoder=plain.encoder, decoder=plain.decoder, attention=attention, crop=(1024, 1024))
        image = torch.empty(2, 3, 1024, 1024)
    assert forward(model, image) == pytest.approx(515, abs=1)
    with torch.no_grad():
        assert forward(model.infer, image) == pytest.approx(2536, abs=2)
    with counting() as phases:
        loss = torch.stack([p.logits.sum() for p in model(image).predictions]).sum()
        with phases("backward"):
            loss.backward()
    assert phases.spent["backward"] / 2e9 == pytest.approx(1030, rel=0.005)


@pytest.mark.parametrize("groups", [1, 8])
def test_a_backward_costs_twice_its_forward_also_for_depthwise_filters(groups: int) -> None:
    convolution = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
    image = torch.randn(2, 8, 16, 16, requires_grad=True)
    with counting() as phases:
        with phases("forward"):
            loss = convolution(image).sum()
        with phases("backward"):
            loss.backward()
    assert phases.spent["forward"] == 2 * 2 * 256 * 8 * (8 // groups) * 9
    assert phases.spent["backward"] == 2 * phases.spent["forward"]
