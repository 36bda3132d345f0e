"""Every shipped recipe on every shipped benchmark."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
import toy
from torch import nn

from udaseg.addons.omuda.foreground import THINGS
from udaseg.commands import recipes as commands
from udaseg.config.layers import chain, leaves, recipe_folder, shipped
from udaseg.config.load import benchmark_data, load
from udaseg.data.loading import Normalise
from udaseg.engine import trainer
from udaseg.engine.assembly import assemble, stages
from udaseg.engine.domains import class_set, scaled, training_crop
from udaseg.engine.networks import segmentor_of
from udaseg.models.segmentor import IMAGENET_MEAN, IMAGENET_STD

RECIPES, BENCHMARKS = shipped(), shipped("benchmarks")
FULL = [name for name in RECIPES if not name.startswith("demo")]
OMUDA = [name for name in FULL if name.endswith(("_omuda", "_cam", "_fdm", "_cdm"))]  # its paper trains with batch 3
ORDER = ("source", "target", "mixed", "masked", "stylised")
"""A step's views as the papers name them; a recipe has some of them, in this order."""


def test_something_is_shipped() -> None:
    assert {"source_only", "oracle", "dacs", "daformer", "demo", "demo_source_only"} <= set(RECIPES)
    assert {"gta5_cityscapes", "streets"} <= set(BENCHMARKS)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_loads_with_every_benchmark(recipe: str, benchmark: str) -> None:
    loaded = load(recipe, benchmark=benchmark)
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
    if name in FULL:
        assert f"udaseg train --recipe {name}" in header
    elif name in RECIPES:
        assert "udaseg demo" in header


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
STEPS = [
    *(pytest.param(name, (), id=name) for name in FULL),
    *(pytest.param(name, REAL, id=f"{name}, real") for name in FULL if "masked" in load(name).recipe.views),
    *(pytest.param(name, ("train.precision=bf16",), id=f"{name}, bf16", marks=pytest.mark.slow) for name in FULL),
]


@pytest.mark.parametrize(("name", "overrides"), STEPS)
def test_three_steps_at_toy_size(name: str, overrides: tuple[str, ...], streets: Path) -> None:
    setup = assemble(toy.load(name, "train.iterations=3", *overrides, base=toy.small(name))).setup
    before = {key: value.clone() for key, value in setup.learner.named_parameters()}
    meter = trainer.Meter()
    for t, raw in enumerate(setup.batches(0, 3)):
        meter.add(*trainer.step(setup, raw, t), t)
    assert meter.broken() is None
    still = [key for key, value in setup.learner.named_parameters() if torch.equal(value, before[key])]
    assert not [key for key in still if not key.startswith("stages.")]  # the reference never changes


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("daformer_omuda", ("views.mixed.terms.rebuild={embed_dim: 32, heads: 4}",)),
        ("mic", ("views.mixed.terms.rebuild={embed_dim: 32, heads: 4}", "views.stylised.terms.contrast={n: 4, m: 8}")),
        ("daformer_t2s", ("views.mixed.terms={cross_entropy: null, class_decoupled_cross_entropy: {}}",)),
    ],
)
def test_papers_combine_by_naming_both(name: str, added: tuple[str, ...], streets: Path) -> None:
    """Two or three add-ons in one recipe: nothing but the recipe knows of it."""
    setup = assemble(toy.load(name, "train.iterations=2", "train.batch=3", *added, base=toy.small(name))).setup
    meter = trainer.Meter()
    for t, raw in enumerate(setup.batches(0, 2)):
        meter.add(*trainer.step(setup, raw, t), t)
    assert meter.broken() is None
    for term in (text.split("=")[0].rpartition(".")[2] for text in added if "terms." in text):
        assert any(key.endswith(f"/{term}") for key in meter.read()["losses"])


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
    recipe = load(name, overrides=[model]).recipe
    with torch.device("meta"):
        segmentor = segmentor_of(recipe)
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
        recipe = load("mic", benchmark=name).recipe
        assert scaled(recipe.data.source, recipe.data.scale) == source
        assert scaled(recipe.data.target, recipe.data.scale) == target
        assert training_crop(recipe) == (1024, 1024) and recipe.evaluation.mode == "slide"
        assert (recipe.data.image_margins is None) == pair and recipe.data.margins == "image"
        masked = stages(recipe, class_set(recipe), nn.Identity(), Normalise(IMAGENET_MEAN, IMAGENET_STD))[
            "masked"
        ].build
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


def test_omuda_is_its_three_components() -> None:
    """Each alone and all of them (its Table IV) differ from DAFormer at batch 3 in nothing else."""
    names = ("daformer", "daformer_cam", "daformer_fdm", "daformer_cdm", "daformer_omuda")
    plain, cam, fdm, cdm, every = (load(name, overrides=["train.batch=3"]).recipe for name in names)
    kd, decoupled = fdm.views["source"], cdm.views["mixed"]
    assert every.data == cam.data and fdm.data == cdm.data == plain.data
    assert every.data.sampler["kind"] == every.views["masked"].options["masker"]["kind"] == "context_aware"
    assert every.views["source"] == kd and kd.weights == {"cross_entropy": 1.0, "relational_distillation": 0.01}
    assert every.views["mixed"] == decoupled and list(decoupled.terms) == ["class_decoupled_cross_entropy"]
    assert every.views["masked"].terms == decoupled.terms
    assert every.views["masked"].options == cam.views["masked"].options
    assert fdm.views["mixed"] == plain.views["mixed"] and cdm.views["source"] == plain.views["source"]
    assert cam.views["masked"].options["masker"]["foreground"] == cam.data.sampler["foreground"] == THINGS
    for part in (cam, fdm, cdm, every):
        assert part.model_dump(exclude={"name", "data", "views"}) == plain.model_dump(exclude={"name", "data", "views"})
    distances = load("daformer").recipe.views["source"].terms["feature_distance"]
    assert distances["class_names"] == THINGS


def test_omuda_on_the_other_baselines() -> None:
    found = {name: load(name).recipe for name in ("daformer_omuda", "dacs_omuda", "hrda_omuda", "mic_omuda")}
    for recipe in found.values():
        assert recipe.views == found["daformer_omuda"].views
    assert found["mic_omuda"].fingerprint() == found["hrda_omuda"].fingerprint()
    assert found["hrda_omuda"].data.sampler == {**found["daformer_omuda"].data.sampler, "min_crop_ratio": 2.0}


@pytest.mark.parametrize("name", [name for name in FULL if name.endswith("_mrm")])
def test_mrm_is_its_baseline_and_one_term(name: str) -> None:
    """Values: the paper's implementation details, section 4.1."""
    baseline = load(name.removesuffix("_mrm")).recipe.model_dump(exclude={"name"})
    recipe = load(name).recipe.model_dump(exclude={"name"})
    mixed = recipe["views"]["mixed"]
    settings = mixed["terms"].pop("rebuild")
    assert mixed["weights"].pop("rebuild") == 1.0 and recipe == baseline
    published = {"embed_dim": 512, "blocks": 2, "grid": 16, "mask_ratio": 0.4, "learning_rate": 2e-4}
    assert published.items() <= settings.items()


def test_a_method_is_the_same_on_another_benchmark() -> None:
    """Only data may differ: sizes belong to benchmarks, everything else to recipes."""
    for name in FULL:
        here, *others = (load(name, benchmark=b).recipe.model_dump(exclude={"benchmark", "data"}) for b in BENCHMARKS)
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
    assert ("frozen ImageNet encoder 1" in text) == ("feature_distance" in text or "relational_distillation" in text)
    assert loaded.recipe.fingerprint()[:12] in text
    assert re.search(rf"^name +{name} +recipes/{name}.yaml *$", text, re.MULTILINE)
    assert re.search(r"^teacher.alpha +0\.\d+ +\S+ *$", text, re.MULTILINE)
