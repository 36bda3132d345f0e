"""Every shipped recipe on every shipped benchmark."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from udaseg import build
from udaseg.commands import recipes as commands
from udaseg.recipe import benchmark_data, chain, leaves, recipe_folder, shipped

RECIPES, BENCHMARKS = shipped(), shipped("benchmarks")
FULL = [name for name in RECIPES if not name.startswith("demo")]
ORDER = ("source", "target", "mixed", "masked")
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
    assert recipe.data.photometric == (name in ("source_only", "oracle"))


@pytest.mark.parametrize("name", RECIPES)
def test_views_are_in_the_order_of_the_step(name: str) -> None:
    views = list(build.load(name).recipe.views)
    assert views == [view for view in ORDER if view in views]


def test_views_and_terms_of_the_baselines() -> None:
    found = {name: {view: list(stage.terms) for view, stage in build.load(name).recipe.views.items()} for name in FULL}
    assert found["source_only"] == found["oracle"] == {"source": ["cross_entropy"]}
    assert found["dacs"] == {"source": ["cross_entropy"], "mixed": ["cross_entropy"]}
    assert found["daformer"] == {"source": ["cross_entropy", "feature_distance"], "mixed": ["cross_entropy"]}


@pytest.mark.parametrize("name", [name for name in FULL if name.endswith("_mrm")])
def test_mrm_is_its_baseline_and_one_term(name: str) -> None:
    """Values: the paper's implementation details, section 4.1."""
    baseline = build.load(name.removesuffix("_mrm")).recipe.model_dump(exclude={"name"})
    recipe = build.load(name).recipe.model_dump(exclude={"name"})
    mixed = recipe["views"]["mixed"]
    settings = mixed["terms"].pop("rebuild")
    assert mixed["weights"].pop("rebuild") == 1.0 and recipe == baseline
    published = {"embed_dim": 512, "blocks": 2, "grid": 16, "mask_ratio": 0.4, "learning_rate": 2e-4}
    assert published.items() <= settings.items()


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
