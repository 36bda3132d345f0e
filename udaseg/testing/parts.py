"""Contracts of what works inside a step, called directly: views, maskers, engines, weighting rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from udaseg.core.context import IGNORE, PseudoLabels, StepContext, View
from udaseg.engine.assembly import build_context
from udaseg.testing.case import Case, contract, require, same
from udaseg.testing.ranks import TwoRanks
from udaseg.testing.scene import Scene

PARTS = ("view", "masker", "engine", "pseudo_labels")
Found = dict[str, Tensor]


def view_found(component: Any, context: StepContext, scene: Scene) -> Found:
    view = component(context)
    require(isinstance(view, View), f"returns {type(view).__name__}, not View(image, label, weight)")
    return {name: value for name, value in view._asdict().items() if value is not None}


def rule_found(component: Any, context: StepContext, scene: Scene) -> Found:
    found = component(scene.logits_of(context), context)
    require(isinstance(found, PseudoLabels), f"returns {type(found).__name__}, not PseudoLabels")
    return found._asdict()


CALLS: Mapping[str, Callable[[Any, StepContext, Scene], Found]] = {
    "view": view_found,
    "pseudo_labels": rule_found,
    "masker": lambda component, context, scene: {"mask": component(context.pseudo_labels.label, context.rng)},
    "engine": lambda component, context, scene: {"image": component(context)},
}


class Part:
    """A component that is ready to be called on a scene."""

    def __init__(self, case: Case) -> None:
        self.trainer, self.case = case.still, case
        self.scene = Scene(self.trainer)
        recipe = case.recipe("train.batch=4").recipe
        self.context = build_context(recipe, self.trainer.normalise, self.trainer.learner.segmentor)

    def prepared(self, context: StepContext) -> Callable[[], Found]:
        """A new component, about to be called on a context; the teacher's pass is not its own."""
        component = self.case.create(self.context)
        if self.scene.pseudo is not None:
            _ = context.pseudo_labels
        return lambda: CALLS[self.case.kind](component, context, self.scene)

    def __call__(self, context: StepContext) -> Found:
        """A new component's results."""
        return self.prepared(context)()


@contract(*PARTS)
def returns_what_it_says(case: Case) -> None:
    """Shapes, types and ranges of views, masks, images and pseudo-labels; no graph; the batch is left as it was."""
    part = Part(case)
    batch = part.scene.batch
    kept = {name: value.clone() for name, value in vars(batch).items() if isinstance(value, Tensor)}
    found = part(part.scene.context())
    batch_size, _, height, width = batch.source_image.shape
    plane, classes = (batch_size, height, width), len(part.context.classes)
    shapes = {"image": (batch_size, 3, height, width), "mask": (batch_size, 1, height, width)}
    for name, value in found.items():
        expected = shapes.get(name, plane)
        require(isinstance(value, Tensor), f"{name} is {type(value).__name__}, not a tensor")
        require(value.shape == expected, f"{name} has the shape {tuple(value.shape)}; {expected} is expected")
        if name == "label":
            known = (value >= 0) & (value < classes)
            known |= (value == IGNORE) & (case.kind == "view")
            ignore = f" and {IGNORE} (ignore)" if case.kind == "view" else "; weight 0 says that a pixel does not count"
            require(value.dtype == torch.int64, f"label is {value.dtype}; train ids are int64")
            require(known.all(), f"label has other values than 0..{classes - 1}{ignore}")
            continue
        require(value.is_floating_point(), f"{name} is {value.dtype}; floats are expected")
        require(value.isfinite().all(), f"{name} is not finite everywhere")
        require(not value.requires_grad, f"{name} has a graph; compute it without gradient (.detach())")
        if name == "mask":
            require(((value == 0) | (value == 1)).all(), "mask has other values than 1 (kept) and 0 (masked)")
        if name in ("weight", "confidence"):
            require((value >= 0).all(), f"{name} is negative somewhere")
    changed = [name for name, value in kept.items() if not same(value, getattr(batch, name))]
    require(not changed, f"changes batch.{', batch.'.join(changed)} in place, which other views see too; copy first")


@contract(*PARTS)
def is_the_same_on_two_ranks(case: Case) -> None:
    """Two processes with half of the images each make what one makes with all of them."""
    part = Part(case)
    together = part(part.scene.context())
    shared = TwoRanks(lambda rank, reduce: part(part.scene.context(rank, 2, reduce))).results
    for name, value in together.items():
        found = torch.cat([one[name] for one in shared])
        close = found.shape == value.shape and torch.allclose(found, value, rtol=1e-4, atol=1e-5)
        require(close, f"{name}: {OTHER_ON_RANKS}")


OTHER_ON_RANKS = (
    "two processes with half of the images each differ from one process with all of them: draw numbers for single "
    "images with context.rng.per_image or .choices, decisions for all with .decide, and sum what belongs to the whole "
    "batch with context.reduce"
)
