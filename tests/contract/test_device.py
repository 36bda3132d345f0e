"""A step of every recipe on a pretended GPU (``pretend``): no tensors of two devices, no waiting for the device.

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
from pretend import GPU, NoBackward, PretendedDraws, card, moved
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from udaseg.config.layers import shipped
from udaseg.config.load import Loaded
from udaseg.core.context import Loss
from udaseg.core.step import Stepper
from udaseg.deploy import model as deploy
from udaseg.engine import trainer
from udaseg.engine.assembly import assemble
from udaseg.engine.device import autocast
from udaseg.engine.domains import training_crop
from udaseg.engine.optim import adamw, parameter_groups
from udaseg.evaluation.evaluate import evaluating, predict
from udaseg.evaluation.inference import inference

OBJECTIVES = ("feature_teacher", "feature_student", "pixel_regression")
NAMES = [name for name in shipped() if not name.startswith("demo")]


@pytest.fixture
def mode(streets: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    monkeypatch.setattr(trainer, "Draws", PretendedDraws)
    with card() as mode:
        yield mode


def take(loaded: Loaded, mode: FakeTensorMode) -> None:
    """A step, after everything was built on the CPU; all that it gives back is on the device."""
    setup = assemble(loaded).setup
    learning = loaded.recipe.optimiser.model_dump(exclude={"warmup", "power", "minimum"})
    raw = {key: mode.from_tensor(value) for key, value in next(setup.batches(0, 1)).items()}
    for module in (setup.learner, setup.teacher, setup.normalise, setup.labeller):
        if isinstance(module, nn.Module):
            moved(module, mode)
    setup.device = GPU
    with mode:
        optimiser = adamw(parameter_groups(setup.learner, **learning))
        setup.stepper = Stepper(optimiser, autocast("bf16", GPU), NoBackward(), setup.stepper.average_gradients)
        losses, notes = trainer.step(setup, raw, 0)
        trainer.Meter().add(losses, notes, 0)
    assert losses and {value.device for value in [*parts(losses), *notes.values()]} == {GPU}


def parts(losses: dict[str, Loss]) -> list[Tensor]:
    return [part for loss in losses.values() for part in loss if part is not None]


@pytest.mark.parametrize("name", NAMES)
def test_no_step_mixes_devices_or_waits(name: str, mode: FakeTensorMode) -> None:
    take(toy.load(name, base=toy.small(name)), mode)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *(("mic_daformer", f"views.masked.masker={kind}") for kind in ("blocks", "grid", "context_aware")),
        *(("daformer_t2s", f"views.stylised.engine={kind}") for kind in ("color_jitter", "gaussian_blur", "none")),
        *(("daformer_t2s", f"views.stylised.terms.contrast.key={key}") for key in ("stylised", "target")),
        ("daformer_t2s", "views.stylised.terms.contrast.negative_sampling=sps"),
        ("daformer_t2s", "views.stylised.terms.contrast.objective=mse"),
        *(("dg_t2s", f"views.stylised.engine.use=[{look}]") for look in "ADE"),
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
def test_neither_does_a_setting(name: str, setting: str, mode: FakeTensorMode) -> None:
    take(toy.load(name, setting, base=toy.small(name) if "fused" in setting else toy.TINY), mode)


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
    model = deploy.Model(moved(model.segmentor, mode), model.card, GPU)
    with mode, evaluating(model.segmentor):
        bands = list(model._logits(np.zeros((150, 130, 3), np.uint8)))
        bands += deploy.strips(bands[0], (150, 200), most=10000)
    assert {(band.device, band.dtype) for band in bands} == {(GPU, torch.float32)}


@pytest.mark.parametrize("name", ["dacs", "daformer", "hrda"])
def test_neither_does_the_prediction_of_an_image(name: str, mode: FakeTensorMode) -> None:
    loaded = toy.load(name, base=toy.small(name))
    setup = assemble(loaded).setup
    segmentor, normalise = moved(setup.learner.segmentor, mode), moved(setup.normalise, mode)
    look = inference(loaded.recipe.evaluation.mode, training_crop(loaded.recipe))
    with mode, evaluating(segmentor):
        image = normalise(torch.zeros(1, 3, 64, 128, dtype=torch.uint8, device=GPU))
        label = predict(segmentor, image, (96, 192), autocast("bf16", GPU), look)
    assert (label.device, label.shape, label.dtype) == (GPU, (1, 96, 192), torch.int64)
