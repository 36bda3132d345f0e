"""PiPa: both losses against numpy, what is sampled, the contracts of `udaseg`, and its recipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from udaseg.config.load import load
from udaseg.config.plugins import load_plugins
from udaseg.errors import UserError
from udaseg.report.study import load_study
from udaseg.testing import check, check_recipe, toy
from udaseg.testing.steps import build_context, rng, step

HERE = Path(__file__).parent
load_plugins([str(HERE / "pipa.py")])

import pipa  # noqa: E402 - a loaded plugin can be imported

from udaseg.plugin import BuildContext, FeatureMaps, View, ViewBuilder  # noqa: E402

Floats = npt.NDArray[np.float64]


def directions(*shape: int) -> Floats:
    numbers = np.random.default_rng(0).normal(size=shape)
    return numbers / np.linalg.norm(numbers, axis=-1, keepdims=True)


def similar(a: Floats, b: Floats) -> float:
    return float(np.exp(a @ b / 0.1))


# --- pixel-wise contrast -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("against_all", [True, False])
def test_pixel_losses_are_the_equation(against_all: bool) -> None:
    e, random = directions(2, 7, 5), np.random.default_rng(1)
    label, used = random.integers(0, 3, (2, 7)), random.random((2, 7)) < 0.8
    found, valid = pipa.pixel_losses(*map(torch.tensor, (e, label, used)), 0.1, against_all)
    for b, i in zip(*np.nonzero(used), strict=True):
        others = [k for k in range(7) if k != i and used[b, k]]
        same = [k for k in others if label[b, k] == label[b, i]]
        rest = sum(similar(e[b, i], e[b, k]) for k in others if against_all or k not in same)
        pairs = [similar(e[b, i], e[b, j]) for j in same]
        assert bool(valid[b, i]) == bool(pairs)
        if pairs:
            expected = np.mean([-np.log(r / (rest if against_all else r + rest)) for r in pairs])
            assert found[b, i].item() == pytest.approx(expected, rel=1e-6)
    assert not valid[torch.tensor(~used)].any()


def context() -> BuildContext:
    """Of a network with two maps, at strides 4 and 8 of a crop of 64 x 64."""
    return build_context("road", "car", "sky", feature_maps=FeatureMaps((64, 64), (4, 8), (4, 8), (0, 1)))


def pixel_contrast(**settings: float) -> pipa.PixelContrast:
    return pipa.PixelContrast(context(), **settings)


def test_as_many_cells_of_each_class_that_is_large_enough() -> None:
    label = torch.tensor([0] * 50 + [1] * 30 + [2] * 5 + [255] * 15)[None]
    term = pixel_contrast(samples=40, per_class=25, min_share=0.05)
    at, used = term.choose(label, torch.rand(1, 100))
    assert at.shape == (1, 40) and len(at[used].unique()) == used.sum()
    assert label[0, at[used]].bincount().tolist() == [20, 20]  # 40 // 2 classes; 5 of 100 are not more than 0.05
    at, used = pixel_contrast(samples=60, per_class=25, min_share=0.0).choose(label, torch.rand(1, 100))
    assert label[0, at[used]].bincount().tolist() == [20, 20, 5]
    at, used = pixel_contrast(samples=60, per_class=7, min_share=0.05).choose(label, torch.rand(1, 100))
    assert label[0, at[used]].bincount().tolist() == [7, 7]


def test_cells_are_drawn_at_random_within_their_class() -> None:
    label = torch.zeros(1, 40, dtype=torch.long)
    term = pixel_contrast(samples=5)
    drawn = [set(term.choose(label, rng(t).per_image(1, 40))[0].flatten().tolist()) for t in range(20)]
    assert set().union(*drawn) > set(range(30)) and len({frozenset(some) for some in drawn}) > 15


# --- patches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [False, True])
def test_patch_losses_are_the_equation(labels: bool) -> None:
    f, used = directions(8, 5), np.array([1, 1, 0, 1] * 2, dtype=bool)
    label = np.random.default_rng(2).integers(0, 2, 8)
    found = pipa.patch_losses(torch.tensor(f), torch.tensor(label) if labels else None, torch.tensor(used), 0.1)
    for i in np.flatnonzero(used):
        partner = (i + 4) % 8
        against = [k for k in np.flatnonzero(used) if k not in (i, partner) and not (labels and label[k] == label[i])]
        r = similar(f[i], f[partner])
        expected = -np.log(r / (r + sum(similar(f[i], f[k]) for k in against)))
        assert found[i].item() == pytest.approx(expected, rel=1e-6)


class Here(ViewBuilder):
    """Every pixel says where it lies: (row, column, image)."""

    def __init__(self) -> None:
        row, column = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
        self.image = torch.stack([torch.stack([row, column, torch.full((64, 64), float(i))]) for i in range(3)])

    def __call__(self, context: object) -> View:
        return View(self.image, self.image[:, 0].long() // 16)


def patches(side: float = 0.703125) -> pipa.Patches:
    return pipa.Patches(context(), side=side, jitter=0, blur_probability=0, of=Here())


def test_patches_and_sampled_cells_show_the_same_places() -> None:
    for t in range(10):
        now = step(t=t)
        view = patches()(now)
        assert view.image.shape == (6, 3, 40, 40) and torch.equal(view.label, view.image[:, 0].long() // 16)
        assert view.image[:, 2, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
        corners = view.image[:, :2, 0, 0]
        assert (corners % 4 == 0).all()
        places = now.once(pipa.PLACES, view.image, pipa.no_places)
        at, used = pipa.PatchContrast(context(), samples=30).choose(places, rng(t).per_image(3, 10, 10))
        corners = pipa.firsts_then_seconds(corners)
        cells = pipa.firsts_then_seconds(view.image)[:, :, ::4, ::4].flatten(2).gather(2, at[:, None].expand(-1, 3, -1))
        first, second = (part.transpose(1, 2)[used[:3]] for part in cells.chunk(2))
        assert torch.equal(first, second) and torch.equal(used[:3], used[3:]) and used.any(dim=1).all()
        overlap = (40 - (corners[:3] - corners[3:]).abs()).prod(dim=1) / 16
        assert torch.equal(used[:3].sum(dim=1), overlap.clamp(max=30).long())


def test_both_corners_are_drawn_for_each_image() -> None:
    corners = torch.cat([patches()(step(t=t)).image[:, :2, 0, 0] for t in range(30)])
    assert set(corners.flatten().tolist()) == {0, 4, 8, 12, 16, 20, 24}


def test_patches_that_may_lie_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="may lie apart"):
        patches(0.6)  # 32 of 64 pixels


def test_patch_contrast_needs_its_view() -> None:
    with pytest.raises(UserError, match="stands on the view `patches` only"):
        step().once(pipa.PLACES, torch.zeros(1), pipa.no_places)


# --- contracts, recipes, tables ------------------------------------------------------------------------------------


def test_pixel_contrast_keeps_the_contracts() -> None:
    check(pipa.PixelContrast, samples=64, width=16)


def test_pixel_contrast_as_the_public_code_has_it() -> None:
    check(
        pipa.PixelContrast,
        **{"samples": 64, "width": 16, "denominator": "negatives", "pairs": "batch"},
        leave_out=["learns_the_same_on_two_ranks"],  # pairs of the batch are those of one process
    )


def test_patches_keep_the_contracts() -> None:
    # the toy crop has 2 x 2 of the coarsest cells; the view has two images for each of the batch
    check(pipa.Patches, side=1.0, leave_out=["returns_what_it_says"])


@pytest.mark.parametrize("name", ["pipa", "pipa_hrda"])
@pytest.mark.parametrize("negatives", ["all", "other_classes"])
def test_recipes_train(name: str, negatives: str) -> None:
    """Finite, everything learns, nothing reads the device, an interrupted run goes on exactly."""
    small = ["views.source.terms.pixel_contrast.samples=64", "views.patches.side=1"]
    patch = "views.patches.terms.patch_contrast"
    check_recipe(str(HERE / f"{name}.yaml"), *small, f"{patch}={{samples: 32, start: 0, negatives: {negatives}}}")


def test_the_recipe_is_its_host_with_two_terms() -> None:
    for name, host in (("pipa", "daformer"), ("pipa_hrda", "hrda")):
        ours, theirs = load(str(HERE / f"{name}.yaml")).recipe, load(host).recipe
        assert list(ours.views) == [*theirs.views, "patches"]
        assert ours.views["source"].weights == {**theirs.views["source"].weights, "pixel_contrast": 0.1}
        assert ours.views["patches"].weights == {"patch_contrast": 0.1}
        assert ours.views["mixed"] == theirs.views["mixed"]
        apart = {"name", "views", "train", "plugins"}
        assert ours.model_dump(exclude=apart) == theirs.model_dump(exclude=apart)


@pytest.mark.parametrize("name", ["pipa_gta5", "pipa_synthia", "pipa_terms", "streets"])
def test_every_row_of_a_study_loads_and_is_a_run_of_its_own(name: str) -> None:
    study = load_study(str(HERE / f"{name}.yaml"))
    rows = [row for row in study.rows if row.recipe]
    prints = {load(str(r.recipe), benchmark=study.benchmark, overrides=r.overrides).recipe.fingerprint() for r in rows}
    assert len(prints) == len(rows) >= 2


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
        "views.patches.side=1",
    ]
    told = command("train", "--recipe", str(HERE / "pipa_streets.yaml"), "--out", "run", *small)
    assert "patches/patch_contrast" in told and "mIoU" in told
    assert "mIoU" in command("evaluate", "run")
