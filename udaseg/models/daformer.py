"""The DAFormer head: context-aware fusion of all encoder levels by a separable ASPP (Hoyer et al., CVPR 2022).

``fusion="sep_aspp"`` is the published head; the two others are rows of the paper's decoder study, and ``"conv1"`` is
also HRDA's scale attention. Same function and parameters as the public code (docs/fidelity.md, "Models"): levels are
concatenated finest first, and the embeddings keep PyTorch's default initialisation.

Shapes: B images, C_i channels of level i, D = width, K classes. h x w is the first map (stride 4 in MiT).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from udaseg.models.blocks import ASPP, ConvBNReLU, classifier, resize
from udaseg.models.segmentor import FusingDecoder

Fusion = Literal["sep_aspp", "aspp", "conv1"]


class Embed(nn.Module):
    """One linear layer a level, each result resized to the first map; concatenated, finest first."""

    def __init__(self, channels: Sequence[int], *, width: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(c, width) for c in channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(B, C_i, h_i, w_i) each -> (B, levels * D, h, w)."""
        size = features[0].shape[-2:]
        levels = []
        for linear, feature in zip(self.linears, features, strict=True):
            level = linear(feature.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, D, h_i, w_i)
            levels.append(resize(level, size).to(level.dtype))  # autocast resizes in float32
        return torch.cat(levels, dim=1)


class DAFormerHead(FusingDecoder):
    """Encoder maps -> logits (B, K, h, w) at the first map's stride."""

    attention_settings: ClassVar[Mapping[str, Any]] = {"fusion": "conv1"}

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        classes: int,
        *,
        width: int = 256,
        fusion: Fusion = "sep_aspp",
        dilations: tuple[int, ...] = (1, 6, 12, 18),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = Embed(channels, width=width)
        wide = width * len(channels)
        self.fuse: nn.Module
        if fusion == "conv1":
            self.fuse = ConvBNReLU(wide, to=width)
        elif fusion in ("sep_aspp", "aspp"):
            self.fuse = ASPP(wide, to=width, dilations=dilations, separable=fusion == "sep_aspp")
        else:
            raise ValueError(f"fusion {fusion!r}: allowed are sep_aspp, aspp, conv1")
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width, classes=classes)

    def fused(self, features: tuple[Tensor, ...]) -> Tensor:
        """(B, D, h, w)."""
        return self.fuse(self.embed(features))
