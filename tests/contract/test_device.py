"""A step of every recipe on a pretended GPU: torch's fake tensors have a device and a shape but no values.

They refuse what a real step must not do: compute with tensors of two devices, and wait for the device (reading a value,
or a shape that depends on values, as a boolean mask has). So it shows without a GPU what ``tests/gpu`` shows on one,
but for numbers and kernels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import toy
from cli.test_deploy import weights
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from udaseg import build
from udaseg.deploy import model as deploy
from udaseg.engine import trainer
from udaseg.engine.device import autocast
from udaseg.engine.optim import adamw, parameter_groups
from udaseg.evaluation.evaluate import evaluating, predict
from udaseg.models import multires
from udaseg.models.segmentor import Box
from udaseg.recipe import Loaded, shipped
from udaseg.uda.step import Stepper
from udaseg.uda.types import Loss

Module = TypeVar("Module", bound=nn.Module)
GPU = torch.device("cuda", 0)
OBJECTIVES = ("feature_teacher", "feature_student", "pixel_regression")
NAMES = [name for name in shipped() if not name.startswith("demo")]


class Draws(trainer.Draws):
    """Numbers on the pretended device, where no generator can be."""

    def __init__(self, seed: int, iteration: int, device: torch.device, **ranks: int) -> None:
        super().__init__(seed, iteration, torch.device("cpu"), **ranks)
        self.device = device

    def decide(self, probability: float) -> bool:
        return True

    def per_image(self, images: int, *shape: int) -> Tensor:
        return torch.rand((images, *shape), device=self.device)


class Forward(torch.amp.GradScaler):
    """No backward, which asks the driver for its device, and no gradients to step with."""

    def scale(self, outputs: Any) -> Any:
        class Ends:
            def backward(self) -> None:
                assert outputs.requires_grad and outputs.dim() == 0

        return Ends()


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks the driver, and HRDA's box, which the CPU's generator draws."""
    monkeypatch.setattr(trainer, "Draws", Draws)
    monkeypatch.setattr(multires, "draw_box", lambda size, window: Box(0, window[0], 8, 8 + window[1]))
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)


def moved(module: Module, mode: FakeTensorMode) -> Module:
    """Its parameters and buffers, and nothing else it may hold, on the pretended device."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(pretended(value.detach(), mode), value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = pretended(value, mode)
    return module


def pretended(value: Tensor, mode: FakeTensorMode) -> Tensor:
    with mode:
        return torch.empty_like(mode.from_tensor(value), device=GPU)


def small(name: str) -> tuple[str, ...]:
    decoder = build.load(name).recipe.model.decoder["kind"]
    return toy.MIT if decoder == "daformer" else (*toy.SMALL, "model.encoder=tiny")


def take(loaded: Loaded) -> tuple[dict[str, Loss], dict[str, Tensor]]:
    """Two steps in bfloat16 on the pretended device, to which everything is moved after it was built on the CPU."""
    setup = build.training(loaded).setup
    learning = loaded.recipe.optimiser.model_dump(exclude={"warmup", "power", "minimum"})
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    raws = [{key: mode.from_tensor(value) for key, value in raw.items()} for raw in setup.batches(0, 2)]
    for module in (setup.learner, setup.teacher, setup.normalise, setup.labeller):
        if isinstance(module, nn.Module):
            moved(module, mode)
    setup.device = GPU
    with mode:
        setup.stepper = Stepper(
            adamw(parameter_groups(setup.learner, **learning)),
            autocast("bf16", GPU),
            Forward("cpu", enabled=False),
            setup.stepper.average_gradients,
        )
        meter = trainer.Meter()
        for t, raw in enumerate(raws):
            losses, notes = trainer.step(setup, raw, t)
            meter.add(losses, notes, t)
    return losses, notes


def check(losses: dict[str, Loss], notes: dict[str, Tensor]) -> None:
    """All that a step gives back is still on the device, and the log's sums of it are."""
    found = [part for loss in losses.values() for part in loss if part is not None] + list(notes.values())
    assert losses and {value.device for value in found} == {GPU}


@pytest.mark.parametrize("name", NAMES)
def test_no_step_mixes_devices_or_waits(name: str, streets: Path) -> None:
    check(*take(toy.load(name, "train.iterations=2", base=small(name))))


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *(("mic_daformer", f"views.masked.masker={kind}") for kind in ("blocks", "grid", "context_aware")),
        *(("daformer_t2s", f"views.stylised.engine={kind}") for kind in ("color_jitter", "gaussian_blur", "none")),
        *(("daformer_t2s", f"views.stylised.terms.contrast.key={key}") for key in ("stylised", "target")),
        ("daformer_t2s", "views.stylised.terms.contrast.negative_sampling=sps"),
        ("daformer_t2s", "views.stylised.terms.contrast.objective=mse"),
        ("dg_t2s", "views.stylised.engine.use=[A]"),
        ("dg_t2s", "views.stylised.engine.use=[D]"),
        ("dg_t2s", "views.stylised.engine.use=[E]"),
        ("dacs_mrm", "views.mixed.terms.rebuild.mode=mask_only"),
        *(("daformer_mrm", f"views.mixed.terms.rebuild.objective={o}") for o in OBJECTIVES),
        *(("hrda_mrm", f"views.mixed.terms.rebuild.resolution={part}") for part in ("context", "detail")),
        ("daformer_mrm", "views.mixed.terms.rebuild.position=input"),
        ("daformer_cdm", "views.mixed.terms.class_decoupled_cross_entropy.beta=agreement"),
        ("daformer_fdm", "views.source.terms.relational_distillation.neck=fused"),
        ("dacs", "pseudo_labels=reweighted_share"),
        ("dacs", "model={encoder: timm/convnext_atto, decoder: daformer}"),
        ("dacs", "model={encoder: {kind: timm/vit_tiny_patch16_224, tune: lora}, decoder: daformer}"),
    ],
)
def test_neither_does_a_setting(name: str, setting: str, streets: Path) -> None:
    check(*take(toy.load(name, "train.iterations=2", setting, base=small(name))))


@pytest.mark.parametrize("wrapper", [None, {"kind": "hrda"}])
@pytest.mark.parametrize("size", [None, (128, 64)])
def test_neither_does_a_large_picture_in_bands_or_strips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int] | None, wrapper: dict[str, str] | None
) -> None:
    monkeypatch.setattr(deploy, "LARGE", 100)
    model, mode = (
        deploy.load(weights(tmp_path / "w.safetensors", size=size, wrapper=wrapper), device="cpu"),
        FakeTensorMode(),
    )
    model = deploy.Model(moved(model.segmentor, mode), model.card, GPU)
    with mode, evaluating(model.segmentor):
        bands = list(model._logits(np.zeros((150, 130, 3), np.uint8)))
        bands += deploy.strips(bands[0], (150, 200), most=10000)
    assert {(band.device, band.dtype) for band in bands} == {(GPU, torch.float32)}


@pytest.mark.parametrize("name", ["dacs", "daformer", "hrda"])
def test_neither_does_the_prediction_of_an_image(name: str, streets: Path) -> None:
    loaded = toy.load(name, base=small(name))
    setup, mode = build.training(loaded).setup, FakeTensorMode(allow_non_fake_inputs=False)
    segmentor, normalise = moved(setup.learner.segmentor, mode), moved(setup.normalise, mode)
    look = build.inference(loaded.recipe.evaluation.mode, build.training_crop(loaded.recipe))
    with mode, evaluating(segmentor):
        image = normalise(torch.zeros(1, 3, 64, 128, dtype=torch.uint8, device=GPU))
        label = predict(segmentor, image, (96, 192), autocast("bf16", GPU), look)
    assert (label.device, label.shape, label.dtype) == (GPU, (1, 96, 192), torch.int64)
