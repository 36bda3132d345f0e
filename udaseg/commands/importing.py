"""`udaseg import`: a complete public checkpoint of the DAFormer family as one of our weights files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from udaseg import build
from udaseg.config.recipe import Recipe
from udaseg.console import out as console
from udaseg.errors import UserError
from udaseg.models import renaming, weights, weights_file
from udaseg.models.recognise import Network, one_network, recognise

PUBLISHED = {False: ("DAFormer", 68.85), True: ("HRDA", 73.79)}
"""mIoU of the released GTA5 -> Cityscapes files (MiT-B5, DAFormer head), without HRDA and with it (baselines.md 8)."""
HERE = "udaseg import"


def run(
    file: Path, *, teacher: bool, out: Path | None, benchmark: str, encoder: str | None, decoder: str | None
) -> None:
    """Read, recognise, check, write, say what to do next."""
    network = "teacher" if teacher else "student"
    target = free(out, f"{file.stem}-{network}.safetensors")
    if not file.is_file():
        raise UserError(f"{file}: {'is a folder; name the file in it' if file.is_dir() else 'no such file'}")
    state = segmentor_of(file, teacher=teacher)
    found = recognise(state)
    recipe = recipe_of(found, encoder, decoder, benchmark=benchmark, file=file)
    classes = build.class_set(recipe)
    if found.classes is not None and found.classes != len(classes):
        raise UserError(
            f"{file} predicts {found.classes} classes, benchmark {benchmark} has {len(classes)}: name the one it was "
            "trained on with --benchmark (also a YAML file of your own; udaseg recipe ls lists the shipped ones)"
        )
    with torch.device("meta"):  # every value comes from the file
        module = build.segmentor_of(recipe)
    parts = renaming.segmentor_parts(recipe.model.encoder["kind"], recipe.model.decoder["kind"], hrda=found.hrda)
    report = weights.load_segmentor(module, renaming.from_public(state, parts), file)
    origin = {"file": file.name, "sha256": report.sha256, "network": network}
    metadata = dataclasses.replace(
        build.metadata(recipe, classes, module), recipe=file.name, seed=None, iterations=None, origin=origin
    )
    weights_file.save(target, module, metadata)
    show(metadata, report, target, published=score(recipe, teacher=teacher))


def free(out: Path | None, name: str) -> Path:
    """Where to write; a folder means a file of that name in it. UserError for what exists."""
    target = out / name if out and out.is_dir() else out or Path(name)
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} exists and is not overwritten; choose another name with --out")
    if target.suffix != ".safetensors":
        raise UserError(f"--out {target}: a name that ends in .safetensors is expected")
    return target


def segmentor_of(file: Path, *, teacher: bool) -> dict[str, Tensor]:
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


def recipe_of(found: Network, encoder: str | None, decoder: str | None, *, benchmark: str, file: Path) -> Recipe:
    """The recipe of the paper, with the network that was found: it knows sizes, scale and how to look at images."""
    model: dict[str, Any] = {
        "encoder": {"kind": encoder} if encoder else found.encoder,
        "decoder": {"kind": decoder} if decoder else found.decoder,
    }
    for key, part in model.items():
        if part is None:
            raise UserError(f"{file}: its {key} is none of those known here; if you know better, name it with --{key}")
    name = "daformer" if not found.hrda else "hrda_dlv2" if model["decoder"]["kind"] == "deeplabv2" else "hrda"
    return build.load(name, benchmark=benchmark, overlays=[(HERE, {"model": model})]).recipe


def score(recipe: Recipe, *, teacher: bool) -> tuple[str, float] | None:
    """Method and mIoU of the released file with just this architecture and benchmark, if there is one."""
    like = build.load("hrda" if recipe.model.wrapper else "daformer", benchmark="gta5_cityscapes").recipe
    same = like.model == recipe.model and like.benchmark == recipe.benchmark and not teacher
    return PUBLISHED[recipe.model.wrapper is not None] if same else None


def show(
    metadata: weights_file.WeightsMetadata,
    report: weights.LoadReport,
    target: Path,
    *,
    published: tuple[str, float] | None,
) -> None:
    """What was recognised, left out and written, and the commands that come next."""
    assert metadata.origin is not None
    who = f"{metadata.origin['network']} of {report.path}"
    console.print(f"{who} (sha256 {report.sha256[:12]}): {len(report.matched)} tensors, nothing missing")
    for name in ("encoder", "decoder", "wrapper"):
        if part := getattr(metadata, name):
            settings = [f"{key} {value}" for key, value in part.items() if key != "kind" and value is not None]
            console.print(f"  {name}: {', '.join([part['kind'], *settings])}")
    size = "native size" if metadata.size is None else f"{metadata.size[0]}x{metadata.size[1]}"
    console.print(
        f"  {len(metadata.classes)} classes of {metadata.benchmark}; images at {size}, looked at: {metadata.inference}"
    )
    if report.unexpected:
        console.print(f"  left out, not part of the network: {', '.join(report.unexpected)}", style="yellow")
    console.print(f"written: {target}")
    if published:
        console.print(
            f"published for this architecture's released file ({published[0]}, {metadata.benchmark}): "
            f"{published[1]} mIoU"
        )
    console.print(f"next: udaseg evaluate {target}\n      udaseg predict {target} IMAGE")
