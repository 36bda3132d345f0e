"""OMUDA's recipes at toy size: steps, one look of the frozen encoder, nothing read, exact resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from engine.test_step import NoReading
from torch import Tensor

from udaseg.engine import trainer
from udaseg.engine.assembly import Assembly, assemble
from udaseg.engine.runlog import RunFolder
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


def steps(setup: trainer.Setup, first: int, last: int) -> list[dict[str, Tensor]]:
    found = []
    for t, raw in enumerate(setup.batches(first, last), first):
        found.append({key: loss.value for key, loss in trainer.step(setup, raw, t)[0].items()})
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_take_steps(name: str, streets: Path) -> None:
    setup = built(name).setup
    before = {key: value.clone() for key, value in setup.learner.segmentor.named_parameters()}
    losses = steps(setup, 0, 2)
    assert all(value.isfinite() for row in losses for value in row.values())
    assert not [key for key, value in setup.learner.segmentor.named_parameters() if torch.equal(value, before[key])]
    terms = {key.split("/")[1] for key in losses[0]}
    expected = {"cam": set(), "fdm": {KD}, "cdm": {CDM}, "omuda": {KD, CDM}}[name.split("_")[1]]
    assert terms - {"cross_entropy", "feature_distance"} == expected
    assert "feature_distance" in terms or KD in terms
    assert ("masked/cross_entropy" in losses[0]) == (name == "daformer_cam")
    assert (f"masked/{CDM}" in losses[0]) == name.endswith("omuda")


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
    (losses,) = steps(built("daformer_omuda", *overrides).setup, 0, 1)
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("name", ["daformer", "hrda"])
def test_feature_distance_and_distillation_share_one_look_of_the_frozen_encoder(name: str, streets: Path) -> None:
    setup = built(name, SEEN).setup
    terms = setup.learner.stages["source"].terms  # type: ignore[union-attr]
    assert terms["feature_distance"].reference is terms[KD].reference
    looks: list[Any] = []
    terms[KD].reference.register_forward_hook(lambda *call: looks.append(call))
    losses = steps(setup, 0, 2)
    assert losses[0][f"source/{KD}"] > 0 and len(looks) == 2
    alone = built(name, SEEN, "views.source.terms.feature_distance=null").setup
    assert steps(alone, 0, 1)[0][f"source/{KD}"] == losses[0][f"source/{KD}"]


def test_distillation_alone_trains_the_encoder(streets: Path) -> None:
    setup = built("daformer_fdm", SEEN, "views.source.terms.cross_entropy.weight=0", "views.mixed=null").setup
    assert steps(setup, 0, 1)[0][f"source/{KD}"] > 0
    moved = {
        key.split(".")[0]
        for key, p in setup.learner.segmentor.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    assert moved == {"encoder"}


def test_nothing_in_a_step_reads_the_device(streets: Path) -> None:
    setup = built("daformer_omuda", SEEN).setup
    raws = list(setup.batches(0, 2))
    with NoReading():
        for t, raw in enumerate(raws):
            trainer.step(setup, raw, t)


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
    def at(folder: str) -> trainer.Trainer:
        return trainer.Trainer(built("daformer_omuda").setup, RunFolder(streets / folder), CADENCE, Silent())

    whole = at("run")
    steps(whole.setup, 0, 3)
    whole.done = 3
    whole.save()
    again = at("run")
    again.restore()
    fresh = built("daformer_omuda").setup
    statistics = [key for key in whole.setup.learner.state_dict() if key.endswith(f"{CDM}.total")]
    assert statistics == [f"stages.{view}.terms.{CDM}.total" for view in ("mixed", "masked")]
    for key in statistics:
        assert not torch.equal(whole.setup.learner.state_dict()[key], fresh.learner.state_dict()[key])
    assert steps(whole.setup, 3, 6) == steps(again.setup, 3, 6)
    ours, theirs = (run.setup.learner.state_dict() for run in (whole, again))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


CADENCE = trainer.Cadence(log=1, validate=100, checkpoint_minutes=100)


class Silent:
    """Progress that nobody sees."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None
