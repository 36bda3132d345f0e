"""From a recipe to objects: the only file that knows both the names of parts and their classes.

A new encoder, decoder, sampler, view, weighting rule or term is one row in its package's table; nothing here changes.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from udaseg.addons.omuda.feature_distillation import ANGLE_IMAGES
from udaseg.addons.t2s.engines import ENGINES
from udaseg.config import recipe as recipes
from udaseg.config.parts import Problem, Table, keyword_parameters, suggest
from udaseg.config.recipe import DomainSection, Loaded, Recipe
from udaseg.core.masking import MASKERS
from udaseg.core.step import Learner, Stage, Stepper
from udaseg.core.teacher import Teacher
from udaseg.core.views import VIEWS
from udaseg.core.weighting import PSEUDO_LABEL_RULES
from udaseg.data.classes import IGNORE, PROTOCOLS, ClassSet, match_classes
from udaseg.data.dataset import Domain, EvaluationImages, Margins, TrainingPairs, translation
from udaseg.data.images import read_image
from udaseg.data.index import Index, load_index
from udaseg.data.layouts import DATASETS, DataSetSpec, data_home, dataset_spec
from udaseg.data.loading import Normalise, evaluation_loader, training_loader
from udaseg.data.sampling import SAMPLERS
from udaseg.data.spec import walk
from udaseg.data.transforms import resize_image
from udaseg.engine.device import autocast, choose_device, choose_precision, set_up
from udaseg.engine.distributed import Ranks, join
from udaseg.engine.optim import PolyWarmup, adamw, parameter_groups
from udaseg.engine.trainer import Setup
from udaseg.errors import UserError
from udaseg.evaluation.confusion import scores
from udaseg.evaluation.evaluate import evaluate
from udaseg.evaluation.inference import Inference
from udaseg.models import weights_file
from udaseg.models.frozen import Frozen
from udaseg.models.multires import WRAPPERS
from udaseg.models.segmentor import Encoder, FeatureMaps, Segmentor
from udaseg.models.weights import Official, load_encoder, official_file
from udaseg.models.zoo import DECODERS, ENCODERS, TIMM
from udaseg.terms_table import TERMS

GRAPHS = 64
"""Of a compiled part: one for each network, batch size, memory layout and mode. Beyond torch's 8 it gives up."""
VIEW_SUPPLIED = frozenset({"normalise", "classes", "synthetic_source"})
ENGINE = Table("translation engine", ENGINES, frozenset({"normalise", "pictures"}))
SOCKETS: dict[str, Table] = {
    "encoder": Table("encoder", ENCODERS, near=ENCODERS.near),
    "decoder": Table("decoder", DECODERS, frozenset({"channels", "strides", "classes"})),
    "wrapper": Table("segmentor wrapper", WRAPPERS, frozenset({"encoder", "decoder", "attention", "crop"})),
    "sampler": Table("sampler", SAMPLERS, frozenset({"counts", "min_pixels", "names"})),
    "pseudo_labels": Table("weighting rule", PSEUDO_LABEL_RULES, frozenset({"crop_margins"})),
    "view": Table(
        "view",
        VIEWS,
        VIEW_SUPPLIED,
        {"masker": (Table("masker", MASKERS, frozenset({"names"})), "blocks"), "engine": (ENGINE, "fda")},
    ),
    "term": Table("term", TERMS, frozenset({"reference", "names", "maps"}), {"engine": (ENGINE, "fda")}),
}


def load(name: str, **layers: Any) -> Loaded:
    """Find, flatten and check a recipe; see ``udaseg.config.recipe.load``."""
    return recipes.load(SOCKETS, name, more=inconsistencies, **layers)


def refuse(problems: list[Problem], loaded: Loaded) -> None:
    """A UserError that lists all problems with the file each key came from; nothing if there are none."""
    if problems:
        raise UserError(f"recipe {loaded.recipe.name!r} cannot run:\n{recipes.listed(problems, loaded.origin)}")


def inconsistencies(recipe: Recipe) -> list[Problem]:
    """What no single key shows: unknown data sets and protocols, views that need a target there is none of."""
    problems = class_problems(recipe) + neck_problems(recipe)
    if recipe.data.target is None:
        needing = [path for path, part, settings in view_parts(recipe) if wants_target(part, settings)]
        needing += [("data", "labelled")] if recipe.data.labelled == "target" else []
        message = "needs a target domain, but data.target is none; choose a --benchmark or a recipe that has one"
        problems += [Problem(path, message) for path in needing]
    if len(folders := translated_folders(recipe)) > 1:
        message = f"one folder of translated images is read, not {len(folders)}: {', '.join(folders.values())}"
        problems += [Problem(path, message) for path in folders]
    return problems


def neck_problems(recipe: Recipe) -> list[Problem]:
    """A term that asks for the fused map of a decoder that has none."""
    if DECODERS[recipe.model.decoder["kind"]].fuses:
        return []
    having = ", ".join(name for name, part in DECODERS.items() if part.fuses)
    return [
        Problem(("views", view, "terms", term, "neck"), f"the decoder fuses no maps; allowed: last, or {having} as it")
        for view, stage in recipe.views.items()
        for term, options in stage.terms.items()
        if options.get("neck") == "fused"
    ]


def view_parts(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], Any, dict[str, Any]]]:
    """(key, class, settings) of every view and term there is; settings that were refused are empty."""
    for view, stage in recipe.views.items():
        if view in VIEWS:
            yield ("views", view), VIEWS[view], stage.options
        for term, settings in stage.terms.items():
            if term in TERMS:
                yield ("views", view, "terms", term), TERMS[term], settings


def wants_target(part: Any, settings: dict[str, Any]) -> bool:
    """Does a view or term look at the target with these settings?"""
    if not callable(part.needs_target):
        return part.needs_target
    return bool(settings) and part.needs_target(settings)


def translated_folders(recipe: Recipe) -> dict[tuple[str, ...], str]:
    """Key -> folder of every ``offline`` engine, each folder once."""
    found: dict[tuple[str, ...], str] = {}
    for path, _, settings in view_parts(recipe):
        folder = settings.get("engine", {}).get("folder")
        if folder is not None and folder not in found.values():
            key = (*path, "engine", "folder")
            found[key] = folder
    return found


def class_problems(recipe: Recipe) -> list[Problem]:
    """Data sets, protocol and merges that do not exist or do not fit one another."""
    data, problems = recipe.data, []
    own: dict[str, tuple[str, ...]] = {}
    named: dict[tuple[str, ...], str] = {(key, "dataset"): section.dataset for key, section in domains(recipe).items()}
    if data.classes:
        named["classes",] = data.classes
    for path, name in named.items():
        try:
            own[path[0]] = known_dataset(name).classes.names
        except UserError as error:
            problems.append(Problem(("data", *path), str(error)))
    names = own.get("classes" if data.classes else "source")
    for key, section in domains(recipe).items():
        for name, wanted in section.merge.items():
            for given, allowed in ((name, own.get(key)), (wanted, names and (*names, "ignore"))):
                if allowed and given not in allowed:
                    message = f"no class {given!r}; {suggest(given, allowed)}"
                    problems.append(Problem(("data", key, "merge", name), message))
    if data.protocol not in PROTOCOLS:
        message = f"unknown protocol {data.protocol!r}; {suggest(data.protocol, PROTOCOLS)}"
        problems.append(Problem(("data", "protocol"), message))
    elif names and (strange := [name for name in PROTOCOLS[data.protocol] if name not in names]):
        message = f"{data.protocol} counts classes that are not learnt here: {', '.join(strange)}; `all` always fits"
        problems.append(Problem(("data", "protocol"), message))
    return problems


def domains(recipe: Recipe) -> dict[str, DomainSection]:
    """The domains that the recipe has."""
    found = {key: getattr(recipe.data, key) for key in ("source", "target", "validation")}
    return {key: section for key, section in found.items() if section is not None}


def known_dataset(name: str) -> DataSetSpec:
    """The data set of that name or YAML file; a UserError in the words of a recipe's other problems."""
    if name.endswith((".yaml", ".yml")) or name.replace("-", "_") in DATASETS:
        return dataset_spec(name)
    raise UserError(f"unknown data set {name!r}; {suggest(name, DATASETS)}, or a YAML file")


def needs_target(recipe: Recipe) -> bool:
    """Does any view or term look at the target?"""
    return any(wants_target(part, settings) for _, part, settings in view_parts(recipe))


def teacher_passes(recipe: Recipe) -> int:
    """Passes of the teacher's encoder in a step, besides the one that labels the target."""
    return sum(part.teacher_passes(s) for _, part, s in view_parts(recipe) if hasattr(part, "teacher_passes"))


def missing_prerequisites(recipe: Recipe) -> list[Problem]:
    """What must be there before training and is not: prepared data sets, weights. Each with its remedy."""
    problems: list[Problem] = []
    keys: list[str] = [recipe.data.labelled]
    keys += ["target"] if needs_target(recipe) else []
    keys += ["validation"] if recipe.data.validation else []
    for key in dict.fromkeys(keys):
        try:
            index_of(getattr(recipe.data, key), class_set(recipe).names if key != "target" else None)
        except UserError as error:
            if all(problem.message != str(error) for problem in problems):  # target and validation often share a root
                problems.append(Problem(("data", key), str(error)))
    if not problems:
        problems += [Problem(path, text) for path, text in untranslated(recipe)]
    for find, key in ((encoder_weights, "weights"), (start_weights, "start")):
        try:
            find(recipe)
        except UserError as error:
            problems.append(Problem(("model", key), str(error)))
    return problems


def untranslated(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """(key, message) of a folder that lacks translated images."""
    for path, folder in translated_folders(recipe).items():
        index = index_of(getattr(recipe.data, recipe.data.labelled))
        missing, first = 0, ""
        for pair in index.pairs:
            try:
                translation(Path(folder).expanduser(), pair.image)
            except UserError as error:
                first = first or str(error)
                missing += 1
        if missing:
            yield path, f"{missing} of {len(index)} images of {index.dataset} have no translation; {first}"


# --- models --------------------------------------------------------------------------------------------------------


def segmentor(
    encoder: dict[str, Any],
    decoder: dict[str, Any],
    classes: int,
    *,
    wrapper: dict[str, Any] | None = None,
    crop: tuple[int, int] | None = None,
) -> Segmentor:
    """Encoder, decoder and wrapper as a recipe names them: {kind, settings...}; ``crop``: (h, w) of training."""
    body = make("encoder", encoder)
    shape = {"channels": body.channels, "strides": body.strides, "classes": classes}
    head = make("decoder", decoder, **shape)
    if wrapper is None:
        return Segmentor(body, head)
    attention = make("decoder", {**decoder, **DECODERS[decoder["kind"]].attention_settings}, **shape)
    return make("wrapper", wrapper, encoder=body, decoder=head, attention=attention, crop=crop)


def segmentor_of(recipe: Recipe) -> Segmentor:
    """The recipe's network, not yet with any weights."""
    model = recipe.model
    return segmentor(
        model.encoder, model.decoder, len(class_set(recipe)), wrapper=model.wrapper, crop=training_crop(recipe)
    )


def training_crop(recipe: Recipe, multiple: int = 1) -> tuple[int, int]:
    """(height, width) of what the student sees: a multiple of what the encoder asks for, rounded down."""
    height, width = (side * recipe.data.scale // multiple * multiple for side in recipe.data.crop)
    return height, width


def make(socket: str, part: dict[str, Any], **supplied: Any) -> Any:
    settings = {key: value for key, value in part.items() if key != "kind"}
    return SOCKETS[socket].make(part["kind"], settings, **supplied)


def encoder_weights(recipe: Recipe) -> Path | None:
    """The file of pretrained weights, None for training from scratch; UserError with the remedy if it is not there.

    timm's are fetched from the Hugging Face hub unless they lie among the other weights already.
    """
    chosen, kind = recipe.model.weights, recipe.model.encoder["kind"]
    if chosen == "none":
        return None
    if chosen != "auto":
        path = Path(chosen).expanduser()
        if not path.is_file():
            raise UserError(f"no such weights file: {path}; allowed: a file, auto, none (from scratch)")
        return path
    official = official_weights(recipe)
    if official is None:
        raise UserError(f"encoder {kind} has no public weights; give a file or model.weights=none")
    path = data_home() / "weights" / official.file
    if path.is_file():
        return path
    failure, file = "", official.file
    if kind.startswith(TIMM):
        try:
            return fetch(kind, recipe.model.encoder["revision"])
        except Exception as error:  # the hub raises many kinds: offline, gated, no such revision
            failure, file = f" could be fetched ({type(error).__name__})", official.source.rsplit("/", 1)[1]
    raise UserError(
        f"No pretrained weights of {kind}{failure}: get {file} from {official.source} and put it at {path}, or "
        "give model.weights=PATH, or train from scratch with model.weights=none (far below the published score)"
    )


def official_weights(recipe: Recipe) -> Official | None:
    """Which file the recipe's encoder has when ``model.weights`` is auto."""
    encoder = recipe.model.encoder
    return official_file(encoder["kind"], stem=encoder.get("stem"), revision=encoder.get("revision", "main"))


def fetch(kind: str, revision: str) -> Path:
    """timm's weights out of the hub's cache, downloaded if need be."""
    from udaseg.models import timm_encoders

    return timm_encoders.fetch(kind.removeprefix(TIMM), revision)


def start_weights(recipe: Recipe) -> Path | None:
    """The weights of a whole model to start from, if the recipe names some."""
    if recipe.model.start is None:
        return None
    path = Path(recipe.model.start.replace("{seed}", str(recipe.seed))).expanduser()
    path = path / "weights.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"no such weights file: {path}; allowed: a weights.safetensors or a finished run folder")
    return path


def load_weights(path: Path) -> tuple[Segmentor, weights_file.WeightsMetadata]:
    """A segmentor from a weights file that `udaseg train` wrote."""
    metadata, tensors = weights_file.read(path)
    module = segmentor(
        metadata.encoder, metadata.decoder, len(metadata.classes), wrapper=metadata.wrapper, crop=metadata.crop
    )
    weights_file.restore(module, tensors, path)
    return module, metadata


def normalisation(module: Segmentor) -> Normalise:
    """What the images of its encoder are normalised with."""
    return Normalise(module.encoder.mean, module.encoder.std)


def metadata(recipe: Recipe, classes: ClassSet, module: Segmentor) -> weights_file.WeightsMetadata:
    validation = recipe.data.validation or recipe.data.source
    return weights_file.WeightsMetadata(
        encoder=recipe.model.encoder,
        decoder=recipe.model.decoder,
        classes=classes.names,
        palette=classes.palette,
        mean=module.encoder.mean,
        std=module.encoder.std,
        size=scaled(validation, recipe.data.scale),
        recipe=recipe.name,
        benchmark=recipe.benchmark,
        protocol=recipe.data.protocol,
        seed=recipe.seed,
        iterations=recipe.train.iterations,
        data=recipe.data.model_dump(include={"source", "target", "validation", "scale"}),
        wrapper=recipe.model.wrapper,
        crop=training_crop(recipe),
        inference=recipe.evaluation.mode,
    )


# --- data ----------------------------------------------------------------------------------------------------------


def class_set(recipe: Recipe) -> ClassSet:
    """The classes that are learnt, predicted and evaluated."""
    return dataset_spec(recipe.data.classes or recipe.data.source.dataset).classes


def index_of(domain: DomainSection, names: tuple[str, ...] | None = None) -> Index:
    """The index of a domain in terms of its own classes or, matched by name, of others."""
    index = load_index(domain.dataset, domain.split, Path(domain.root) if domain.root else None)
    return index if names is None else index.as_classes(names, domain.merge)


def ignored_classes(domain: DomainSection, names: tuple[str, ...]) -> list[str]:
    """Classes of a domain's data set that have no partner among the named ones."""
    own = dataset_spec(domain.dataset).classes.names
    return [name for name, i in zip(own, match_classes(own, names, domain.merge), strict=True) if i == IGNORE]


def scaled(domain: DomainSection, scale: int) -> tuple[int, int] | None:
    return (domain.size[0] * scale, domain.size[1] * scale) if domain.size else None


def domain(
    section: DomainSection, scale: int, names: tuple[str, ...] | None = None, *, labels: bool, cache_gb: float = 0.0
) -> Domain:
    """`names`: the classes of its labels; None: the data set's own."""
    index = index_of(section, names)
    return Domain(index, size=scaled(section, scale), labels=labels, cache_bytes=int(cache_gb * 2**30))


def training_pairs(recipe: Recipe, multiple: int = 1) -> TrainingPairs:
    """The samples of a run; sample k is a function of (seed, k). ``multiple``: of the crop's sides."""
    data, cache, names = recipe.data, recipe.runtime.cache_gb / 2, class_set(recipe).names
    labelled = data.target if data.labelled == "target" else data.source
    assert labelled is not None
    source = domain(labelled, data.scale, names, labels=True, cache_gb=cache)
    target = None
    if data.target and needs_target(recipe):
        target = domain(data.target, data.scale, labels=False, cache_gb=cache)
    margins = data.image_margins if data.margins == "image" else None
    return TrainingPairs(
        source,
        target,
        sampler=make("sampler", data.sampler, counts=source.index.counts, min_pixels=data.min_pixels, names=names),
        crop=training_crop(recipe, multiple),
        seed=recipe.seed,
        length=recipe.train.iterations * recipe.train.batch,
        cat_max_ratio=data.cat_max_ratio,
        photometric=data.photometric,
        margins=Margins(**margins.model_dump()) if margins else None,
        translated=next((Path(folder).expanduser() for folder in translated_folders(recipe).values()), None),
    )


def images_of(
    section: DomainSection,
    scale: int,
    names: tuple[str, ...] | None = None,
    *,
    labels: bool = True,
    limit: int | None = None,
) -> Subset[Any]:
    """Whole images of a split at test size, with native labels of the named classes if wanted; the first ``limit``."""
    images = EvaluationImages(domain(section, scale, names, labels=labels))
    return Subset(images, range(min(limit or len(images), len(images))))


def pictures(folder: str) -> Tensor:
    """Style images: the first 256 of a folder, squeezed into (n, 3, 256, 256) uint8."""
    found = sorted(walk(Path(folder).expanduser()))[:256]
    if not found:
        raise UserError(f"no images in {folder}; `styles` is a folder of style images (PNG or JPEG)")
    images = np.stack([resize_image(read_image(path), (256, 256)) for path in found])
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


# --- a training run ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Built:
    """A setup, and what the run folder says of how it was built."""

    setup: Setup
    stamp: dict[str, Any]
    warnings: list[str]
    pairs: TrainingPairs


def training(loaded: Loaded) -> Built:
    """Everything for a training run; UserError listing all that is absent."""
    recipe = loaded.recipe
    refuse(missing_prerequisites(recipe), loaded)
    device = choose_device(recipe.runtime.device, local_rank())
    ranks = join(device.type)
    if recipe.train.batch % ranks.world:
        raise UserError(f"train.batch={recipe.train.batch} cannot be shared evenly by {ranks.world} processes")
    precision = choose_precision(recipe.train.precision, device)
    set_up(device, precision, recipe.runtime.threads)
    student, reference, stamp = beginning(recipe)
    pairs = training_pairs(recipe, student.encoder.multiple)
    normalise = normalisation(student).to(device)
    learner, teacher = models(recipe, student, reference, device, ranks, normalise)
    optimiser = adamw(parameter_groups(learner, **recipe.optimiser.model_dump(exclude={"warmup", "power", "minimum"})))
    stepper = Stepper(
        optimiser=optimiser,
        autocast=autocast(precision, device),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        average_gradients=ranks.average_gradients,
    )
    setup = Setup(
        learner=learner,
        teacher=teacher,
        labeller=labeller(recipe) if teacher else None,
        stepper=stepper,
        schedule=PolyWarmup(
            recipe.train.iterations, **recipe.optimiser.model_dump(include={"warmup", "power", "minimum"})
        ),
        batches=batches(recipe, pairs, ranks, device),
        normalise=normalise,
        device=device,
        ranks=ranks,
        seed=recipe.seed,
        iterations=recipe.train.iterations,
        save_weights=lambda path, module: weights_file.save(path, module, metadata(recipe, class_set(recipe), student)),
        score=scorer(recipe),
        validate=validator(recipe, normalise, ranks, stepper) if recipe.data.validation else None,
        memory_format=memory_format(recipe),
    )
    found = warnings(recipe, pairs, recipe.train.batch // ranks.world)
    return Built(setup, {**stamp, "precision": precision, "world": ranks.world}, found, pairs)


def local_rank() -> int:
    """This process's number on its machine, from torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def memory_format(recipe: Recipe) -> torch.memory_format:
    return torch.channels_last if recipe.train.channels_last else torch.contiguous_format


def beginning(recipe: Recipe) -> tuple[Segmentor, Frozen | None, dict[str, Any]]:
    """The student before its first step, the frozen encoder if a term asks for it, the hashes of their weights.

    The frozen encoder has the pretrained weights; without any, those of ``model.start``.
    """
    torch.manual_seed(recipe.seed)
    student = segmentor_of(recipe)
    refuse_small_crop(recipe, student.encoder)
    stamp: dict[str, Any] = {"encoder_weights": None, "start": None}
    if (path := encoder_weights(recipe)) is not None:
        report = load_encoder(student.encoder, path, name=recipe.model.encoder["kind"])
        stamp["encoder_weights"] = {"file": str(path), "sha256": report.sha256, "missing": report.missing}
        if recipe.model.weights == "auto" and (official := official_weights(recipe)):
            stamp["encoder_weights"] |= {"source": official.source, "licence": official.licence}
    compared, pretrained = uses_reference(recipe), recipe.model.weights != "none"
    reference = Frozen(copy.deepcopy(student.encoder)) if compared and pretrained else None
    if (path := start_weights(recipe)) is not None:
        weights_file.restore(student, weights_file.read(path)[1], path)
        stamp["start"] = {"file": str(path), "sha256": weights_file.digest(student)}
    if compared and not pretrained:
        reference = Frozen(copy.deepcopy(student.encoder))
    return student, reference, stamp


def models(
    recipe: Recipe,
    student: Segmentor,
    reference: Frozen | None,
    device: torch.device,
    ranks: Ranks,
    normalise: Normalise,
) -> tuple[Learner, Teacher | None]:
    """Learner and teacher on the device."""
    maps = student.feature_maps(training_crop(recipe))
    learner = Learner(student, stages(recipe, class_set(recipe), reference, normalise, maps))
    learner.to(device).to(memory_format=memory_format(recipe)).train()
    ranks.same_start(learner)
    teacher = Teacher(student, alpha=recipe.teacher.alpha) if needs_target(recipe) or teacher_passes(recipe) else None
    if recipe.train.compile:
        torch._dynamo.config.recompile_limit = GRAPHS
        for module in [student, *([teacher.segmentor] if teacher else [])]:
            for part in module.children():
                part.compile(dynamic=False)
    return learner, teacher


def refuse_small_crop(recipe: Recipe, encoder: Encoder) -> None:
    """BatchNorm of the coarsest map needs more than one value a channel."""
    strides = encoder.strides
    height, width = (side // max(strides) for side in training_crop(recipe, encoder.multiple))
    if recipe.train.batch * height * width < 2:
        raise UserError(
            f"data.crop={list(recipe.data.crop)} with train.batch={recipe.train.batch} is too small for "
            f"{recipe.model.encoder['kind']}: its coarsest map has one cell in {max(strides)} pixels"
        )


def uses_reference(recipe: Recipe) -> bool:
    """Does any term compare with the frozen encoder?"""
    return any("reference" in keyword_parameters(TERMS[t]) for stage in recipe.views.values() for t in stage.terms)


def stages(
    recipe: Recipe,
    classes: ClassSet,
    reference: nn.Module | None,
    normalise: Normalise,
    maps: FeatureMaps | None = None,
) -> dict[str, Stage]:
    """The recipe's views with their terms, in its order; ``maps``: of the student, for terms built to their measure."""
    found = {}
    supplied = {
        "normalise": normalise, "names": classes.names, "pictures": pictures, "reference": reference, "maps": maps,
    }  # fmt: skip
    for name, section in recipe.views.items():
        view = SOCKETS["view"].make(
            name,
            section.options,
            classes=len(classes),
            synthetic_source=recipe.data.synthetic_source,
            **supplied,
        )
        terms = {key: SOCKETS["term"].make(key, options, **supplied) for key, options in section.terms.items()}
        found[name] = Stage(view, terms, section.weights)
    return found


def labeller(recipe: Recipe) -> Any:
    """The weighting rule; crop margins only where the recipe asks for them."""
    top, bottom = recipe.data.crop_margins if recipe.data.margins == "crop" else (0, 0)
    scale = recipe.data.scale
    return make("pseudo_labels", recipe.pseudo_labels, crop_margins=(top * scale, bottom * scale))


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


def inference(mode: str, crop: tuple[int, int] | None, batch: int = 3) -> Inference:
    """How a recipe or a weights file wants whole images looked at; windows have the size of the training crop."""
    return Inference(crop if mode == "slide" else None, batch)


def validator(recipe: Recipe, normalise: Normalise, ranks: Ranks, stepper: Stepper) -> Callable[[Segmentor], Tensor]:
    """Student -> confusion counts on the validation split, each rank taking its share of the images."""
    assert recipe.data.validation is not None
    names = class_set(recipe).names
    images, device = images_of(recipe.data.validation, recipe.data.scale, names), normalise.mean.device
    look = inference(recipe.evaluation.mode, training_crop(recipe), recipe.evaluation.window_batch)

    def validate(student: Segmentor) -> Tensor:
        loader = evaluation_loader(images, workers=recipe.runtime.workers, rank=ranks.rank, world=ranks.world)
        counts = evaluate(
            student, loader, normalise, classes=len(names), device=device, autocast=stepper.autocast, inference=look
        )
        return ranks.reduce(counts)

    return validate


def scorer(recipe: Recipe) -> Callable[[list[list[int]]], float]:
    """Confusion counts -> mIoU under the recipe's protocol."""
    names, only = class_set(recipe).names, PROTOCOLS[recipe.data.protocol]
    return lambda confusion: scores(confusion, names, only).miou  # type: ignore[arg-type]


def warnings(recipe: Recipe, pairs: TrainingPairs, images: int | None = None) -> list[str]:
    """What is allowed but probably not meant; ``images``: of each domain a process has in a step, None for all."""
    found = []
    images = recipe.train.batch if images is None else images
    if recipe.model.weights == "none" and recipe.model.start is None:
        found.append("no encoder weights loaded (model.weights=none): training from scratch")
        if uses_reference(recipe):
            found.append("a loss compares with an encoder that was never trained")
    if images < ANGLE_IMAGES and any("relational_distillation" in stage.terms for stage in recipe.views.values()):
        lost = "no angles" if images > 1 else "nothing to compare"
        found.append(f"relational_distillation has {lost} with {images} image(s) a process: train.batch is too small")
    asked = tuple(side * recipe.data.scale for side in recipe.data.crop)
    if pairs.crop != asked:
        found.append(f"crops are {pairs.crop} instead of {asked}: the encoder takes multiples of its patch size")
    names = class_set(recipe).names
    missing = [name for name, total in zip(names, pairs.source.index.counts.sum(0), strict=True) if total == 0]
    if missing:
        found.append(f"classes absent from the labelled images: {', '.join(missing)}")
    for key in (recipe.data.labelled, "validation"):
        section = domains(recipe).get(key)
        if section and (alone := ignored_classes(section, names)):
            found.append(f"classes of {section.dataset} that become ignore (data.{key}.merge): {', '.join(alone)}")
    return found
