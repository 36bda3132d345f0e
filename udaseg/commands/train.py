"""`udaseg train` and `udaseg profile`."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import torch

from udaseg.config.load import Loaded
from udaseg.console import out, percent, table
from udaseg.data.classes import PROTOCOLS
from udaseg.data.loading import evaluation_loader
from udaseg.engine import runs
from udaseg.engine.assembly import Assembly, assemble
from udaseg.engine.domains import class_set, images_of, index_of, training_crop
from udaseg.engine.profile import Profile
from udaseg.engine.profile import profile as measure
from udaseg.evaluation.confusion import scores
from udaseg.evaluation.evaluate import evaluate
from udaseg.evaluation.inference import inference

CHECKPOINTS = 3  # two rolling ones and, while it is written, a third


def train(loaded: Loaded, folder: Path | None, resume: bool) -> None:
    """Train to the end and print the result."""
    outcome = runs.train(loaded, folder or runs.default_folder(loaded), resume=resume)
    if os.environ.get("RANK", "0") != "0":
        return
    if outcome.already_finished:
        out.print(f"{outcome.folder}: finished before; nothing to do")
    print_result(outcome.folder)


def print_result(folder: Path) -> None:
    """mIoU of the last iteration, and of the oracle selection beside it."""
    result = runs.read_result(folder)
    names, only = result["classes"], PROTOCOLS[result["protocol"]]
    for key, text in (
        ("validation", "student at the last iteration"),
        ("oracle_selection", "best on validation (oracle selection)"),
    ):
        if result[key]:
            found = scores(result[key]["confusion"], names, only)
            out.print(
                f"mIoU {found.miou:.2f} over {found.counted} classes: {text}, iteration {result[key]['iteration']}"
            )
    out.print(f"run {folder}")


def dry_run(loaded: Loaded) -> None:
    """Build everything, take three steps, evaluate one image; print what the whole run needs."""
    recipe = loaded.recipe
    built = assemble(loaded)
    for text in built.warnings:
        out.print(f"warning: {text}", style="yellow")
    found = measure(built.trainer, batch=recipe.train.batch, precision=built.stamp["precision"], steps=3, warmup=0)
    rows = profile_rows(found)
    image_seconds = 0.0
    if recipe.data.validation:
        names = class_set(recipe).names
        images = images_of(recipe.data.validation, recipe.data.scale, names, limit=1)
        began = time.perf_counter()
        evaluate(
            built.trainer.learner.segmentor, evaluation_loader(images, workers=0), built.trainer.normalise,
            classes=len(class_set(recipe)), device=built.trainer.device, autocast=built.trainer.autocast,
            inference=inference(
                recipe.evaluation.mode, training_crop(recipe), recipe.evaluation.window_batch
            ),
        )  # fmt: skip
        image_seconds = time.perf_counter() - began
        rows.append(["one validation image", f"{image_seconds:.2f} s"])
    rows += totals(loaded, built, found.seconds_per_step, image_seconds)
    table(("dry run of " + recipe.name, ""), rows, left=2)


def totals(loaded: Loaded, built: Assembly, step: float, image: float) -> list[list[str]]:
    """Hours and disk of the whole run."""
    recipe = loaded.recipe
    steps = recipe.train.iterations
    validations = -(-steps // recipe.evaluation.every) if recipe.data.validation else 0
    count = len(index_of(recipe.data.validation)) if recipe.data.validation else 0
    hours = (steps * step + validations * count * image) / 3600
    parameters = sum(p.numel() for p in built.trainer.learner.parameters() if p.requires_grad)
    buffers = sum(t.numel() for t in built.trainer.learner.state_dict().values()) - parameters
    checkpoint = (
        4 * (parameters * (4 if built.trainer.teacher else 3) + buffers) / 2**30
    )  # weights, two moments, teacher
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return [
        ["parameters trained", f"{parameters / 1e6:.2f} M"],
        ["whole run", f"{hours:.2f} h: {steps} iterations, {validations} validations of {count} images"],
        ["disk", f"{checkpoint * CHECKPOINTS:.2f} GB for checkpoints of {checkpoint:.2f} GB; {free:.0f} GB free"],
    ]  # fmt: skip


def profile_rows(found: Profile) -> list[list[str]]:
    rows = [
        ["device", f"{found.device}, torch {found.torch}, {found.precision}, {torch.get_num_threads()} threads"],
        ["encoder passes", "; ".join(f"{who} {counted(calls)}" for who, calls in found.passes.items())],
        ["step", f"{found.seconds_per_step:.3f} s, {found.images_per_second:.1f} images/s"],
        ["peak memory", f"{found.peak_memory_gb} GB" if found.peak_memory_gb else "unknown"],
    ]
    for phase in dict.fromkeys([*found.seconds, *found.multiply_adds]):
        seconds, work = found.seconds.get(phase, 0.0), found.multiply_adds.get(phase, 0.0)
        share = 100 * seconds / found.seconds_per_step if found.seconds_per_step else 0.0
        rows.append(
            [
                f"  {phase}",
                f"{seconds:.4f} s ({percent(share)} %)" + (f", {work / 1e9:.2f} G multiply-adds" if work else ""),
            ]
        )
    rows.append(["multiply-adds", f"{sum(found.multiply_adds.values()) / 1e9:.1f} G"])
    return rows


def counted(calls: list[int]) -> str:
    """[4, 4, 4] -> 3 (12 images)."""
    return f"{len(calls)} ({sum(calls)} images)"


def profile(loaded: Loaded, steps: int, as_json: bool) -> None:
    """Print time, multiply-adds and memory by phase."""
    built = assemble(loaded)
    found = measure(built.trainer, batch=loaded.recipe.train.batch, precision=built.stamp["precision"], steps=steps)
    if as_json:
        print(json.dumps({"recipe": loaded.recipe.name, "benchmark": loaded.recipe.benchmark, **found.as_dict()}))
    else:
        table((f"{loaded.recipe.name} on {loaded.recipe.benchmark}", ""), profile_rows(found), left=2)
