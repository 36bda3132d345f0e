"""A pretended GPU: torch's fake tensors have a device, a type and a shape, but no values and no storage.

They refuse what a real step must not do: compute with tensors of two devices, and wait for the device (reading a value,
or a shape that depends on values, as a boolean mask has).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from udaseg.config.load import Loaded
from udaseg.core.context import StepRng
from udaseg.engine import trainer
from udaseg.engine.assembly import assemble
from udaseg.engine.device import autocast
from udaseg.engine.optim import adamw, parameter_groups
from udaseg.models import multires
from udaseg.models.segmentor import Box

Module = TypeVar("Module", bound=nn.Module)
GPU = torch.device("cuda", 0)


def take_step(loaded: Loaded, mode: FakeTensorMode) -> None:
    """A step in bfloat16, after everything was built on the CPU; all that it gives back is on the device."""
    built = assemble(loaded).trainer
    learning = loaded.recipe.optimiser.model_dump(exclude={"warmup", "power", "minimum"})
    raw = {key: mode.from_tensor(value) for key, value in next(built.batches(0, 1)).items()}
    for module in (built.learner, built.teacher, built.normalise):
        if isinstance(module, nn.Module):
            moved(module, mode)
    built.device, built.autocast, built.scaler = GPU, autocast("bf16", GPU), NoBackward()
    with mode, mock.patch.object(trainer, "StepRng", PretendedRng):
        built.optimiser = adamw(parameter_groups(built.learner, **learning))
        losses, notes = built.step(raw, 0)
        trainer.Meter().add(losses, notes, 0)
    results = [part for loss in losses.values() for part in loss if part is not None]
    assert losses and {value.device for value in [*results, *notes.values()]} == {GPU}


class PretendedRng(StepRng):
    """Numbers on the pretended device, where no generator can be; every decision is yes."""

    def __init__(self, seed: int, iteration: int, device: torch.device, *, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world, self.host = rank, world, random.Random(f"{seed}/{iteration}")

    def decide(self, probability: float) -> bool:
        return True

    def _everywhere(self, images: int, *shape: int) -> Tensor:
        return torch.rand((self.world * images, *shape), device=GPU)


class NoBackward(torch.amp.GradScaler):
    """In place of a step's scaler: a backward asks the driver for its device."""

    def __init__(self) -> None:
        super().__init__("cpu", enabled=False)

    def scale(self, outputs: Any) -> Any:
        assert outputs.requires_grad and outputs.dim() == 0
        return mock.Mock()


@contextmanager
def card() -> Iterator[FakeTensorMode]:
    """Inside its mode, computing on ``GPU`` is pretended. Stands in for the driver and for HRDA's box."""
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch("torch.cuda.is_bf16_supported", lambda *_, **__: True),
        mock.patch.object(multires, "draw_box", lambda size, window: Box(0, window[0], 8, 8 + window[1])),
    ):
        yield FakeTensorMode(allow_non_fake_inputs=False)


def moved(module: Module, mode: FakeTensorMode) -> Module:
    """Its parameters and buffers, and nothing else it may hold, on the pretended device."""
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(like(value, mode), value.requires_grad))
        for name, value in list(part.named_buffers(recurse=False)):
            setattr(part, name, like(value, mode))
    return module


def like(value: Tensor, mode: FakeTensorMode) -> Tensor:
    with mode:
        return torch.empty(value.shape, dtype=value.dtype, device=GPU)
