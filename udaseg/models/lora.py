"""Low-rank adapters for a frozen network: y = W x + B A x (Hu et al., ICLR 2022, section 4.1).

The paper scales B A by alpha / rank; here alpha is the rank, so the scale is 1. A is initialised Kaiming uniform and B
with zeros, so the adapted network starts as the same function. The tensors of adapted layers keep their names, so
weights files of the bare network fit.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

ADAPTED = ("qkv", "q", "k", "v", "kv", "q_proj", "k_proj", "v_proj", "proj")
"""Linear layers inside a module called attn, as timm calls them."""


class LowRankLinear(nn.Linear):
    """A frozen linear layer and its adapter; ``down`` (rank, inputs) is A, ``up`` (outputs, rank) is B."""

    def __init__(self, linear: nn.Linear, *, rank: int) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.down = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.down), self.up)


def adapt(network: nn.Module, *, rank: int) -> None:
    """Freeze the network and put an adapter on every linear layer of its attention, in place.

    Raises ValueError if it has none.
    """
    network.requires_grad_(False)
    attentions = [module for name, module in network.named_modules() if name.endswith("attn")]
    layers = [(at, name) for at in attentions for name in ADAPTED if type(getattr(at, name, None)) is nn.Linear]
    if not layers:
        raise ValueError("tune=lora needs attention with linear layers, which it does not have; allowed: full, frozen")
    for parent, name in layers:
        setattr(parent, name, LowRankLinear(getattr(parent, name), rank=rank))
        if hasattr(parent, "qkv_bias_separate"):  # else timm uses the weight without calling the layer
            parent.qkv_bias_separate = True


def is_adapter(name: str) -> bool:
    """Does a parameter's name belong to an adapter?"""
    return name.endswith((".down", ".up"))
