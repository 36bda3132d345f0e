"""The step: gradients, passes, memory, and the guard against reading the device (used in ``contract/test_recipes``)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from udaseg.core.context import Loss, StepContext, StepRng
from udaseg.core.step import Learner, total
from udaseg.core.teacher import Teacher
from udaseg.engine.assembly import assemble
from udaseg.engine.profile import Passes
from udaseg.engine.trainer import Meter, Trainer

CPU = torch.device("cpu")


def trainer_of(name: str, *overrides: str, base: tuple[str, ...] = toy.TINY) -> Trainer:
    return assemble(toy.load(name, "train.iterations=8", *overrides, base=base)).trainer


def first_step(trainer: Trainer) -> dict[str, Loss]:
    return trainer.step(next(trainer.batches(0, 1)), 0)[0]


def first_context(trainer: Trainer, learner: Learner, teacher: Teacher) -> StepContext:
    return StepContext(
        0,
        trainer.make_batch(next(trainer.batches(0, 1))),
        StepRng(trainer.seed, 0, CPU),
        learner.segmentor,
        teacher,
        trainer.pseudo_label_rule,
        learner.pretrained_encoder,
    )


def gradients(learner: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}


def quiet(learner: Learner) -> None:
    """Without dropout and drop path two orders of the same passes see the same network."""
    for module in learner.modules():
        if isinstance(module, nn.Dropout2d) or type(module).__name__ == "DropPath":
            module.eval()


def test_gradients_of_staged_views_are_those_of_the_summed_losses(streets: Path) -> None:
    trainer = trainer_of("daformer", base=toy.MIT)
    quiet(trainer.learner)
    reference, teacher = copy.deepcopy((trainer.learner, trainer.teacher))
    first_step(trainer)
    staged = gradients(trainer.learner)

    assert teacher is not None
    teacher.update(reference.segmentor, 0)
    context = first_context(trainer, reference, teacher)
    summed = torch.zeros(())
    for _, stage in reference.named_stages():
        view = stage.build_view(context)
        output = reference.segmentor(view.image)
        summed = summed + total({k: term(view, output, context) for k, term in stage.named_terms()}, stage.weights)
    summed.backward()
    expected = gradients(reference)
    assert staged.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(staged[name], value, rtol=1e-3, atol=1e-6 * value.abs().max().item() + 1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("source_only", {"student": [2]}),
        ("oracle", {"student": [2]}),
        ("dacs", {"student": [2, 2], "teacher": [2]}),
        ("daformer", {"student": [2, 2], "teacher": [2], "pretrained": [2]}),
        ("mic_daformer", {"student": [2, 2, 2], "teacher": [2], "pretrained": [2]}),
        ("hrda", {"student": [4, 4], "teacher": [2, 18], "pretrained": [2]}),
        ("mic", {"student": [4, 4, 4], "teacher": [2, 18], "pretrained": [2]}),
    ],
)
def test_encoder_passes_are_those_of_the_papers(streets: Path, name: str, expected: dict[str, list[int]]) -> None:
    """One student pass a view, one of the teacher, one of the pretrained encoder; no second backward."""
    assert passes_of(trainer_of(name, base=toy.MIT)) == expected


def passes_of(trainer: Trainer) -> dict[str, list[int]]:
    passes = Passes(trainer)
    first_step(trainer)
    return passes.close()


def test_hrda_with_batch_norm_keeps_its_two_resolutions_apart(streets: Path) -> None:
    """Merged, they would share batch statistics (trap 15)."""
    assert passes_of(trainer_of("hrda")) == {"student": [2, 2, 2, 2], "teacher": [2, 18], "pretrained": [2]}


def test_pseudo_labels_are_computed_once_however_often_they_are_asked_for(streets: Path) -> None:
    trainer = trainer_of("dacs", "views.target.terms.cross_entropy.weight=0.5")
    assert list(trainer.learner.stages) == ["source", "mixed", "target"]
    passes = Passes(trainer)
    losses = first_step(trainer)
    assert passes.close() == {"student": [2, 2, 2], "teacher": [2]}
    assert set(losses) == {"source/cross_entropy", "mixed/cross_entropy", "target/cross_entropy"}


# --- memory --------------------------------------------------------------------------------------------------------


class Held:
    """A tensor that autograd keeps; its bytes are counted while it lives."""

    def __init__(self, tensor: Tensor, ledger: dict[str, int]) -> None:
        self.tensor, self.ledger, self.size = tensor, ledger, tensor.numel() * tensor.element_size()
        ledger["now"] += self.size
        ledger["peak"] = max(ledger["peak"], ledger["now"])

    def __del__(self) -> None:
        self.ledger["now"] -= self.size


def peak_saved(work: Callable[[], Any]) -> int:
    """The most bytes of activations autograd held at any one time."""
    ledger = {"now": 0, "peak": 0}
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: Held(tensor, ledger), lambda held: held.tensor):
        work()
    assert ledger["now"] == 0, "something kept a graph after the step"
    return ledger["peak"]


@pytest.mark.parametrize("recipe", ["daformer", "mic"])
def test_peak_memory_is_the_largest_views_not_the_sum(streets: Path, recipe: str) -> None:
    whole = trainer_of(recipe, base=toy.MIT)
    single = {}
    for name in whole.learner.stages:
        trainer = trainer_of(recipe, base=toy.MIT)
        trainer.learner.stages = nn.ModuleDict({name: trainer.learner.stages[name]})
        single[name] = peak_saved(lambda one=trainer: first_step(one))
    together = peak_saved(lambda: first_step(whole))
    assert together == pytest.approx(max(single.values()), rel=0.02)
    assert together < 0.75 * sum(single.values())


# --- no host synchronisation ---------------------------------------------------------------------------------------


class NoReading(TorchDispatchMode):
    """Refuses every operation that would make the host wait for a GPU, on the CPU too."""

    FORBIDDEN = (
        "_local_scalar_dense",
        "nonzero",
        "_unique",
        "unique",
        "bincount",
        "masked_select",
        "equal",
        "is_nonzero",
    )

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = function.__name__.split(".")[0]
        boolean = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in arguments[1])
        if name == "equal" and arguments[0].ndim == 0 and torch.__version__.startswith("2.6."):
            return function(*arguments)  # its quantile checks the share so, on the CPU alone
        if boolean or any(name.startswith(word) for word in self.FORBIDDEN):
            raise AssertionError(f"{name} reads the device inside the step")
        return function(*arguments, **(keywords or {}))


def test_the_guard_itself_notices() -> None:
    value = torch.ones(3)
    for reading in (lambda: value.sum().item(), lambda: bool(value[0] > 0), lambda: value[value > 0], value.unique):
        with NoReading(), pytest.raises(AssertionError, match="reads the device"):
            reading()


# --- random numbers ------------------------------------------------------------------------------------------------


def test_numbers_for_single_images_do_not_depend_on_the_number_of_ranks() -> None:
    alone = StepRng(3, 7, CPU)
    shared = [StepRng(3, 7, CPU, rank=rank, world=2) for rank in (0, 1)]
    assert torch.equal(alone.per_image(4, 5), torch.cat([d.per_image(2, 5) for d in shared]))
    assert [alone.decide(0.5) for _ in range(20)] == [shared[1].decide(0.5) for _ in range(20)]


def test_iterations_and_seeds_differ() -> None:
    numbers = {tuple(StepRng(seed, t, CPU).per_image(2).tolist()) for seed in (0, 1) for t in range(5)}
    assert len(numbers) == 10


# --- the meter -----------------------------------------------------------------------------------------------------


def test_meter_leaves_out_terms_that_had_nothing_to_measure() -> None:
    meter = Meter()
    absent, present = torch.tensor(False), torch.tensor(True)
    meter.add({"a": Loss(torch.tensor(2.0)), "b": Loss(torch.tensor(0.0), absent)}, {"q": torch.tensor(0.5)}, 0)
    meter.add({"a": Loss(torch.tensor(4.0)), "b": Loss(torch.tensor(0.0), absent)}, {"q": torch.tensor(0.7)}, 1)
    assert meter.read()["losses"] == {"a": 3.0, "b": None}
    meter.add({"a": Loss(torch.tensor(6.0)), "b": Loss(torch.tensor(9.0), present)}, {"q": torch.tensor(0.6)}, 2)
    found = meter.read()
    assert found["losses"] == {"a": 4.0, "b": 9.0} and found["notes"]["q"] == pytest.approx(0.6)


def test_meter_names_the_first_iteration_and_term_that_is_not_finite() -> None:
    meter = Meter()
    meter.add({"a": Loss(torch.tensor(1.0)), "b": Loss(torch.tensor(1.0))}, {}, 4)
    assert meter.broken() is None
    meter.add({"a": Loss(torch.tensor(1.0)), "b": Loss(torch.tensor(torch.nan))}, {}, 5)
    meter.add({"a": Loss(torch.tensor(torch.inf)), "b": Loss(torch.tensor(torch.nan))}, {}, 6)
    assert meter.broken() == (5, ["b"])  # a broke because of it
    meter.add({"a": Loss(torch.tensor(1.0)), "c": Loss(torch.tensor(torch.nan))}, {}, 5)
    assert meter.broken() == (5, ["b", "c"])


def test_empty_feature_distance_is_logged_as_nothing_and_leaves_parameters_finite(streets: Path) -> None:
    trainer = trainer_of("daformer", "views.source.terms.feature_distance.class_names=[]")
    meter = Meter()
    meter.add(first_step(trainer), {}, 0)
    assert meter.read()["losses"]["source/feature_distance"] is None
    assert all(torch.isfinite(p).all() for p in trainer.learner.parameters())
