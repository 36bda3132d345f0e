"""One step frozen, so that a component can be called on it again and again: alone, by one of two ranks, with other
random numbers around. Networks neither drop anything nor look at a batch's statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from udaseg.core.context import IGNORE, Batch, PseudoLabels, Reduce, StepContext, StepRng, alone
from udaseg.engine.trainer import Trainer
from udaseg.models.segmentor import Output
from udaseg.testing.guards import quiet

IMAGES = 4


class Scene:
    """The step ``iteration`` of a trainer with four images of each domain, and what its teacher says of the target."""

    def __init__(self, trainer: Trainer, iteration: int = 1) -> None:
        self.trainer, self.iteration = trainer, iteration
        self.learner, self.teacher = trainer.learner, trainer.teacher
        quiet(self.learner, self.teacher)
        if self.teacher is not None:
            move_on(self.learner.segmentor, self.teacher.segmentor)
        self.batch = trainer.make_batch(next(trainer.batches(iteration, iteration + 1)))
        self.logits, self.pseudo = None, None
        if self.teacher is not None:
            context = self.context()
            self.logits = self.teacher.infer(self.batch.target).logits
            self.pseudo = context.pseudo_labels

    def context(self, rank: int = 0, world: int = 1, reduce: Reduce = alone) -> StepContext:
        """A fresh context of the step, or of a rank's share of it, with the teacher's one opinion."""
        part = share(rank, world)
        batch = cut(self.batch, part)
        context = StepContext(
            iteration=self.iteration,
            batch=self.batch if world == 1 else batch,
            rng=StepRng(self.trainer.seed, self.iteration, self.trainer.device, rank=rank, world=world),
            segmentor=self.learner.segmentor,
            teacher=self.teacher,
            pseudo_label_rule=self.trainer.pseudo_label_rule,
            pretrained_encoder=self.learner.pretrained_encoder,
            reduce=reduce,
            world=world,
        )
        if self.pseudo is not None:
            context.pseudo_label_rule = told(PseudoLabels(*(value[part] for value in self.pseudo)))
        return context

    def logits_of(self, context: StepContext) -> Tensor:
        """The teacher's logits on the target images of a context."""
        assert self.logits is not None
        return self.logits[share(context.rng.rank, context.world)]

    def nothing_known(self) -> Scene:
        """The same step without a source label, and with a teacher that is sure of nothing."""
        empty = object.__new__(Scene)
        vars(empty).update(vars(self))
        empty.batch = replace(self.batch, source_label=torch.full_like(self.batch.source_label, IGNORE))
        if self.pseudo is not None:
            empty.pseudo = self.pseudo._replace(weight=torch.zeros_like(self.pseudo.weight))
        return empty


@torch.no_grad()
def move_on(student: nn.Module, teacher: nn.Module) -> None:
    """As after a while of training: the student is no longer what its teacher and the pretrained encoder are."""
    generator = torch.Generator().manual_seed(0)
    for parameter, start in zip(student.parameters(), teacher.parameters(), strict=True):
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(start + 0.1 * start.abs().mean() * noise)


def told(pseudo: PseudoLabels) -> Callable[[Tensor, StepContext], PseudoLabels]:
    """A rule that says what is known already."""
    return lambda logits, context: pseudo


def share(rank: int, world: int) -> slice:
    """The images of a rank."""
    return slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)


def cut(batch: Batch, part: slice) -> Batch:
    """Some images of a batch."""
    target, valid = batch.target_image, batch.target_valid
    return Batch(
        batch.source_image[part],
        batch.source_label[part],
        None if target is None else target[part],
        None if valid is None else valid[part],
        {name: value[part] for name, value in batch.extras.items()},
    )


def cut_output(output: Output, part: slice) -> Output:
    """The student's output for some images, as leaves of a graph of their own."""
    return Output(
        tuple(
            replace(b, features=tuple(leaf(x[part]) for x in b.features), image=b.image[part]) for b in output.branches
        ),
        tuple(replace(p, logits=leaf(p.logits[part])) for p in output.predictions),
    )


def leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def leaves(output: Output) -> list[Tensor]:
    """All maps and logits."""
    return [x for b in output.branches for x in b.features] + [p.logits for p in output.predictions]
