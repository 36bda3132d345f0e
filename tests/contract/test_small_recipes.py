"""The recipes for a small pretrained encoder: each adds what its large counterpart adds, and any encoder stands in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import toy

from udaseg.config.layers import chain, leaves, shipped
from udaseg.config.load import load
from udaseg.testing.training import require_steps

PARENTS = {"oracle": "source_only", "dacs": "source_only", "daformer": "dacs", "hrda": "daformer", "mic": "hrda"}
SMALL = [name for name in shipped() if name.startswith("small_")]
OTHERWISE = {
    "daformer": {
        "model.encoder": None,
        "model.decoder": None,
        "teacher.alpha": None,
        "views.source.terms.feature_distance.class_names": ["sign", "pedestrian", "bicyclist"],
    }
}
"""What a small recipe leaves out of what its counterpart sets, or appends to it; its header says so."""
TIMM = "model.encoder=timm/test_resnet"  # a very small network, with random weights


def own(name: str) -> dict[str, Any]:
    """Key -> value of what the file itself says."""
    tree = dict(chain(name)[-1][1])
    return {".".join(path): value for path, value in leaves(tree)}


def parent(name: str) -> str:
    return Path(chain(name)[-2][0]).stem


def test_there_is_one_for_every_baseline() -> None:
    assert set(SMALL) == {"small_source_only", *(f"small_{name}" for name in PARENTS)}


@pytest.mark.parametrize("name", PARENTS)
def test_it_adds_what_its_counterpart_adds(name: str) -> None:
    assert (parent(name), parent(f"small_{name}")) == (PARENTS[name], f"small_{PARENTS[name]}")
    wanted = own(name)
    for key, value in OTHERWISE.get(name, {}).items():
        wanted[key] = wanted[key] + value if value else None
    assert own(f"small_{name}") == {key: value for key, value in wanted.items() if value is not None}


def test_the_settings_of_this_size_stand_in_one_file() -> None:
    assert parent("small_source_only") == "source_only"
    for name in SMALL:
        recipe = load(name).recipe
        assert recipe.model_dump(include={"train", "optimiser"}) == load(SMALL[-1]).recipe.model_dump(
            include={"train", "optimiser"}
        )
        assert recipe.model.encoder["kind"] == "timm/mobilenetv2_100" and recipe.evaluation.bn == "recompute"
        assert recipe.train.batch >= 3  # relations of the images of a batch have angles


@pytest.mark.parametrize("name", SMALL)
def test_another_encoder_of_timm_stands_in(name: str, streets: Path) -> None:
    require_steps(toy.load(name, "train.iterations=3", TIMM, "train.batch=3", base=toy.SMALL))


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["timm/mobilenetv2_100", "timm/test_convnext", "timm/test_vit"])
def test_encoders_of_other_kinds(encoder: str, streets: Path) -> None:
    require_steps(toy.load("small_mic", "train.iterations=3", f"model.encoder={encoder}", base=toy.SMALL))
