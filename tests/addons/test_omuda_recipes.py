"""OMUDA's recipes: their baselines and the paper's three components, alone and together."""

from __future__ import annotations

from udaseg.addons.omuda.context_aware import ContextAwareMasker, ContextAwareSampler, FixedRatio
from udaseg.addons.omuda.feature_distillation import RelationalDistillation
from udaseg.addons.omuda.foreground import THINGS
from udaseg.config.load import load
from udaseg.config.registry import settings_of_type
from udaseg.ranges import ClassNames


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


def test_check_knows_which_settings_name_classes() -> None:
    """`udaseg check` says which of these names no class has."""
    for component in (ContextAwareSampler, FixedRatio, ContextAwareMasker, RelationalDistillation):
        assert settings_of_type(component, ClassNames) == ["foreground"]
