"""Public parameter names in terms of ours (docs/fidelity.md, "Models").

``backbone.*`` becomes ``encoder.*`` and ``decode_head.*`` becomes ``decoder.*`` (with HRDA also ``attention.*``).
Inside such a part, names change by the rules of its family.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

PREFIXES = ("module.", "model.", "backbone.", "segformer.", "encoder.")
"""What may stand before an encoder's names, in this order."""


class Part(NamedTuple):
    """A prefix in public checkpoints, the prefix here, and the family of rules for the names behind it."""

    public: str
    ours: str
    family: str


def segmentor_parts(encoder: str, decoder: str, *, hrda: bool = False) -> tuple[Part, ...]:
    """The parts of a segmentor by the names of the zoo; HRDA's attention is a second decoder of the same kind."""
    body = Part("backbone.", "encoder.", family(encoder))
    if not hrda:
        return body, Part("decode_head.", "decoder.", decoder)
    attention = Part("decode_head.scale_attention.", "attention.", decoder)
    return body, Part("decode_head.head.", "decoder.", decoder), attention


def family(encoder: str) -> str:
    """The rules for an encoder of the zoo: mit_b5 -> mit, resnet101 -> resnet. A decoder's name is its family."""
    return re.sub(r"^(mit|resnet).*", r"\1", encoder)


def from_public(state: Mapping[str, Tensor], parts: Iterable[Part]) -> dict[str, Tensor]:
    """A public segmentor's tensors under our names."""
    return {ours: state[public] for public, ours in public_names(state, parts).items()}


def public_names(names: Iterable[str], parts: Iterable[Part]) -> dict[str, str]:
    """Public name -> our name. Unused tensors are left out; names of no part stay, for a strict load to report."""
    table, parts = {}, tuple(parts)
    for name in names:
        part = next((part for part in parts if name.startswith(part.public)), None)
        if part is None:
            table[name] = name
        elif (inner := rename(name.removeprefix(part.public), part.family)) is not None:
            table[name] = part.ours + inner
    return table


def encoder_from_public(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The encoder's tensors of a public file, or of one of our own, under our names."""
    state = encoder_part(state)
    if any(name.startswith("stages.") for name in state):  # our own names
        return state
    renamed = {rename(name, family): tensor for name, tensor in joined(state).items()}
    return {name: tensor for name, tensor in renamed.items() if name is not None}


def encoder_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors without the prefixes of what is around it.

    Of a whole training checkpoint these are the student's (``model.``), not the teacher's (``ema_model.``).
    """
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return dict(state)


def joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's key and value as one "kv" tensor, keys first; everything else as it is."""
    whole = dict(state)
    for key in state:
        value = key.replace(".self.key.", ".self.value.")
        if value != key and value in state:
            whole[key.replace(".self.key.", ".self.kv.")] = torch.cat([whole.pop(key), whole.pop(value)])
    return whole


def rename(name: str, family: str) -> str | None:
    """A public name inside its part (no ``backbone.``) -> ours; None if the tensor has no use. Others stay as is."""
    for pattern, replacement in RULES[family]:
        if replacement is None:
            if re.search(pattern, name):
                return None
        else:
            name = re.sub(pattern, replacement, name)
    return name


Rule = tuple[str, str | Callable[[re.Match[str]], str] | None]  # pattern, replacement; None drops the tensor


def _less(template: str) -> Callable[[re.Match[str]], str]:
    """A replacement in which {0} is the first group minus one (public stages count from 1, ours from 0)."""
    return lambda match: template.format(int(match[1]) - 1, *match.groups()[1:])


def _stem(match: re.Match[str]) -> str:
    """Public stems count conv, norm, ReLU one by one."""
    index = int(match[1])
    return f"stem.{index // 3}.{'bn' if index % 3 else 'conv'}."


# Public block -> ours, for the heads: the outer name of a convolution module stays in front of "conv" or "bn".
SEPARABLE: tuple[Rule, ...] = ((r"\.depthwise_conv\.", ".depthwise."), (r"\.pointwise_conv\.", ".pointwise."))
CONV_SEG: Rule = (r"^conv_seg\.", "classifier.")

# MiT as Hugging Face names it, after ``joined``.
HF_MIT: tuple[Rule, ...] = (
    (r"^patch_embeddings\.(\d)\.", r"stages.\1.embed."),
    (r"^block\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^layer_norm\.(\d)\.", r"stages.\1.norm."),
    (r"\.embed\.layer_norm\.", ".embed.norm."),
    (r"\.layer_norm_(\d)\.", r".norm\1."),
    (r"\.attention\.self\.query\.", ".attn.q."),
    (r"\.attention\.self\.kv\.", ".attn.kv."),
    (r"\.attention\.self\.sr\.", ".attn.reduce."),
    (r"\.attention\.self\.layer_norm\.", ".attn.reduce_norm."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.mlp\.dense(\d)\.", r".mlp.fc\1."),
)

RULES: dict[str, tuple[Rule, ...]] = {
    "mit": (
        (r"^head\.", None),
        (r"^patch_embed(\d)\.", _less("stages.{0}.embed.")),
        (r"^norm(\d)\.", _less("stages.{0}.norm.")),
        (r"^block(\d)\.(\d+)\.", _less("stages.{0}.blocks.{1}.")),
        (r"\.attn\.sr\.", ".attn.reduce."),
        (r"\.attn\.norm\.", ".attn.reduce_norm."),
        (r"\.mlp\.dwconv\.dwconv\.", ".mlp.mix."),
        *HF_MIT,
    ),
    "resnet": (
        (r"^fc\.", None),
        (r"^(conv|bn)1\.", r"stem.\1."),
        (r"^stem\.(\d)\.", _stem),
        (r"^layer(\d)\.", _less("stages.{0}.")),
        (r"\.(conv|bn)1\.", r".reduce.\1."),
        (r"\.(conv|bn)2\.", r".conv.\1."),
        (r"\.(conv|bn)3\.", r".expand.\1."),
        (r"\.downsample\.0\.", ".shortcut.conv."),
        (r"\.downsample\.1\.", ".shortcut.bn."),
    ),
    "daformer": (
        CONV_SEG,
        (r"^embed_layers\.(\d)\.proj\.", r"embed.linears.\1."),
        (r"^fuse_layer\.aspp_modules\.", "fuse.branches."),
        (r"^fuse_layer\.", "fuse."),
        *SEPARABLE,
    ),
    "segformer": (
        (r"^conv_seg\.", None),  # never used, of a wrong size
        (r"^linear_c\.(\d)\.proj\.", r"embed.linears.\1."),
        (r"^linear_fuse\.", "fuse."),
        (r"^linear_pred\.", "classifier."),
    ),
    "deeplabv2": ((r"^aspp_modules\.(\d)\.conv\.", r"branches.\1."),),
    "deeplabv3plus": (
        CONV_SEG,
        (r"^image_pool\.1\.", "context.pool."),
        (r"^aspp_modules\.", "context.branches."),
        (r"^bottleneck\.", "context.bottleneck."),
        (r"^c1_bottleneck\.", "detail."),
        (r"^sep_bottleneck\.", "refine."),
        *SEPARABLE,
    ),
}
