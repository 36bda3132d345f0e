"""The rule by which the parity fixtures were made: weights, inputs and labels from nothing but a key.

Source: the fixtures' README, section 1. Every tensor is a function of its name and shape,
so the fixtures hold results only.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from udaseg.models import renaming
from udaseg.models.multires import HRDA
from udaseg.models.segmentor import Segmentor
from udaseg.models.zoo import DECODERS, ENCODERS

DATA = Path(__file__).parent / "data"
KEYS = DATA / "keys"
CLASSES = 19


def rng_for(key: str) -> np.random.Generator:
    """The generator of a key."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(seed))


def randn(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal, float32."""
    return rng_for(key).standard_normal(shape, dtype=np.float32)


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of a state-dict key; counters are 0."""
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, dtype=np.int64)
    z = randn(key, shape)
    if len(shape) >= 2:
        return z * np.float32(prod(shape[1:]) ** -0.5)
    if last == "running_var":
        return np.float32(1) + np.float32(0.1) * np.abs(z)
    if last in ("running_mean", "bias"):
        return np.float32(0.1) * z
    if last == "weight":
        return np.float32(1) + np.float32(0.1) * z
    if last == "scale":
        return np.float32(0.5) + np.float32(0.1) * z
    raise KeyError(f"the rule does not say what {key} of shape {shape} is")


def blocks(key: str, shape: tuple[int, int, int], *, block: int, extra: int = 1) -> np.ndarray:
    """Labels (n, 1, h, w), int64, constant on squares; ``extra`` of 19 + extra values mean ignore (255)."""
    n, h, w = shape
    g = rng_for(key).integers(0, CLASSES + extra, size=(n, h // block, w // block))
    g = np.where(g >= CLASSES, 255, g)
    return g.repeat(block, axis=1).repeat(block, axis=2)[:, None]


def noisy(
    key: str, shape: tuple[int, int, int], *, block: int, share: float = 0.1, noise_key: str | None = None
) -> np.ndarray:
    """Labels as ``blocks``; then about ``share`` of the pixels get a random class."""
    label = blocks(key, shape, block=block)
    g = rng_for(noise_key or key + "/noise")
    mask = g.random(label.shape) < share
    return np.where(mask, g.integers(0, CLASSES, size=label.shape), label)


def uint8_noise(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform bytes."""
    return rng_for(key).integers(0, 256, size=shape, dtype=np.uint8)


def image(key: str, shape: tuple[int, ...]) -> Tensor:
    """``randn`` as a tensor."""
    return torch.from_numpy(randn(key, shape))


@cache
def public_shapes(keys_file: str) -> dict[str, tuple[int, ...]]:
    """``keys/<keys_file>.json``: public key -> shape, in official order."""
    content = json.loads((KEYS / f"{keys_file}.json").read_text())
    return {key: tuple(shape) for key, shape in content.items()}


def rule_state(keys_file: str, prefix: str = "") -> dict[str, Tensor]:
    """Rule weights under public names. ``prefix`` goes before the generation key only (``imnet_model.``)."""
    return {key: tensor(prefix + key, shape) for key, shape in public_shapes(keys_file).items()}


def tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """``weight`` as a tensor (0-dim ones included)."""
    return torch.from_numpy(np.asarray(weight(key, shape)))


def segmentor(encoder: str, decoder: str, classes: int = CLASSES, **options: Any) -> Segmentor:
    """A segmentor by the names of the zoo; ``options`` are the decoder's."""
    body = ENCODERS[encoder]()
    head = DECODERS[decoder](channels=body.channels, strides=body.strides, classes=classes, **options)
    return Segmentor(body, head)


def rule_segmentor(keys_file: str, encoder: str, decoder: str, *, prefix: str = "", **options: Any) -> Segmentor:
    """``segmentor`` in eval mode with rule weights. Raises if a public key is missing or left over."""
    with torch.device("meta"):  # no time lost on an initialisation that nobody sees
        model = segmentor(encoder, decoder, **options)
    state = renaming.from_public(rule_state(keys_file, prefix), renaming.segmentor_parts(encoder, decoder))
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def hrda_parts(encoder: str, decoder: str) -> tuple[renaming.Part, ...]:
    """The three parts of an HRDA checkpoint."""
    return renaming.segmentor_parts(encoder, decoder, hrda=True)


def rule_hrda(keys_file: str, encoder: str, decoder: str, *, crop: int, prefix: str = "", **options: Any) -> HRDA:
    """HRDA in eval mode with rule weights; ``crop``: side of a training crop."""
    with torch.device("meta"):
        plain = segmentor(encoder, decoder)
        head, light = DECODERS[decoder], {"fusion": "conv1"} if decoder == "daformer" else {}
        shape = {"channels": plain.encoder.channels, "strides": plain.encoder.strides, "classes": CLASSES}
        model = HRDA(
            encoder=plain.encoder, decoder=plain.decoder, attention=head(**shape, **light), crop=(crop, crop), **options
        )
    state = renaming.from_public(rule_state(keys_file, prefix), hrda_parts(encoder, decoder))
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()
