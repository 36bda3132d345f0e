"""A term on several views: one object, trained once, with the gradients of all its views."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toy
from engine.test_step import first_step, trainer_of
from torch import Tensor, nn

from udaseg.config import registry
from udaseg.config.checks import components
from udaseg.core.base import Term
from udaseg.core.context import BuildContext, Loss, StepContext, View
from udaseg.engine.optim import parameter_groups
from udaseg.errors import UserError
from udaseg.models.segmentor import Output

SHARE = "views.target.terms.memory.shared_with=source"
OWN = ("views.source.terms.memory={start: 2.0}", "views.target.terms.memory.weight=0.5")


class Memory(Term):
    """Its parameter times the mean of the image; it counts its calls and has an average that follows it."""

    reads_predictions = False
    calls: Tensor

    def __init__(self, context: BuildContext, *, start: float = 1.0) -> None:
        super().__init__(context)
        self.factor, self.average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False).requires_grad_(False)
        nn.init.constant_(self.factor.weight, start)
        self.register_buffer("calls", torch.zeros(()))

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.average, self.factor)]

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        self.calls += 1
        return Loss(self.factor(view.image.mean().view(1, 1)).sum() + 0 * output.branches[0].features[-1].sum())


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = registry.REGISTRIES["term"]
    monkeypatch.setattr(kind, "entries", {**kind.entries, "memory": Memory})


def test_a_shared_term_is_one_object_with_both_gradients(streets: Path) -> None:
    trainer = trainer_of("dacs", *OWN, SHARE)
    first, second = (trainer.learner.stages[name].terms["memory"] for name in ("source", "target"))  # type: ignore
    assert first is second and list(trainer.learner.terms()).count(first) == 1
    assert len(list(trainer.learner.ema_pairs())) == 1
    groups = parameter_groups(trainer.learner, lr=1.0, weight_decay=0.0)
    assert sum(p is first.factor.weight for group in groups for p in group["params"]) == 1
    batch = next(trainer.batches(0, 1))
    made = trainer.make_batch(dict(batch))
    trainer.step(batch, 0)
    assert first.calls == 2
    expected = made.source_image.mean() + 0.5 * made.target.mean()
    torch.testing.assert_close(first.factor.weight.grad, expected.view(1, 1), rtol=1e-5, atol=1e-6)


def test_without_sharing_each_view_has_its_own(streets: Path) -> None:
    trainer = trainer_of("dacs", *OWN)
    first, second = (trainer.learner.stages[name].terms["memory"] for name in ("source", "target"))  # type: ignore
    first_step(trainer)
    assert first is not second and first.calls == second.calls == 1


def test_a_shared_term_is_one_component_of_the_recipe(streets: Path) -> None:
    recipe = toy.load("dacs", *OWN, SHARE).recipe
    assert [part for _, _, part in components(recipe) if part["kind"] == "memory"] == [{"kind": "memory", "start": 2.0}]
    assert recipe.fingerprint() != toy.load("dacs", *OWN).recipe.fingerprint()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((SHARE,), "shared_with='source' is not allowed: nothing is allowed here (an earlier view with memory)"),
        ((*OWN, "views.target.terms.memory.shared_with=surce"), "did you mean 'source'? allowed: source"),
        ((*OWN, "views.target.terms.memory.shared_with=[source]"), "shared_with=['source'] is not allowed"),
        ((*OWN, SHARE, "views.target.terms.memory.start=1"), "start: a term with shared_with has the settings of"),
        ((*OWN, SHARE, "views.target.terms.memory.weight=-1"), "weight: -1 is not allowed"),
    ],
)
def test_what_cannot_be_shared_is_said(streets: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as refused:
        toy.load("dacs", *overrides)
    assert message in str(refused.value) and "views.target.terms.memory" in str(refused.value)
