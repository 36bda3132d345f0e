"""Assembly: from a checked recipe to a trainer, or to a list of what is missing before one can train."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from udaseg.config import checks
from udaseg.config.load import Loaded, refuse
from udaseg.config.registry import REGISTRIES
from udaseg.config.schema import SHARED, Recipe
from udaseg.core.base import PseudoLabelRule, Term
from udaseg.core.context import BuildContext
from udaseg.core.step import Learner, Stage
from udaseg.core.teacher import Teacher
from udaseg.data.classes import PROTOCOLS
from udaseg.data.dataset import Domain, EvaluationImages, TrainingPairs
from udaseg.data.loading import Normalise, evaluation_loader, training_loader
from udaseg.engine.device import autocast, choose_device, choose_precision, set_up
from udaseg.engine.distributed import Ranks, join
from udaseg.engine.domains import class_set, ignored_classes, index_of, training_crop, training_pairs, validation_domain
from udaseg.engine.memory import memory_problems
from udaseg.engine.networks import (
    encoder_weights,
    initial_networks,
    normalisation,
    start_weights,
    weights_metadata,
)
from udaseg.engine.optim import PolyWarmup, adamw, parameter_groups
from udaseg.engine.trackers import missing_packages
from udaseg.engine.trainer import Trainer
from udaseg.errors import UserError
from udaseg.evaluation.confusion import scores
from udaseg.evaluation.evaluate import evaluate, recompute_batchnorm
from udaseg.evaluation.inference import Inference, inference
from udaseg.evaluation.panel import Pixels, panel, spread
from udaseg.models import weights_file
from udaseg.models.segmentor import Segmentor
from udaseg.problems import Problem

GRAPHS = 64
"""Of a compiled part: one for each network, batch size, memory layout and mode. Beyond torch's 8 it gives up."""


@dataclass(frozen=True)
class Assembly:
    """A trainer, its samples, what the run folder says of how it was made, and a picture of how the student does."""

    trainer: Trainer
    pairs: TrainingPairs
    stamp: dict[str, Any]
    warnings: list[str]
    picture: Callable[[], Pixels] | None = None


def assemble(loaded: Loaded) -> Assembly:
    """Everything for a training run; UserError listing all that is missing."""
    recipe = loaded.recipe
    refuse(missing_prerequisites(recipe), loaded)
    device = choose_device(recipe.runtime.device, local_rank())
    ranks = join(device.type)
    if recipe.train.batch % ranks.world:
        raise UserError(f"train.batch={recipe.train.batch} cannot be shared evenly by {ranks.world} processes")
    precision = choose_precision(recipe.train.precision, device)
    set_up(device, precision, recipe.runtime.threads)
    student, pretrained, stamp = initial_networks(recipe)
    refuse(batchnorm_problems(recipe, student), loaded)
    pairs, validation = training_pairs(recipe, student.encoder.multiple), validation_domain(recipe)
    refuse(list(memory_problems(recipe, pairs, validation, device, ranks.world)), loaded)
    normalise = normalisation(student).to(device)
    context = build_context(recipe, normalise, student)
    layout = torch.channels_last if recipe.train.channels_last else torch.contiguous_format
    learner = Learner(student, stages(recipe, context), pretrained)
    learner.to(device).to(memory_format=layout).train()
    ranks.same_start(learner)
    needs, optimiser = checks.needs(recipe), recipe.optimiser
    teacher = Teacher(student, alpha=recipe.teacher.alpha) if needs.teacher else None
    if recipe.train.compile:
        compile_parts(student, *([teacher.segmentor] if teacher else []))
    trainer = Trainer(
        learner,
        teacher,
        pseudo_label_rule(recipe, context) if teacher else None,
        batches=batches(recipe, pairs, ranks, device),
        normalise=normalise,
        optimiser=adamw(parameter_groups(learner, **optimiser.model_dump(exclude={"warmup", "power", "minimum"}))),
        schedule=PolyWarmup(recipe.train.iterations, optimiser.warmup, optimiser.power, optimiser.minimum),
        iterations=recipe.train.iterations,
        seed=recipe.seed,
        fingerprint=recipe.fingerprint(),
        device=device,
        ranks=ranks,
        autocast=autocast(precision, device),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        memory_format=layout,
        validate=validator(recipe, validation, normalise, ranks) if validation is not None else None,
        score=scorer(recipe),
        save_weights=lambda path, module: weights_file.save(path, module, weights_metadata(recipe, student)),
        log_every=recipe.runtime.log_every,
        validate_every=recipe.evaluation.every,
        checkpoint_minutes=recipe.runtime.checkpoint_minutes,
        keep_checkpoints=recipe.runtime.keep_checkpoints,
    )
    plugins = [asdict(plugin) for plugin in checks.plugins(recipe)]
    stamp |= {"precision": precision, "world": ranks.world, "plugins": plugins}
    texts = warnings(recipe, pairs, recipe.train.batch // ranks.world)
    return Assembly(trainer, pairs, stamp, texts, painter(recipe, validation, trainer))


def missing_prerequisites(recipe: Recipe) -> list[Problem]:
    """What must be there before training and is not: prepared data sets, weights. Each with its remedy."""
    problems: list[Problem] = []
    keys: list[str] = [recipe.data.labelled]
    keys += ["target"] if checks.needs(recipe).target or recipe.evaluation.bn == "recompute" else []
    keys += ["validation"] if recipe.data.validation else []
    for key in dict.fromkeys(keys):
        try:
            index_of(getattr(recipe.data, key), class_set(recipe).names if key != "target" else None)
        except UserError as error:
            if all(problem.message != str(error) for problem in problems):  # target and validation often share a root
                problems.append(Problem(("data", key), str(error)))
    problems += missing_extras(recipe) if not problems else []
    problems += missing_packages(recipe.runtime.trackers)
    for find, key in ((encoder_weights, "weights"), (start_weights, "start")):
        try:
            find(recipe)
        except UserError as error:
            problems.append(Problem(("model", key), str(error)))
    return problems


def batchnorm_problems(recipe: Recipe, student: Segmentor) -> list[Problem]:
    """Why BatchNorm statistics cannot be recomputed after training, if the recipe asks for it: tried on a blank image
    now, as it would be told when the training is done."""
    if recipe.evaluation.bn == "running":
        return []
    try:
        recompute_batchnorm(copy.deepcopy(student), [torch.zeros(1, 3, *training_crop(recipe))])
    except UserError as error:
        return [Problem(("evaluation", "bn"), f"{error}; use running")]
    return []


def missing_extras(recipe: Recipe) -> list[Problem]:
    """What the loader is to add for single components and cannot, once for every such thing."""
    extras = [
        (name, extra, where)
        for path, kind, part in checks.components(recipe)
        for where, component, settings in checks.walk(kind, part, path)
        for name, extra in component.needs_with(settings).extras.items()
    ]
    if not extras:
        return []
    problems: dict[str, Problem] = {}
    index = index_of(getattr(recipe.data, recipe.data.labelled))
    for name, extra, where in extras:
        missing = extra.missing(index.dataset, [pair.image for pair in index.pairs])
        if missing is not None and name not in problems:
            setting, message = missing
            problems[name] = Problem((*where, setting), message)
    return list(problems.values())


def build_context(recipe: Recipe, normalise: Normalise, student: Segmentor) -> BuildContext:
    """What the recipe's components are built for; crop margins only where the recipe asks for them."""
    data = recipe.data
    top, bottom = data.crop_margins if data.margins == "crop" else (0, 0)
    return BuildContext(
        classes=class_set(recipe).names,
        normalise=normalise,
        feature_maps=student.feature_maps(training_crop(recipe)),
        synthetic_source=data.synthetic_source,
        crop_margins=(top * data.scale, bottom * data.scale),
    )


def stages(recipe: Recipe, context: BuildContext) -> dict[str, Stage]:
    """The recipe's views with their terms, in its order. A term shared with an earlier view is that view's object."""

    def create(kind: str, name: str, settings: dict[str, Any]) -> Any:
        return REGISTRIES[kind].create({"kind": name, **settings}, context)

    built: dict[str, Stage] = {}
    terms: dict[str, dict[str, Term]] = {}
    for name, section in recipe.views.items():
        view, terms[name] = create("view", name, section.options), {}
        for key, settings in section.terms.items():
            owner = settings.get(SHARED)
            terms[name][key] = terms[owner][key] if owner else create("term", key, settings)
        built[name] = Stage(view, terms[name], section.weights)
    return built


def pseudo_label_rule(recipe: Recipe, context: BuildContext) -> PseudoLabelRule:
    return REGISTRIES["pseudo_labels"].create(recipe.pseudo_labels, context)


def compile_parts(*segmentors: Segmentor) -> None:
    """Compile encoder, decoder and whatever else each segmentor is made of."""
    torch._dynamo.config.recompile_limit = GRAPHS
    for module in segmentors:
        for part in module.children():
            part.compile(dynamic=False)


def batches(
    recipe: Recipe, pairs: TrainingPairs, ranks: Ranks, device: torch.device
) -> Callable[[int, int], Iterator[dict[str, Tensor]]]:
    """(first iteration, past the last) -> this rank's raw batches."""

    def between(start: int, stop: int) -> Iterator[dict[str, Tensor]]:
        workers = recipe.runtime.workers if stop - start > 1 else 0
        share = recipe.train.batch // ranks.world
        return training_loader(
            pairs, batch=share, workers=workers, start=start, steps=stop, slots=(ranks.rank, ranks.world), device=device
        )

    return between


def validator(recipe: Recipe, validation: Domain, normalise: Normalise, ranks: Ranks) -> Callable[[Segmentor], Tensor]:
    """Student -> confusion counts on the validation split in float32, as published scores are; each rank takes its
    share of the images."""
    images, classes, device = EvaluationImages(validation), len(class_set(recipe)), normalise.mean.device
    mode = validation_inference(recipe)

    def validate(student: Segmentor) -> Tensor:
        loader = evaluation_loader(images, workers=recipe.runtime.workers, rank=ranks.rank, world=ranks.world)
        counts = evaluate(student, loader, normalise, classes=classes, device=device, inference=mode)
        return ranks.reduce(counts)

    return validate


def painter(recipe: Recipe, validation: Domain | None, trainer: Trainer) -> Callable[[], Pixels] | None:
    """What the student makes of a few validation images, as a picture; None without any."""
    if validation is None:
        return None
    images, palette = spread(EvaluationImages(validation)), class_set(recipe).palette
    mode = validation_inference(recipe)
    return lambda: panel(trainer.learner.segmentor, images, trainer.normalise, palette, trainer.device, mode)


def validation_inference(recipe: Recipe) -> Inference:
    """How the run predicts whole images."""
    return inference(recipe.evaluation.mode, training_crop(recipe), recipe.evaluation.window_batch)


def scorer(recipe: Recipe) -> Callable[[list[list[int]]], float]:
    """Confusion counts -> mIoU under the recipe's protocol."""
    names, only = class_set(recipe).names, PROTOCOLS[recipe.data.protocol]
    return lambda confusion: scores(confusion, names, only).miou  # type: ignore[arg-type]


def warnings(recipe: Recipe, pairs: TrainingPairs, images: int | None = None) -> list[str]:
    """Warnings about a configuration and its data; ``images``: of each domain a process has in a step, None for all."""
    texts = checks.warnings(recipe, images)
    wanted = tuple(side * recipe.data.scale for side in recipe.data.crop)
    if pairs.crop != wanted:
        texts.append(f"crops are {pairs.crop} instead of {wanted}: the encoder takes multiples of its patch size")
    names = class_set(recipe).names
    missing = [name for name, total in zip(names, pairs.source.index.counts.sum(0), strict=True) if total == 0]
    if missing:
        texts.append(f"classes absent from the labelled images: {', '.join(missing)}")
    for key in (recipe.data.labelled, "validation"):
        section = checks.domains(recipe).get(key)
        if section and (ignored := ignored_classes(section, names)):
            texts.append(f"classes of {section.dataset} that become ignore (data.{key}.merge): {', '.join(ignored)}")
    return texts


def local_rank() -> int:
    """This process's number on its machine, from torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))
