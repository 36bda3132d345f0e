"""A step of every component on a pretended GPU (``pretend``): no tensors of two devices, no waiting for the device.

So it shows without a GPU what ``tests/gpu`` shows on one, but for numbers and kernels. It also finds what autocast
makes of types: everything runs in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from cli.test_deploy import weights
from contract.test_recipes import COVER, FULL
from pretend import GPU, card, moved, take_step
from torch._subclasses.fake_tensor import FakeTensorMode

from udaseg.deploy import model as deploy
from udaseg.engine.device import autocast
from udaseg.engine.domains import training_crop
from udaseg.engine.networks import normalisation, segmentor_of
from udaseg.evaluation.evaluate import evaluating, predict
from udaseg.evaluation.inference import inference


@pytest.fixture
def mode(streets: Path) -> Iterator[FakeTensorMode]:
    with card() as mode:
        yield mode


@pytest.mark.parametrize(
    "name", [*COVER, *(pytest.param(name, marks=pytest.mark.slow) for name in FULL if name not in COVER)]
)
def test_no_step_mixes_devices_or_waits(name: str, mode: FakeTensorMode) -> None:
    take_step(toy.load(name, base=toy.small(name)), mode)


@pytest.mark.parametrize(
    "model",
    [
        "{encoder: timm/convnext_atto, decoder: daformer}",
        "{encoder: {kind: timm/vit_tiny_patch16_224, tune: lora}, decoder: daformer}",
    ],
)
def test_neither_does_a_network_of_timm(model: str, mode: FakeTensorMode) -> None:
    take_step(toy.load("dacs", f"model={model}"), mode)


@pytest.mark.parametrize("wrapper", [None, {"kind": "hrda"}])
@pytest.mark.parametrize("size", [None, (128, 64)])
def test_neither_does_a_large_picture_in_bands_or_strips(
    mode: FakeTensorMode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int] | None,
    wrapper: dict[str, str] | None,
) -> None:
    monkeypatch.setattr(deploy, "LARGE", 100)
    model = deploy.load(weights(tmp_path / "w.safetensors", size=size, wrapper=wrapper), device="cpu")
    model = deploy.Model(moved(model.segmentor, mode), model.metadata, GPU)
    with mode, evaluating(model.segmentor):
        bands = list(model._logits(np.zeros((150, 130, 3), np.uint8)))
        bands += deploy.strips(bands[0], (150, 200), most=10000)
    assert {(band.device, band.dtype) for band in bands} == {(GPU, torch.float32)}


@pytest.mark.parametrize("name", ["dacs", "daformer", "hrda"])
def test_neither_does_the_prediction_of_an_image(name: str, mode: FakeTensorMode) -> None:
    loaded = toy.load(name, base=toy.small(name))
    student = segmentor_of(loaded.recipe)
    segmentor, normalise = moved(student, mode), moved(normalisation(student), mode)
    whole_or_slide = inference(loaded.recipe.evaluation.mode, training_crop(loaded.recipe))
    with mode, evaluating(segmentor):
        image = normalise(torch.zeros(1, 3, 64, 128, dtype=torch.uint8, device=GPU))
        label = predict(segmentor, image, (96, 192), autocast("bf16", GPU), whole_or_slide)
    assert (label.device, label.shape, label.dtype) == (GPU, (1, 96, 192), torch.int64)
