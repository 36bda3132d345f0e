"""`udaseg import`: a complete public checkpoint of the DAFormer family as one of our weights files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from udaseg.config.load import load
from udaseg.config.schema import Recipe
from udaseg.console import out as console
from udaseg.engine.domains import class_set
from udaseg.engine.networks import segmentor_of, weights_metadata
from udaseg.errors import UserError
from udaseg.models import renaming, weights, weights_file
from udaseg.models.recognise import Network, one_network, recognise

PUBLISHED = {False: ("DAFormer", 68.85), True: ("HRDA", 73.79)}
"""mIoU of the released GTA5 -> Cityscapes files (MiT-B5, DAFormer head), without HRDA and with it."""


def import_checkpoint(
    file: Path, *, teacher: bool, out: Path | None, benchmark: str, encoder: str | None, decoder: str | None
) -> None:
    """Read, recognise, check, write; print what was read and the commands that come next."""
    which = "teacher" if teacher else "student"
    target = free(out, f"{file.stem}-{which}.safetensors")
    if not file.is_file():
        raise UserError(f"{file}: {'is a folder; name the file in it' if file.is_dir() else 'no such file'}")
    state = network_tensors(file, teacher=teacher)
    network = recognise(state)
    recipe = recipe_of(network, encoder, decoder, benchmark=benchmark, file=file)
    classes = class_set(recipe)
    if network.classes is not None and network.classes != len(classes):
        raise UserError(
            f"{file} predicts {network.classes} classes, benchmark {benchmark} has {len(classes)}: name the one it was "
            "trained on with --benchmark (also a YAML file of your own; udaseg recipe ls lists the shipped ones)"
        )
    with torch.device("meta"):  # every value comes from the file
        module = segmentor_of(recipe)
    parts = renaming.segmentor_parts(recipe.model.encoder["kind"], recipe.model.decoder["kind"], hrda=network.hrda)
    report = weights.load_segmentor(module, renaming.from_public(state, parts), file)
    origin = {"file": file.name, "sha256": report.sha256, "network": which}
    metadata = dataclasses.replace(
        weights_metadata(recipe, module), recipe=file.name, seed=None, iterations=None, origin=origin
    )
    weights_file.save(target, module, metadata)
    console.print(f"{which} of {file} (sha256 {report.sha256[:12]}): {len(report.matched)} tensors, nothing missing")
    show(metadata)
    if report.unexpected:
        console.print(f"  left out, not part of the network: {', '.join(report.unexpected)}", style="yellow")
    console.print(f"written: {target}")
    if published := score(recipe, teacher=teacher):
        method, miou = published
        console.print(f"published for this architecture's released file ({method}, {recipe.benchmark}): {miou} mIoU")
    console.print(f"next: udaseg evaluate {target}\n      udaseg predict {target} IMAGE")


def free(out: Path | None, name: str) -> Path:
    """Where to write; a folder means a file of that name in it. UserError for what exists."""
    target = out / name if out and out.is_dir() else out or Path(name)
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} exists and is not overwritten; choose another name with --out")
    if target.suffix != ".safetensors":
        raise UserError(f"--out {target}: a name that ends in .safetensors is expected")
    return target


def network_tensors(file: Path, *, teacher: bool) -> dict[str, Tensor]:
    """The chosen network's tensors, names ``backbone.*`` and ``decode_head.*``."""
    tensors = weights.read_tensors(file)
    state = one_network(tensors, teacher=teacher)
    if not state:
        raise UserError(f"{file} holds no teacher (no names with ema_model.); leave out --teacher")
    lacking = [f"{p}*" for p in ("backbone.", "decode_head.") if not any(name.startswith(p) for name in state)]
    if lacking:
        starts = sorted({name.split(".")[0] for name in tensors})[:8]
        raise UserError(
            f"{file} is no complete checkpoint of the DAFormer family: it has no {' and no '.join(lacking)} (also "
            f"looked for after model.); its names begin with {', '.join(starts)}. Weights of an encoder alone are used "
            "with model.weights=FILE; our own weights files need no import"
        )
    return state


def recipe_of(network: Network, encoder: str | None, decoder: str | None, *, benchmark: str, file: Path) -> Recipe:
    """The paper's recipe (image sizes, scale, inference) with the recognised network or the one that was named."""
    model: dict[str, Any] = {
        "encoder": {"kind": encoder} if encoder else network.encoder,
        "decoder": {"kind": decoder} if decoder else network.decoder,
    }
    if network.other_decoder and not decoder:
        raise UserError(
            f"{file}: its decoder is {network.other_decoder} of DAFormer's decoder study, which does not exist here; "
            "those with fusion sep_aspp (the published one), aspp and conv1 do"
        )
    for key, part in model.items():
        if part is None:
            raise UserError(f"{file}: its {key} is none of those known here; if you know better, name it with --{key}")
    name = "daformer" if not network.hrda else "hrda_dlv2" if model["decoder"]["kind"] == "deeplabv2" else "hrda"
    return load(name, benchmark=benchmark, overlays=[("udaseg import", {"model": model})]).recipe


def show(metadata: weights_file.WeightsMetadata) -> None:
    """Print the network and how it is used."""
    for name in ("encoder", "decoder", "wrapper"):
        if part := getattr(metadata, name):
            settings = [f"{key} {value}" for key, value in part.items() if key != "kind" and value is not None]
            console.print(f"  {name}: {', '.join([part['kind'], *settings])}")
    size = "native size" if metadata.size is None else f"{metadata.size[0]}x{metadata.size[1]}"
    console.print(
        f"  {len(metadata.classes)} classes of {metadata.benchmark}; images at {size}, looked at: {metadata.inference}"
    )


def score(recipe: Recipe, *, teacher: bool) -> tuple[str, float] | None:
    """Method and mIoU of the released file with just this architecture and benchmark, if there is one."""
    like = load("hrda" if recipe.model.wrapper else "daformer", benchmark="gta5_cityscapes").recipe
    same = like.model == recipe.model and like.benchmark == recipe.benchmark and not teacher
    return PUBLISHED[recipe.model.wrapper is not None] if same else None
