"""Any backbone of timm (https://github.com/huggingface/pytorch-image-models) as an encoder: ``timm/NAME``.

Networks of several strides give their own maps at strides 4 to 32, as many as they have. Plain ones (ViT, DINOv2,
DINOv3, EVA-02, CLIP ...) have one stride: four evenly spaced blocks, the last among them, each through the final norm,
feed a simple feature pyramid (Li et al., ECCV 2022, "ViTDet", section 3). Different from the paper: there the last
block alone feeds all levels, and 1x1 and 3x3 convolutions follow.

What timm says of a network's image sizes is not reliable, so every network is tried once when it is made: with sides
of any size, then with multiples of its patch, then of 32. One that takes none is refused. Other images are resized to
the nearest multiple, and the maps' strides are then those of the resized image.

Fine-tuning: ``full``; ``frozen`` (eval mode, no gradient; only the pyramid learns); ``lora`` (frozen, with adapters,
see ``lora``). Pyramid and adapters are not pretrained and have the head's learning rate.

Shapes: B images, C channels, p the patch.
"""

from __future__ import annotations

import fnmatch
import functools
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.layers import DropPath as TimmDropPath
from timm.layers import LayerNorm2d
from timm.models import group_parameters
from torch import Tensor, nn

from udaseg.models.blocks import DropPath, resize
from udaseg.models.lora import adapt, is_adapter
from udaseg.models.segmentor import Encoder
from udaseg.ranges import Count, Share

STRIDES = (4, 8, 16, 32)
FLEXIBLE: tuple[dict[str, Any], ...] = ({"strict_img_size": False}, {"dynamic_img_size": True}, {})
"""Arguments for networks of any image size, in the order they are tried. Some families ignore ``dynamic_img_size``."""
SMALLEST = 64  # side in pixels of the image a network is tried with


class TimmEncoder(Encoder):
    """Image (B, 3, H, W) -> maps, finest first.

    ``layer_decay``: the learning rate of block i of n is multiplied by layer_decay^(n - i), that of the embedding by
    layer_decay^n. ``drop_path``: rate of the last block, for ``full`` only. ``pyramid``: False gives the four maps of a
    plain network as they are, all at its patch's stride, as a linear head needs them. ``revision``: branch, tag or
    commit of the Hugging Face repository that ``model.weights=auto`` fetches.
    """

    def __init__(
        self,
        *,
        name: str,
        tune: Literal["full", "frozen", "lora"] = "full",
        lora_rank: Count = 8,
        layer_decay: Share = 1.0,
        drop_path: Share = 0.0,
        pyramid: bool = True,
        revision: str = "main",
    ) -> None:
        super().__init__()
        self.name, self.tune, self.revision = name, tune, revision
        self.core: Any = _network(name, drop_path)
        for key in ("mean", "std"):
            setattr(self, key, tuple(round(255 * x, 6) for x in self.core.pretrained_cfg[key]))
        self.indices, reductions = _levels(self.core)
        plain = self.norm = len(set(reductions)) == 1
        widths = _widths(self.core, self.indices, plain)
        before = set(self.core.state_dict())
        self.core.prune_intermediate_layers(self.indices, prune_norm=not plain, prune_head=True)
        self.pruned = before - set(self.core.state_dict())
        self.multiple = self._fitting_multiple(widths, reductions)
        self.pyramid = Pyramid(widths[-1], patch=reductions[-1]) if plain and pyramid else None
        self.channels = self.pyramid.channels if self.pyramid else widths
        self.strides = STRIDES if self.pyramid else reductions
        self._scales = _learning_rate_scales(self.core, layer_decay)
        if tune == "lora":
            adapt(self.core, rank=lora_rank)
        elif tune == "frozen":
            self.core.requires_grad_(False)
        self.train()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        image = resize(image, [self._fitting(side) for side in image.shape[-2:]])
        maps = self._maps(image)
        return self.pyramid(maps, image.shape[-2:]) if self.pyramid else tuple(maps)

    def train(self, mode: bool = True) -> TimmEncoder:
        super().train(mode)
        if self.tune != "full":
            self.core.eval()
        return self

    def no_weight_decay(self) -> set[str]:
        """Vectors (norms, biases, layer scales) and what timm itself exempts: positions, class tokens."""
        special = self.core.no_weight_decay() if hasattr(self.core, "no_weight_decay") else set()
        return {
            f"core.{name}"
            for name, parameter in self.core.named_parameters()
            if parameter.ndim <= 1 or any(fnmatch.fnmatch(name, pattern) for pattern in special)
        }

    def learning_rate_scale(self, name: str) -> float | None:
        inner = name.removeprefix("core.")
        return None if inner == name or is_adapter(name) else self._scales.get(inner, 1.0)

    def from_public(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """timm's file through timm's own filter (other releases' names, positions resampled); our own as it is."""
        ours = {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
        if own := {name: tensor for name, tensor in ours.items() if name.startswith("core.")}:
            return own
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        module = sys.modules[timm.models.model_entrypoint(self.name).__module__]
        translate = getattr(module, "checkpoint_filter_fn", None)
        try:
            state = translate(state, self.core) if translate else state
        except (KeyError, RuntimeError, ValueError, AttributeError) as error:
            raise ValueError(f"timm cannot read it as {self.name} ({type(error).__name__}: {error})") from error
        return {f"core.{name}": tensor for name, tensor in state.items() if name not in self.pruned}

    def _fitting(self, side: int) -> int:
        """The nearest multiple; ties to the even one, as ``round``, which an exported graph cannot hold."""
        times, rest = side // self.multiple, side % self.multiple
        return max(times + (2 * rest + times % 2) // (self.multiple + 1), 1) * self.multiple

    def _maps(self, image: Tensor) -> list[Tensor]:
        return self.core.forward_intermediates(
            image, indices=self.indices, norm=self.norm, output_fmt="NCHW", intermediates_only=True
        )

    @torch.no_grad()
    def _fitting_multiple(self, widths: tuple[int, ...], reductions: tuple[int, ...]) -> int:
        """What sides must be multiples of. ValueError if only one image size is possible."""
        self.core.eval()
        device = next(self.core.parameters()).device
        for multiple in (1, _patch(self.core, reductions), 32):
            height = multiple * (SMALLEST // multiple + 3)
            size = height, height + 2 * multiple
            try:
                maps = self._maps(torch.zeros(1, 3, *size, device=device))
            except (AssertionError, RuntimeError, ValueError):
                continue
            if _are_maps(maps, widths, reductions, size):
                self.core.train()
                return multiple
        own = " x ".join(str(side) for side in self.core.pretrained_cfg["input_size"][-2:])
        raise ValueError(f"it is of no use for segmentation: it takes images of one size only ({own})")


class Pyramid(nn.Module):
    """Four maps (B, C, H/p, W/p) -> maps at strides 4, 8, 16, 32 of the image, with C / 2 channels a doubling."""

    def __init__(self, channels: int, *, patch: int) -> None:
        super().__init__()
        doublings = [round(math.log2(patch / stride)) for stride in STRIDES]
        self.channels = tuple(channels >> max(times, 0) for times in doublings)
        self.levels = nn.ModuleList(_rescale(channels, times) for times in doublings)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """``size``: of the image. Patches that are no power of two (14) need a bilinear resize, too."""
        scaled = (level(map_) for level, map_ in zip(self.levels, maps, strict=True))
        return tuple(resize(x, [-(-side // s) for side in size]) for x, s in zip(scaled, STRIDES, strict=True))


def _rescale(channels: int, doublings: int) -> nn.Module:
    """Transposed convolutions with norm and GELU between, the identity, or a maximum."""
    if doublings < 0:
        return nn.MaxPool2d(2**-doublings, ceil_mode=True)
    layers: list[nn.Module] = []
    for done in range(doublings):
        layers += [LayerNorm2d(channels), nn.GELU()] if done else []
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
        channels //= 2
    return nn.Sequential(*layers)


def _network(name: str, drop_path: float) -> Any:
    """The bare network, untrained (nothing is downloaded), with our DropPath, which teachers switch off."""
    rate: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    for flexible in FLEXIBLE:
        try:
            network = timm.create_model(name, pretrained=False, **flexible, **rate)
        except TypeError as error:
            if "drop_path_rate" in str(error):
                raise ValueError("it has no drop path; leave out drop_path") from None
            if not any(option in str(error) for option in flexible):
                raise
        else:
            break
    for parent in list(network.modules()):
        for key, child in parent.named_children():
            if isinstance(child, TimmDropPath):
                setattr(parent, key, DropPath(child.drop_prob))
    return network


def _levels(network: Any) -> tuple[list[int], tuple[int, ...]]:
    """Indices and strides of the levels used: four blocks of a plain network, else the last one of each stride."""
    if not hasattr(network, "forward_intermediates"):
        raise ValueError("timm cannot give its intermediate maps")
    reductions = [int(info["reduction"]) for info in network.feature_info]
    if len(set(reductions)) == 1 and len(reductions) >= len(STRIDES):
        count = len(STRIDES)
        return [-(-len(reductions) * (i + 1) // count) - 1 for i in range(count)], (reductions[0],) * count
    last = {reduction: i for i, reduction in enumerate(reductions) if STRIDES[0] <= reduction <= STRIDES[-1]}
    if len(last) < 2:
        raise ValueError(f"it has maps at strides {reductions}; needed are two between 4 and 32, or four blocks at one")
    return list(last.values()), tuple(last)


def _widths(network: Any, indices: Sequence[int], norm: bool) -> tuple[int, ...]:
    """Channels of the maps; a final norm may be a projection (SAM's neck)."""
    infos = [network.feature_info[i] for i in indices]
    return tuple(int(info.get("num_chs_norm", info["num_chs"]) if norm else info["num_chs"]) for info in infos)


def _are_maps(maps: Sequence[Tensor], widths: Sequence[int], reductions: Sequence[int], size: tuple[int, int]) -> bool:
    """Do the maps of an image of that size have the widths and strides that timm promises? (Some only reshape.)"""
    return all(
        map_.shape[1] == width
        and all(abs(cells - side / stride) <= 1 for cells, side in zip(map_.shape[2:], size, strict=True))
        for map_, width, stride in zip(maps, widths, reductions, strict=True)
    )


def _patch(network: Any, reductions: tuple[int, ...]) -> int:
    size = getattr(getattr(network, "patch_embed", None), "patch_size", reductions[0])
    return int(max(size)) if isinstance(size, tuple) else int(size)


def _learning_rate_scales(network: Any, decay: float) -> dict[str, float]:
    """Factor of each parameter, by timm's assignment of parameters to layers (the embedding is layer 0)."""
    if decay == 1:
        return {}
    if not hasattr(network, "group_matcher"):
        raise ValueError("timm does not number its layers; leave out layer_decay")
    layers: dict[str, int] = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}


# --- names and files -----------------------------------------------------------------------------------------------


@functools.cache
def names() -> tuple[str, ...]:
    """All names, bare and with the tags of their pretrained weights."""
    return tuple(sorted({*timm.list_models(), *timm.list_models(include_tags=True)}))


def fetch(name: str, revision: str) -> Path:
    """The weights from the hub's cache, downloaded if need be. Raises the hub's many kinds of errors."""
    from huggingface_hub import hf_hub_download

    on_hub = hub_file(name)
    assert on_hub is not None
    return Path(hf_hub_download(*on_hub[:2], revision=revision))


def hub_file(name: str) -> tuple[str, str, str | None] | None:
    """Repository, file and licence of the pretrained weights on the Hugging Face hub, if there are any."""
    record = timm.models.get_pretrained_cfg(name)
    if record is None or not record.hf_hub_id:
        return None
    return record.hf_hub_id, record.hf_hub_filename or "model.safetensors", record.license
