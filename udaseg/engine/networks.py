"""The networks of a recipe or weights file, and the pretrained weights they start from."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from udaseg.config.checks import needs, network_parts
from udaseg.config.plugins import load_installed, plugins_of
from udaseg.config.registry import REGISTRIES
from udaseg.config.schema import DataSection, ModelSection, Recipe
from udaseg.data.classes import PROTOCOLS
from udaseg.data.layouts import data_home
from udaseg.data.loading import Normalise
from udaseg.engine.domains import class_set, scaled, training_crop
from udaseg.errors import UserError
from udaseg.files import user_path
from udaseg.models import weights_file
from udaseg.models.frozen import Frozen
from udaseg.models.segmentor import Encoder, Segmentor
from udaseg.models.weights import Official, load_encoder, official_file
from udaseg.models.zoo import TIMM
from udaseg.problems import first_problem, suggest


def initial_networks(recipe: Recipe) -> tuple[Segmentor, Frozen | None, dict[str, Any]]:
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
    compared, pretrained = needs(recipe).pretrained_encoder, recipe.model.weights != "none"
    frozen = Frozen(copy.deepcopy(student.encoder)) if compared and pretrained else None
    if (path := start_weights(recipe)) is not None:
        weights_file.restore(student, weights_file.read(path)[1], path)
        stamp["start"] = {"file": str(path), "sha256": weights_file.digest(student)}
    if compared and not pretrained:
        frozen = Frozen(copy.deepcopy(student.encoder))
    return student, frozen, stamp


def segmentor_of(recipe: Recipe) -> Segmentor:
    """The recipe's network, not yet with any weights."""
    model = recipe.model
    return segmentor(
        model.encoder, model.decoder, len(class_set(recipe)), wrapper=model.wrapper, crop=training_crop(recipe)
    )


def load_weights(path: Path) -> tuple[Segmentor, weights_file.WeightsMetadata]:
    """A segmentor from a weights file that `udaseg train` wrote."""
    metadata, tensors = weights_file.read(path)
    parts = _components(metadata, path)
    try:
        with at_most(2 * sum(tensor.numel() for tensor in tensors.values()) + 2**24):
            module = segmentor(
                parts.encoder, parts.decoder, len(metadata.classes), wrapper=parts.wrapper, crop=metadata.crop
            )
    except (RuntimeError, TypeError, LookupError, ArithmeticError, ValueError) as error:  # settings that do not agree
        raise UserError(f"{path}: no network can be built from its udaseg header: {error}") from None
    weights_file.restore(module, tensors, path)
    if metadata.crop and min(metadata.crop) < max(module.encoder.strides):
        raise UserError(f"{path}: crop {metadata.crop} in its udaseg header is smaller than a cell of the coarsest map")
    return module, metadata


def _components(metadata: weights_file.WeightsMetadata, path: Path) -> ModelSection:
    """The header's components, completed; UserError for one that is unknown, and for unknown settings or data."""
    if metadata.plugins:
        load_installed()
    try:
        parts = ModelSection(**{key: getattr(metadata, key) for key in ("encoder", "decoder", "wrapper")})
    except ValidationError as error:
        if metadata.plugins:
            needed = ", ".join(metadata.plugins)
            advice = "give it with --plugin, or install its package"
            raise UserError(
                f"{path}: its network needs the plugin {needed}; {advice} ({first_problem(error)})"
            ) from None
        raise weights_file.damaged(path, error) from None
    try:
        DataSection.model_validate({"source": {"dataset": ""}, **metadata.data, "crop": (1, 1)})
    except ValidationError as error:
        raise weights_file.damaged(path, error, "data: ") from None
    if metadata.protocol not in PROTOCOLS:
        raise UserError(f"{path}: its udaseg header has an unknown protocol: {suggest(metadata.protocol, PROTOCOLS)}")
    return parts


@contextmanager
def at_most(parameters: int) -> Iterator[None]:
    """Inside, a network that grows beyond so many parameters is refused before their memory is used; ValueError."""
    total = 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal total
        total += parameter.numel()
        if total > parameters:
            raise ValueError("it would be far larger than the weights in the file")

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()


def segmentor(
    encoder: dict[str, Any],
    decoder: dict[str, Any],
    classes: int,
    *,
    wrapper: dict[str, Any] | None = None,
    crop: tuple[int, int] | None = None,
) -> Segmentor:
    """Encoder, decoder and wrapper as a recipe names them: {kind, settings...}; ``crop``: (h, w) of training."""
    body = REGISTRIES["encoder"].create(encoder)
    decoders = REGISTRIES["decoder"]
    head = decoders.create(decoder, body.channels, body.strides, classes)
    if wrapper is None:
        return Segmentor(body, head)
    own = decoders.component(decoder["kind"]).attention_settings
    attention = decoders.create({**decoder, **own}, body.channels, body.strides, classes)
    return REGISTRIES["wrapper"].create(wrapper, body, head, attention, crop)


def weights_metadata(recipe: Recipe, module: Segmentor) -> weights_file.WeightsMetadata:
    """What the weights file of a recipe's network says of it."""
    classes, validation = class_set(recipe), recipe.data.validation or recipe.data.source
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
        plugins=tuple(plugin.short for plugin in plugins_of(network_parts(recipe.model))),
    )


def normalisation(module: Segmentor) -> Normalise:
    """What the images of its encoder are normalised with."""
    return Normalise(module.encoder.mean, module.encoder.std)


def encoder_weights(recipe: Recipe) -> Path | None:
    """The file of pretrained weights, None for training from scratch; UserError with the remedy if it is not there.

    timm's are fetched from the Hugging Face hub unless they lie among the other weights already.
    """
    chosen, kind = recipe.model.weights, recipe.model.encoder["kind"]
    if chosen == "none":
        return None
    if chosen != "auto":
        path = user_path(chosen)
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
    path = user_path(recipe.model.start.replace("{seed}", str(recipe.seed)))
    path = path / "weights.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"no such weights file: {path}; allowed: a weights.safetensors or a finished run folder")
    return path


def refuse_small_crop(recipe: Recipe, encoder: Encoder) -> None:
    """BatchNorm of the coarsest map needs more than one value a channel."""
    strides = encoder.strides
    height, width = (side // max(strides) for side in training_crop(recipe, encoder.multiple))
    if recipe.train.batch * height * width < 2:
        raise UserError(
            f"data.crop={list(recipe.data.crop)} with train.batch={recipe.train.batch} is too small for "
            f"{recipe.model.encoder['kind']}: its coarsest map has one cell in {max(strides)} pixels"
        )
