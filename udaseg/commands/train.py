"""`udaseg train` and `udaseg profile`."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch

from udaseg.config.load import Loaded
from udaseg.console import out, percent, table
from udaseg.data.classes import PROTOCOLS
from udaseg.data.loading import evaluation_loader
from udaseg.engine import runs
from udaseg.engine.assembly import Assembly, assemble, validation_inference
from udaseg.engine.domains import class_set, images_of, index_of
from udaseg.engine.profile import Profile
from udaseg.engine.profile import profile as measure_steps
from udaseg.engine.result import read_result
from udaseg.evaluation.confusion import scores
from udaseg.evaluation.evaluate import evaluate

CHECKPOINTS = 3  # two are kept, and a third exists while it is being written


def train(loaded: Loaded, folder: Path | None, resume: bool) -> None:
    """Train to the end and print the result."""
    outcome = runs.train(loaded, folder or runs.default_folder(loaded), resume=resume)
    if os.environ.get("RANK", "0") != "0":
        return
    if outcome.already_finished:
        out.print(f"{outcome.folder}: finished before; nothing to do")
    print_result(outcome.folder)


def print_result(folder: Path) -> None:
    """mIoU of the last iteration, with both BatchNorm statistics where there are two, and of the oracle selection."""
    result = read_result(folder)
    for measured, text in (
        (result.validation, "student at the last iteration"),
        (result.recomputed_bn, "the same with BatchNorm statistics recomputed on the target (weights_bn.safetensors)"),
        (result.oracle_selection, "best on validation (oracle selection)"),
    ):
        if measured:
            own = scores(measured.counts(), result.classes, PROTOCOLS[result.protocol])
            out.print(f"mIoU {own.miou:.2f} over {own.counted} classes: {text}, iteration {measured.iteration}")
    out.print(f"run {folder}")


def dry_run(loaded: Loaded) -> None:
    """Build everything, take three steps, evaluate one image; print what the whole run needs."""
    built = assemble(loaded)
    for text in built.warnings:
        out.print(f"warning: {text}", style="yellow")
    batch, precision = loaded.recipe.train.batch, built.stamp["precision"]
    measured = measure_steps(built.trainer, batch=batch, precision=precision, steps=3, warmup=0)
    rows = profile_rows(measured)
    image_seconds = 0.0
    if loaded.recipe.data.validation:
        image_seconds = time_validation_image(loaded, built)
        rows.append(["one validation image", f"{image_seconds:.2f} s"])
    rows += totals(loaded, built, measured.seconds_per_step, image_seconds)
    table((f"dry run of {loaded.recipe.name}", ""), rows, left=2)


def profile(loaded: Loaded, steps: int, as_json: bool) -> None:
    """Print time, multiply-adds and memory by phase."""
    recipe, built = loaded.recipe, assemble(loaded)
    measured = measure_steps(built.trainer, batch=recipe.train.batch, precision=built.stamp["precision"], steps=steps)
    if as_json:
        print(json.dumps({"recipe": recipe.name, "benchmark": recipe.benchmark, **asdict(measured)}))
    else:
        table((f"{recipe.name} on {recipe.benchmark}", ""), profile_rows(measured), left=2)


def profile_rows(measured: Profile) -> list[list[str]]:
    """What was measured, name by value; phases are indented."""
    machine = f"{measured.device}, torch {measured.torch}, {measured.precision}, {torch.get_num_threads()} threads"
    passes = [f"{who} {len(calls)} ({sum(calls)} images)" for who, calls in measured.passes.items()]
    rows = [
        ["device", machine],
        ["encoder passes", "; ".join(passes)],
        ["step", f"{measured.seconds_per_step:.3f} s, {measured.images_per_second:.1f} images/s"],
        ["peak memory", f"{measured.peak_memory_gb} GB" if measured.peak_memory_gb else "unknown"],
    ]
    for phase in dict.fromkeys([*measured.seconds, *measured.multiply_adds]):
        seconds, work = measured.seconds.get(phase, 0.0), measured.multiply_adds.get(phase, 0.0)
        share = 100 * seconds / measured.seconds_per_step if measured.seconds_per_step else 0.0
        operations = f", {work / 1e9:.2f} G multiply-adds" if work else ""
        rows.append([f"  {phase}", f"{seconds:.4f} s ({percent(share)} %){operations}"])
    rows.append(["multiply-adds", f"{sum(measured.multiply_adds.values()) / 1e9:.1f} G"])
    return rows


def time_validation_image(loaded: Loaded, built: Assembly) -> float:
    """Seconds to load and evaluate one validation image."""
    recipe, trainer, classes = loaded.recipe, built.trainer, class_set(loaded.recipe)
    assert recipe.data.validation is not None
    images = images_of(recipe.data.validation, recipe.data.scale, classes.names, limit=1)
    began = time.perf_counter()
    evaluate(
        trainer.learner.segmentor, evaluation_loader(images, workers=0), trainer.normalise, classes=len(classes),
        device=trainer.device, inference=validation_inference(recipe),
    )  # fmt: skip
    return time.perf_counter() - began


def totals(loaded: Loaded, built: Assembly, step: float, image: float) -> list[list[str]]:
    """Hours and disk of the whole run, from the seconds of a ``step`` and of a validation ``image``."""
    recipe, trainer = loaded.recipe, built.trainer
    steps = recipe.train.iterations
    validations = -(-steps // recipe.evaluation.every) if recipe.data.validation else 0
    count = len(index_of(recipe.data.validation)) if recipe.data.validation else 0
    hours = (steps * step + validations * count * image) / 3600
    parameters = sum(p.numel() for p in trainer.learner.parameters() if p.requires_grad)
    buffers = sum(t.numel() for t in trainer.learner.state_dict().values()) - parameters
    checkpoint = 4 * (parameters * (4 if trainer.teacher else 3) + buffers) / 2**30  # weights, two moments, teacher
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return [
        ["parameters trained", f"{parameters / 1e6:.2f} M"],
        ["whole run", f"{hours:.2f} h: {steps} iterations, {validations} validations of {count} images"],
        ["disk", f"{checkpoint * CHECKPOINTS:.2f} GB for checkpoints of {checkpoint:.2f} GB; {free:.0f} GB free"],
    ]
