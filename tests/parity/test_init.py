"""How parameters start, against statistics of the official ``init_weights()`` (one draw, so within sampling noise)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from parity import rule
from udaseg.models import renaming

STATS: dict[str, dict[str, Any]] = json.loads((rule.DATA / "init_stats.json").read_text())
SIGMAS = 7.0  # of two independent draws; a third of a per cent off shows only in large tensors, a wrong rule in all


def check(name: str, got: Tensor, expected: dict[str, Any]) -> None:
    """Constant where the official tensor is; else the mean and std of as many numbers from the same distribution."""
    assert list(got.shape) == expected["shape"], name
    mean, std = got.mean().item(), got.std().item()
    if expected["std"] == 0:
        assert std == 0 and mean == expected["mean"], name
        return
    n = got.numel()
    assert abs(mean - expected["mean"]) < SIGMAS * (2 / n) ** 0.5 * expected["std"], name
    assert std == pytest.approx(expected["std"], rel=SIGMAS * n**-0.5), name
    assert 0.6 < got.abs().max().item() / expected["absmax"] < 1.6, name


def check_model(stats: dict[str, Any], encoder: str, decoder: str, **options: Any) -> None:
    torch.manual_seed(0)
    state = rule.segmentor(encoder, decoder, **options).state_dict()
    names = renaming.public_names(stats, renaming.segmentor_parts(encoder, decoder))
    assert len(names) == len(stats) > 20
    for public, ours in names.items():
        check(public, state[ours], stats[public])


def test_daformer() -> None:
    check_model(STATS["daformer_mitb5"], "mit_b5", "daformer")


def test_deeplabv2() -> None:
    check_model(STATS["dlv2_r50"], "resnet50", "deeplabv2", dilations=(6, 12, 18, 24))


def test_scale_attention_of_hrda() -> None:
    """HRDA's attention is the DAFormer head with 1x1 fusion; its own statistics."""
    prefix = "decode_head.scale_attention."
    stats = {key.replace(prefix, "decode_head."): v for key, v in STATS["hrda_mitb5"].items() if key.startswith(prefix)}
    torch.manual_seed(0)
    state = rule.segmentor("mit_b1", "daformer", fusion="conv1").state_dict()
    names = renaming.public_names(stats, renaming.segmentor_parts("mit_b1", "daformer"))
    assert len(names) == 13
    for public, ours in names.items():
        check(public, state[ours], stats[public])


def test_heads_without_recorded_statistics_follow_their_rule() -> None:
    """SegFormer's classifier keeps PyTorch's default; DeepLab-V3+ starts kaiming fan_out, its classifier N(0, 0.01)."""
    torch.manual_seed(0)
    segformer = rule.segmentor("mit_b0", "segformer").decoder
    bound = 768**-0.5
    assert segformer.classifier.weight.abs().max() <= bound
    assert segformer.classifier.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    v3 = rule.segmentor("resnet50", "deeplabv3plus").decoder
    assert v3.context.bottleneck.conv.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert v3.refine[0].depthwise.conv.weight.std().item() == pytest.approx((2 / (560 * 9)) ** 0.5, rel=0.05)
    assert v3.context.bottleneck.conv.bias.abs().max() == 0
    assert v3.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
