"""SePiCo: the three losses and the memory against numpy, the contracts of `udaseg`, and its recipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from udaseg.config.load import load
from udaseg.config.plugins import load_plugins
from udaseg.engine.assembly import assemble
from udaseg.report.study import load_study
from udaseg.testing import check, check_recipe, toy
from udaseg.testing.steps import build_context, rng
from udaseg.testing.steps import step as any_step

HERE = Path(__file__).parent
load_plugins([str(HERE / "sepico.py")])

import sepico  # noqa: E402 - a loaded plugin can be imported

from udaseg.plugin import Batch, Encoded, FeatureMaps, Output, PseudoLabels, StepContext, View  # noqa: E402

Floats = npt.NDArray[np.float64]
TAU, CLASSES, WIDTH = 0.5, 4, 3  # the paper's tau = 100 would leave nothing to see


def numbers(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape)


def log_share(fits: Floats, own: int) -> float:
    return float(fits[own] - np.log(np.exp(fits).sum()))


# --- losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [False, True])
def test_fit_losses_are_the_equations(spread: bool) -> None:
    q, mean, variance = numbers(6, WIDTH), numbers(CLASSES, WIDTH, seed=1), numbers(CLASSES, WIDTH, seed=2) ** 2
    label = np.array([0, 1, 2, 3, 0, 2])
    found = sepico.fit_losses(*map(torch.tensor, (q, label, mean)), torch.tensor(variance) if spread else None, TAU)
    for i, own in enumerate(label):
        extra = np.array([q[i] @ np.diag(v) @ q[i] / (2 * TAU**2) for v in variance]) * spread
        expected = -log_share(mean @ q[i] / TAU + extra, own) + extra[own]
        assert found[i].item() == pytest.approx(expected, rel=1e-6)


def test_the_distribution_is_a_bound_on_the_contrast_with_draws_from_it() -> None:
    """Mean over many positives and sets of negatives of the usual loss lies below it, and close."""
    random = np.random.default_rng(3)
    q, mean, variance = numbers(WIDTH) / 2, numbers(CLASSES, WIDTH, seed=1), numbers(CLASSES, WIDTH, seed=2) ** 2 / 8
    draws = mean[:, None] + np.sqrt(variance)[:, None] * random.normal(size=(CLASSES, 200_000, WIDTH))
    fits = draws @ q / TAU
    rest = np.log(sum(np.exp(fits[c]).mean() for c in (1, 2, 3)))
    simulated = np.mean(np.log(np.exp(fits[0]) + np.exp(rest)) - fits[0])
    bound = sepico.fit_losses(*map(torch.tensor, (q[None], [0], mean, variance)), TAU).item()
    assert simulated < bound < simulated + 0.3


def test_bank_losses_are_the_equation() -> None:
    q, bank, filled = numbers(6, WIDTH), numbers(CLASSES, 3, WIDTH, seed=1), np.array([3, 1, 0, 2])
    bank *= (np.arange(3) < filled[:, None])[..., None]
    label = np.array([0, 1, 2, 3, 0, 3])
    found, known = sepico.bank_losses(*map(torch.tensor, (q, label, bank, filled)), TAU)
    assert known.tolist() == [True, True, False, True, True, True]
    for i, own in enumerate(label):
        others = [c for c in range(CLASSES) if c != own and filled[c]]
        rest = sum(np.exp(np.mean(bank[c, : filled[c]] @ q[i] / TAU)) for c in others)
        pairs = [np.exp(entry @ q[i] / TAU) for entry in bank[own, : filled[own]]]
        if pairs:
            expected = np.mean([-np.log(pair / (pair + rest)) for pair in pairs])
            assert found[i].item() == pytest.approx(expected, rel=1e-6)


def test_a_bank_keeps_the_newest() -> None:
    bank = torch.zeros(2, 3, 1)
    for i in range(1, 5):
        bank = sepico.pushed(bank, torch.full((2, 1), float(i)), torch.tensor([True, i == 2]))
    assert bank[..., 0].tolist() == [[4, 3, 2], [2, 0, 0]]


# --- memory --------------------------------------------------------------------------------------------------------


class Pixels(torch.nn.Module):
    """A head that hands on the last map."""

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        return features[-1]


class Teacher:
    """Its map is the image."""

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image,)


class Student(torch.nn.Module):
    def context(self, image: Tensor) -> Tensor:
        return image


def term(**settings: Any) -> sepico.SemanticContrast:
    maps = FeatureMaps((8, 8), (WIDTH,), (1,), (0,))
    made = sepico.SemanticContrast(
        build_context("a", "b", "c", "d", feature_maps=maps), **{"width": WIDTH, "start": 0, **settings}
    )
    made.head = made.teacher_head = Pixels()
    return made


def step(t: int, image: Tensor, label: Tensor) -> StepContext:
    return StepContext(t, Batch(image, label), rng(t), Student(), Teacher())  # type: ignore[arg-type]


def test_memory_is_the_mean_and_variance_of_all_cells_so_far() -> None:
    made, seen, known = term(concept="bank", memory=5), [], []
    for t in range(4):
        image = torch.tensor(numbers(2, WIDTH, 8, 8, seed=t), dtype=torch.float32)
        label = torch.tensor(np.random.default_rng(t).choice([0, 1, 255] if t else [0, 2, 255], (2, 8, 8)))
        made.remember(step(t, image, label))
        unit = (image / image.norm(dim=1, keepdim=True)).permute(0, 2, 3, 1).reshape(-1, WIDTH)
        seen.append(unit.numpy())
        known.append(label.flatten().numpy())
        for c in range(CLASSES):
            cells = np.concatenate(seen)[np.concatenate(known) == c]
            assert made.count[c] == len(cells)
            if len(cells):
                np.testing.assert_allclose(made.mean[c], cells.mean(axis=0), atol=1e-5)
                np.testing.assert_allclose(made.variance[c], cells.var(axis=0), atol=1e-5)
        newest = seen[-1][known[-1] == 0].mean(axis=0)
        np.testing.assert_allclose(made.bank[0, 0], newest, atol=1e-5)
    assert made.filled.tolist() == [4, 3, 1, 0]


def test_a_step_is_remembered_once_however_many_views_there_are() -> None:
    made = term()
    image, label = torch.randn(1, WIDTH, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long)
    context = step(0, image, label)
    output = Output((Encoded((image.requires_grad_(),), image),), ())
    for _ in range(2):
        loss = made(View(image, label), output, context)
    assert made.count[0] == 64 and loss.present
    expected = -1.0 + np.log(CLASSES)  # tau = 100: all classes alike, the regulariser at its end
    assert loss.value.item() == pytest.approx(expected, abs=0.01)


def test_before_the_start_it_remembers_and_does_not_count() -> None:
    made = term(start=3)
    image, label = torch.randn(1, WIDTH, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long)
    output = Output((Encoded((image.requires_grad_(),), image),), ())
    loss = made(View(image, label), output, step(2, image, label))
    loss.value.backward()
    assert made.count[0] == 64 and not loss.present and loss.value == 0 and not image.grad.any()  # type: ignore


# --- views, contracts, recipes, tables -----------------------------------------------------------------------------


def test_pseudo_labels_without_weight_are_ignored() -> None:
    pseudo = PseudoLabels(torch.tensor([[[1, 2]]]), torch.ones(1, 1, 2), torch.tensor([[[0.0, 0.3]]]))
    view = sepico.StrongTarget(build_context(), jitter=0, blur_probability=0)
    batch = Batch(torch.zeros(1, 3, 1, 2), pseudo.label, torch.zeros(1, 3, 1, 2))
    context = any_step(batch, pseudo=pseudo)
    context.__dict__["_labelling"] = (pseudo, None)
    assert view(context).label.tolist() == [[[255, 2]]]


@pytest.mark.parametrize("concept", ["distribution", "bank", "prototype"])
def test_semantic_contrast_keeps_the_contracts(concept: str) -> None:
    check(sepico.SemanticContrast, concept=concept, width=16, memory=4, start=0, temperature=1.0)


@pytest.mark.parametrize("view", [sepico.StrongSource, sepico.StrongTarget])
def test_views_keep_the_contracts(view: type) -> None:
    check(view)


@pytest.mark.parametrize("name", ["sepico", "sepico_dlv2"])
def test_recipes_train(name: str) -> None:
    """Finite, everything learns, nothing reads the device, an interrupted run goes on exactly."""
    term = "views.strong_source.terms.semantic_contrast"
    check_recipe(str(HERE / f"{name}.yaml"), f"{term}.width=16", f"{term}.start=1")


def test_it_works_with_two_resolutions() -> None:
    check_recipe(str(HERE / "sepico.yaml"), "model.wrapper=hrda", "views.strong_source.terms.semantic_contrast.start=1")


@pytest.mark.parametrize("name", ["sepico_gta5", "sepico_synthia", "streets"])
def test_every_row_of_a_study_loads_and_is_a_run_of_its_own(name: str) -> None:
    study = load_study(str(HERE / f"{name}.yaml"))
    rows = [row for row in study.rows if row.recipe]
    prints = {load(str(r.recipe), benchmark=study.benchmark, overrides=r.overrides).recipe.fingerprint() for r in rows}
    assert len(prints) == len(rows) >= 2


def test_one_term_stands_on_both_domains() -> None:
    with toy.living_at(toy.data_home()):
        trainer = assemble(toy.load(str(HERE / "sepico.yaml"), base=toy.small("daformer"))).trainer
    stages = trainer.learner.stages
    assert list(stages) == ["mixed", "strong_source", "strong_target"]
    assert stages["strong_source"].terms["semantic_contrast"] is stages["strong_target"].terms["semantic_contrast"]  # type: ignore


def test_the_command_trains_from_any_folder(tmp_path: Path) -> None:
    """As it is written in the README, at toy size; the weights need no plugin."""
    environment = {**os.environ, "UDASEG_DATA": str(toy.data_home()), "OMP_NUM_THREADS": "1"}

    def command(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "udaseg.cli", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    small = [
        *toy.SIZES,
        "train.iterations=3",
        "optimiser.warmup=2",
        "runtime.workers=0",
        "runtime.log_every=1",
        "views.strong_source.terms.semantic_contrast.start=1",
    ]
    told = command("train", "--recipe", str(HERE / "sepico_streets.yaml"), "--out", "run", *small)
    assert "strong_target/semantic_contrast" in told and "mIoU" in told
    assert "mIoU" in command("evaluate", "run")
