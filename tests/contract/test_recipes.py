"""Every shipped recipe on every shipped benchmark."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
import toy
from torch import nn

from udaseg import build
from udaseg.commands import recipes as commands
from udaseg.data.loading import Normalise
from udaseg.engine import trainer
from udaseg.recipe import benchmark_data, chain, leaves, recipe_folder, shipped

RECIPES, BENCHMARKS = shipped(), shipped("benchmarks")
FULL = [name for name in RECIPES if not name.startswith("demo")]
ORDER = ("source", "target", "mixed", "masked", "stylised")
"""A step's views as the papers name them; a recipe has some of them, in this order."""


def test_something_is_shipped() -> None:
    assert {"source_only", "oracle", "dacs", "daformer", "demo", "demo_source_only"} <= set(RECIPES)
    assert {"gta5_cityscapes", "streets"} <= set(BENCHMARKS)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_loads_with_every_benchmark(recipe: str, benchmark: str) -> None:
    loaded = build.load(recipe, benchmark=benchmark)
    assert (loaded.recipe.name, loaded.recipe.benchmark) == (recipe, benchmark)
    written = benchmark_data(benchmark)
    assert loaded.recipe.data.source == written.source and loaded.recipe.data.crop == written.crop


@pytest.mark.parametrize("recipe", RECIPES)
def test_loads_as_it_is_and_every_value_has_an_origin(recipe: str) -> None:
    loaded = build.load(recipe)
    assert loaded.recipe.benchmark in BENCHMARKS
    files = {f"recipes/{path.relative_to(recipe_folder())}" for path in [*RECIPES.values(), *BENCHMARKS.values()]}
    for path, _ in leaves(loaded.tree):
        assert loaded.origin[path] in files, path


@pytest.mark.parametrize("path", [*RECIPES.values(), *BENCHMARKS.values()], ids=lambda path: path.stem)
def test_opens_with_a_comment_that_says_how_to_use_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    header = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))
    assert len(commands.first_sentence(path)) > 20
    name = path.stem
    if name in FULL:
        assert f"udaseg train --recipe {name}" in header
    elif name in RECIPES:
        assert "udaseg demo" in header


@pytest.mark.parametrize("name", FULL)
def test_full_recipes_keep_the_protocol_of_the_papers(name: str) -> None:
    recipe = build.load(name).recipe
    assert (recipe.train.iterations, recipe.train.batch) == (40000, 2)
    assert (recipe.optimiser.lr, recipe.optimiser.weight_decay, recipe.optimiser.head_lr_factor) == (6e-5, 0.01, 10)
    assert (recipe.optimiser.warmup, recipe.optimiser.power, recipe.seed) == (1500, 1.0, 0)
    assert recipe.data.photometric == (name in ("source_only", "oracle", "dg_source_only", "dg_t2s"))


@pytest.mark.parametrize("name", RECIPES)
def test_views_are_in_the_order_of_the_step(name: str) -> None:
    views = list(build.load(name).recipe.views)
    assert views == [view for view in ORDER if view in views]


def small(name: str) -> tuple[str, ...]:
    """The recipe at toy size with its own decoder."""
    decoder = build.load(name).recipe.model.decoder["kind"]
    return toy.MIT if decoder == "daformer" else (*toy.SMALL, "model.encoder=tiny")


@pytest.mark.parametrize("overrides", [(), ("data.synthetic_source=false",)], ids=["rendered", "real"])
@pytest.mark.parametrize("name", FULL)
def test_three_steps_at_toy_size(name: str, overrides: tuple[str, ...], streets: Path) -> None:
    setup = build.training(toy.load(name, "train.iterations=3", *overrides, base=small(name))).setup
    before = {key: value.clone() for key, value in setup.learner.named_parameters()}
    meter = trainer.Meter()
    for t, raw in enumerate(setup.batches(0, 3)):
        meter.add(*trainer.step(setup, raw, t), t)
    assert meter.broken() is None
    still = [key for key, value in setup.learner.named_parameters() if torch.equal(value, before[key])]
    assert not [key for key in still if not key.startswith("stages.")]  # the reference never changes


@pytest.mark.parametrize(
    "model",
    [
        "model.encoder=mit_b2", "model.encoder=mit_b3", "model.encoder=resnet50",
        "model={encoder: resnet101, decoder: deeplabv3plus}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["dacs", "daformer", "hrda", "mic"])
def test_other_networks_by_override(name: str, model: str) -> None:
    """The architectures of the add-on papers' tables."""
    recipe = build.load(name, overrides=[model]).recipe
    with torch.device("meta"):
        segmentor = build.segmentor_of(recipe)
    predictions = segmentor(torch.empty(2, 3, 1024, 1024, device="meta")).predictions
    assert len(predictions) == (2 if name in ("hrda", "mic") else 1)


def test_sizes_margins_and_modes_of_the_large_baselines() -> None:
    """baselines.md 2.2, 2.4, 2.8, 5.4: what each benchmark makes of HRDA and MIC."""
    for name, source, target, pair in (
        ("gta5_cityscapes", (2560, 1440), (2048, 1024), False),
        ("synthia_cityscapes", (2560, 1520), (2048, 1024), False),
        ("cityscapes_acdc", (2048, 1024), (1920, 1080), True),
        ("cityscapes_dark_zurich", (2048, 1024), (1920, 1080), True),
    ):
        recipe = build.load("mic", benchmark=name).recipe
        assert build.scaled(recipe.data.source, recipe.data.scale) == source
        assert build.scaled(recipe.data.target, recipe.data.scale) == target
        assert build.training_crop(recipe) == (1024, 1024) and recipe.evaluation.mode == "slide"
        assert (recipe.data.image_margins is None) == pair and recipe.data.margins == "image"
        masked = build.stages(recipe, build.class_set(recipe), nn.Identity(), Normalise())["masked"].build
        assert masked.pair == pair
    whole = {name for name in FULL if build.load(name).recipe.evaluation.mode == "whole"}
    assert {"dacs", "daformer", "hrda_dlv2", "mic_daformer", "mic_dacs_dlv2"} <= whole
    assert build.load("daformer_dlv2").recipe.data.margins == "crop"


def test_views_and_terms_of_the_baselines() -> None:
    found = {name: {view: list(stage.terms) for view, stage in build.load(name).recipe.views.items()} for name in FULL}
    assert found["source_only"] == found["oracle"] == {"source": ["cross_entropy"]}
    assert found["dacs"] == {"source": ["cross_entropy"], "mixed": ["cross_entropy"]}
    assert found["daformer"] == {"source": ["cross_entropy", "feature_distance"], "mixed": ["cross_entropy"]}
    assert found["hrda"] == found["hrda_dlv2"] == found["daformer_dlv2"] == found["daformer"]
    assert found["dacs_dlv2"] == found["dacs"]
    hosts = {"mic": "hrda", "mic_dlv2": "hrda", "mic_daformer": "daformer", "mic_dacs_dlv2": "dacs"}
    for name, parent in hosts.items():
        assert found[name] == {**found[parent], "masked": ["cross_entropy"]}


def test_a_method_is_the_same_on_another_benchmark() -> None:
    """Only data may differ: sizes belong to benchmarks, everything else to recipes."""
    for name in FULL:
        here, *others = (
            build.load(name, benchmark=b).recipe.model_dump(exclude={"benchmark", "data"}) for b in BENCHMARKS
        )
        assert all(other == here for other in others)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_hold_data_only(name: str) -> None:
    for _, tree in chain(name, "benchmarks"):
        assert set(tree) == {"data"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_show_prints(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = build.load(name)
    commands.show(loaded)
    text = capsys.readouterr().out
    views = list(loaded.recipe.views)
    assert re.search(
        rf"passes per step: student {len(views)} \({re.escape(' + '.join(views))}\), teacher {int('mixed' in views)}",
        text,
    )
    assert ("frozen ImageNet encoder 1" in text) == ("feature_distance" in text)
    assert loaded.recipe.fingerprint()[:12] in text
    assert re.search(rf"^name +{name} +recipes/{name}.yaml *$", text, re.MULTILINE)
    assert re.search(r"^teacher.alpha +0\.\d+ +\S+ *$", text, re.MULTILINE)
