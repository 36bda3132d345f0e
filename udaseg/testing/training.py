"""Contracts that a component keeps in whole training steps, in a recipe of its own kind at toy size."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from udaseg.config.load import Loaded
from udaseg.console import Silent
from udaseg.engine.assembly import assemble
from udaseg.engine.runlog import RunFolder
from udaseg.engine.trainer import Meter, Trainer
from udaseg.errors import UserError
from udaseg.testing.case import Case, contract, listed, require, same
from udaseg.testing.guards import NoReading

STEPPED = ("term", "view", "masker", "engine", "pseudo_labels")
TRAINED = (*STEPPED, "sampler", "encoder", "decoder", "wrapper")


@contract(*TRAINED)
def trains(case: Case) -> None:
    """Three steps: finite losses, every parameter of the student and of the component learns, no reading."""
    require_steps(case.recipe("train.iterations=3"), own=True)


@contract(*STEPPED, "encoder", "decoder")
def trains_at_two_resolutions(case: Case) -> None:
    """A step with a segmentor of two branches and two predictions (HRDA); an encoder may refuse it (UserError)."""
    try:
        loaded = case.recipe("train.iterations=1", "model.wrapper=hrda")
        require_steps(loaded, steps=1)
    except UserError:
        if case.kind != "encoder":
            raise


@contract(*STEPPED, "sampler")
def trains_without_a_target(case: Case) -> None:
    """A step of a recipe that knows no target domain, unless the component declares that it needs one."""
    if case.kind in ("masker", "pseudo_labels") or case.needs.target:
        return
    loaded = case.recipe("train.iterations=1", target=False)
    try:
        require_steps(loaded, steps=1)
    except (AttributeError, UserError, AssertionError) as error:
        what = str(error) or "it looks at the batch's target, its teacher or pseudo-labels"
        raise AssertionError(f"without a target: {what}. Declare `needs = TARGET` if it cannot do without") from None


@contract(*TRAINED)
def trains_in_bfloat16(case: Case) -> None:
    """A step under autocast: finite losses."""
    require_steps(case.recipe("train.iterations=1", "train.precision=bf16"), steps=1)


@contract(*TRAINED)
def resumes_exactly(case: Case) -> None:
    """Four iterations are two, a checkpoint, and two more, to the last bit."""
    require_exact_resume(case.recipe("train.iterations=4"))


def require_steps(loaded: Loaded, steps: int = 3, *, own: bool = False) -> None:
    """So many steps of the recipe without reading the device; finite losses; after three everything has learnt.

    ``own``: components' own parameters have to learn, too.
    """
    trainer = assemble(loaded).trainer
    trained = {key: value for key, value in trainer.learner.named_parameters() if value.requires_grad}
    before = {key: value.detach().clone() for key, value in trained.items()}
    raws, meter = list(trainer.batches(0, steps)), Meter()
    with NoReading():
        for t, raw in enumerate(raws):
            meter.add(*trainer.step(raw, t), t)
    if broken := meter.broken():
        precision = loaded.recipe.train.precision
        raise AssertionError(
            f"{', '.join(broken[1])} is not finite in iteration {broken[0]} (train.precision={precision}); compute "
            "losses in float32 (.float()) and keep logarithms, roots and divisions away from 0"
        )
    if steps >= 3:
        still = [key for key, value in trained.items() if torch.equal(value, before[key])]
        still = [key for key in still if own or not key.startswith("stages.")]
        require(not still, f"{listed(still)}: never learn; use them in the loss, or requires_grad_(False)")


def require_exact_resume(loaded: Loaded, *, stop: int = 2) -> None:
    """All of the recipe's iterations at once give the numbers of ``stop`` of them, a checkpoint, and the others."""
    with tempfile.TemporaryDirectory() as folder:
        whole, again = (in_run(loaded, Path(folder)) for _ in range(2))
        steps(whole, 0, stop)
        whole.done = stop
        whole.save()
        again.restore()
        losses = [steps(trainer, stop, trainer.iterations) for trainer in (whole, again)]
    differ = [name for name, value in losses[0].items() if not same(value, losses[1][name])]
    for part in ("learner", "teacher"):
        ours, theirs = (
            getattr(trainer, part).state_dict() if getattr(trainer, part) else {} for trainer in (whole, again)
        )
        differ += [f"{part}.{key}" for key, value in ours.items() if not same(value, theirs[key])]
    require(
        not differ,
        f"a run that was interrupted goes on with other numbers: {listed(differ)}. What lives longer than a step must "
        "be a parameter or a buffer (register_buffer) of a term or network; other components keep nothing, and every "
        "random number comes from context.rng",
    )


def in_run(loaded: Loaded, folder: Path) -> Trainer:
    """A fresh trainer that keeps its checkpoints there."""
    trainer = assemble(loaded).trainer
    trainer.run, trainer.progress = RunFolder(folder), Silent()
    return trainer


def steps(trainer: Trainer, first: int, last: int) -> dict[str, Tensor]:
    """Losses and notes of iterations first .. last - 1 by name."""
    found: dict[str, Tensor] = {}
    for t, raw in enumerate(trainer.batches(first, last), first):
        losses, notes = trainer.step(raw, t)
        found |= {f"{name} of iteration {t}": loss.value for name, loss in losses.items()}
        found |= {f"note {name} of iteration {t}": value for name, value in notes.items()}
    return found
