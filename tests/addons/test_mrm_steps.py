"""MRM: its recipes are their baselines and one term; every setting takes a step on a pretended GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pretend
import pytest
import toy
from torch._subclasses.fake_tensor import FakeTensorMode

from udaseg.config.load import load

OBJECTIVES = ("feature_teacher", "feature_student", "pixel_regression")


@pytest.fixture
def mode(streets: Path) -> Iterator[FakeTensorMode]:
    with pretend.card() as mode:
        yield mode


@pytest.mark.parametrize("name", [name for name in toy.recipes() if name.endswith("_mrm")])
def test_a_recipe_is_its_baseline_and_one_term(name: str) -> None:
    """Values: the paper's implementation details, section 4.1."""
    baseline = load(name.removesuffix("_mrm")).recipe.model_dump(exclude={"name"})
    recipe = load(name).recipe.model_dump(exclude={"name"})
    mixed = recipe["views"]["mixed"]
    settings = mixed["terms"].pop("rebuild")
    assert mixed["weights"].pop("rebuild") == 1.0 and recipe == baseline
    published = {"embed_dim": 512, "blocks": 2, "grid": 16, "mask_ratio": 0.4, "learning_rate": 2e-4}
    assert published.items() <= settings.items()


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("dacs_mrm", "mode=mask_only"),
        *(("daformer_mrm", f"objective={objective}") for objective in OBJECTIVES),
        *(("hrda_mrm", f"resolution={part}") for part in ("context", "detail")),
        ("daformer_mrm", "position=input"),
    ],
)
def test_no_setting_mixes_devices_or_waits(name: str, setting: str, mode: FakeTensorMode) -> None:
    pretend.take_step(toy.load(name, f"views.mixed.terms.rebuild.{setting}"), mode)
