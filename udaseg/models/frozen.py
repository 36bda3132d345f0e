"""An encoder that never changes: the ImageNet reference of feature distances (baselines.md 5.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """A module in eval mode for good, without gradient, whatever the modules around it are told."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module(image))
