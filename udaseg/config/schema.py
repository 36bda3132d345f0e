"""The schema of a recipe. Components in it are unions discriminated by ``kind`` (``config.registry``).

The registries, and torch with them, are imported when the first component is checked: ``refuse_plain`` checks all other
keys without them, so that a typo is told in a second.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidationInfo,
)

from udaseg.errors import UserError
from udaseg.problems import MAP, KeyPath, Problem, Strict, collecting, combined, explain, listed, refuse, suggest

if TYPE_CHECKING:
    from udaseg.config.registry import Registry

Tree = dict[str, Any]
PLAIN = "plain keys only"
"""The context of a validation that leaves components and views out."""


def refuse_plain(tree: Tree, origin: Mapping[KeyPath, str]) -> None:
    """UserError that lists what is wrong with the plain keys of a flattened tree."""
    try:
        Recipe.model_validate(tree, context=PLAIN)
    except ValidationError as error:
        problems = explain(error, Recipe)
        raise UserError(
            f"recipe {tree.get('name')!r} has {len(problems)} problem(s):\n{listed(problems, origin)}\n"
            "Components and views come next; `udaseg recipe validate` lists everything at once."
        ) from None


def component_of(kind: str) -> Any:
    """The type of a key that names a component: a map {kind, settings...}, checked and completed."""

    def validate(part: object, info: ValidationInfo) -> Tree:
        if info.context == PLAIN:
            return {}
        from udaseg.config.registry import validate_component

        return validate_component(kind, part)

    return Annotated[dict[str, Any], BeforeValidator(validate)]


Side = Annotated[int, Field(gt=0, le=2**16)]  # pixels


class DomainSection(Strict):
    """One domain: a data set, its split, where it lies and the size it is resized into."""

    dataset: str = Field(description="a data set's name, or a YAML file that describes one")
    split: str = Field("train", description="its part: train, val, test, or one of a YAML file")
    root: str | None = Field(None, description="its folder; null: the default folders under $UDASEG_DATA")
    size: tuple[Side, Side] | None = Field(None, description="(width, height), ratio kept; null: native")
    merge: dict[str, str] = Field({}, description="class of the data set -> class of the recipe, where names differ")


class MarginsSection(Strict):
    """Pixels of the target that cannot be trusted, at image size ``at`` = (width, height)."""

    top: NonNegativeInt = Field(0, description="rows at the top without pseudo-labels")
    bottom: NonNegativeInt = Field(0, description="rows at the bottom")
    left: NonNegativeInt = Field(0, description="columns on the left")
    right: NonNegativeInt = Field(0, description="columns on the right")
    at: tuple[Side, Side] = Field(description="(width, height) of the image in which they are counted")


class DataSection(Strict):
    """Classes of different data sets are matched by name; those without a partner are ignored."""

    source: DomainSection = Field(description="the labelled domain")
    target: DomainSection | None = Field(None, description="the domain to adapt to; its labels are not used")
    validation: DomainSection | None = Field(None, description="labelled images that the run is evaluated on")
    classes: str | None = Field(None, description="the data set whose classes are learnt; null: the source's")
    protocol: str = Field("cityscapes19", description="the classes that the mIoU is the mean over; all: every class")
    crop: tuple[Side, Side] = Field(description="(height, width)")
    scale: int = Field(1, gt=0, le=64, description="multiplies the sizes of images and crops (HRDA: 2)")
    synthetic_source: bool = Field(True, description="rendered source images; decides what MIC masks")
    labelled: Literal["source", "target"] = Field("source", description="whose labels are used (oracle: target)")
    cat_max_ratio: float = Field(
        0.75, gt=0, le=1, description="a crop in which one class has a larger share is drawn again, ten times at most"
    )
    photometric: bool = Field(False, description="photometric distortion of the source images")
    min_pixels: PositiveInt = Field(3000, description="pixels of a class at native size that make an image count")
    crop_margins: tuple[NonNegativeInt, NonNegativeInt] = Field(
        (0, 0), description="(top, bottom) rows of the crop at scale 1"
    )
    image_margins: MarginsSection | None = Field(None, description="margins that follow the image")
    margins: Literal["none", "crop", "image"] = Field("none", description="which of the two above count, if any")
    sampler: component_of("sampler") = Field(  # type: ignore[valid-type]
        {"kind": "uniform"}, description="how source images are drawn"
    )


class ModelSection(Strict):
    encoder: component_of("encoder") = Field(description="images to feature maps")  # type: ignore[valid-type]
    decoder: component_of("decoder") = Field(description="feature maps to logits")  # type: ignore[valid-type]
    wrapper: component_of("wrapper") | None = Field(  # type: ignore[valid-type]
        None, description="how both are used together, if not plainly (hrda)"
    )
    weights: str = Field("auto", description="of the encoder: auto (its official file), none, or a path")
    start: str | None = Field(
        None, description="weights of a whole model, or a run; {seed} in the path is this run's seed"
    )


class TeacherSection(Strict):
    alpha: float = Field(0.999, ge=0, le=1, description="what the teacher keeps of itself in a step")


class OptimiserSection(Strict):
    lr: float = Field(6e-5, gt=0, description="learning rate of the encoder (AdamW)")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    head_lr_factor: float = Field(10.0, gt=0, description="the decoder's learning rate is this times the encoder's")
    decay_one_dimensional: bool = Field(True, description="false: no weight decay on biases and norms anywhere")
    warmup: int = Field(1500, ge=0, description="steps of linear warm-up")
    power: float = Field(1.0, ge=0, description="of the decay to the end; 1: linear")
    minimum: float = Field(0.0, ge=0, description="learning rate at the end")


class TrainSection(Strict):
    iterations: int = Field(40000, gt=0, lt=10**7, description="steps of the whole training")
    batch: int = Field(2, gt=0, le=2**16, description="images per domain and step, over all devices")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of the passes; auto: bf16 where the device supports it"
    )
    compile: bool = Field(False, description="torch.compile the networks")
    channels_last: bool = Field(True, description="memory layout of networks and images")


class EvaluationSection(Strict):
    every: PositiveInt = Field(4000, description="iterations between validations")
    mode: Literal["whole", "slide"] = Field("whole", description="slide: half overlapping windows of the crop's size")
    window_batch: int = Field(3, gt=0, le=2**16, description="windows at once")
    bn: Literal["running", "recompute"] = Field(
        "running",
        description="BatchNorm statistics; recompute: the result has a second number, with those of the target",
    )


def as_device(name: str) -> str:
    """Its name, if it can be a device's; whether this machine has it shows when the run begins."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise refuse(f"{name!r} is not a device; allowed: auto, cpu, cuda, cuda:N, mps")
    return name


def as_name(name: str) -> str:
    """A recipe's name: run folders are called after it."""
    if not re.fullmatch(r"[^./\\\0-\x1f][^/\\\0-\x1f]{0,99}", name):
        raise refuse(f"{name!r} is not allowed: up to 100 characters without slashes that do not begin with a dot")
    return name


class RuntimeSection(Strict):
    """How to run, not what: these keys may change when a run is resumed."""

    device: Annotated[str, AfterValidator(as_device)] = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    workers: int = Field(4, ge=0, le=1024, description="processes that load data; 0: none besides the training's own")
    threads: int | None = Field(None, gt=0, le=1024, description="of the CPU; null: torch's choice")
    cache_gb: float = Field(0.0, ge=0, description="decoded images each loading process may keep in memory")
    checkpoint_minutes: float = Field(10.0, ge=0, description="between checkpoints")
    keep_checkpoints: PositiveInt = Field(2, description="the last checkpoints that are kept")
    log_every: PositiveInt = Field(50, description="iterations between lines of the log")
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field([], description="what else keeps the log")


SHARED = "shared_with"
"""The key of a term that stands on several views: the view that has its settings."""


class StageSection(Strict):
    """A view: its own settings, and those and the weight of each of its terms.

    A term that an earlier view has, too, may be that very term, with its parameters and buffers: {shared_with: view}.
    """

    options: dict[str, Any] = Field({})
    terms: dict[str, dict[str, Any]] = Field({})
    weights: dict[str, float] = Field({})


def as_stages(views: object, info: ValidationInfo) -> Tree:
    """Views as they are written, {view: {setting: ..., terms: {term: {weight: ..., setting: ...}}}} -> stages."""
    if info.context == PLAIN:
        return {}
    from udaseg.config.registry import REGISTRIES

    if not isinstance(views, dict) or not views:
        raise refuse(f"a recipe needs at least one view; {suggest('', REGISTRIES['view'].entries)}")
    problems: list[Problem] = []
    stages: Tree = {}
    for name, view in views.items():
        stages[name] = as_stage(name, view, REGISTRIES, problems, stages)
    if problems:
        raise combined(problems)
    return stages


def as_stage(
    name: str, view: object, registries: Mapping[str, Registry], problems: list[Problem], earlier: Tree
) -> Tree:
    if not isinstance(view, dict):
        problems.append(Problem((name,), f"{view!r} is not allowed: {MAP}"))
        return {}
    stage: Tree = {"options": {}, "terms": {}, "weights": {}}
    settings = dict(view)
    terms = settings.pop("terms", None)
    with collecting(problems, (name,)):
        stage["options"] = registries["view"].validate(name, settings)
    if not isinstance(terms, dict) or not terms:
        problems.append(Problem((name, "terms"), f"needs at least one term; {suggest('', registries['term'].entries)}"))
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
            stage["terms"][key] = shared(key, own, earlier) if SHARED in own else registries["term"].validate(key, own)
    return stage


def shared(term: str, settings: Tree, earlier: Tree) -> Tree:
    """{shared_with: view}, checked: an earlier view with a term of that name and its settings; there are no others."""
    view = settings[SHARED]
    owners = [name for name, stage in earlier.items() if SHARED not in stage.get("terms", {}).get(term, {SHARED: None})]
    if view not in owners:
        raise refuse(f"{SHARED}={view!r} is not allowed: {suggest(str(view), owners)} (an earlier view with {term})")
    if others := [key for key in settings if key != SHARED]:
        raise refuse(f"{', '.join(others)}: a term with {SHARED} has the settings of views.{view}.terms.{term}")
    return {SHARED: view}


class Recipe(Strict):
    """A complete, checked recipe. ``views`` keeps its order: that is the order of the step."""

    name: Annotated[str, AfterValidator(as_name)] = Field(description="the file's name; run folders are called so")
    benchmark: str | None = Field(None, description="the benchmark, by name or path")
    plugins: list[str] = Field([], description="files, relative to the recipe's, or modules with more components")
    seed: int = Field(0, ge=0, lt=2**63, description="of all random numbers")
    data: DataSection
    model: ModelSection
    views: Annotated[dict[str, StageSection], BeforeValidator(as_stages)] = Field({}, validate_default=True)
    pseudo_labels: component_of("pseudo_labels") = Field(  # type: ignore[valid-type]
        {"kind": "confidence_share"}, description="how the teacher's predictions become labels with weights"
    )
    teacher: TeacherSection = TeacherSection()
    optimiser: OptimiserSection = OptimiserSection()
    train: TrainSection = TrainSection()
    evaluation: EvaluationSection = EvaluationSection()
    runtime: RuntimeSection = RuntimeSection()

    def as_written(self) -> Tree:
        """The recipe with its defaults, in the shape that recipes are written in; without plugins, which add names."""
        tree = self.model_dump(exclude={"plugins"})
        tree["views"] = {
            name: {
                **stage["options"],
                "terms": {key: {"weight": stage["weights"][key], **term} for key, term in stage["terms"].items()},
            }
            for name, stage in tree["views"].items()
        }
        return tree

    def fingerprint(self) -> str:
        """Identifies what is computed (in which order, too): equal where only name, plugins or ``runtime`` differ."""
        text = json.dumps(self.model_dump(exclude={"name", "plugins", "runtime"}))
        return hashlib.sha256(text.encode()).hexdigest()
