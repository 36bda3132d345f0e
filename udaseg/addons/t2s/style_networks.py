"""Two public stylisation networks, for styles B and C of domain generalisation (``styles``).

B: style augmentation (Jackson et al., CVPR workshops 2019): a transformer network whose instance norms are steered by a
style vector of 100 numbers, drawn from the normal distribution that comes with its weights. C: adaptive instance
normalisation (Huang and Belongie, ICCV 2017): VGG-19 up to relu4_1, the style image's channel statistics, a decoder.
Both are written from the papers and have the parameter names of the public weights files; neither is trained here.

B images, H x W pixels, RGB in [0, 1].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.plugin import UserError, read_tensors, restore

STYLE = 100  # numbers in a style vector


class Steered(nn.Module):
    """Reflection padding, convolution, instance norm; then, in a style's direction, scale and shift."""

    def __init__(self, channels: int, *, to: int, kernel: int, stride: int = 1, styled: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, to, kernel, stride)
        self.pad, self.styled = kernel // 2, styled
        if styled:
            self.fc_beta, self.fc_gamma = nn.Linear(STYLE, to), nn.Linear(STYLE, to)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = F.instance_norm(self.conv(F.pad(x, (self.pad,) * 4, mode="reflect")))
        if not self.styled:
            return x
        return self.fc_gamma(style)[..., None, None] * x + self.fc_beta(style)[..., None, None]


class Residual(nn.Module):
    """Two steered convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (Steered(channels, to=channels, kernel=3) for _ in range(2))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x, style)), style)


class StyleNetwork(nn.Module):
    """Images and style vectors (B, 100) -> stylised images. ``mean`` (100,) and ``root`` (100, 100) of the vectors."""

    mean: Tensor
    root: Tensor

    def __init__(self) -> None:
        super().__init__()
        down = [Steered(3, to=32, kernel=9, styled=False)]
        down += [Steered(c, to=2 * c, kernel=3, stride=2, styled=False) for c in (32, 64)]
        up = [Steered(128, to=64, kernel=3), Steered(64, to=32, kernel=3), Steered(32, to=3, kernel=9)]
        self.layers = nn.ModuleList([*down, *(Residual(128) for _ in range(5)), *up])
        self.register_buffer("mean", torch.zeros(STYLE))
        self.register_buffer("root", torch.zeros(STYLE, STYLE))

    def forward(self, image: Tensor, normal: Tensor) -> Tensor:
        """``normal`` (B, 100): standard normal numbers."""
        style, x = self.mean + normal @ self.root.T, image
        for place, layer in enumerate(self.layers):
            if place in (8, 9):
                x = F.interpolate(x, scale_factor=2)  # nearest
            x = layer(x, style)
            x = x if isinstance(layer, Residual) or place == 10 else F.relu(x)
        return F.interpolate(x.sigmoid(), image.shape[-2:], mode="bilinear")


class AdaIN(nn.Module):
    """Content and style images (B, 3, H, W) -> the content with the style's channel statistics at relu4_1."""

    def __init__(self) -> None:
        super().__init__()
        down: list[nn.Module] = [nn.Conv2d(3, 3, 1)]
        for channels in (
            (3, 64),
            (64, 64),
            (),
            (64, 128),
            (128, 128),
            (),
            (128, 256),
            *[(256, 256)] * 3,
            (),
            (256, 512),
        ):
            down += padded(*channels) if channels else [nn.MaxPool2d(2, ceil_mode=True)]
        up: list[nn.Module] = []
        for channels in ((512, 256), (), *[(256, 256)] * 3, (256, 128), (), (128, 128), (128, 64), (), (64, 64)):
            up += padded(*channels) if channels else [nn.Upsample(scale_factor=2)]
        self.encoder = nn.Sequential(*down)
        self.decoder = nn.Sequential(*up, *padded(64, 3)[:2])

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        x, like = self.encoder(content), self.encoder(style)
        spread, middle = torch.std_mean(like, dim=(2, 3), keepdim=True)
        out = self.decoder(F.instance_norm(x) * spread + middle)
        return F.interpolate(out, content.shape[-2:], mode="bilinear").clamp(0, 1)


def padded(channels: int, to: int) -> list[nn.Module]:
    return [nn.ReflectionPad2d(1), nn.Conv2d(channels, to, 3), nn.ReLU()]


def style_network(folder: Path) -> StyleNetwork:
    """With the weights of ``checkpoint_transformer.pth`` and ``checkpoint_embeddings.pth``."""
    own = {}
    for name, tensor in read(folder, "checkpoint_transformer.pth").items():
        for number, block in (("1", "first"), ("2", "second")):
            for part in ("conv", "fc_beta", "fc_gamma"):
                name = name.replace(f".{part}{number}.", f".{block}.{part}.")
        own[name] = tensor
    drawn = read(folder, "checkpoint_embeddings.pth")
    try:
        spread, axes = torch.linalg.eigh(drawn["pbn_embedding_covariance"].double())
        own |= {"mean": drawn["pbn_embedding_mean"].flatten(), "root": (axes * spread.clamp(min=0).sqrt()).float()}
    except (KeyError, AttributeError, RuntimeError):
        raise UserError(f"{folder / 'checkpoint_embeddings.pth'}: has no pbn_embedding_mean and _covariance") from None
    return restored(StyleNetwork(), own, folder / "checkpoint_transformer.pth")


def adain(folder: Path) -> AdaIN:
    """With the weights of ``vgg_normalised.pth`` (its first layers) and ``decoder.pth``."""
    network = AdaIN()
    wanted = network.encoder.state_dict().keys()
    encoder = {name: tensor for name, tensor in read(folder, "vgg_normalised.pth").items() if name in wanted}
    restored(network.encoder, encoder, folder / "vgg_normalised.pth")
    restored(network.decoder, read(folder, "decoder.pth"), folder / "decoder.pth")
    return network


def read(folder: Path, name: str) -> dict[str, Tensor]:
    """A file of tensors, read without running any code in it."""
    path = folder / name
    if not path.is_file():
        raise UserError(f"no such weights file: {path}; get {name} from the public release and put it there")
    return read_tensors(path)


def restored(network: Any, tensors: dict[str, Tensor], path: Path) -> Any:
    """The network with exactly these tensors, in eval mode and without gradients."""
    restore(network, tensors, path)
    return network.eval().requires_grad_(False)
