"""Every shipped recipe on every shipped benchmark."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path

import pytest
import torch
import toy

from udaseg.commands import recipes as commands
from udaseg.config import checks
from udaseg.config.layers import chain, leaves, recipe_folder, shipped
from udaseg.config.load import Loaded, benchmark_data, load
from udaseg.config.registry import REGISTRIES
from udaseg.engine.assembly import build_context, stages
from udaseg.engine.domains import scaled, training_crop
from udaseg.engine.networks import normalisation, segmentor_of
from udaseg.testing.training import require_steps

RECIPES, BENCHMARKS = {name: shipped()[name] for name in toy.recipes()}, shipped("benchmarks")
FULL = [name for name in RECIPES if not name.startswith(("demo", "small_"))]
OMUDA = [name for name in FULL if name.endswith(("_omuda", "_cam", "_fdm", "_cdm"))]  # its paper trains with batch 3
ORDER = ("source", "target", "mixed", "masked", "stylised")
"""A step's views as the papers name them; a recipe has some of them, in this order."""


@functools.cache
def on_benchmark(recipe: str, benchmark: str) -> Loaded:
    return load(recipe, benchmark=benchmark)


def test_something_is_shipped() -> None:
    assert {"source_only", "oracle", "dacs", "daformer", "demo", "demo_source_only"} <= set(RECIPES)
    assert {"gta5_cityscapes", "streets"} <= set(BENCHMARKS)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_loads_with_every_benchmark(recipe: str, benchmark: str) -> None:
    loaded = on_benchmark(recipe, benchmark)
    assert (loaded.recipe.name, loaded.recipe.benchmark) == (recipe, benchmark)
    written = benchmark_data(benchmark)
    assert loaded.recipe.data.source == written.source and loaded.recipe.data.crop == written.crop


@pytest.mark.parametrize("recipe", RECIPES)
def test_loads_as_it_is_and_every_value_has_an_origin(recipe: str) -> None:
    loaded = load(recipe)
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
    if name in RECIPES:
        assert ("udaseg demo" if name.startswith("demo") else f"udaseg train --recipe {name}") in header


@pytest.mark.parametrize("name", FULL)
def test_full_recipes_keep_the_protocol_of_the_papers(name: str) -> None:
    recipe = load(name).recipe
    assert (recipe.train.iterations, recipe.train.batch) == (40000, 3 if name in OMUDA else 2)
    assert (recipe.optimiser.lr, recipe.optimiser.weight_decay, recipe.optimiser.head_lr_factor) == (6e-5, 0.01, 10)
    assert (recipe.optimiser.warmup, recipe.optimiser.power, recipe.seed) == (1500, 1.0, 0)
    assert recipe.data.photometric == (name in ("source_only", "oracle", "dg_source_only", "dg_t2s"))


@pytest.mark.parametrize("name", RECIPES)
def test_views_are_in_the_order_of_the_step(name: str) -> None:
    views = list(load(name).recipe.views)
    assert views == [view for view in ORDER if view in views]


REAL = ("data.synthetic_source=false",)  # what only the masked view looks at
COVER = tuple(
    name
    for name in ("demo", "dacs", "mic", "dacs_mrm", "dacs_omuda", "dacs_t2s_dlv2", "dg_t2s")
    if name in toy.recipes()
)
"""As few and small recipes as have every component of the shipped ones: the others take their steps in `-m slow`."""
STEPS = [
    *(pytest.param(name, (), id=name) for name in COVER),
    pytest.param("mic_dacs_dlv2", REAL, id="mic_dacs_dlv2, real"),
    *(pytest.param(name, (), id=name, marks=pytest.mark.slow) for name in RECIPES if name not in COVER),
    *(
        pytest.param(name, REAL, id=f"{name}, real", marks=pytest.mark.slow)
        for name in FULL
        if "masked" in load(name).recipe.views and name != "mic_dacs_dlv2"
    ),
    *(pytest.param(name, ("train.precision=bf16",), id=f"{name}, bf16", marks=pytest.mark.slow) for name in FULL),
]


@pytest.mark.parametrize(("name", "overrides"), STEPS)
def test_three_steps_at_toy_size(name: str, overrides: tuple[str, ...], streets: Path) -> None:
    """Finite losses, everything learns, and nothing reads the device."""
    require_steps(toy.load(name, "train.iterations=3", *overrides, base=toy.small(name)))


def test_the_steps_cover_every_component_of_the_shipped_recipes() -> None:
    """But encoders, which toy recipes replace (``test_models`` has them all)."""
    stepped = {component for name in COVER for component in components_of(name)}
    assert stepped == {component for name in RECIPES for component in components_of(name)}


def components_of(name: str) -> set[type]:
    """The classes of all that the recipe names."""
    recipe = load(name).recipe
    networks = [("decoder", recipe.model.decoder)]
    networks += [("wrapper", recipe.model.wrapper)] if recipe.model.wrapper else []
    classes = {REGISTRIES[kind].component(part["kind"]) for kind, part in networks}
    return classes | {
        component for _, kind, part in checks.components(recipe) for _, component, _ in checks.walk(kind, part)
    }


@pytest.mark.parametrize(
    "model",
    [
        "model.encoder=mit_b2", "model.encoder=mit_b3", "model.encoder=resnet50",
        "model={encoder: resnet101, decoder: deeplabv3plus}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["dacs", "daformer", "hrda"])
def test_other_networks_by_override(name: str, model: str) -> None:
    """The architectures of the add-on papers' tables."""
    recipe = load(name, overrides=[model]).recipe
    with torch.device("meta"):
        segmentor = segmentor_of(recipe)
    predictions = segmentor(torch.empty(2, 3, 1024, 1024, device="meta")).predictions
    assert len(predictions) == (2 if name == "hrda" else 1)


def test_mic_has_the_networks_of_hrda() -> None:
    for overrides in ([], ["model.encoder=resnet50"]):
        assert load("mic", overrides=overrides).recipe.model == load("hrda", overrides=overrides).recipe.model


def test_sizes_margins_and_modes_of_the_large_baselines() -> None:
    """What each benchmark makes of HRDA and MIC."""
    for name, source, target, pair in (
        ("gta5_cityscapes", (2560, 1440), (2048, 1024), False),
        ("synthia_cityscapes", (2560, 1520), (2048, 1024), False),
        ("cityscapes_acdc", (2048, 1024), (1920, 1080), True),
        ("cityscapes_dark_zurich", (2048, 1024), (1920, 1080), True),
    ):
        recipe = load("mic", benchmark=name, overrides=["model.encoder=mit_b0"]).recipe
        assert scaled(recipe.data.source, recipe.data.scale) == source
        assert scaled(recipe.data.target, recipe.data.scale) == target
        assert training_crop(recipe) == (1024, 1024) and recipe.evaluation.mode == "slide"
        assert (recipe.data.image_margins is None) == pair and recipe.data.margins == "image"
        with torch.device("meta"):
            student = segmentor_of(recipe)
        masked = stages(recipe, build_context(recipe, normalisation(student), student))["masked"].build_view
        assert masked.pair == pair
    whole = {name for name in FULL if load(name).recipe.evaluation.mode == "whole"}
    assert {"dacs", "daformer", "hrda_dlv2", "mic_daformer", "mic_dacs_dlv2"} <= whole
    assert load("daformer_dlv2").recipe.data.margins == "crop"


def test_views_and_terms_of_the_baselines() -> None:
    found = {name: {view: list(stage.terms) for view, stage in load(name).recipe.views.items()} for name in FULL}
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
            on_benchmark(name, benchmark).recipe.model_dump(exclude={"benchmark", "data"}) for benchmark in BENCHMARKS
        )
        assert all(other == here for other in others)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_hold_data_only(name: str) -> None:
    for _, tree in chain(name, "benchmarks"):
        assert set(tree) == {"data"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_show_prints(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load(name)
    commands.show(loaded)
    text = capsys.readouterr().out
    views = list(loaded.recipe.views)
    assert re.search(
        rf"passes per step: student {len(views)} \({re.escape(' + '.join(views))}\), teacher {int('mixed' in views)}",
        text,
    )
    assert ("pretrained encoder 1" in text) == ("feature_distance" in text or "relational_distillation" in text)
    assert loaded.recipe.fingerprint()[:12] in text
    assert re.search(rf"^name +{name} +recipes/{name}.yaml *$", text, re.MULTILINE)
    assert re.search(r"^teacher.alpha +0\.\d+ +\S+ *$", text, re.MULTILINE)
