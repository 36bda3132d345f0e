"""The schema of a recipe. Components in it are unions discriminated by ``kind`` (``config.registry``)."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from udaseg.config.registry import REGISTRIES, component_of
from udaseg.problems import MAP, Problem, Section, collecting, combined, refuse, suggest

Tree = dict[str, Any]


class DomainSection(Section):
    """One domain: a data set, its split, where it lies (None: the default folders) and the size it is resized into."""

    dataset: str = Field(description="a data set's name, or a YAML file that describes one")
    split: str = "train"
    root: str | None = None
    size: tuple[PositiveInt, PositiveInt] | None = Field(None, description="(width, height), ratio kept; None: native")
    merge: dict[str, str] = Field({}, description="class of the data set -> class of the recipe, where names differ")


class MarginsSection(Section):
    """Pixels of the target that cannot be trusted, at image size ``at`` = (width, height)."""

    top: NonNegativeInt = 0
    bottom: NonNegativeInt = 0
    left: NonNegativeInt = 0
    right: NonNegativeInt = 0
    at: tuple[PositiveInt, PositiveInt]


class DataSection(Section):
    """``scale`` multiplies sizes and crop (HRDA: 2). ``labelled``: the domain that supplies labels (oracle: target).

    Classes of different data sets are matched by name; those without a partner are ignored.
    """

    source: DomainSection
    target: DomainSection | None = None
    validation: DomainSection | None = None
    classes: str | None = Field(None, description="the data set whose classes are learnt; None: the source's")
    protocol: str = "cityscapes19"
    crop: tuple[PositiveInt, PositiveInt] = Field(description="(height, width)")
    scale: PositiveInt = 1
    synthetic_source: bool = Field(True, description="rendered source images; decides what MIC masks")
    labelled: Literal["source", "target"] = "source"
    cat_max_ratio: float = Field(0.75, gt=0, le=1)
    photometric: bool = False
    min_pixels: PositiveInt = Field(3000, description="pixels of a class at native size that make an image count")
    crop_margins: tuple[NonNegativeInt, NonNegativeInt] = Field(
        (0, 0), description="(top, bottom) rows of the crop at scale 1"
    )
    image_margins: MarginsSection | None = None
    margins: Literal["none", "crop", "image"] = "none"
    sampler: component_of("sampler") = {"kind": "uniform"}  # type: ignore[valid-type]


class ModelSection(Section):
    """``weights``: auto (the encoder's official file), none or a path; ``start``: a whole model's weights, or a run,
    in whose path {seed} is this run's seed.

    ``wrapper``: how encoder and decoder are used together, if not plainly (hrda).
    """

    encoder: component_of("encoder")  # type: ignore[valid-type]
    decoder: component_of("decoder")  # type: ignore[valid-type]
    wrapper: component_of("wrapper") | None = None  # type: ignore[valid-type]
    weights: str = "auto"
    start: str | None = None


class TeacherSection(Section):
    alpha: float = Field(0.999, ge=0, le=1)


class OptimiserSection(Section):
    lr: float = Field(6e-5, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    head_lr_factor: float = Field(10.0, gt=0)
    decay_one_dimensional: bool = Field(True, description="False: no weight decay on biases and norms anywhere")
    warmup: int = Field(1500, ge=0)
    power: float = 1.0
    minimum: float = Field(0.0, ge=0)


class TrainSection(Section):
    iterations: PositiveInt = 40000
    batch: PositiveInt = Field(2, description="images per domain and step, over all devices")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    channels_last: bool = True


class EvaluationSection(Section):
    """``slide``: windows of the training crop's size, half overlapping; ``window_batch`` of them at once."""

    every: PositiveInt = 4000
    mode: Literal["whole", "slide"] = "whole"
    window_batch: PositiveInt = 3


class RuntimeSection(Section):
    """How to run, not what: these keys may change when a run is resumed."""

    device: str = "auto"
    workers: int = Field(4, ge=0)
    threads: PositiveInt | None = None
    cache_gb: float = Field(0.0, ge=0, description="decoded images each loading process may keep in memory")
    checkpoint_minutes: float = Field(10.0, ge=0)
    log_every: PositiveInt = 50
    tensorboard: bool = False


class StageSection(Section):
    """A view: its own settings, and those and the weight of each of its terms."""

    options: dict[str, Any] = {}
    terms: dict[str, dict[str, Any]] = {}
    weights: dict[str, float] = {}


def as_stages(views: object) -> Tree:
    """Views as they are written, {view: {setting: ..., terms: {term: {weight: ..., setting: ...}}}} -> stages."""
    if not isinstance(views, dict) or not views:
        raise refuse(f"a recipe needs at least one view; {suggest('', REGISTRIES['view'].entries)}")
    problems: list[Problem] = []
    stages = {name: as_stage(name, view, problems) for name, view in views.items()}
    if problems:
        raise combined(problems)
    return stages


def as_stage(name: str, view: object, problems: list[Problem]) -> Tree:
    if not isinstance(view, dict):
        problems.append(Problem((name,), f"{view!r} is not allowed: {MAP}"))
        return {}
    stage: Tree = {"options": {}, "terms": {}, "weights": {}}
    settings = dict(view)
    terms = settings.pop("terms", None)
    with collecting(problems, (name,)):
        stage["options"] = REGISTRIES["view"].validate(name, settings)
    if not isinstance(terms, dict) or not terms:
        problems.append(Problem((name, "terms"), f"needs at least one term; {suggest('', REGISTRIES['term'].entries)}"))
        return stage
    for key, term in terms.items():
        path = (name, "terms", key)
        if not isinstance(term, dict):
            problems.append(Problem(path, f"{term!r} is not allowed: {MAP}, as in {{weight: 0.5}}"))
            continue
        weight = stage["weights"][key] = term.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            problems.append(Problem((*path, "weight"), f"{weight!r} is not allowed: a number from 0 on is expected"))
        with collecting(problems, path):
            own = {key: value for key, value in term.items() if key != "weight"}
            stage["terms"][key] = REGISTRIES["term"].validate(key, own)
    return stage


class Recipe(Section):
    """A complete, checked recipe. ``views`` keeps its order: that is the order of the step."""

    name: str
    benchmark: str | None = None
    seed: int = Field(0, ge=0, lt=2**63)
    data: DataSection
    model: ModelSection
    views: Annotated[dict[str, StageSection], BeforeValidator(as_stages)] = Field({}, validate_default=True)
    pseudo_labels: component_of("pseudo_labels") = {"kind": "confidence_share"}  # type: ignore[valid-type]
    teacher: TeacherSection = TeacherSection()
    optimiser: OptimiserSection = OptimiserSection()
    train: TrainSection = TrainSection()
    evaluation: EvaluationSection = EvaluationSection()
    runtime: RuntimeSection = RuntimeSection()

    def fingerprint(self) -> str:
        """Identifies what is computed (in which order, too): equal where only name or ``runtime`` differ."""
        text = json.dumps(self.model_dump(exclude={"name", "runtime"}))
        return hashlib.sha256(text.encode()).hexdigest()
