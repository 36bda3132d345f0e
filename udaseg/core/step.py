"""The training step. Read this file first.

A recipe is an ordered list of *stages*: a view of the data and the loss terms on it. The student sees each view once,
all terms of a view share one backward, and a view's graph is gone before the next view is built. Hence peak memory is
the largest view's, not the sum, and the gradients are those of the summed losses. The public code runs cross-entropy
and feature distance of the source view as two backwards over one graph and keeps that graph through the rest of the
step; here they are one (docs/fidelity.md, "Training step").

Nothing in this file or below it reads the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from udaseg.core.base import Term, ViewBuilder
from udaseg.core.context import Loss, StepContext
from udaseg.core.teacher import Teacher
from udaseg.models.segmentor import Segmentor

Autocast = Callable[[], AbstractContextManager[Any]]


def training_step(
    learner: Learner,
    teacher: Teacher | None,
    context: StepContext,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    autocast: Autocast = nullcontext,
    average_gradients: Callable[[nn.Module], None] = lambda module: None,
) -> dict[str, Loss]:
    """One optimiser step; returns every term's unweighted loss as ``view/term``, detached and still on the device."""
    if teacher is not None:
        teacher.update(learner.segmentor, context.iteration, learner.ema_pairs())
    optimiser.zero_grad(set_to_none=True)
    losses: dict[str, Loss] = {}
    for name, stage in learner.named_stages():
        with context.phase(name):
            losses |= learn_from_view(name, stage, context, scaler, autocast)
    with context.phase("optimiser"):
        average_gradients(learner)
        clip_terms(learner, optimiser, scaler)
        scaler.step(optimiser)
        scaler.update()
    return losses


def learn_from_view(
    name: str, stage: Stage, context: StepContext, scaler: torch.amp.GradScaler, autocast: Autocast
) -> dict[str, Loss]:
    """Build the view, pass it through the student once, add its gradients; all with a graph dies on return."""
    with autocast():
        with torch.no_grad():
            view = stage.build_view(context)
        output = context.segmentor(view.image, context_only=stage.context_only)  # the only pass over these pixels
        losses = {}
        for key, term in stage.named_terms():
            with context.phase(f"{name}/{key}"):  # forward only: the backward is the view's
                losses[key] = term(view, output, context)
    scaler.scale(total(losses, stage.weights)).backward()
    return {f"{name}/{key}": Loss(loss.value.detach(), loss.present) for key, loss in losses.items()}


def total(losses: Mapping[str, Loss], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of a view's terms, a scalar."""
    return torch.stack([weights[key] * loss.value for key, loss in losses.items()]).sum()


def clip_terms(learner: Learner, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Scale the gradient of a term's own parameters down to norm ``clip``, where the term has one."""
    clipped = [(term, term.clip) for term in learner.terms() if term.clip is not None]
    if clipped:
        scaler.unscale_(optimiser)
    for term, clip in clipped:
        nn.utils.clip_grad_norm_((p for p in term.parameters() if p.requires_grad), clip)


class Stage(nn.Module):
    """One view and its weighted loss terms."""

    def __init__(self, build_view: ViewBuilder, terms: Mapping[str, Term], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.build_view = build_view
        self.terms = nn.ModuleDict(terms)
        self.weights = dict(weights)
        self.context_only = not any(term.reads_predictions for term in terms.values())

    def named_terms(self) -> Iterator[tuple[str, Term]]:
        for name, term in self.terms.items():
            assert isinstance(term, Term)
            yield name, term


class Learner(nn.Module):
    """The student, its stages and the frozen encoder that terms compare with: all that a checkpoint holds of them."""

    def __init__(
        self, segmentor: Segmentor, stages: Mapping[str, Stage], pretrained_encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.segmentor = segmentor
        self.stages = nn.ModuleDict(stages)
        self.pretrained_encoder = pretrained_encoder

    def named_stages(self) -> Iterator[tuple[str, Stage]]:
        for name, stage in self.stages.items():
            assert isinstance(stage, Stage)
            yield name, stage

    def terms(self) -> Iterator[Term]:
        """Every term once, also one that stands on several views."""
        everywhere = (term for _, stage in self.named_stages() for _, term in stage.named_terms())
        yield from dict.fromkeys(everywhere)

    def ema_pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """(average, student) of terms with a network that follows as the teacher does."""
        for term in self.terms():
            yield from term.ema_pairs()
