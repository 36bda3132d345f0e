"""T2S-DA's tables: every row that has a recipe loads, and is another run than the others."""

from __future__ import annotations

import pytest

from udaseg.commands.demo import load_adaptation
from udaseg.config.checks import needs
from udaseg.config.load import load
from udaseg.config.schema import Recipe
from udaseg.errors import UserError
from udaseg.report.study import load_study, studies

STUDIES = [name for name in studies() if name.startswith("t2s_")]
FDA = {"kind": "fda", "beta": 0.01, "scope": "image", "region": (1.0, 2.0)}
HOSTS = {"daformer_t2s": "daformer", "dacs_t2s_dlv2": "daformer_dlv2", "hrda_t2s": "hrda", "mic_t2s": "mic"}


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_loads_and_is_a_run_of_its_own(name: str) -> None:
    study = load_study(name)
    seen = set()
    for row in study.rows:
        if row.recipe is not None:
            recipe = load(row.recipe, benchmark=study.benchmark, overrides=row.overrides).recipe
            place = (row.group, recipe.fingerprint(), recipe.name)
            assert place not in seen, row.label
            seen.add(place)
            plain = load(row.recipe, benchmark=study.benchmark).recipe
            assert (plain.fingerprint() != recipe.fingerprint()) == bool(row.overrides), row.label


@pytest.mark.parametrize(("name", "host"), HOSTS.items())
def test_a_recipe_is_its_host_and_the_same_contrast(name: str, host: str) -> None:
    ours, theirs = load(name).recipe, load(host).recipe
    views = dict(ours.views)
    stylised = views.pop("stylised")
    assert views == theirs.views and list(ours.views)[-1] == "stylised"
    assert ours.model_dump(exclude={"name", "views"}) == theirs.model_dump(exclude={"name", "views"})
    assert stylised == load("daformer_t2s").recipe.views["stylised"]
    assert stylised.weights == {"contrast": 0.1}
    assert stylised.terms["contrast"] == {
        **{"key": "source", "objective": "infonce", "temperature": 0.2, "n": 128, "m": 1024, "alpha": 0.5, "beta": 0.5},
        **{"query_sampling": "cbqs", "negative_sampling": "denps", "reweight": "dynamic", "reduction": "base"},
        **{"map": "last", "width": 256, "kernel": 3, "engine": FDA},
    }
    assert stylised.options == {"engine": FDA}


def terms(recipe: Recipe) -> dict[str, list[str]]:
    return {view: list(stage.terms) for view, stage in recipe.views.items()}


def test_cross_entropy_on_the_pseudo_target_takes_the_place_of_the_sources() -> None:
    """Tables 3, 5, 7 and 11; the other reading is one override."""
    daformer, ours = load("daformer").recipe, load("daformer_fda").recipe
    assert terms(ours) == {"source": ["feature_distance"], "mixed": ["cross_entropy"], "stylised": ["cross_entropy"]}
    both = load("daformer_fda", overrides=["views.source.terms.cross_entropy={}"]).recipe
    views = dict(both.views)
    assert views.pop("stylised").options == {"engine": FDA} and views == daformer.views
    (row,) = (r for r in load_study("t2s_07_terms").rows if r.label.startswith("p. target"))
    pulled = load("daformer_t2s", overrides=row.overrides).recipe
    assert terms(pulled) == {**terms(ours), "stylised": ["contrast", "cross_entropy"]}
    for row in load_study("t2s_11_engine").rows:
        if row.group == "without L_pull" and row.recipe != "daformer":
            assert terms(load(str(row.recipe), overrides=row.overrides).recipe) == terms(ours), row.label


def test_the_demo_takes_a_recipe_without_cross_entropy_on_the_source() -> None:
    """Without an ImageNet encoder nothing is left on its source view."""
    recipe = load_adaptation("daformer_fda", []).recipe
    assert terms(recipe) == {"mixed": ["cross_entropy"], "stylised": ["cross_entropy"]}


@pytest.mark.parametrize("name", ["dg_source_only", "dg_t2s"])
def test_domain_generalisation_has_no_target(name: str) -> None:
    for benchmark in ("gta5_cityscapes", "streets"):
        recipe = load(name, benchmark=benchmark).recipe
        assert recipe.data.target is None and recipe.data.validation is not None and not needs(recipe).target
    assert needs(load(name).recipe).passes.get("teacher", 0) == int(name == "dg_t2s")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("engine=fda", "views.stylised: "),
        ("terms.contrast.negative_sampling=sps", "views.stylised.terms.contrast: "),
        ("terms.contrast.reweight=dynamic", "views.stylised.terms.contrast: "),
        ("terms.contrast.key=target", "views.stylised.terms.contrast: "),
    ],
)
def test_what_needs_a_target_is_refused_without_one(override: str, key: str) -> None:
    with pytest.raises(UserError, match=f"{key}needs a target domain"):
        load("dg_t2s", overrides=[f"views.stylised.{override}"])


@pytest.mark.parametrize(
    "override", ["engine=gaussian_blur", "terms.contrast.objective=mse", "terms.contrast.reduction=sum"]
)
def test_what_needs_none_is_not(override: str) -> None:
    assert not needs(load("dg_t2s", overrides=[f"views.stylised.{override}"]).recipe).target
