"""Parameter groups and learning rate (docs/fidelity.md, "Optimisation").

Three groups instead of the public code's one for each of 3258 tensors: ``base``, ``norm`` (no weight decay; only where
the encoder asks for it: MiT's LayerNorms) and ``head`` (everything that is not pretrained: learning rate x 10,
decayed, its BatchNorm included). An encoder may scale the rates of its layers, which are groups of their own then. A
term's own parameters follow the head unless the term has a ``learning_rate``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from udaseg.core.step import Learner


def parameter_groups(
    learner: Learner,
    *,
    lr: float,
    weight_decay: float,
    head_lr_factor: float = 10.0,
    decay_one_dimensional: bool = True,
) -> list[dict[str, Any]]:
    """Groups for the optimiser, each with its name and ``initial_lr``; empty ones are left out."""
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for name, parameter, rate in trained(learner, lr, lr * head_lr_factor):
        decay = 0.0 if name == "norm" or (parameter.ndim <= 1 and not decay_one_dimensional) else weight_decay
        groups.setdefault((name, rate, decay), []).append(parameter)
    return [
        {"params": parameters, "name": name, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (name, rate, decay), parameters in groups.items()
    ]


def trained(learner: Learner, base: float, head: float) -> list[tuple[str, nn.Parameter, float]]:
    """(group, parameter, learning rate) of everything that has a gradient."""
    encoder = learner.segmentor.encoder
    exempt = encoder.no_weight_decay()
    trained_parameters: list[tuple[str, nn.Parameter, float]] = []
    for name, parameter in learner.segmentor.named_parameters():
        inner = name.removeprefix("encoder.")
        scale = None if inner == name else encoder.learning_rate_scale(inner)
        group = "head" if scale is None else "norm" if inner in exempt else "base"
        trained_parameters.append((group, parameter, head if scale is None else base * scale))
    for term in learner.terms():
        rate = head if term.learning_rate is None else term.learning_rate
        trained_parameters += [("term", parameter, rate) for parameter in term.parameters()]
    return [(group, parameter, rate) for group, parameter, rate in trained_parameters if parameter.requires_grad]


def adamw(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """AdamW, betas (0.9, 0.999), eps 1e-8, in one fused kernel a group."""
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)


@dataclass(frozen=True)
class PolyWarmup:
    """reg(t) = (b - min)(1 - t/T)^power + min; lr(t) = reg(t) (1 - (1 - t/warmup)(1 - 1e-6)) if t < warmup.

    The warm-up multiplies the already decayed rate, t counts from 0 and the rate is set before iteration t. Without
    warm-up the public code has ``minimum`` 1e-4, above its base rate, which then *rises* (trap 33).
    """

    iterations: int
    warmup: int = 1500
    power: float = 1.0
    minimum: float = 0.0

    def rate(self, base: float, t: int) -> float:
        decayed = (base - self.minimum) * (1 - t / self.iterations) ** self.power + self.minimum
        if t < self.warmup:
            return decayed * (1 - (1 - t / self.warmup) * (1 - 1e-6))
        return decayed

    def apply(self, optimiser: torch.optim.Optimizer, t: int) -> None:
        for group in optimiser.param_groups:
            group["lr"] = self.rate(group["initial_lr"], t)
