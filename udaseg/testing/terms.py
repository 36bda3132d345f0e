"""Contracts of terms, called directly on a student's output."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from udaseg.core.base import Term
from udaseg.core.context import Loss, Reduce, StepContext, View, alone
from udaseg.core.step import Stage
from udaseg.models.segmentor import Output
from udaseg.testing.case import Case, contract, listed, require
from udaseg.testing.parts import OTHER_ON_RANKS, Found
from udaseg.testing.ranks import TwoRanks
from udaseg.testing.scene import Scene, cut_output, leaves, share

SEARCHED = 8


class OnView(NamedTuple):
    """A term on the last view of a scene that has it, with what the student says of the view."""

    scene: Scene
    stage: Stage
    term: Term
    output: Output

    def view(self, context: StepContext) -> View:
        with torch.no_grad():
            return self.stage.build_view(context)

    def prepared(self, context: StepContext) -> Callable[[], Found]:
        """A copy of the term, about to be called on a context; the view is not its own."""
        term, view = copy.deepcopy(self.term), self.view(context)
        return lambda: {"value": term(view, self.output, context).value.detach()}

    def loss(self, term: Term, context: StepContext, output: Output) -> Loss:
        """Of a context's images; ``output``: of the student on them."""
        view = self.view(context)
        return term(view, output, context)


@lru_cache(maxsize=1)
def on_views(case: Case) -> list[OnView]:
    """The term on each view of the host, in the first iteration in which it has something to measure on all."""
    trainer = case.still
    found: list[OnView] = []
    for t in range(SEARCHED):
        scene = Scene(trainer, t)
        found = []
        for _, stage in trainer.learner.named_stages():
            if case.name in stage.terms:
                context = scene.context()
                with torch.no_grad():
                    view = stage.build_view(context)
                output = trainer.learner.segmentor(view.image, context_only=stage.context_only)
                found.append(OnView(scene, stage, dict(stage.named_terms())[case.name], output))
        losses = [one.loss(copy.deepcopy(one.term), scene.context(), one.output) for one in found]
        if all(isinstance(loss, Loss) and (loss.present is None or bool(loss.present)) for loss in losses):
            return found
        if not all(isinstance(loss, Loss) for loss in losses):
            break
    return found


@contract("term")
def returns_a_scalar_loss(case: Case) -> None:
    """``Loss(value, present)``: a finite float32 scalar with a graph, and a bool scalar or None; in bfloat16, too."""
    for one in on_views(case):
        check_loss(one.loss(copy.deepcopy(one.term), one.scene.context(), one.output), "")
        with torch.autocast("cpu", torch.bfloat16):
            view = one.view(one.scene.context())
            output = one.scene.learner.segmentor(view.image, context_only=one.stage.context_only)
            loss = one.loss(copy.deepcopy(one.term), one.scene.context(), output)
        check_loss(loss, "under autocast to bfloat16, ")


def check_loss(loss: object, where: str) -> None:
    require(isinstance(loss, Loss), f"{where}forward returns {type(loss).__name__}, not Loss(value, present)")
    assert isinstance(loss, Loss)
    value, present = loss
    require(
        isinstance(value, Tensor) and value.shape == (),
        f"{where}value has the shape {shape(value)}, not (): take a mean",
    )
    require(value.dtype == torch.float32, f"{where}value is {value.dtype}; compute the loss in float32 (.float())")
    require(value.isfinite(), f"{where}value is {value.detach()}; keep logarithms, roots and divisions away from 0")
    require(value.requires_grad, f"{where}value has no graph: nothing would learn from it")
    good = present is None or (isinstance(present, Tensor) and present.shape == () and present.dtype == torch.bool)
    require(good, f"{where}present is {present!r}; a bool tensor of shape () on the device, or None")


def shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


@contract("term")
def gradients_reach_what_they_should(case: Case) -> None:
    """The student and every own parameter; not the teacher, the pretrained encoder, or other terms."""
    for one in on_views(case):
        learner, teacher = one.scene.learner, one.scene.teacher
        frozen = {"the teacher": teacher, "the pretrained encoder": learner.pretrained_encoder}
        before = {name: copies(module) for name, module in frozen.items()}
        term = copy.deepcopy(one.term)
        loss = one.loss(term, one.scene.context(), one.output)
        require(
            loss.present is None or bool(loss.present),
            f"nothing to measure in {SEARCHED} toy steps (`present` is False), so that its gradients cannot be "
            "checked; give settings with which it has, such as frequent classes (road, building, sky)",
        )
        learner.zero_grad(set_to_none=True)
        loss.value.backward(retain_graph=True)
        for name, module in frozen.items():
            touched = [key for key, p in parameters(module) if p.grad is not None or p.requires_grad]
            moved = [key for key, p in parameters(module) if not torch.equal(p, before[name][key])]
            require(
                not touched and not moved,
                f"gradients reach {name}, or it is changed ({listed(touched or moved)}): ask it by "
                "context.features, .teacher_features or .pseudo_labels, and leave its parameters alone",
            )
        student = [p.grad for _, p in parameters(learner.segmentor) if p.grad is not None]
        require(any(bool(g.any()) for g in student), "no gradient reaches the student: was its output detached?")
        require(all(bool(g.isfinite().all()) for g in student), "gradients of the student are not finite")
        mine = [(key, p) for key, p in parameters(term) if p.requires_grad]
        dry = [key for key, p in mine if p.grad is None]
        require(not dry, f"no gradient reaches its own {listed(dry)}: use them in the loss, or requires_grad_(False)")
        others = [key for key, p in parameters(learner.stages) if p.grad is not None]
        require(not others, f"gradients reach another term ({listed(others)})")
        for average, _ in term.ema_pairs():
            learns = any(p.requires_grad for p in average.parameters())
            require(not learns, "an average of ema_pairs must not learn: requires_grad_(False)")
        learner.zero_grad(set_to_none=True)


def parameters(module: nn.Module | None) -> list[tuple[str, nn.Parameter]]:
    return [] if module is None else list(module.named_parameters())


def copies(module: nn.Module | None) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in parameters(module)}


@contract("term")
def survives_a_batch_without_labels(case: Case) -> None:
    """All labels ignored: the value is finite, and where `present` is False it is 0 with zero gradient."""
    for one in on_views(case):
        context = one.scene.nothing_known().context()
        loss = one.loss(copy.deepcopy(one.term), context, one.output)
        check_loss(loss, "with every label ignored, ")
        grads = torch.autograd.grad(loss.value, leaves(one.output), allow_unused=True, retain_graph=True)
        known = [g for g in grads if g is not None]
        require(all(bool(g.isfinite().all()) for g in known), "with every label ignored, gradients are not finite")
        if loss.present is not None and not bool(loss.present):
            still = float(loss.value.detach()) == 0 and not any(bool(g.any()) for g in known)
            require(
                still,
                "`present` is False but the value or its gradient is not 0: multiply by the weights, so that it is",
            )


@contract("term")
def learns_the_same_on_two_ranks(case: Case) -> None:
    """The mean of two processes' losses and gradients is that of one process with all images."""
    for one in on_views(case):
        terms = [copy.deepcopy(one.term) for _ in range(3)]
        together = numbers(one, terms[2])
        parts = TwoRanks(partial(of_rank, one, terms)).results
        value = torch.stack([part[0] for part in parts]).mean()
        require(torch.allclose(value, together[0], rtol=1e-3, atol=1e-5), f"the loss: {OTHER_ON_RANKS}")
        for i, whole in enumerate(together[1]):
            halves = [part[1][i] for part in parts]
            require(near(torch.cat(halves) / 2, whole), f"gradients of the student: {OTHER_ON_RANKS}")
        for i, whole in enumerate(together[2]):
            halves = [part[2][i] for part in parts]
            require(near(torch.stack(halves).mean(dim=0), whole), f"gradients of its parameters: {OTHER_ON_RANKS}")


class Numbers(NamedTuple):
    """A term's loss, and its gradients for the student's output and for its own parameters."""

    loss: Tensor
    output: list[Tensor]
    own: list[Tensor]


def numbers(one: OnView, term: Term, rank: int = 0, world: int = 1, reduce: Reduce = alone) -> Numbers:
    """Of a rank with its share of the images."""
    output = cut_output(one.output, share(rank, world))
    value = one.loss(term, one.scene.context(rank, world, reduce), output).value
    own = [p for p in term.parameters() if p.requires_grad]
    wanted = [*leaves(output), *own]
    found = torch.autograd.grad(value, wanted, allow_unused=True)
    filled = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]
    return Numbers(value.detach(), filled[: len(filled) - len(own)], filled[len(filled) - len(own) :])


def of_rank(one: OnView, terms: list[Term], rank: int, reduce: Reduce) -> Numbers:
    return numbers(one, terms[rank], rank, 2, reduce)


def near(a: Tensor, b: Tensor) -> bool:
    """Up to rounding, measured by the largest number."""
    return bool((a - b).abs().max() <= 1e-3 * b.abs().max() + 1e-7)
