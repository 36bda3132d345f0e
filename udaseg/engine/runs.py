"""A training run from recipe to result, in its folder: start, continue, refuse, finish."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from udaseg.config import checks
from udaseg.config.layers import difference
from udaseg.config.load import Loaded, checked, load
from udaseg.config.plugins import changes, load_named
from udaseg.config.schema import Recipe, RuntimeSection
from udaseg.console import Counting, Silent, Watching
from udaseg.engine import checkpoint, distributed
from udaseg.engine import result as result_file
from udaseg.engine.assembly import Assembly, assemble, validation_inference
from udaseg.engine.batchnorm import recompute_on_target, recomputed
from udaseg.engine.domains import class_set
from udaseg.engine.networks import load_weights, segmentor_of, weights_metadata
from udaseg.engine.runlog import BEFORE_A_RUN, OWN_FILES, RunFolder, read_stamps
from udaseg.engine.trackers import Tracked
from udaseg.engine.trainer import Progress, Trainer
from udaseg.errors import UserError
from udaseg.files import is_leftover, write_json, write_text
from udaseg.models import weights_file
from udaseg.models.segmentor import Segmentor
from udaseg.yamls import as_yaml, read_yaml


@dataclass(frozen=True)
class Outcome:
    """Where a run lies, and whether this call had anything left to do."""

    folder: Path
    already_finished: bool


def choose_recipe(
    name: str | None,
    benchmark: str | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    folder: Path | None = None,
    resume: bool = False,
    plugins: Sequence[str] = (),
) -> Loaded:
    """The recipe to train: the named one, or with ``resume`` the ``folder``'s own."""
    if name is not None:
        own_seed = [] if seed is None else [f"seed={seed}"]
        return load(name, benchmark=benchmark, overrides=[*overrides, *own_seed], plugins=plugins)
    if not (resume and folder):
        raise UserError("which recipe? give --recipe NAME (udaseg recipe ls lists them), or --resume --out FOLDER")
    if overrides or benchmark or seed is not None:
        raise UserError(
            "--resume --out FOLDER continues the recipe in that folder; leave out benchmark, seed and overrides"
        )
    load_named(plugins)
    return read_recipe(folder)


def default_folder(loaded: Loaded) -> Path:
    """``runs/<recipe>-<benchmark>-seed<N>``: the same command always means the same folder."""
    recipe = loaded.recipe
    parts = [recipe.name, *([recipe.benchmark] if recipe.benchmark else []), f"seed{recipe.seed}"]
    return Path("runs") / "-".join(parts)


def watching(loaded: Loaded) -> Progress:
    """A line for each log row, and a bar on a terminal."""
    return Watching(loaded.recipe.name, loaded.recipe.train.batch)


def train(
    loaded: Loaded, folder: Path, watch: Callable[[Loaded], Progress] = watching, *, resume: bool = False
) -> Outcome:
    """Train to the end in ``folder``: from the start, or on from its newest checkpoint.

    An unfinished run of the same recipe goes on; a finished one is left alone; another recipe is refused with the
    difference; a folder that is not a run is refused. ``resume``: there must be something to continue.
    """
    claim(loaded, folder, resume)
    if (folder / "result.json").is_file():
        return Outcome(folder, True)
    try:
        return train_in(folder, loaded, assemble(loaded), watch)
    finally:
        distributed.leave()


def claim(loaded: Loaded, folder: Path, resume: bool) -> None:
    """Refuse everything that would lose or mix up work: only a run of this recipe, or none, may be in the folder."""
    if (folder / "recipe.yaml").is_file():
        before = read_recipe(folder)
        if before.recipe.fingerprint() != loaded.recipe.fingerprint():
            hide = {"name", "plugins", "runtime"}
            changes = difference(before.recipe.model_dump(exclude=hide), loaded.recipe.model_dump(exclude=hide))
            advice = "Choose another folder with --out, or use the recipe it was started with."
            lines = [f"{folder} holds a run of another recipe:", *(f"  {change}" for change in changes), advice]
            raise UserError("\n".join(lines))
        return
    if resume:
        raise UserError(f"--resume: there is no run in {folder}; leave --resume out to start one")
    if folder.exists() and any(not before_a_run(entry) for entry in folder.iterdir()):
        raise UserError(f"{folder} exists and is not a run folder; choose another with --out")


def before_a_run(entry: Path) -> bool:
    """May it be in a folder in which a run was refused, or killed, before it began?"""
    return entry.name in BEFORE_A_RUN or is_leftover(entry, OWN_FILES)


def read_recipe(folder: Path) -> Loaded:
    """The recipe of a run folder."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: not a run folder (it has no recipe.yaml)")
    tree = read_yaml(path)
    if isinstance(runtime := tree.get("runtime"), dict):  # how to run, not what: keys of other versions do not count
        tree["runtime"] = {key: value for key, value in runtime.items() if key in RuntimeSection.model_fields}
    return checked(tree, {(key,): str(path) for key in tree}, more=False)


def train_in(folder: Path, loaded: Loaded, built: Assembly, watch: Callable[[Loaded], Progress]) -> Outcome:
    """``train`` in a folder that may be used, with what was built for it."""
    run = RunFolder(folder, writes=built.trainer.ranks.first)
    run.lock()
    try:
        if run.result.is_file():  # another process finished it while this one was being built
            return Outcome(folder, True)
        if run.writes and not run.recipe.is_file():
            write_text(run.recipe, as_yaml(loaded.tree))
        changed = changed_plugins(folder, loaded.recipe)
        note = run.stamp(fingerprint=loaded.recipe.fingerprint(), **built.stamp)
        screen, trackers = (watch(loaded), loaded.recipe.runtime.trackers) if run.writes else (Silent(), [])
        with Tracked(screen, trackers, folder, loaded.tree, built.picture, run.say) as progress:
            for text in [*([note] if note else []), *changed, *built.warnings]:
                progress.note(f"warning: {text}")
                run.say(f"warning: {text}")
            built.trainer.fit(run, progress)
            finish(loaded, built.trainer, run)
    finally:
        run.unlock()
    return Outcome(folder, False)


def changed_plugins(folder: Path, recipe: Recipe) -> list[str]:
    """A sentence for each of the recipe's plugins whose code is another than when the run went on last."""
    plugins = checks.plugins(recipe)
    try:
        before = read_stamps(folder)[-1:] if plugins else []
    except UserError:  # none yet, or damaged: ``stamp`` says so
        return []
    return changes(before[0].get("plugins", []) if before else [], plugins)


def finish(loaded: Loaded, trainer: Trainer, run: RunFolder) -> None:
    """Write the student's weights, and result.json with the raw counts from which scores are computed when needed."""
    recipe, student = loaded.recipe, trainer.learner.segmentor
    if run.writes:
        trainer.save_weights(run.weights, student)
    on_target = measure_recomputed(recipe, trainer, run) if recipe.evaluation.bn == "recompute" else None
    if not run.writes:
        return
    result: dict[str, Any] = {
        "format": result_file.FORMAT,
        "recipe": recipe.name,
        "benchmark": recipe.benchmark,
        "seed": recipe.seed,
        "fingerprint": recipe.fingerprint(),
        "iterations": trainer.done,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "classes": list(class_set(recipe).names),
        "protocol": recipe.data.protocol,
        "network": "student",
        "selection": "last iteration",
        "validation": trainer.validation and {k: trainer.validation[k] for k in ("iteration", "confusion")},
        "oracle_selection": trainer.best and {k: trainer.best[k] for k in ("iteration", "confusion")},
        "recomputed_bn": on_target,
    }
    write_json(run.result, result, indent=None)
    run.say("finished")


def measure_recomputed(recipe: Recipe, trainer: Trainer, run: RunFolder) -> dict[str, Any] | None:
    """Write the student with BatchNorm statistics of the target as a second weights file; its counts on the validation
    split and how many images the statistics are of, None without such a split. Every rank computes the same
    statistics and counts its share of the validation images."""
    student = copy.deepcopy(trainer.learner.segmentor)
    mode, workers = validation_inference(recipe), recipe.runtime.workers
    with Counting("BatchNorm of the target") if run.writes else nullcontext(lambda done, total: None) as progress:
        images = recompute_on_target(
            student, recipe.data, trainer.normalise, trainer.device, mode, workers=workers, progress=progress
        )
    if run.writes:
        run.say(f"BatchNorm statistics recomputed on {images} target images")
        origin = {"network": recomputed("student", images)}
        weights_file.save(run.bn_weights, student, replace(weights_metadata(recipe, student), origin=origin))
    if trainer.evaluate is None:
        return None
    return {"iteration": trainer.done, "confusion": trainer.evaluate(student).tolist(), "images": images}


def load_student(path: Path, *, teacher: bool = False) -> tuple[Segmentor, weights_file.WeightsMetadata]:
    """A segmentor from a weights file, a run's checkpoint, or a run folder: final weights, else newest checkpoint."""
    if path.is_file() and checkpoint.NAME.fullmatch(path.name):
        return from_checkpoint(path.resolve().parents[1], path, teacher)
    if path.is_file():
        if teacher:
            raise UserError(f"{path}: a weights file holds one network; give the run folder for --teacher")
        return load_weights(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder or weights file")
    if (weights := path / "weights.safetensors").is_file() and not teacher:
        if weights_file.read_metadata(weights).plugins:
            read_recipe(path)  # names the plugins' places
        return load_weights(weights)
    newest = checkpoint.newest(path / "checkpoints")
    if newest is None:
        read_recipe(path)  # a folder that is no run is told first
        raise UserError(f"{path}: no checkpoint yet; train it first: udaseg train --resume --out {path}")
    return from_checkpoint(path, newest, teacher)


def from_checkpoint(folder: Path, file: Path, teacher: bool = False) -> tuple[Segmentor, weights_file.WeightsMetadata]:
    """The student or the teacher in a checkpoint of the run in ``folder``."""
    recipe = read_recipe(folder).recipe
    try:
        state = checkpoint.load(file)
    except checkpoint.Damaged as error:
        raise UserError(f"{error}; the one before is used by udaseg train --resume --out {folder}") from None
    if teacher and state["teacher"] is None:
        raise UserError(f"{folder}: recipe {recipe.name!r} has no teacher; leave out --teacher")
    module = segmentor_of(recipe)
    prefix, tensors = "segmentor.", state["teacher" if teacher else "learner"]
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    weights_file.restore(module, own, file)
    return module, weights_metadata(recipe, module)
