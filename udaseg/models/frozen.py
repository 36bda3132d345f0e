"""An encoder that never changes, for losses that compare features with a pretrained encoder's."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """An encoder without gradient that stays in eval mode when the modules around it are set to train mode."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module(image))
