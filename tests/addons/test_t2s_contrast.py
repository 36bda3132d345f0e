"""T2S-DA's contrast: every equation on numbers that can be checked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from steps import StubTeacher, build_context
from steps import step as step_of
from torch import Tensor, nn
from torch.nn.functional import normalize

from udaseg.addons.t2s import pairs
from udaseg.addons.t2s.contrast import Contrast, dynamic_weights, info_nce, prototypes, split
from udaseg.addons.t2s.engines import Untranslated
from udaseg.addons.t2s.pairs import Projected, negative_pools
from udaseg.addons.t2s.reweighting import ReweightedShare
from udaseg.core.context import IGNORE, Batch, PseudoLabels, StepContext, View
from udaseg.core.weighting import ConfidenceShare
from udaseg.engine.assembly import assemble
from udaseg.engine.profile import Passes
from udaseg.engine.trainer import Trainer
from udaseg.errors import UserError
from udaseg.models.segmentor import Encoded, FeatureMaps, Output

T, F = True, False


# --- equations ---------------------------------------------------------------------------------------------------


def test_eq_4_info_nce() -> None:
    """q k+ = 1, q k- = 0 and -1, tau 0.5: -log(e^2 / (e^2 + e^0 + e^-2))."""
    query, keys = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
    negative = torch.tensor([[0, 1]])
    loss = info_nce(query, torch.tensor([[1.0, 0.0]]), keys, negative, torch.tensor([T]), 0.5)
    assert loss.item() == pytest.approx(-math.log(math.e**2 / (math.e**2 + 1 + math.e**-2)), rel=1e-6)
    opposite = info_nce(query, torch.tensor([[0.0, 1.0]]), keys, negative, torch.tensor([T]), 0.5)
    assert opposite.item() == pytest.approx(-math.log(1 / (1 + 1 + math.e**-2)), rel=1e-6)


def test_without_negatives_there_is_no_loss_and_no_gradient() -> None:
    query = torch.tensor([[0.6, 0.8]], requires_grad=True)
    keys = torch.tensor([[0.0, 1.0]])
    loss = info_nce(query, torch.tensor([[1.0, 0.0]]), keys, torch.tensor([[0, 0]]), torch.tensor([F]), 0.2)
    loss.sum().backward()
    assert loss.item() == 0 and torch.equal(query.grad, torch.zeros(1, 2))  # type: ignore[arg-type]


def test_eq_10_and_11_prototypes_are_normalised_means_of_what_is_not_normalised() -> None:
    """Class 0: mean of (3, 0) and (0, 1) = (1.5, 0.5); class 1 has no cell; ignored cells count nowhere."""
    cells = Projected(torch.tensor([[3.0, 0.0], [0.0, 1.0], [9.0, 9.0], [0.0, -2.0]]), torch.tensor([0, 0, IGNORE, 2]))
    found, known = prototypes(cells, 3)
    assert found[0].tolist() == pytest.approx([1.5 / math.sqrt(2.5), 0.5 / math.sqrt(2.5)])
    assert found[2].tolist() == [0.0, -1.0] and known.tolist() == [1.0, 0.0, 1.0]


def test_prototypes_are_those_of_all_ranks() -> None:
    def other_rank(value: Tensor, operation: str = "sum") -> Tensor:
        """Adds another rank's cell (0, 5) of class 0."""
        return value + (torch.tensor([[0.0, 5.0]]) if value.ndim == 2 else torch.tensor([1.0]))

    found, _ = prototypes(Projected(torch.tensor([[5.0, 0.0]]), torch.tensor([0])), 1, other_rank)
    assert found[0].tolist() == pytest.approx([math.sqrt(0.5)] * 2)


def test_eq_12_and_13_negatives() -> None:
    """Keys of other known classes; target cells that are doubtful and not predicted as the class."""
    key, target, doubtful = torch.tensor([0, 1, IGNORE]), torch.tensor([0, 1, 1]), torch.tensor([T, T, F])
    (union,) = negative_pools(key, target, doubtful, 2, equal=False)
    assert union.tolist() == [[F, T, F, F, T, F], [T, F, F, T, F, F]]
    known, unsure = negative_pools(key, target, doubtful, 2, equal=True)
    assert known.tolist() == [[F, T, F, F, F, F], [T, F, F, F, F, F]]
    assert unsure.tolist() == [[F, F, F, F, T, F], [F, F, F, T, F, F]]
    (alone,) = negative_pools(key, None, None, 2, equal=True)
    assert alone.tolist() == [[F, T, F], [T, F, F]]


def test_an_empty_pool_is_replaced_by_the_other() -> None:
    only_zero, target = torch.tensor([0, 0]), torch.tensor([1, 0])
    known, unsure = negative_pools(only_zero, target, torch.tensor([F, F]), 2, equal=True)
    assert known.tolist() == unsure.tolist() == [[F, F, F, F], [T, T, F, F]]
    known, unsure = negative_pools(only_zero, target, torch.tensor([T, F]), 2, equal=True)
    assert known.tolist() == [[F, F, T, F], [T, T, F, F]]
    assert unsure.tolist() == [[F, F, T, F], [T, T, F, F]]  # class 1: the doubtful cell is predicted as 1


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_eq_14_unreliable_cells_are_below_numpys_percentile(alpha: float) -> None:
    confidence = torch.rand(512, generator=torch.Generator().manual_seed(0))
    threshold = np.percentile(confidence.numpy(), 100 * alpha)
    assert torch.equal(pairs.unreliable(confidence, alpha), confidence < threshold)
    assert pairs.unreliable(confidence, alpha).float().mean().item() == pytest.approx(alpha, abs=0.005)


def test_eq_16_queries_of_a_class() -> None:
    """K = 3, n = 10; p = (0.7, 0.25, 0.05): ceil(21), ceil(7.5), ceil(1.5)."""
    counts = torch.tensor([14, 5, 1])
    assert pairs.wanted_queries(counts, 10, True).tolist() == [21, 8, 2]
    assert pairs.wanted_queries(torch.tensor([14, 0, 1]), 10, False).tolist() == [10, 0, 10]
    assert pairs.wanted_queries(torch.zeros(3, dtype=torch.int64), 10, True).tolist() == [0, 0, 0]


def test_eq_17_and_18_weights() -> None:
    """Class 0: confidence (0.9 + 0.7) / 2 = 0.8; class 1: 0.2; class 2 never predicted: 0.

    w = (0.2, 0.8, 1)^0.5, divided by their sum.
    """
    pseudo = PseudoLabels(torch.tensor([[[0, 0, 1]]]), torch.tensor([[[0.9, 0.7, 0.2]]]), torch.ones(1, 1, 3))
    expected = np.sqrt([0.2, 0.8, 1.0])
    found = dynamic_weights(pseudo, 3, 0.5)
    assert found.tolist() == pytest.approx(list(expected / expected.sum()), rel=1e-5)
    assert dynamic_weights(pseudo, 3, 0.0).tolist() == pytest.approx([1 / 3] * 3)
    certain = pseudo._replace(label=torch.tensor([[[0, 1, 2]]]), confidence=torch.ones(1, 1, 3))
    assert dynamic_weights(certain, 3, 0.5).tolist() == pytest.approx([1 / 3] * 3)


def test_reweighted_share_is_the_share_times_the_class_weight() -> None:
    """The mean class weight is 1; the classes are predicted with different confidence."""
    logits = torch.tensor([[[[9.0, 0.0]], [[0.0, 1.0]]]])
    context, step = build_context(), a_step(torch.zeros(1, 1, 2, dtype=torch.int64))
    plain, found = ConfidenceShare(context)(logits, step), ReweightedShare(context)(logits, step)
    weights = 2 * dynamic_weights(plain, 2, 0.5)
    assert found.weight[0, 0].tolist() == pytest.approx([0.5 * weights[0].item(), 0.5 * weights[1].item()])
    assert weights.mean().item() == pytest.approx(1.0) and weights[1] > weights[0]
    two = torch.cat([logits, 9 * logits])  # all of the second image is sure
    label, image = torch.zeros(2, 1, 2, dtype=torch.int64), torch.zeros(2, 3, 1, 2)
    apart = ReweightedShare(context, share="image", beta=0)(two, step_of(Batch(image, label, image)))
    assert apart.weight[:, 0, 0].tolist() == pytest.approx([0.5, 1.0])


# --- drawing -----------------------------------------------------------------------------------------------------


def test_slots_are_handed_out_class_by_class() -> None:
    found = pairs.slots(torch.tensor([2, 0, 3]), 7)
    assert found.row[:5].tolist() == [0, 0, 2, 2, 2] and found.number[:5].tolist() == [0, 1, 0, 1, 2]
    assert found.used.tolist() == [T] * 5 + [F] * 2


def test_the_most_queries_there_can_be_have_a_place() -> None:
    for seed in range(200):
        counts = torch.randint(0, 50, (5,), generator=torch.Generator().manual_seed(seed))
        assert pairs.wanted_queries(counts, 3, True).sum() <= 5 * (3 + 1)


def test_cells_are_drawn_without_replacement_and_go_round() -> None:
    belongs = torch.tensor([[T, F, T, T], [F, T, F, F], [F, F, F, F]])
    pool = pairs.members(belongs, torch.tensor([0.5, 0.1, 0.9, 0.2]))
    assert pool.size.tolist() == [3, 1, 0] and pool.order[0, :3].tolist() == [3, 0, 2]
    drawn = pairs.pick(pool, torch.tensor([0, 1, 2]), torch.arange(4).expand(3, 4))
    assert drawn[0].tolist() == [3, 0, 2, 3] and drawn[1].tolist() == [1] * 4
    assert drawn.shape == (3, 4) and drawn[2].min() >= 0 and drawn[2].max() < 4


def test_every_member_is_as_likely() -> None:
    belongs = torch.tensor([[T, F, T, T, T]])
    hits = torch.zeros(5)
    for seed in range(400):
        scores = torch.rand(5, generator=torch.Generator().manual_seed(seed))
        hits[pairs.pick(pairs.members(belongs, scores), torch.tensor([0]), torch.arange(2)[None])[0]] += 1
    assert hits[1] == 0 and hits.sum() == 800
    assert (hits[[0, 2, 3, 4]] / 400 - 0.5).abs().max() < 0.08


def test_labels_come_by_nearest_sampling() -> None:
    label = torch.arange(16).view(1, 4, 4)
    cells = pairs.cells(torch.arange(8.0).view(1, 2, 2, 2), label)
    assert cells.label.tolist() == [0, 2, 8, 10]
    assert cells.features.tolist() == [[0.0, 4.0], [1.0, 5.0], [2.0, 6.0], [3.0, 7.0]]


def test_halves_of_negatives() -> None:
    assert split(1024, 2) == [512, 512] and split(5, 2) == [3, 2] and split(5, 1) == [5]


# --- the term ----------------------------------------------------------------------------------------------------


def a_step(
    label: Tensor, source: Tensor | None = None, target: Tensor | None = None, pseudo: PseudoLabels | None = None
) -> StepContext:
    """A step whose images are their own features."""
    batch = Batch(label[:, None].float() if source is None else source, label, target)
    return step_of(batch, teacher=StubTeacher(), pseudo=pseudo)


def a_term(classes: int = 2, channels: int = 2, **settings: Any) -> Contrast:
    """Without projector: features are compared as they are."""
    defaults: dict[str, Any] = {"reweight": "none", "negative_sampling": "source", "n": 2, "m": 3}
    context = build_context(*"abcdefgh"[:classes], feature_maps=FeatureMaps((8, 8), (channels,), (1,), (0,)))
    term = Contrast(context, engine=Untranslated(context), **defaults | settings)
    term.projector = term.teacher_projector = nn.Sequential()
    return term


def output_of(features: Tensor) -> Output:
    return Output((Encoded((features,), features),), ())


def features(*rows: tuple[float, float]) -> Tensor:
    """(1, 2, 1, n) of n cells."""
    return torch.tensor(rows, dtype=torch.float32).T[None, :, None]


def test_eq_5_by_hand() -> None:
    """Source cells: class 0 at (1, 0), class 1 at (0, 1): the prototypes. Queries of both at (1, 0).

    K = 2, n = 2, p = (1/2, 1/2): 2 queries each (the one cell twice), 3 negatives each (the other class's cell).
    Class 0: -log(e^5 / (e^5 + 3 e^0)); class 1: -log(e^0 / (e^0 + 3 e^5)); tau 0.2, weights 1/2.
    """
    label = torch.tensor([[[0, 1]]])
    view, output = View(torch.zeros(1, 2, 1, 2), label), output_of(features((1, 0), (1, 0)))
    first = -math.log(math.e**5 / (math.e**5 + 3))
    second = -math.log(1 / (1 + 3 * math.e**5))
    for reduction, factor in (("mean", 1), ("base", 1), ("sum", 2)):
        loss = a_term(reduction=reduction)(view, output, a_step(label, features((1, 0), (0, 1))))
        assert loss.value.item() == pytest.approx(factor * 0.5 * (0.5 * first + 0.5 * second), rel=1e-5)
    assert loss.present is not None and loss.present.item()


@pytest.mark.parametrize(("sampling", "queries"), [("cbqs", (3, 1)), ("ceqs", (2, 2))])
def test_reductions_of_unequal_classes(sampling: str, queries: tuple[int, int]) -> None:
    """n = 2, K = 2, p = (3/4, 1/4): ceil(3) and ceil(1) queries, or n of each; squared distances 0.8 and 2."""
    label = torch.tensor([[[0, 0, 0, 1]]])
    output = output_of(features((3, 4), (3, 4), (3, 4), (1, 0)))
    step = a_step(label, features((1, 0), (1, 0), (1, 0), (0, 1)))
    expected = {
        "sum": queries[0] * 0.8 + queries[1] * 2,
        "base": (queries[0] * 0.8 + queries[1] * 2) / 2,
        "mean": 0.8 + 2,
    }
    for reduction, value in expected.items():
        term = a_term(objective="mse", query_sampling=sampling, reduction=reduction)
        loss = term(View(torch.zeros(1, 2, 1, 4), label), output, step)
        assert loss.value.item() == pytest.approx(0.5 * 0.5 * value, rel=1e-5), reduction
    default = a_term(objective="mse", query_sampling=sampling)(View(torch.zeros(1, 2, 1, 4), label), output, step)
    assert default.value.item() == pytest.approx(0.5 * 0.5 * expected["base"], rel=1e-5)


def test_mse_by_hand() -> None:
    """Distances of (0.6, 0.8) to (1, 0): 0.16 + 0.64; to (0, 1): 0.36 + 0.04. Lengths do not matter."""
    label = torch.tensor([[[0, 1]]])
    output = output_of(features((3, 4), (0.6, 0.8)))
    step = a_step(label, features((7, 0), (0, 0.5)))
    loss = a_term(objective="mse")(View(torch.zeros(1, 2, 1, 2), label), output, step)
    assert loss.value.item() == pytest.approx(0.5 * (0.5 * 0.8 + 0.5 * 0.4), rel=1e-5)


def test_weights_of_classes_are_those_of_the_target() -> None:
    """Class 0 has confidence 0.75, class 1 none: w = (0.5, 1) / 1.5; MSE of class 0 is 0, of class 1 is 2."""
    label = torch.tensor([[[0, 1]]])
    pseudo = PseudoLabels(torch.zeros(1, 1, 2, dtype=torch.int64), torch.full((1, 1, 2), 0.75), torch.ones(1, 1, 2))
    step = a_step(label, features((1, 0), (0, 1)), features((1, 0), (1, 0)), pseudo)
    loss = a_term(objective="mse", reweight="dynamic")(
        View(torch.zeros(1, 2, 1, 2), label), output_of(features((1, 0), (1, 0))), step
    )
    assert loss.value.item() == pytest.approx(0.5 * (1 / 1.5) * 2, rel=1e-5)


def test_negatives_of_both_domains_by_hand() -> None:
    """Class 0 only; the source has one other cell (0, 1), the target one doubtful other cell (-1, 0), m = 4.

    p = 1 makes K n queries, so the sum divided by n is K = 2 times the mean.

    DENPS: two of each: -log(e^5 / (e^5 + 2 e^0 + 2 e^-5)). Doubtful: confidence 0.1 < median of (0.1, 0.9).
    """
    label, queried = torch.tensor([[[0, 1]]]), torch.tensor([[[0, IGNORE]]])
    pseudo = PseudoLabels(torch.tensor([[[1, 1]]]), torch.tensor([[[0.1, 0.9]]]), torch.ones(1, 1, 2))
    step = a_step(label, features((1, 0), (0, 1)), features((-1, 0), (1, 0)), pseudo)
    view, output = View(torch.zeros(1, 2, 1, 2), queried), output_of(features((1, 0), (1, 0)))
    loss = a_term(negative_sampling="denps", m=4)(view, output, step)
    expected = -math.log(math.e**5 / (math.e**5 + 2 + 2 * math.e**-5))
    assert loss.value.item() == pytest.approx(2 * 0.5 * 0.5 * expected, rel=1e-4)
    only_source = a_term(m=4)(view, output, step)
    assert only_source.value.item() == pytest.approx(2 * 0.25 * -math.log(math.e**5 / (math.e**5 + 4)), rel=1e-4)
    together = a_term(negative_sampling="sps", m=2)(view, output, step)  # both cells of the union, each once
    expected = -math.log(math.e**5 / (math.e**5 + 1 + math.e**-5))
    assert together.value.item() == pytest.approx(2 * 0.25 * expected, rel=1e-4)


@pytest.mark.parametrize("key", ["source", "stylised", "target"])
def test_keys_are_of_the_domain_that_was_asked_for(key: str) -> None:
    label = torch.tensor([[[0, 1]]])
    pseudo = PseudoLabels(torch.tensor([[[1, 0]]]), torch.ones(1, 1, 2), torch.ones(1, 1, 2))
    images = {
        "source": features((1, 0), (0, 1)),
        "stylised": features((2, 0), (0, 3)),
        "target": features((5, 5), (1, 2)),
    }
    term = a_term(key=key)
    term.engine = lambda step: images["stylised"]
    cells = term.keys(a_step(label, images["source"], images["target"], pseudo))
    assert torch.equal(cells.features, images[key][0, :, 0].T)
    assert cells.label.tolist() == ([1, 0] if key == "target" else [0, 1])


def test_nothing_to_query_is_zero_with_zero_gradient_and_not_present() -> None:
    label = torch.full((1, 1, 2), IGNORE)
    values = features((1.0, 0.0), (0.0, 1.0)).requires_grad_()
    loss = a_term()(View(torch.zeros(1, 2, 1, 2), label), output_of(values), a_step(label, features((1, 0), (0, 1))))
    loss.value.backward()
    assert loss.value.item() == 0 and values.grad is not None and not values.grad.any()
    assert loss.present is not None and not loss.present.item()


def test_two_ranks_weigh_a_class_by_their_cells() -> None:
    """Mean over ranks of the losses = the loss of all cells together (MSE, where draws do not matter)."""
    label = torch.tensor([[[0, 0, 0, 0], [0, 1, 1, 1]]])
    source = torch.randn(1, 2, 2, 4, generator=torch.Generator().manual_seed(1))
    values = torch.randn(1, 2, 2, 4, generator=torch.Generator().manual_seed(2))
    term = a_term(objective="mse", n=100)

    def part(rank: slice, world: int) -> float:
        step = a_step(label[:, rank], source[:, :, rank])
        own, known = one_hot_sums(label[:, rank], source[:, :, rank]), one_hot_sums(label, source)
        step.world = world
        step.reduce = lambda value, operation="sum": next(b for a, b in zip(own, known, strict=True) if same(a, value))
        view = View(torch.zeros(1, 2, 1, 4), label[:, rank])
        return float(term(view, output_of(values[:, :, rank]), step).value)

    together = part(slice(0, 2), 1)
    assert (part(slice(0, 1), 2) + part(slice(1, 2), 2)) / 2 == pytest.approx(together, rel=0.02)


def one_hot_sums(label: Tensor, source: Tensor) -> list[Tensor]:
    """What the term reduces: cells by class (twice, as integers and not), sums of features by class."""
    belongs = pairs.one_hot(label.flatten(), 2)
    return [belongs.sum(1), belongs.float() @ source.transpose(0, 1).flatten(1).T, belongs.float().sum(1)]


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a.float(), b.float())


# --- in a step ---------------------------------------------------------------------------------------------------


def trainer_of(name: str, *overrides: str) -> Trainer:
    return assemble(toy.load(name, "train.iterations=8", *overrides, base=toy.MIT)).trainer


def test_a_step_pulls_pseudo_target_towards_the_prototypes_and_leaves_the_teacher(streets: Path) -> None:
    """Ten steps of nothing but the contrast on one batch."""
    trainer = trainer_of(
        "daformer_t2s", "optimiser.lr=1e-3", "optimiser.warmup=0", "views.stylised.terms.contrast.weight=1"
    )
    trainer.learner.stages = nn.ModuleDict({"stylised": trainer.learner.stages["stylised"]})
    trainer.teacher.alpha = 1.0  # type: ignore[union-attr]
    raw = next(trainer.batches(0, 1))
    term = trainer.learner.stages["stylised"].terms["contrast"]  # type: ignore[union-attr]
    average_before = None
    similarity = []
    for t in range(10):
        trainer.step(raw, t)
        if t == 0:
            teacher = {k: v.clone() for k, v in trainer.teacher.segmentor.named_parameters()}  # type: ignore[union-attr]
            average_before = [p.clone() for p in term.teacher_projector.parameters()]
            trainer.teacher.update = lambda *_: None  # type: ignore[union-attr, method-assign]
        similarity.append(agreement(trainer, raw, term))
    assert similarity[-1] > similarity[0] + 0.02
    assert all(torch.equal(v, teacher[k]) for k, v in trainer.teacher.segmentor.named_parameters())  # type: ignore[union-attr]
    assert average_before and all(
        torch.equal(a, b) for a, b in zip(average_before, term.teacher_projector.parameters(), strict=True)
    )
    assert all(p.grad is None for p in term.teacher_projector.parameters())


@torch.no_grad()
def agreement(trainer: Trainer, raw: dict[str, Tensor], term: Any) -> float:
    """Mean cosine of pseudo-target features and their class's source prototype."""
    batch, teacher = trainer.make_batch(raw), trainer.teacher
    assert teacher is not None
    step = step_of(batch, segmentor=trainer.learner.segmentor, teacher=teacher)
    view = trainer.learner.stages["stylised"].build_view(step)  # type: ignore[union-attr]
    queries = pairs.cells(term.projector(trainer.learner.segmentor(view.image).branches[0].features[-1]), view.label)
    positive, _ = prototypes(term.keys(step), term.classes)
    known = queries.label != IGNORE
    return float((normalize(queries.features[known], dim=1) * positive[queries.label[known]]).sum(1).mean())


def test_the_teachers_projector_follows_by_the_teachers_rule_and_no_other(streets: Path) -> None:
    """Iteration 0 copies, iteration 1 averages with min(1 - 1/2, alpha)."""
    trainer = trainer_of("daformer_t2s", "teacher.alpha=0.4", "optimiser.warmup=0")
    term = trainer.learner.stages["stylised"].terms["contrast"]  # type: ignore[union-attr]
    raws = list(trainer.batches(0, 2))
    start = [p.detach().clone() for p in term.projector.parameters()]
    trainer.step(raws[0], 0)
    assert all(torch.equal(a, b) for a, b in zip(start, term.teacher_projector.parameters(), strict=True))
    moved = [p.detach().clone() for p in term.projector.parameters()]
    assert not torch.equal(moved[0], start[0])
    trainer.step(raws[1], 1)
    for average, first, second in zip(term.teacher_projector.parameters(), start, moved, strict=True):
        torch.testing.assert_close(average, 0.4 * first + 0.6 * second)
    groups = trainer.optimiser.param_groups
    trained = {id(p) for group in groups for p in group["params"]}
    assert not trained & {id(p) for p in term.teacher_projector.parameters()}
    (projected,) = {
        g["initial_lr"] for g in groups if {id(p) for p in g["params"]} & {id(p) for p in term.projector.parameters()}
    }
    assert projected == pytest.approx(6e-4)  # the decoder's


def test_target_and_source_passes_of_the_teacher_are_shared(streets: Path) -> None:
    """Two contrasts on two views: still one pass over the target, one over the source."""
    trainer = trainer_of("daformer_t2s", "views.source.terms.contrast={key: source}")
    passes = Passes(trainer)
    trainer.step(next(trainer.batches(0, 1)), 0)
    assert passes.close() == {"student": [2, 2, 2], "teacher": [2, 2], "pretrained": [2]}


@pytest.mark.parametrize(
    ("view", "key", "expected"),
    [
        ("source", "source", {"student": [2, 2], "teacher": [2, 2], "pretrained": [2]}),
        ("source", "target", {"student": [2, 2], "teacher": [2], "pretrained": [2]}),
        ("source", "stylised", {"student": [2, 2], "teacher": [2, 2], "pretrained": [2]}),
        ("target", "source", {"student": [2, 2, 2], "teacher": [2, 2], "pretrained": [2]}),
    ],
)
def test_rows_of_table_7(streets: Path, view: str, key: str, expected: dict[str, list[int]]) -> None:
    trainer = trainer_of(
        "daformer_t2s", "views.stylised=null", f"views.{view}.terms.contrast={{weight: 0.1, key: {key}}}"
    )
    passes = Passes(trainer)
    losses, _ = trainer.step(next(trainer.batches(0, 1)), 0)
    assert {k: sorted(v) for k, v in passes.close().items()} == expected
    assert losses[f"{view}/contrast"].value > 0


@pytest.mark.parametrize("name", ["mic_t2s", "hrda_t2s"])
def test_the_context_is_all_that_is_seen(streets: Path, name: str) -> None:
    trainer = trainer_of(name)
    raw = next(trainer.batches(0, 1))
    step = step_of(
        trainer.make_batch(raw), segmentor=trainer.learner.segmentor, teacher=trainer.teacher,
        pseudo_label_rule=trainer.pseudo_label_rule,
    )  # fmt: skip
    crop = raw["source_image"].shape[-1]
    images = step.batch.source_image, step.batch.target
    assert crop == 128 and all(step.teacher_features(i)[-1].shape[-2:] == (2, 2) for i in images)
    stage = trainer.learner.stages["stylised"]
    assert stage.context_only  # type: ignore[union-attr]
    output = trainer.learner.segmentor(stage.build_view(step).image, context_only=True)  # type: ignore[union-attr]
    assert output.branches[0].image.shape[-1] == 64 and output.predictions == () and len(output.branches) == 1


@pytest.mark.parametrize(
    ("name", "which", "channels", "side"),
    [
        *(("daformer_t2s", which, *size) for which, size in {"last": (256, 2), "0": (32, 16), "-2": (160, 4)}.items()),
        *(("daformer_t2s", "fused", 32, 16), ("hrda_t2s", "fused", 32, 16)),
    ],
)
def test_the_map_that_is_read(streets: Path, name: str, which: str, channels: int, side: int) -> None:
    """Of mit_b0 at 64 pixels, by student and teacher: queries, keys, the target's negatives; passes stay the same."""
    trainer = trainer_of(name, f"views.stylised.terms.contrast.map={which}")
    term: Any = trainer.learner.stages["stylised"].terms["contrast"]  # type: ignore[union-attr]
    assert term.projector[0].conv.in_channels == channels
    raw = next(trainer.batches(0, 1))
    step = step_of(
        trainer.make_batch(raw), segmentor=trainer.learner.segmentor, teacher=trainer.teacher,
        pseudo_label_rule=trainer.pseudo_label_rule,
    )  # fmt: skip
    view = trainer.learner.stages["stylised"].build_view(step)  # type: ignore[union-attr]
    output = trainer.learner.segmentor(view.image, context_only=True)
    assert term.student_map(output, step).shape == (2, channels, side, side)
    assert all(len(cells.label) == 2 * side**2 for cells in (term.keys(step), term.target_cells(step)))
    assert term(view, output, step).value > 0
    passes = Passes(trainer)
    losses, _ = trainer.step(raw, 0)
    assert losses["stylised/contrast"].value.isfinite()
    assert len(passes.close()["teacher"]) == len(trainer_passes(name))


def trainer_passes(name: str) -> list[int]:
    """Of the teacher, by the recipe as it is."""
    trainer = trainer_of(name)
    passes = Passes(trainer)
    trainer.step(next(trainer.batches(0, 1)), 0)
    return passes.close()["teacher"]


def test_the_teachers_fused_map_is_its_decoders_and_made_once(streets: Path) -> None:
    trainer = trainer_of("daformer_t2s")
    assert trainer.teacher is not None
    step = step_of(trainer.make_batch(next(trainer.batches(0, 1))), teacher=trainer.teacher)
    image = step.batch.source_image
    segmentor = trainer.teacher.segmentor
    with torch.no_grad():
        expected = segmentor.decoder.fused(segmentor.encoder(image))
        torch.nn.init.normal_(trainer.learner.segmentor.decoder.embed.linears[0].weight)  # the student's is another
    found = step.teacher_fused(image)
    torch.testing.assert_close(found, expected)
    assert step.teacher_fused(image) is found and not found.requires_grad


def test_maps_that_are_not_there_are_refused(streets: Path) -> None:
    with pytest.raises(UserError, match=r"contrast.map: the decoder fuses no maps; allowed: last, an index, or .*fpn"):
        toy.load("dacs_t2s_dlv2", "views.stylised.terms.contrast.map=fused", base=toy.SMALL)
    with pytest.raises(UserError, match=r"map 4: the encoder has maps 0 \(finest\) to 3"):
        trainer_of("daformer_t2s", "views.stylised.terms.contrast.map=4")
    with pytest.raises(UserError, match=r"contrast.map: 'first' is not allowed: last, fused or an index"):
        toy.load("daformer_t2s", "views.stylised.terms.contrast.map=first")


def test_a_view_with_a_cross_entropy_is_decoded(streets: Path) -> None:
    trainer = trainer_of("daformer_t2s", "views.stylised.terms.cross_entropy={}")
    losses, _ = trainer.step(next(trainer.batches(0, 1)), 0)
    assert {"stylised/contrast", "stylised/cross_entropy"} <= set(losses)


@pytest.mark.parametrize("objective", ["infonce", "mse"])
def test_the_loss_is_in_float32_whatever_the_step_runs_in(objective: str) -> None:
    generator = torch.Generator().manual_seed(4)
    label = torch.randint(0, 2, (1, 4, 4), generator=generator)
    source, values = (torch.randn(1, 2, 4, 4, generator=generator) for _ in range(2))
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            view = View(torch.zeros(1, 2, 4, 4), label)
            losses.append(a_term(objective=objective)(view, output_of(values), a_step(label, source)).value)
    assert losses[0].dtype == losses[1].dtype == torch.float32 and torch.equal(losses[0], losses[1])
