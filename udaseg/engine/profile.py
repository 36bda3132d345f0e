"""Where a step's time, arithmetic and memory go."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from udaseg.config.schema import Recipe
from udaseg.core.context import Batch, StepContext, StepRng, View
from udaseg.engine.assembly import build_context, stages
from udaseg.engine.domains import training_crop
from udaseg.engine.networks import normalisation, segmentor_of
from udaseg.engine.phases import Phases
from udaseg.engine.trainer import Trainer, memory_gb
from udaseg.errors import UserError

Shape: TypeAlias = Sequence[int]


@dataclass
class Profile:
    """Seconds and multiply-adds of one step by phase, images a second, peak memory.

    ``passes``: images of every encoder call of a step, by network. ``multiply_adds``: forward and backward of the
    phase, from the shapes of matrix products and convolutions.
    """

    device: str
    torch: str
    precision: str
    batch: int
    steps: int
    seconds: dict[str, float] = field(default_factory=dict)
    seconds_per_step: float = 0.0
    images_per_second: float = 0.0
    multiply_adds: dict[str, float] = field(default_factory=dict)
    peak_memory_gb: float | None = None
    passes: dict[str, list[int]] = field(default_factory=dict)


def profile(trainer: Trainer, *, batch: int, precision: str, steps: int = 5, warmup: int = 2) -> Profile:
    """Take real steps on real data; the trainer must not be used for training afterwards."""
    cuda = trainer.device.type == "cuda"
    name = torch.cuda.get_device_name(trainer.device) if cuda else trainer.device.type
    result = Profile(name, torch.__version__, precision, batch, steps)
    batches = endless(trainer)
    passes = Passes(trainer)
    with counting() as operations:
        trainer.step(next(batches), 0, operations)
    result.passes = passes.close()
    result.multiply_adds = {key: value / 2 for key, value in operations.spent.items() if value}
    for t in range(1, 1 + warmup):
        trainer.step(next(batches), t % trainer.iterations)
    if cuda:
        torch.cuda.reset_peak_memory_stats(trainer.device)

    def clock() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    phases = Phases(clock)
    began = time.perf_counter()
    for t in range(1 + warmup, 1 + warmup + steps):
        with phases("data"):
            raw = next(batches)
        with phases("rest"):
            trainer.step(raw, t % trainer.iterations, phases)
    result.seconds_per_step = (time.perf_counter() - began) / steps
    result.seconds = {key: value / steps for key, value in phases.spent.items()}
    result.images_per_second = batch / result.seconds_per_step
    result.peak_memory_gb = memory_gb(trainer.device)
    return result


class Shapes(StepRng):
    """Random numbers of which only the shape is known."""

    def __init__(self) -> None:
        self.rank, self.world, self.host = 0, 1, random.Random(0)

    def per_image(self, images: int, *shape: int) -> Tensor:
        return torch.empty((images, *shape), device="meta")


def target_cost(recipe: Recipe) -> float | None:
    """Multiply-adds that one target image costs the student in training, counted on shapes, without data or weights.

    They are those of the forward pass over each view that is made of the target image, at the size of the training
    crop, with the terms on it: what MRM's Table 6 calls training FLOPs. Neither the teacher's passes nor the backward
    count. None: no view is made of it, or a term's work depends on the values.
    """
    height, width = training_crop(recipe)
    with torch.device("meta"):
        student = segmentor_of(recipe)
        built = stages(recipe, build_context(recipe, normalisation(student), student))
        image, label = torch.empty(1, 3, height, width), torch.zeros(1, height, width, dtype=torch.long)
        view = View(image, label, torch.ones(1, height, width))
    context = StepContext(0, Batch(image, label, image), Shapes(), student)
    of_target = [stage for stage in built.values() if stage.build_view.needs.target]
    try:
        with torch.no_grad(), counting() as operations, operations("student"):
            for stage in of_target:
                output = student(image, context_only=stage.context_only)
                for _, term in stage.named_terms():
                    term(view, output, context)
    except (NotImplementedError, UserError):  # of meta tensors, which have no values, and of a teacher there is none of
        return None
    return operations.spent["student"] / 2 or None


def time_steps(trainer: Trainer, steps: int) -> float:
    """Median seconds of a step, after one that does not count; used to choose the number of threads."""
    batches = endless(trainer)
    taken = []
    for t in range(steps + 1):
        raw = next(batches)
        began = time.perf_counter()
        trainer.step(raw, t % trainer.iterations)
        taken.append(time.perf_counter() - began)
    return sorted(taken[1:])[steps // 2]


def endless(trainer: Trainer) -> Iterator[dict[str, Tensor]]:
    """The run's batches, over and over."""
    while True:
        yield from trainer.batches(0, trainer.iterations)


class Passes:
    """Count the images of each call of the encoders of student, teacher and pretrained encoder.

    ``calls``: network -> images of each call. HRDA's tiles count as images.
    """

    def __init__(self, trainer: Trainer) -> None:
        watched: dict[str, nn.Module] = {"student": trainer.learner.segmentor.encoder}
        if trainer.teacher is not None:
            watched["teacher"] = trainer.teacher.segmentor.encoder
        if trainer.learner.pretrained_encoder is not None:
            watched["pretrained"] = trainer.learner.pretrained_encoder
        self.calls: dict[str, list[int]] = {who: [] for who in watched}
        self._handles = [module.register_forward_pre_hook(self._count(who)) for who, module in watched.items()]

    def _count(self, who: str) -> Callable[..., None]:
        return lambda module, inputs: self.calls[who].append(len(inputs[0]))

    def close(self) -> dict[str, list[int]]:
        for handle in self._handles:
            handle.remove()
        return {who: images for who, images in self.calls.items() if images}


@contextmanager
def counting() -> Iterator[Phases]:
    """Phases whose ``spent`` are operations (two a multiply-add) instead of seconds.

    Attention is computed as plain matrix products, which are counted on every device.
    """
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: convolution_backward})
    with sdpa_kernel(SDPBackend.MATH), counter:
        yield Phases(lambda: float(counter.get_total_flops()))


def convolution_backward(grad_shape: Shape, x_shape: Shape, w_shape: Shape, *arguments: Any, **_: Any) -> int:
    """One forward pass's operations for each gradient needed; torch's formula ignores groups (depth-wise filters)."""
    transposed, mask = arguments[4], arguments[7]
    pixels = math.prod((x_shape if transposed else grad_shape)[2:])
    return 2 * x_shape[0] * pixels * math.prod(w_shape) * (bool(mask[0]) + bool(mask[1]))
