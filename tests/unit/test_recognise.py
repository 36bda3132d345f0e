"""Which network a public checkpoint holds: every fixture's key set, and what is no network of ours."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from parity.rule import public_shapes
from parity.test_models import DLV2, r101_shapes
from torch import Tensor

from udaseg.engine.networks import segmentor
from udaseg.models.recognise import Network, encoder_of, one_network, recognise
from udaseg.models.renaming import public_names, segmentor_parts

DAFORMER: dict[str, Any] = {"kind": "daformer", "width": 256, "fusion": "sep_aspp"}
V3PLUS: dict[str, Any] = {"kind": "deeplabv3plus", "width": 512, "detail_width": 48}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "daformer_sepaspp_mitb5": ("mit_b5", DAFORMER),
    "hrda_daformer_sepaspp_mitb0": ("mit_b0", DAFORMER),
    "hrda_daformer_sepaspp_mitb5": ("mit_b5", DAFORMER),
    "segformer_mitb5": ("mit_b5", {"kind": "segformer", "width": 768}),
    "dlv2_r50": ("resnet50", {"kind": "deeplabv2", **DLV2}),
    "dlv2red_r50": ("resnet50", {"kind": "deeplabv2", "dilations": (6, 12)}),
    "dlv3p_r50": ("resnet50", {**V3PLUS, "norm": True}),
}


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def fits(found: Network, state: dict[str, Tensor]) -> None:
    """The network that was recognised has just these names and shapes."""
    assert found.encoder and found.decoder and found.classes
    with torch.device("meta"):
        wrapper = {"kind": "hrda"} if found.hrda else None
        module = segmentor(found.encoder, found.decoder, found.classes, wrapper=wrapper, crop=(128, 128))
    parts = segmentor_parts(found.encoder["kind"], found.decoder["kind"], hrda=found.hrda)
    names = public_names(state, parts)
    ours = {name: state[public].shape for public, name in names.items()}
    assert ours == {name: value.shape for name, value in module.state_dict().items()} and len(ours) == len(names)
    unused = {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}  # nothing uses SegFormer's
    assert set(state) - set(names) == (unused if found.decoder["kind"] == "segformer" else set())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_public_key_set(name: str) -> None:
    encoder, decoder = NETWORKS[name]
    state = tensors(public_shapes(name))
    found = recognise(state)
    assert found == Network({"kind": encoder}, decoder, name.startswith("hrda"), 19)
    fits(found, state)


def test_hrda_on_deeplab_and_v3plus_without_norms() -> None:
    """Key sets that no fixture has, made from those that are there."""
    v2 = public_shapes("dlv2red_r50")
    twice = {k.replace("decode_head.", f"decode_head.{part}."): v for k, v in v2.items() for part in HRDA_PARTS}
    found = recognise(tensors(twice))
    assert (found.hrda, found.decoder) == (True, {"kind": "deeplabv2", "dilations": (6, 12)})
    fits(found, tensors(twice))
    v3 = {k: v for k, v in public_shapes("dlv3p_r50").items() if not re.match(r"decode_head.*\.bn\.", k)}
    v3 |= {
        key.replace(".weight", ".bias"): shape[:1]
        for key, shape in v3.items()
        if key.startswith("decode_head.") and key.endswith(".conv.weight")
    }
    found = recognise(tensors(v3))
    assert found.decoder == {**V3PLUS, "norm": False}
    fits(found, tensors(v3))


HRDA_PARTS = ("head", "scale_attention")


@pytest.mark.parametrize("fusion", ["aspp", "conv1"])
def test_other_rows_of_daformers_decoder_study(fusion: str) -> None:
    state = {k: v for k, v in public_shapes("daformer_sepaspp_mitb5").items() if "fuse_layer" not in k}
    layer = "conv" if fusion == "conv1" else "aspp_modules.1.conv"
    state[f"decode_head.fuse_layer.{layer}.weight"] = (256, 1024, 1, 1)
    assert recognise(tensors(state)).decoder == {**DAFORMER, "fusion": fusion}


def test_every_encoder() -> None:
    for n in range(6):
        state = tensors({k.removeprefix("backbone."): v for k, v in public_shapes(f"mit_b{n}").items()})
        assert encoder_of(state) == {"kind": f"mit_b{n}"}
    r101 = tensors({k.removeprefix("backbone."): v for k, v in r101_shapes().items()})
    assert encoder_of(r101) == {"kind": "resnet101"}
    plain = {key: value for key, value in r101.items() if not key.startswith("stem.")}
    plain["conv1.weight"] = torch.empty(64, 3, 7, 7, device="meta")
    assert encoder_of(plain) == {"kind": "resnet101", "stem": "plain"}


def test_what_is_not_ours_is_not_taken_for_something_similar() -> None:
    shapes = public_shapes("daformer_sepaspp_mitb5")
    deeper = shapes | {k.replace("block2.5.", "block2.6."): v for k, v in shapes.items() if "block2.5." in k}
    wider = shapes | {"backbone.patch_embed4.proj.weight": (640, 320, 3, 3)}
    isa = {k.replace("fuse_layer.aspp_modules", "fuse_layer.isa"): v for k, v in shapes.items()}
    three = {k: v for k, v in public_shapes("dlv2_r50").items() if "aspp_modules.3." not in k}
    assert recognise(tensors(deeper)).encoder is None and recognise(tensors(wider)).encoder is None
    assert recognise(tensors(isa)).decoder is None and recognise(tensors(three)).decoder is None
    v3 = {f"decode_head.aspp_modules.{i}.conv.weight": (512, 2048, 3, 3) for i in range(4)}
    v3 |= {"decode_head.image_pool.1.conv.weight": (512, 2048, 1, 1), "decode_head.conv_seg.weight": (19, 512, 1, 1)}
    assert recognise(tensors(v3)).decoder is None
    original = {k.replace("linear_c.", "linear_c"): v for k, v in public_shapes("segformer_mitb5").items()}
    assert recognise(tensors(original)).decoder is None  # SegFormer's own files join the levels the other way round


def test_student_and_teacher_of_a_training_checkpoint() -> None:
    state = {f"{net}.backbone.x": torch.tensor(i) for i, net in enumerate(("model", "ema_model", "imnet_model"))}
    assert one_network(state, teacher=False) == {"backbone.x": 0} and one_network(state, teacher=True) == {
        "backbone.x": 1
    }
    bare = {"backbone.x": torch.tensor(5)}
    assert one_network(bare, teacher=False) == {"backbone.x": 5} and one_network(bare, teacher=True) == {}
    assert one_network({f"module.{key}": value for key, value in state.items()}, teacher=True) == {"backbone.x": 1}
