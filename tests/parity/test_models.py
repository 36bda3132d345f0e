"""Networks with rule weights against the public implementation: outputs, statistics, parameter counts, key sets.

Tolerances are those of the fixtures' README (section 1): 2e-5 for MiT and its heads, 1e-4 for ResNets, 5 argmax pixels.
Set UDASEG_PARITY_REPORT=1 (and ``pytest -s``) to print the largest deviations.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parity import rule
from udaseg.models import renaming
from udaseg.models.segmentor import upsample
from udaseg.models.zoo import DECODERS, ENCODERS

STATS: dict[str, dict[str, Any]] = json.loads((rule.DATA / "models_stats.json").read_text())
OPTIM: dict[str, Any] = json.loads((rule.DATA / "optim_daformer.json").read_text())
MIT_ATOL, RESNET_ATOL, PIXELS = 2e-5, 1e-4, 5
MIT_PARAMETERS = [3_319_392, 13_151_424, 24_196_288, 44_072_128, 60_842_688, 81_443_008]
DLV2 = {"dilations": (6, 12, 18, 24)}
SEGMENTORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "daformer_sepaspp_mitb5": ("mit_b5", "daformer", {}),
    "segformer_mitb5": ("mit_b5", "segformer", {}),
    "dlv2_r50": ("resnet50", "deeplabv2", DLV2),
    "dlv2red_r50": ("resnet50", "deeplabv2", {}),
    "dlv3p_r50": ("resnet50", "deeplabv3plus", {"norm": True}),
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def sampled(map_: Tensor, name: str) -> np.ndarray:
    """Strided as the array's name says: ``_c8`` channels, ``_hw2`` cells."""
    strides = {kind: int(step) for kind, step in re.findall(r"_(c|hw)(\d+)", name)}
    c, hw = strides.get("c", 1), strides.get("hw", 1)
    return map_[:, ::c, ::hw, ::hw].numpy()


def check(fixture: str, name: str, got: Tensor, atol: float) -> None:
    with np.load(rule.DATA / f"{fixture}.npz") as arrays:
        expected = arrays[name]
    actual = sampled(got, name)
    assert actual.shape == expected.shape
    if os.environ.get("UDASEG_PARITY_REPORT"):
        print(f"\n{fixture} {name}: {np.abs(actual - expected).max():.2e}", end="")
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=f"{fixture} {name}")


def rule_encoder(name: str, shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """A bare encoder with the weights of public keys ``backbone.*``; strict."""
    state = {key: rule.tensor(key, shape) for key, shape in shapes.items()}
    with torch.device("meta"):
        encoder = ENCODERS[name]()
    part = renaming.Part("backbone.", "", renaming.family(name))
    encoder.load_state_dict(renaming.from_public(state, [part]), strict=True, assign=True)
    return encoder.eval()


def r101_shapes() -> dict[str, tuple[int, ...]]:
    """R101 is R50 with the third stage's plain block repeated up to index 22."""
    r50 = {key: shape for key, shape in rule.public_shapes("dlv2_r50").items() if key.startswith("backbone.")}
    block = {key: shape for key, shape in r50.items() if ".layer3.5." in key}
    more = {key.replace(".5.", f".{i}.", 1): shape for i in range(6, 23) for key, shape in block.items()}
    return r50 | more


def check_statistics(model: str, maps: tuple[Tensor, ...], prefix: str) -> None:
    for i, map_ in enumerate(maps, start=1):
        expected = STATS[model][f"{prefix}{i}"]
        assert list(map_.shape) == expected["shape"]
        assert map_.mean().item() == pytest.approx(expected["mean"], abs=1e-5)
        assert map_.std().item() == pytest.approx(expected["std"], rel=1e-5)
        assert map_.abs().max().item() == pytest.approx(expected["absmax"], abs=1e-4)


@pytest.mark.parametrize("n", [pytest.param(n, marks=pytest.mark.slow) if n in (3, 4) else n for n in range(6)])
@torch.no_grad()
def test_mit(n: int) -> None:
    """All sizes by statistics and count, B0, B2 and B5 value by value; the public key set loads strictly."""
    name = f"mit_b{n}"
    encoder = rule_encoder(name, rule.public_shapes(name))
    assert count(encoder) == MIT_PARAMETERS[n] == STATS[name]["params"]
    maps = encoder(rule.image(f"input/{name}", (1, 3, 128, 128)))
    check_statistics(name, maps, "f")
    if n in (0, 2, 5):
        for i, array in enumerate(("f1_c4", "f2_c2", "f3", "f4")):
            check(name, array, maps[i], MIT_ATOL)


@pytest.mark.parametrize("name", ["daformer_sepaspp_mitb5", "segformer_mitb5"])
@torch.no_grad()
def test_mit_segmentors(name: str) -> None:
    encoder, decoder, options = SEGMENTORS[name]
    model = rule.rule_segmentor(name, encoder, decoder, **options)
    logits = model(rule.image("input/daformer", (2, 3, 64, 128))).predictions[0].logits
    check(name, "logits", logits, MIT_ATOL)
    full = upsample(logits, (64, 128))
    check(name, "full_hw4", full, MIT_ATOL)
    with np.load(rule.DATA / f"{name}.npz") as arrays:
        assert int((full.argmax(1).numpy() != arrays["argmax"]).sum()) <= PIXELS


@pytest.mark.parametrize("name", ["dlv2_r50", "dlv2red_r50", "dlv3p_r50"])
@torch.no_grad()
def test_resnet_segmentors(name: str) -> None:
    encoder, decoder, options = SEGMENTORS[name]
    model = rule.rule_segmentor(name, encoder, decoder, **options)
    output = model(rule.image("input/resnet", (1, 3, 128, 128)))
    maps = output.branches[0].features
    check_statistics(name, maps, "c")
    for i, array in enumerate(("c1_c8_hw2", "c2_c8", "c3_c16", "c4_c32")):
        check(name, array, maps[i], RESNET_ATOL)
    check(name, "logits", output.predictions[0].logits, RESNET_ATOL)


@torch.no_grad()
def test_resnet101() -> None:
    encoder = rule_encoder("resnet101", r101_shapes())
    assert count(encoder) == 42_519_392
    check_statistics("dlv2_r101", encoder(rule.image("input/resnet", (1, 3, 128, 128))), "c")


MIT_SHAPE: dict[str, Any] = {"channels": (64, 128, 320, 512), "strides": (4, 8, 16, 32), "classes": 19}
RESNET_SHAPE: dict[str, Any] = {"channels": (256, 512, 1024, 2048), "strides": (4, 8, 8, 8), "classes": 19}


@pytest.mark.parametrize(
    ("decoder", "shape", "options", "expected"),
    [
        ("daformer", MIT_SHAPE, {}, 3_712_275),
        ("daformer", MIT_SHAPE, {"fusion": "conv1"}, 530_707),
        ("daformer", MIT_SHAPE, {"fusion": "aspp"}, 9_969_939),
        ("segformer", MIT_SHAPE, {}, 3_167_398 - (128 * 19 + 19)),  # the public head counts its unused conv_seg
        ("deeplabv2", RESNET_SHAPE, {}, 700_454),
        ("deeplabv2", RESNET_SHAPE, DLV2, 2 * 700_454),
        ("deeplabv3plus", RESNET_SHAPE, {}, 17_686_563),
        ("deeplabv3plus", RESNET_SHAPE, {"norm": True}, STATS["dlv3p_r50"]["params"] - 23_527_264),
    ],
)
def test_head_parameters(decoder: str, shape: dict[str, Any], options: dict[str, Any], expected: int) -> None:
    with torch.device("meta"):
        assert count(DECODERS[decoder](**shape, **options)) == expected


@pytest.mark.parametrize(
    ("encoder", "decoder", "expected"),
    [
        ("mit_b3", "daformer", MIT_PARAMETERS[3] + 3_712_275),
        ("mit_b4", "daformer", MIT_PARAMETERS[4] + 3_712_275),
        ("mit_b5", "daformer", 85_155_283),
        ("mit_b5", "segformer", 84_610_406 - 2_451),
        ("resnet101", "deeplabv2", 43_219_846),
        ("resnet50", "deeplabv2", 24_227_718),
    ],
)
def test_total_parameters(encoder: str, decoder: str, expected: int) -> None:
    with torch.device("meta"):
        assert count(rule.segmentor(encoder, decoder)) == expected


@pytest.mark.parametrize("n", range(6))
def test_public_encoder_keys_load_completely(n: int) -> None:
    with torch.device("meta"):
        encoder = ENCODERS[f"mit_b{n}"]()
    public = rule.public_shapes(f"mit_b{n}")
    names = renaming.public_names(public, [renaming.Part("backbone.", "", "mit")])
    assert {ours: public[key] for key, ours in names.items()} == {
        key: tuple(value.shape) for key, value in encoder.state_dict().items()
    }


def test_a_name_of_no_part_is_kept_for_the_strict_load_to_report() -> None:
    parts = renaming.segmentor_parts("mit_b5", "daformer")
    assert renaming.public_names(["neck.conv.weight"], parts) == {"neck.conv.weight": "neck.conv.weight"}


def test_no_weight_decay_is_the_official_group() -> None:
    """The parameters that the official DAFormer optimizer leaves undecayed, name by name."""
    official = {key.removeprefix("model.") for key, (_, decay) in OPTIM["params"].items() if decay == 0}
    parts = renaming.segmentor_parts("mit_b5", "daformer")
    with torch.device("meta"):
        model = rule.segmentor("mit_b5", "daformer")
    ours = {f"encoder.{name}" for name in model.encoder.no_weight_decay()}  # type: ignore[operator]
    assert ours == set(renaming.public_names(official, parts).values())
    assert len(ours) == 322 and ours <= dict(model.named_parameters()).keys()


def test_resnet_decays_everything() -> None:
    with torch.device("meta"):
        assert ENCODERS["resnet50"]().no_weight_decay() == set()
