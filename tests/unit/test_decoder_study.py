"""Heads of DAFormer's decoder study that do not exist here are refused by name, not taken for a similar one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity.rule import public_shapes
from torch import Tensor

from udaseg.commands.importing import recipe_of
from udaseg.errors import UserError
from udaseg.models.recognise import recognise

FILE = Path("latest.pth")
BODY = {k: s for k, s in public_shapes("daformer_sepaspp_mitb5").items() if "fuse_layer" not in k}
RELATIONS = [f"{part}.{layer}" for part in ("global_relation", "local_relation") for layer in ("key_project.0", "out")]


def meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def isa() -> dict[str, tuple[int, ...]]:
    """Fusion by a 1x1 convolution and two self-attentions."""
    layers = {f"decode_head.fuse_layer.{layer}.conv.weight": (256, 256, 1, 1) for layer in RELATIONS}
    return {**BODY, "decode_head.fuse_layer.in_conv.conv.weight": (256, 1024, 1, 1), **layers}


def bottleneck() -> dict[str, tuple[int, ...]]:
    """Context on the last map only: its embedding is a convolution and an ASPP, the fusion that of conv1."""
    shapes = {name: shape for name, shape in BODY.items() if "embed_layers.3." not in name}
    last = "decode_head.embed_layers.3"
    shapes[f"{last}.0.weight"] = (256, 512, 1, 1)
    shapes[f"{last}.1.aspp_modules.0.conv.weight"] = (256, 256, 1, 1)
    shapes[f"{last}.1.bottleneck.conv.weight"] = (256, 1024, 3, 3)
    shapes["decode_head.fuse_layer.conv.weight"] = (256, 1024, 1, 1)
    return shapes


@pytest.mark.parametrize(
    ("shapes", "name"), [(isa(), "daformer_isa"), (bottleneck(), "daformer_sepaspp_bottleneck")], ids=["isa", "context"]
)
def test_import_refuses_it_by_its_name(shapes: dict[str, tuple[int, ...]], name: str) -> None:
    network = recognise(meta(shapes))
    assert (network.decoder, network.other_decoder) == (None, name)
    assert network.encoder == {"kind": "mit_b5"} and network.classes == 19
    with pytest.raises(UserError, match=f"latest.pth: its decoder is {name} of DAFormer's decoder study.*conv1"):
        recipe_of(network, None, None, benchmark="gta5_cityscapes", file=FILE)
    chosen = recipe_of(network, None, "segformer", benchmark="gta5_cityscapes", file=FILE)
    assert chosen.model.decoder["kind"] == "segformer"


def test_the_heads_that_exist_are_not_among_them() -> None:
    conv1 = {**BODY, "decode_head.fuse_layer.conv.weight": (256, 1024, 1, 1)}
    for shapes in (public_shapes("daformer_sepaspp_mitb5"), conv1):
        network = recognise(meta(shapes))
        assert network.other_decoder is None and network.decoder is not None
