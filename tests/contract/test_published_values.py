"""What papers and public code publish against the shipped recipes and benchmarks, each value with its source.

Golden files (``test_golden.py``) notice that a value changed; this table says what it must be. Headings are those of
docs/fidelity.md.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from golden.write import benchmark_lines, recipe_lines

from udaseg.config import schema
from udaseg.config.load import load
from udaseg.config.registry import REGISTRIES
from udaseg.data.classes import PROTOCOLS
from udaseg.engine.domains import scaled, training_crop

MISSING = object()
THINGS = ["traffic light", "traffic sign", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]

SELF_TRAINING = ("dacs", "dacs_dlv2", "daformer", "daformer_dlv2", "hrda", "hrda_dlv2")
MIC = ("mic", "mic_dlv2", "mic_daformer", "mic_dacs_dlv2")
AT_1024 = ("hrda", "hrda_dlv2", "mic", "mic_dlv2")
WITH_DACS = ("dacs", "dacs_dlv2", "mic_dacs_dlv2")
AT_512 = ("daformer", "daformer_dlv2", "mic_daformer")
WITH_DAFORMER = (*AT_512, *AT_1024)
SUPERVISED = ("source_only", "oracle", "dg_source_only")
EVERY = (*SUPERVISED, *SELF_TRAINING, *MIC)

RECIPE_VALUES: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
    (
        EVERY,
        {
            "optimiser.lr": 6e-5,
            "optimiser.weight_decay": 0.01,
            "optimiser.head_lr_factor": 10,
            "optimiser.decay_one_dimensional": True,
            "optimiser.warmup": 1500,
            "optimiser.power": 1,
            "optimiser.minimum": 0,
            "train.iterations": 40000,
            "train.batch": 2,
        },
        "DAFormer, section 4.1 (implementation details); Optimisation",
    ),
    (EVERY, {"data.cat_max_ratio": 0.75, "views.source.terms.cross_entropy.weight": 1}, "Crops and sampling; Losses"),
    (SUPERVISED, {"data.photometric": True, "data.sampler.kind": "uniform"}, "Data pipeline"),
    (("source_only", "dg_source_only"), {"data.labelled": "source"}, "DAFormer, table 1: source-only"),
    (("oracle",), {"data.labelled": "target"}, "DAFormer, table 1: target-only"),
    (
        (*SELF_TRAINING, *MIC),
        {
            "data.photometric": False,
            "pseudo_labels.kind": "confidence_share",
            "pseudo_labels.threshold": 0.968,
            "views.mixed.jitter": 0.2,
            "views.mixed.jitter_probability": 0.8,
            "views.mixed.blur_probability": 0.5,
            "views.mixed.terms.cross_entropy.weight": 1,
        },
        "DACS, section 4; Class mix and colour augmentation; Pseudo-labels and teacher",
    ),
    (WITH_DACS, {"teacher.alpha": 0.99, "data.sampler.kind": "uniform", "data.margins": "none"}, "Pseudo-labels"),
    (WITH_DACS, {"views.source.terms.feature_distance.weight": MISSING}, "DACS has none"),
    (
        WITH_DAFORMER,
        {
            "teacher.alpha": 0.999,
            "data.sampler.kind": "rare_class",
            "data.sampler.temperature": 0.01,
            "views.source.terms.feature_distance.weight": 0.005,
            "views.source.terms.feature_distance.min_ratio": 0.75,
            "views.source.terms.feature_distance.class_names": THINGS,
        },
        "DAFormer, sections 3.3 and 4.1; Crops and sampling; Losses",
    ),
    (AT_512, {"data.sampler.min_crop_ratio": 0.5, "data.margins": "crop"}, "DAFormer, section 3.3; Crops and sampling"),
    (AT_1024, {"data.sampler.min_crop_ratio": 2, "data.margins": "image"}, "Crops and sampling"),
    ((*WITH_DACS, *AT_512, *SUPERVISED), {"data.scale": 1, "model.wrapper": None}, "Data pipeline"),
    ((*WITH_DACS, *AT_512, *SUPERVISED, "hrda_dlv2"), {"evaluation.mode": "whole"}, "Classes and evaluation"),
    (("hrda", "mic", "mic_dlv2"), {"evaluation.mode": "slide"}, "HRDA, section 4.1; Classes and evaluation"),
    (
        AT_1024,
        {
            "data.scale": 2,
            "model.wrapper.kind": "hrda",
            "model.wrapper.detail": 0.5,
            "model.wrapper.detail_weight": 0.1,
            "model.wrapper.window_batch": None,
        },
        "HRDA, section 4.1; HRDA",
    ),
    (
        MIC,
        {
            "views.masked.images": "auto",
            "views.masked.masker.kind": "blocks",
            "views.masked.masker.block": 64 / 1024,
            "views.masked.masker.ratio": 0.7,
            "views.masked.jitter": 0.2,
            "views.masked.jitter_probability": 0.8,
            "views.masked.blur_probability": 0.5,
            "views.masked.terms.cross_entropy.weight": 1,
        },
        "MIC, section 4.1; MIC",
    ),
    (SELF_TRAINING, {"views.masked.masker.ratio": MISSING}, "MIC came later"),
    (
        ("daformer", "hrda", "mic", "mic_daformer", "dg_source_only"),
        {"model.encoder.kind": "mit_b5", "model.encoder.drop_path": 0.1, "model.decoder.kind": "daformer"},
        "DAFormer, section 3.2; Models",
    ),
    (
        ("daformer", "hrda", "mic", "mic_daformer", "dg_source_only"),
        {
            "model.decoder.width": 256,
            "model.decoder.fusion": "sep_aspp",
            "model.decoder.dilations": [1, 6, 12, 18],
            "model.decoder.dropout": 0.1,
        },
        "DAFormer, section 3.2; Models: DAFormer head",
    ),
    (
        (*WITH_DACS, "daformer_dlv2", "hrda_dlv2", "mic_dlv2", "source_only", "oracle"),
        {"model.encoder.kind": "resnet101", "model.decoder.kind": "deeplabv2", "model.decoder.dilations": [6, 12]},
        "Models: DeepLab-V2",
    ),
]
"""(recipes, key -> value, source): a paper's section, headings of docs/fidelity.md, or both."""

CITYSCAPES_MARGINS = {
    "data.image_margins.top": 30,
    "data.image_margins.bottom": 240,
    "data.image_margins.left": 30,
    "data.image_margins.right": 30,
    "data.image_margins.at": [2048, 1024],
}
SIZES = "Data pipeline: sizes"
MARGINS = "Crops and sampling: margins of the target"
SYNTHETIC, ADVERSE = ("gta5_cityscapes", "synthia_cityscapes"), ("cityscapes_acdc", "cityscapes_dark_zurich")

BENCHMARK_VALUES: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
    ((*SYNTHETIC, *ADVERSE), {"data.crop": [512, 512], "data.min_pixels": 3000}, f"{SIZES}; Crops and sampling"),
    ((*SYNTHETIC, *ADVERSE), {"data.crop_margins": [15, 120]}, MARGINS),
    (SYNTHETIC, {"data.synthetic_source": True, **CITYSCAPES_MARGINS}, f"{MARGINS}; MIC"),
    (ADVERSE, {"data.synthetic_source": False, "data.image_margins": None}, f"{MARGINS}; MIC: real source"),
    (("gta5_cityscapes",), {"data.source.dataset": "gta5", "data.source.size": [1280, 720]}, SIZES),
    (("synthia_cityscapes",), {"data.source.dataset": "synthia", "data.source.size": [1280, 760]}, SIZES),
    (ADVERSE, {"data.source.dataset": "cityscapes", "data.source.size": [1024, 512]}, SIZES),
    (
        SYNTHETIC,
        {
            "data.target.dataset": "cityscapes",
            "data.target.split": "train",
            "data.target.size": [1024, 512],
            "data.validation.dataset": "cityscapes",
            "data.validation.split": "val",
            "data.validation.size": [1024, 512],
        },
        SIZES,
    ),
    (ADVERSE, {"data.target.split": "train", "data.target.size": [960, 540]}, SIZES),
    (ADVERSE, {"data.validation.split": "val", "data.validation.size": [960, 540]}, SIZES),
    (("cityscapes_acdc",), {"data.target.dataset": "acdc", "data.validation.dataset": "acdc"}, SIZES),
    (
        ("cityscapes_dark_zurich",),
        {"data.target.dataset": "dark_zurich", "data.validation.dataset": "dark_zurich"},
        SIZES,
    ),
    (("gta5_cityscapes", *ADVERSE), {"data.protocol": "cityscapes19"}, "Classes and evaluation"),
    (("synthia_cityscapes",), {"data.protocol": "synthia16"}, "Classes and evaluation: SYNTHIA"),
    (("camvid", "streets_camvid"), {"data.protocol": "camvid11"}, "CamVid's 11 classes"),
]
"""(benchmarks, key -> value, source)."""

recipe_of = cache(recipe_lines)
benchmark_of = cache(benchmark_lines)


def cases(table: list[tuple[tuple[str, ...], dict[str, Any], str]]) -> list[Any]:
    return [
        pytest.param(name, key, value, source, id=f"{name}-{key}")
        for names, values, source in table
        for name in names
        for key, value in values.items()
    ]


@pytest.mark.parametrize(("name", "key", "value", "source"), cases(RECIPE_VALUES))
def test_recipe(name: str, key: str, value: Any, source: str) -> None:
    assert recipe_of(name).get(key, MISSING) == value, f"published: {value} ({source})"


@pytest.mark.parametrize(("name", "key", "value", "source"), cases(BENCHMARK_VALUES))
def test_benchmark(name: str, key: str, value: Any, source: str) -> None:
    assert benchmark_of(name).get(key, MISSING) == value, f"published: {value} ({source})"


@pytest.mark.parametrize(
    ("benchmark", "source", "target"),
    [
        ("gta5_cityscapes", (2560, 1440), (2048, 1024)),
        ("synthia_cityscapes", (2560, 1520), (2048, 1024)),
        ("cityscapes_acdc", (2048, 1024), (1920, 1080)),
        ("cityscapes_dark_zurich", (2048, 1024), (1920, 1080)),
    ],
)
@pytest.mark.parametrize("name", AT_1024)
def test_hrda_and_mic_at_twice_the_size(
    name: str, benchmark: str, source: tuple[int, int], target: tuple[int, int]
) -> None:
    """docs/fidelity.md, "Data pipeline": sizes."""
    data = load(name, benchmark=benchmark).recipe
    assert data.data.target is not None and data.data.validation is not None
    assert scaled(data.data.source, data.data.scale) == source
    assert scaled(data.data.target, data.data.scale) == scaled(data.data.validation, data.data.scale) == target
    assert training_crop(data) == (1024, 1024)


def test_protocols_leave_out_what_synthia_does_not_have() -> None:
    """docs/fidelity.md, "Classes and evaluation": SYNTHIA."""
    every = set(PROTOCOLS["cityscapes19"])
    assert len(every) == 19
    assert every - set(PROTOCOLS["synthia16"]) == {"terrain", "truck", "train"}
    assert every - set(PROTOCOLS["synthia13"]) == {"terrain", "truck", "train", "wall", "fence", "pole"}


DEFAULTS = [
    ("pseudo_labels", "confidence_share", {"threshold": 0.968, "share": "batch"}),
    ("view", "mixed", {"jitter": 0.2, "jitter_probability": 0.8, "blur_probability": 0.5}),
    ("view", "masked", {"jitter": 0.2, "jitter_probability": 0.8, "blur_probability": 0.5, "images": "auto"}),
    ("masker", "blocks", {"block": 64 / 1024, "ratio": 0.7}),
    ("sampler", "rare_class", {"temperature": 0.01, "min_crop_ratio": 0.5}),
    ("term", "feature_distance", {"min_ratio": 0.75, "class_names": None}),
    ("wrapper", "hrda", {"detail": 0.5, "detail_weight": 0.1, "window_batch": None}),
]


@pytest.mark.parametrize(("kind", "name", "published"), DEFAULTS)
def test_defaults_of_components_are_the_published_values(kind: str, name: str, published: dict[str, Any]) -> None:
    """A recipe of one's own that says nothing gets what the shipped ones write out."""
    settings = REGISTRIES[kind].validate(name, {})
    assert {key: value for key, value in settings.items() if key != "masker"} == published


def test_defaults_of_sections_are_the_published_values() -> None:
    assert schema.OptimiserSection().model_dump() == {
        "lr": 6e-5, "weight_decay": 0.01, "head_lr_factor": 10, "decay_one_dimensional": True,
        "warmup": 1500, "power": 1, "minimum": 0,
    }  # fmt: skip
    assert schema.TeacherSection().alpha == 0.999
    assert (schema.TrainSection().iterations, schema.TrainSection().batch) == (40000, 2)
    data = schema.DataSection.model_fields
    assert (data["cat_max_ratio"].default, data["min_pixels"].default) == (0.75, 3000)
