"""The training step. Read this file first.

A recipe is an ordered list of *stages*: a view of the data and the loss terms on it. The student looks at each view
once, all terms of a view share one backward, and a view's graph is gone before the next view is built. Hence peak
memory is the largest view's, not the sum, and the gradients are those of the summed losses (baselines.md 7.3:
"gradients of all backward calls sum"). The public code runs cross-entropy and feature distance of the source view as
two backwards over one graph and keeps that graph through the rest of the step (baselines.md 10.2); here they are one.

Nothing in this file or below it reads the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from udaseg.core.context import Iteration, Loss, View
from udaseg.core.teacher import Teacher
from udaseg.models.segmentor import Segmentor


class Stage(nn.Module):
    """One view and its weighted loss terms."""

    def __init__(
        self, build: Callable[[Iteration], View], terms: Mapping[str, nn.Module], weights: Mapping[str, float]
    ):
        super().__init__()
        self.build = build
        self.terms = nn.ModuleDict(terms)
        self.weights = dict(weights)
        self.context_only = not any(getattr(term, "reads_predictions", True) for term in terms.values())


class Learner(nn.Module):
    """Segmentor and stages: all that optimiser and checkpoint see."""

    def __init__(self, segmentor: Segmentor, stages: Mapping[str, Stage]) -> None:
        super().__init__()
        self.segmentor = segmentor
        self.stages = nn.ModuleDict(stages)

    def views(self) -> Iterator[tuple[str, Stage]]:
        for name, stage in self.stages.items():
            assert isinstance(stage, Stage)
            yield name, stage

    def twins(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """(average, student) of terms with a network that follows as the teacher does."""
        for _, stage in self.views():
            for term in stage.terms.values():
                if hasattr(term, "twins"):
                    yield from term.twins()  # type: ignore[operator]


@dataclass(frozen=True)
class Stepper:
    """What a step needs besides the learner: how to run it fast (autocast, scaler) and on several devices."""

    optimiser: torch.optim.Optimizer
    autocast: Callable[[], AbstractContextManager[object]]
    scaler: torch.amp.GradScaler
    average_gradients: Callable[[nn.Module], None]


def training_step(learner: Learner, teacher: Teacher | None, iteration: Iteration, stepper: Stepper) -> dict[str, Loss]:
    """One optimiser step; returns every term's unweighted loss as ``view/term``, detached and still on the device."""
    if teacher is not None:
        teacher.update(learner.segmentor, iteration.index, learner.twins())
    stepper.optimiser.zero_grad(set_to_none=True)
    losses: dict[str, Loss] = {}
    for name, stage in learner.views():
        with iteration.phase(name):
            losses |= learn_from_view(name, stage, iteration, stepper)
    with iteration.phase("optimiser"):
        stepper.average_gradients(learner)
        clip_terms(learner, stepper)
        stepper.scaler.step(stepper.optimiser)
        stepper.scaler.update()
    return losses


def learn_from_view(name: str, stage: Stage, iteration: Iteration, stepper: Stepper) -> dict[str, Loss]:
    """Build the view, look at it once, add its gradients; everything with a graph dies on return."""
    with stepper.autocast():
        with torch.no_grad():
            view = stage.build(iteration)
        # the only student pass over these pixels
        output = iteration.segmentor(view.image, context_only=stage.context_only)
        losses = {}
        for key, term in stage.terms.items():
            with iteration.phase(f"{name}/{key}"):  # forward only: the backward is the view's
                losses[key] = term(view, output, iteration)
    stepper.scaler.scale(total(losses, stage.weights)).backward()
    return {f"{name}/{key}": Loss(loss.value.detach(), loss.present) for key, loss in losses.items()}


def total(losses: Mapping[str, Loss], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of a view's terms, a scalar."""
    return torch.stack([weights[key] * loss.value for key, loss in losses.items()]).sum()


def clip_terms(learner: Learner, stepper: Stepper) -> None:
    """Scale the gradient of a term's own parameters down to norm ``clip``, where the term has one."""
    terms = [term for _, stage in learner.views() for term in stage.terms.values()]
    limited = [(term, clip) for term in terms if (clip := getattr(term, "clip", None)) is not None]
    if limited:
        stepper.scaler.unscale_(stepper.optimiser)
    for term, clip in limited:
        nn.utils.clip_grad_norm_((p for p in term.parameters() if p.requires_grad), clip)
