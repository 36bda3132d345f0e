"""OMUDA at toy size: the rows of its tables, one pass of the pretrained encoder, devices, exact resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pretend
import pytest
import torch
import toy
from torch import Tensor

from udaseg.console import Silent
from udaseg.engine.assembly import Assembly, assemble
from udaseg.engine.runlog import RunFolder
from udaseg.engine.trainer import Trainer
from udaseg.errors import UserError

RECIPES = ("daformer_omuda", "daformer_cam", "daformer_fdm", "daformer_cdm", "dacs_omuda", "hrda_omuda", "mic_omuda")
KD, CDM = "relational_distillation", "class_decoupled_cross_entropy"
SEEN = f"views.source.terms.{KD}={{weight: 0.01, min_ratio: 0.3, foreground: [road, building, sky]}}"
"""A toy crop's 2 x 2 cells hardly ever hold a thing."""


def base(name: str) -> tuple[str, ...]:
    return (
        (*toy.SMALL, "model.encoder=tiny", "train.batch=3") if name.startswith("dacs") else (*toy.MIT, "train.batch=3")
    )


def built(name: str, *overrides: str) -> Assembly:
    return assemble(toy.load(name, "train.iterations=8", *overrides, base=base(name)))


def steps(trainer: Trainer, first: int, last: int) -> list[dict[str, Tensor]]:
    """The losses of every iteration."""
    return [
        {key: loss.value for key, loss in trainer.step(raw, t)[0].items()}
        for t, raw in enumerate(trainer.batches(first, last), first)
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_views_and_terms_of_the_recipes(name: str) -> None:
    """They take their steps in ``contract/test_recipes``."""
    terms = {view: set(stage.terms) for view, stage in toy.load(name, base=base(name)).recipe.views.items()}
    every = set().union(*terms.values())
    expected = {"cam": set(), "fdm": {KD}, "cdm": {CDM}, "omuda": {KD, CDM}}[name.split("_")[1]]
    assert every - {"cross_entropy", "feature_distance"} == expected
    assert "feature_distance" in every or KD in every
    assert ("cross_entropy" in terms.get("masked", ())) == (name == "daformer_cam")
    assert (CDM in terms.get("masked", ())) == name.endswith("omuda")


@pytest.mark.parametrize(
    "overrides",
    [
        ("data.sampler=uniform",),
        ("data.sampler=fixed_ratio",),
        ("data.sampler={kind: rare_class, temperature: 0.01, min_crop_ratio: 0.5}",),
        ("views.masked.masker={kind: blocks, block: 0.125}",),
        ("views.masked.masker=grid",),
        ("views.masked.masker={kind: context_aware, foreground_block: 0.0625, background_block: 0.125}",),
        (f"views.mixed.terms.{CDM}.beta=agreement", f"views.masked.terms.{CDM}.momentum=0"),
        (SEEN, f"views.source.terms.{KD}.weight=0.1", f"views.source.terms.{KD}.neck=fused"),
        ("data.synthetic_source=false", "data.sampler.foreground=[road, sky]"),
    ],
)
def test_every_row_of_the_papers_tables_takes_a_step(overrides: tuple[str, ...], streets: Path) -> None:
    (losses,) = steps(built("daformer_omuda", *overrides).trainer, 0, 1)
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("name", ["daformer", "hrda"])
def test_feature_distance_and_distillation_share_one_pass_of_the_pretrained_encoder(name: str, streets: Path) -> None:
    trainer = built(name, SEEN).trainer
    passes: list[Any] = []
    assert trainer.learner.pretrained_encoder is not None
    trainer.learner.pretrained_encoder.register_forward_hook(lambda *call: passes.append(call))
    losses = steps(trainer, 0, 2)
    assert losses[0][f"source/{KD}"] > 0 and len(passes) == 2
    alone = built(name, SEEN, "views.source.terms.feature_distance=null").trainer
    assert steps(alone, 0, 1)[0][f"source/{KD}"] == losses[0][f"source/{KD}"]


def test_distillation_alone_trains_the_encoder(streets: Path) -> None:
    trainer = built("daformer_fdm", SEEN, "views.source.terms.cross_entropy.weight=0", "views.mixed=null").trainer
    assert steps(trainer, 0, 1)[0][f"source/{KD}"] > 0
    moved = {
        key.split(".")[0]
        for key, p in trainer.learner.segmentor.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    assert moved == {"encoder"}


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *(("mic_daformer", f"views.masked.masker={kind}") for kind in ("grid", "context_aware")),
        ("daformer_cdm", f"views.mixed.terms.{CDM}.beta=agreement"),
        ("daformer_fdm", f"views.source.terms.{KD}.neck=fused"),
    ],
)
def test_no_setting_mixes_devices_or_waits(name: str, setting: str, streets: Path) -> None:
    with pretend.card() as mode:
        pretend.take_step(toy.load(name, setting, base=toy.small(name) if "fused" in setting else toy.TINY), mode)


@pytest.mark.parametrize(("batch", "said"), [(1, "nothing to compare"), (2, "no angles"), (3, None)])
def test_small_batches_are_warned_of(batch: int, said: str | None, streets: Path) -> None:
    found = [text for text in built("daformer_omuda", f"train.batch={batch}").warnings if KD in text]
    assert len(found) == bool(said) and (said or "") in "".join(found)


def test_a_decoder_without_a_fused_map_is_refused() -> None:
    toy.load("daformer_fdm", f"views.source.terms.{KD}.neck=fused", base=toy.TINY)
    with pytest.raises(UserError, match=rf"{KD}.neck: the decoder fuses no maps; allowed: last, or daformer"):
        toy.load("daformer_fdm", f"views.source.terms.{KD}.neck=fused", "model.decoder=deeplabv2")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("views.masked.masker.foreground_block=0", "views.masked.masker.foreground_block"),
        (f"views.mixed.terms.{CDM}.momentum=1", f"{CDM}.momentum"),
        (f"views.mixed.terms.{CDM}.beta=both", "'disagreement' or 'agreement'"),
        ("data.sampler.foreground=car", "a list is expected"),
        ("data.sampler.foreground_share=2", "data.sampler.foreground_share"),
        ("data.sampler.names=[car]", "unknown key 'names'"),
        ("views.masked.masker.names=[car]", "unknown key 'names'"),
    ],
)
def test_wrong_settings_are_refused_when_the_recipe_is_loaded(override: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        toy.load("daformer_omuda", override)
    assert said in str(refused.value)


@pytest.mark.parametrize("part", ["data.sampler", "views.masked.masker", f"views.source.terms.{KD}"])
def test_foreground_that_does_not_exist_is_refused_at_the_start(part: str, streets: Path) -> None:
    with pytest.raises(UserError, match=r"foreground \['horse'\]: no class is called so; there are road"):
        built("daformer_omuda", f"{part}.foreground=[horse]")


def test_resuming_is_exact_with_the_running_statistics(streets: Path) -> None:
    def in_run() -> Trainer:
        trainer = built("daformer_omuda").trainer
        trainer.run, trainer.progress = RunFolder(streets / "run"), Silent()
        return trainer

    whole = in_run()
    fresh = {key: value.clone() for key, value in whole.learner.state_dict().items()}
    steps(whole, 0, 2)
    whole.done = 2
    whole.save()
    again = in_run()
    again.restore()
    statistics = [key for key in fresh if key.endswith(f"{CDM}.total")]
    assert statistics == [f"stages.{view}.terms.{CDM}.total" for view in ("mixed", "masked")]
    for key in statistics:
        assert not torch.equal(whole.learner.state_dict()[key], fresh[key])
    assert steps(whole, 2, 4) == steps(again, 2, 4)
    ours, theirs = (trainer.learner.state_dict() for trainer in (whole, again))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
