"""Which network a public checkpoint of the DAFormer family holds, by the names and shapes of its tensors alone.

Depths and widths give the encoder, the names inside ``decode_head.`` the decoder and its settings; there is a
``decode_head.head.`` with HRDA. Settings without a tensor (dropout, dilations of an ASPP) are the published ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from udaseg.models.zoo import ENCODERS

Tensors = Mapping[str, Tensor]

HRDA_HEAD = "decode_head.head."
STAGES = (1, 2, 3, 4)
DILATIONS = {2: (6, 12), 4: (6, 12, 18, 24)}
"""Of DeepLab-V2, by the number of its branches."""
FUSIONS = {"aspp_modules.1.depthwise_conv.conv": "sep_aspp", "aspp_modules.1.conv": "aspp", "conv": "conv1"}
"""A layer inside DAFormer's ``fuse_layer.`` -> its setting ``fusion``; the first that is there decides."""
OTHERS = {
    "fuse_layer.global_relation.": "daformer_isa",
    "embed_layers.3.1.aspp_modules.": "daformer_sepaspp_bottleneck",
}
"""Layers of heads in DAFormer's decoder study that the zoo does not have -> their public names."""


@dataclass(frozen=True)
class Network:
    """Encoder and decoder as a recipe writes them, None if the zoo has no such component; outputs of the last layer.

    ``other_decoder``: the public name of a decoder that is known, but not in the zoo.
    """

    encoder: dict[str, Any] | None
    decoder: dict[str, Any] | None
    hrda: bool
    classes: int | None
    other_decoder: str | None = None


def one_network(state: Tensors, *, teacher: bool) -> dict[str, Tensor]:
    """Student or teacher of a training checkpoint; a segmentor by itself is a student. Empty if it is not there."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
    return _inside(state, "ema_model." if teacher else "model.") or ({} if teacher else state)


def recognise(state: Tensors) -> Network:
    """The network of a segmentor's tensors (names ``backbone.*``, ``decode_head.*``)."""
    hrda = any(name.startswith(HRDA_HEAD) for name in state)
    head = _inside(state, HRDA_HEAD if hrda else "decode_head.")
    other = next((OTHERS[layer] for layer in OTHERS if any(name.startswith(layer) for name in head)), None)
    decoder = None if other else _decoder_of(head)
    return Network(encoder_of(_inside(state, "backbone.")), decoder, hrda, _classes_of(head), other)


def encoder_of(state: Tensors) -> dict[str, Any] | None:
    """By blocks a stage and, for MiT, channels a stage."""
    blocks = {(int(m[1]), int(m[2])) for name in state if (m := re.match(r"(?:block|layer)(\d)\.(\d+)\.", name))}
    settings: dict[str, Any] = {"depths": tuple(sum(stage == s for stage, _ in blocks) for s in STAGES)}
    embeds = [f"patch_embed{s}.proj.weight" for s in STAGES]
    if all(name in state for name in embeds):
        settings["widths"] = tuple(_side(state[name], 0) for name in embeds)
    kind = next((name for name, row in ENCODERS.items() if getattr(row, "keywords", None) == settings), None)
    if kind is None:
        return None
    return {"kind": kind, "stem": "plain"} if "conv1.weight" in state else {"kind": kind}


def _decoder_of(head: Tensors) -> dict[str, Any] | None:
    """By the names of its layers; widths from their shapes."""
    if "linear_c.0.proj.weight" in head and "linear_pred.weight" in head:
        return {"kind": "segformer", "width": _side(head["linear_pred.weight"], 1)}
    fusion = next((value for layer, value in FUSIONS.items() if f"fuse_layer.{layer}.weight" in head), None)
    if fusion and "embed_layers.0.proj.weight" in head:
        return {"kind": "daformer", "width": _side(head["embed_layers.0.proj.weight"], 0), "fusion": fusion}
    if "image_pool.1.conv.weight" in head and "c1_bottleneck.conv.weight" in head:
        return {
            "kind": "deeplabv3plus",
            "width": _side(head["image_pool.1.conv.weight"], 0),
            "detail_width": _side(head["c1_bottleneck.conv.weight"], 0),
            "norm": "image_pool.1.bn.weight" in head,
        }
    branches = sum(re.fullmatch(r"aspp_modules\.\d\.conv\.weight", name) is not None for name in head)
    if branches in DILATIONS and "conv_seg.weight" not in head:
        return {"kind": "deeplabv2", "dilations": DILATIONS[branches]}
    return None


def _classes_of(head: Tensors) -> int | None:
    """Outputs of the classifier; DeepLab-V2 has no other layers."""
    last = next((head[name] for name in ("conv_seg.weight", "aspp_modules.0.conv.weight") if name in head), None)
    return None if last is None else _side(last, 0)


def _side(tensor: Tensor, axis: int) -> int:
    """A side of a tensor; 0, which no layer has, where it has too few axes."""
    return tensor.shape[axis] if tensor.ndim > axis else 0


def _inside(state: Tensors, prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
