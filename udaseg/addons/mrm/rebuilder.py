"""The Rebuilder: fills masked places of feature maps in from the places that are left (MRM, section 3.3).

Training only: it belongs to a loss term, so it is never exported and has no moving average.

Shapes: B images, C channels of the last map, D embedding, g x g cells of the grid, N = g g tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.plugin import Assumption, resize


class Rebuilder(nn.Module):
    """The last feature map, masked on a grid -> what every one of ``projectors`` makes of the rebuilt tokens.

    ``channels``: C of the last map. ``projectors``: modules from (B, D, g, g) to maps, resized if they do not fit.
    """

    position: Tensor

    def __init__(
        self, channels: int, *, projectors: Sequence[nn.Module], embed_dim: int, blocks: int, heads: int, grid: int
    ) -> None:
        super().__init__()
        if embed_dim % 4 or embed_dim % heads:
            raise ValueError(f"embed_dim {embed_dim}: a multiple of 4 and of heads = {heads} is expected")
        self.grid = grid
        self.embed = nn.Linear(channels, embed_dim)
        self.token = nn.Parameter(torch.empty(embed_dim).normal_(std=0.02))
        self.register_buffer("position", sine_positions(grid, embed_dim), persistent=False)
        self.blocks = nn.Sequential(*(TokenBlock(embed_dim, heads=heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(embed_dim)
        self.projectors = nn.ModuleList(projectors)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, last: Tensor, keep: Tensor, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Last map (B, C, h, w), ``keep`` (B, 1, g, g) bool, False where masked; ``sizes``: of every projection."""
        x = self.embed(last.movedim(1, -1)).movedim(-1, 1)  # (B, D, h, w)
        x = resize(x, (self.grid, self.grid)).flatten(2).transpose(1, 2)  # (B, N, D)
        x = torch.where(keep.flatten(2).transpose(1, 2), x, self.token)
        x = self.norm(self.blocks(x + self.position))
        x = x.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # (B, D, g, g)
        return [resize(projector(x), size) for projector, size in zip(self.projectors, sizes, strict=True)]


class TokenBlock(nn.Module):
    """Pre-norm transformer block: (B, N, D) -> (B, N, D)."""

    def __init__(self, channels: int, *, heads: int, ratio: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, ratio * channels), nn.GELU(), nn.Linear(ratio * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Projector(nn.Module):
    """Tokens (B, D, g, g) -> one feature map (B, C_i, h_i, w_i).

    One transposed convolution for every doubling between ``grid`` and the map's ``side`` (its rows at the training
    crop); widths D/2, then D/4. What is left to the map's size is the Rebuilder's, bilinear.
    """

    def __init__(self, embed_dim: int, *, to: int, grid: int, side: int) -> None:
        super().__init__()
        doublings = max(round(math.log2(side / grid)), 0)
        widths = [embed_dim, embed_dim // 2, *[embed_dim // 4] * doublings][: doublings + 1]
        layers: list[nn.Module] = []
        for narrow, wide in zip(widths[1:], widths, strict=False):
            layers += [ChannelNorm(wide), nn.GELU()] if layers else []
            layers.append(nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1))
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], to, 1), ChannelNorm(to))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ChannelNorm(nn.LayerNorm):
    """Over the channels of every cell of (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def sine_positions(grid: int, channels: int) -> Tensor:
    """Fixed positions (N, D), row by row: a quarter of D each for sine and cosine of row and of column."""
    frequency = 10000.0 ** -(torch.arange(channels // 4) / (channels // 4))
    angle = torch.arange(grid)[:, None] * frequency  # (g, D/4)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    return torch.cat([axis.repeat_interleave(grid, dim=0), axis.repeat(grid, 1)], dim=1)


ASSUMPTIONS = (
    Assumption(
        "Embedding",
        "a linear layer at the map's own resolution, then bilinear to the grid",
        "size and width: section 4.1; order: silent",
        ("embed_dim",),
    ),
    Assumption(
        "Mask token, positions",
        "one learnable token, normal with deviation 0.02; fixed 2-D sine and cosine positions",
        "token: section 3.3 and public module; paper: absolute positions",
    ),
    Assumption(
        "Transformer blocks",
        "pre-norm, MLP ratio 4, LayerNorm eps 1e-5, a final LayerNorm; linear layers Xavier-uniform with bias 0",
        "number and width: section 4.1; the rest: public module",
        ("blocks", "heads"),
        "Tables 2a, 2b",
    ),
    Assumption(
        "Projector of a map with r times the grid's side",
        "r = 1: 1x1 convolution. Each doubling: a transposed convolution (kernel 4, stride 2), widths D/2, then D/4, "
        "with LayerNorm and GELU between; 1x1 convolution and LayerNorm at the end",
        "public module",
    ),
    Assumption("Ratios that are no power of two", "the nearest power of two, then bilinear", "silent"),
    Assumption("Initialisation of transposed convolutions", "PyTorch's own", "silent"),
)
"""What the paper leaves open about this network; ``rebuild.Rebuild`` has its settings."""
