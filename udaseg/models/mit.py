"""Mix Transformer (MiT-B0 .. B5), the hierarchical encoder of SegFormer (Xie et al., NeurIPS 2021).

Same function and parameters as the public code (docs/fidelity.md, "Models"). Attention runs through
``scaled_dot_product_attention``, so the N x M matrix is never stored. Tokens and maps are two views of one
channels-last memory, so nothing is copied between them. ``renaming`` translates the public names of parameters.

LayerNorm eps is 1e-6 in the blocks and after a stage, but 1e-5 after a patch embedding and in the attention.
Any input size works; only multiples of 32 are tiled exactly by the key/value reductions (they have no padding).

Shapes: B images, N = h * w tokens of a map (h, w), M tokens after the reduction, C channels, n heads of d channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.models.blocks import DropPath, each_stage
from udaseg.models.renaming import encoder_from_public
from udaseg.models.segmentor import Encoder

HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
EXPANSION = 4
BLOCK_EPS = 1e-6
INNER_EPS = 1e-5


class Attention(nn.Module):
    """Multi-head attention whose keys and values come from a map that a strided convolution has reduced."""

    def __init__(self, channels: int, *, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.reduce: nn.Conv2d | None = None
        if reduction > 1:
            self.reduce = nn.Conv2d(channels, channels, reduction, reduction)
            self.reduce_norm = nn.LayerNorm(channels, eps=INNER_EPS)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """x (B, N, C) with N = h * w for size (h, w) -> (B, N, C)."""
        q = self._split(self.q(x))
        k, v = (self._split(part) for part in self.kv(self._reduced(x, size)).chunk(2, dim=-1))
        out = F.scaled_dot_product_attention(q, k, v)  # (B, n, N, d)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, n, N, d)

    def _reduced(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if self.reduce is None:
            return x
        return self.reduce_norm(to_tokens(self.reduce(to_map(x, size))))  # (B, M, C)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, N, C)."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, N, C) -> (B, C, h, w), a view in channels-last order."""
    return tokens.transpose(1, 2).unflatten(2, size)


class MixMLP(nn.Module):
    """Linear, depthwise 3x3 on the token grid (it stands in for positions), GELU, linear."""

    def __init__(self, channels: int, *, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.mix(to_map(self.fc1(x), size))  # (B, 4C, h, w)
        return self.fc2(F.gelu(to_tokens(x)))


class Block(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)); each branch is dropped on its own."""

    def __init__(self, channels: int, *, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=BLOCK_EPS)
        self.attn = Attention(channels, heads=heads, reduction=reduction)
        self.norm2 = nn.LayerNorm(channels, eps=BLOCK_EPS)
        self.mlp = MixMLP(channels, hidden=EXPANSION * channels)
        self.drop = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x), size))
        return x + self.drop(self.mlp(self.norm2(x), size))


class PatchEmbed(nn.Module):
    """Overlapping strided convolution, then LayerNorm over channels."""

    def __init__(self, channels: int, *, to: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, to, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(to, eps=INNER_EPS)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """x (B, C, H, W) -> tokens (B, N, to) and their grid (h, w)."""
        x = self.proj(x)
        return self.norm(to_tokens(x)), (x.shape[-2], x.shape[-1])


class Stage(nn.Module):
    """Patch embedding, blocks, final norm. The normalised map is the output and the next stage's input."""

    def __init__(
        self, embed: PatchEmbed, *, channels: int, heads: int, reduction: int, drop_paths: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(
            Block(channels, heads=heads, reduction=reduction, drop_path=rate) for rate in drop_paths
        )
        self.norm = nn.LayerNorm(channels, eps=BLOCK_EPS)

    def forward(self, x: Tensor) -> Tensor:
        tokens, size = self.embed(x)
        for block in self.blocks:
            tokens = block(tokens, size)
        return to_map(self.norm(tokens), size)


class MixTransformer(Encoder):
    """Image (B, 3, H, W) -> maps at strides 4, 8, 16, 32.

    ``drop_path``: rate of the last block; it grows linearly from 0 in the first, over the blocks of all stages.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, *, widths: tuple[int, ...], depths: tuple[int, ...], drop_path: float = 0.1) -> None:
        super().__init__()
        self.channels = tuple(widths)
        total = sum(depths)
        rates = [drop_path * i / max(total - 1, 1) for i in range(total)]
        self.stages = nn.ModuleList()
        for i, (channels, depth) in enumerate(zip(widths, depths, strict=True)):
            embed = PatchEmbed(widths[i - 1] if i else 3, to=channels, kernel=3 if i else 7, stride=2 if i else 4)
            first = sum(depths[:i])
            own = tuple(rates[first : first + depth])
            self.stages.append(Stage(embed, channels=channels, heads=HEADS[i], reduction=REDUCTIONS[i], drop_paths=own))
        self.apply(_initialise)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return each_stage(image, self.stages)

    def no_weight_decay(self) -> set[str]:
        """The LayerNorms."""
        norms = {name for name, module in self.named_modules() if isinstance(module, nn.LayerNorm)}
        return {f"{name}.{kind}" for name in norms for kind in ("weight", "bias")}

    def from_public(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return encoder_from_public(state, "mit")


def _initialise(module: nn.Module) -> None:
    """Linear: truncated normal of std 0.02. Convolution: normal with the fan_out of one group. Biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
    else:
        return
    assert module.bias is not None
    nn.init.zeros_(module.bias)
