"""The loop around the step: data in, numbers out, and a run that survives whatever happens to it.

Order within one iteration t: learning rate, step, log, validate, checkpoint. A checkpoint holds the state *after*
iteration t; going on from it repeats nothing and skips nothing, because every random number is a function of (seed, t).
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from udaseg.core.base import PseudoLabelRule
from udaseg.core.context import Batch, Loss, Reduce, StepContext, StepRng, alone, untimed
from udaseg.core.step import Autocast, Learner, training_step
from udaseg.core.teacher import Teacher
from udaseg.data.loading import Normalise, to_device
from udaseg.engine import checkpoint
from udaseg.engine.device import out_of_memory
from udaseg.engine.distributed import Ranks
from udaseg.engine.optim import PolyWarmup
from udaseg.engine.phases import Phases
from udaseg.engine.runlog import RunFolder
from udaseg.errors import UserError
from udaseg.files import put_aside, write_atomic
from udaseg.models.segmentor import Segmentor

COLLAPSED = 0.95  # share of one class among the pseudo-labels
EXPLODED = 100.0  # times a loss of at least 1 in the first row
Batches = Callable[[int, int], Iterator[dict[str, Tensor]]]
"""(first iteration, past the last) -> raw batches."""


class Trainer:
    """Takes steps (``step``); trains to the end in a run folder, from its newest checkpoint if there is one (``fit``).

    ``batches``: (first iteration, past the last) -> this process's raw batches. ``fingerprint``: the recipe's, kept in
    checkpoints. ``validate``: student -> confusion counts; ``score``: counts -> mIoU of the benchmark's protocol.
    ``save_weights``: writes the student's weights file. The arguments after it say how often things happen, in
    iterations and minutes, and how many checkpoints stay.
    """

    def __init__(
        self,
        learner: Learner,
        teacher: Teacher | None,
        pseudo_label_rule: PseudoLabelRule | None,
        *,
        batches: Batches,
        normalise: Normalise,
        optimiser: torch.optim.Optimizer,
        schedule: PolyWarmup,
        iterations: int,
        seed: int,
        fingerprint: str | None = None,
        device: torch.device,
        ranks: Ranks,
        autocast: Autocast = nullcontext,
        scaler: torch.amp.GradScaler,
        memory_format: torch.memory_format = torch.contiguous_format,
        validate: Callable[[Segmentor], Tensor] | None = None,
        score: Callable[[list[list[int]]], float],
        save_weights: Callable[[Path, Segmentor], None],
        log_every: int = 50,
        validate_every: int = 4000,
        checkpoint_minutes: float = 10.0,
        keep_checkpoints: int = 2,
    ) -> None:
        self.learner, self.teacher, self.pseudo_label_rule = learner, teacher, pseudo_label_rule
        self.batches, self.normalise, self.memory_format = batches, normalise, memory_format
        self.optimiser, self.schedule, self.scaler, self.autocast = optimiser, schedule, scaler, autocast
        self.iterations, self.seed, self.device, self.ranks = iterations, seed, device, ranks
        self.fingerprint = fingerprint
        self.evaluate, self.score, self.save_weights = validate, score, save_weights
        self.log_every, self.validate_every, self.checkpoint_minutes = log_every, validate_every, checkpoint_minutes
        self.keep_checkpoints = keep_checkpoints
        self.run: RunFolder
        self.progress: Progress
        self.done = 0
        self.meter = Meter()
        self.phases = Phases()
        self.best: dict[str, Any] | None = None
        self.validation: dict[str, Any] | None = None
        self._saved_at = time.monotonic()
        self._warned: set[str] = set()
        self._at_first: dict[str, float] = {}
        self._row_began = time.monotonic()
        self._waited = 0.0

    def step(
        self, raw: Mapping[str, Tensor], t: int, phase: Any = untimed
    ) -> tuple[dict[str, Loss], dict[str, Tensor]]:
        """Iteration t on a raw batch: losses and notes, on the device."""
        self.schedule.apply(self.optimiser, t)
        context = StepContext(
            iteration=t,
            batch=self.make_batch(raw),
            rng=StepRng(self.seed, t, self.device, rank=self.ranks.rank, world=self.ranks.world),
            segmentor=self.learner.segmentor,
            teacher=self.teacher,
            pseudo_label_rule=self.pseudo_label_rule,
            pretrained_encoder=self.learner.pretrained_encoder,
            reduce=self.ranks.reduce,
            world=self.ranks.world,
            phase=phase,
        )
        losses = training_step(
            self.learner,
            self.teacher,
            context,
            self.optimiser,
            self.scaler,
            autocast=self.autocast,
            average_gradients=self.ranks.average_gradients,
        )
        return losses, context.notes

    def make_batch(self, raw: Mapping[str, Tensor]) -> Batch:
        """uint8 from the loader -> normalised images and int64 labels on the device; extras as they come."""
        moved = to_device(raw, self.device)

        def image(key: str) -> Tensor:
            return self.normalise(moved[key]).contiguous(memory_format=self.memory_format)

        return Batch(
            source_image=image("source_image"),
            source_label=moved["source_label"].long(),
            target_image=image("target_image") if "target_image" in moved else None,
            target_valid=moved.get("target_valid"),
            extras={name.removeprefix("extra/"): value for name, value in moved.items() if name.startswith("extra/")},
        )

    def fit(self, run: RunFolder, progress: Progress) -> None:
        """Up to the last iteration; raises ``Interrupted`` after saving when a signal asks to stop."""
        self.run, self.progress = run, progress
        with Signals() as signals:
            self.restore()
            self.progress.begin(self.done, self.iterations)
            try:
                self._loop(signals)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                self.run.fail("out of memory", self.phases.current, self.done)
                raise UserError(
                    f"out of memory in phase {self.phases.current!r} of iteration {self.done}: "
                    f"{str(error).splitlines()[0]} Try train.precision=bf16, a smaller train.batch or data.crop, or a "
                    "smaller model.encoder; `udaseg train ... --dry-run` shows the peak. The newest checkpoint is "
                    "intact."
                ) from None
            finally:
                self.progress.end()

    def _loop(self, signals: Signals) -> None:
        batches = self.batches(self.done, self.iterations)
        for t in range(self.done, self.iterations):
            raw = self._next(batches)
            losses, notes = self.step(raw, t, self.phases)
            self.meter.add(losses, notes, t)
            self.done = t + 1
            self._after(signals)

    def _next(self, batches: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
        began = time.monotonic()
        raw = next(batches)
        self._waited += time.monotonic() - began
        return raw

    def _after(self, signals: Signals) -> None:
        """Log, validate and save when due."""
        last = self.done == self.iterations
        overdue = time.monotonic() - self._saved_at >= 60 * self.checkpoint_minutes
        save = self._agree(signals.save or overdue) or last
        if last or self.done % self.log_every == 0:
            self.log()
        if self.evaluate is not None and (last or self.done % self.validate_every == 0):
            self.validate()
        if save:
            self.save()
            signals.save = False
            if signals.stop is not None and not last:
                raise Interrupted(signals.stop)
        self.progress.advance(self.done)

    def _agree(self, wish: bool) -> bool:
        """All ranks save at the same iteration as soon as one wants to."""
        if self.ranks.world == 1:
            return wish
        return bool(self.ranks.reduce(torch.tensor(float(wish), device=self.device), "max").item())

    def log(self) -> None:
        """Read the meter, write a row, warn; stop at a loss that is not a number."""
        self._refuse_non_finite()
        groups = self.meter.read(self.ranks.reduce)
        now = time.monotonic()
        seconds = max(now - self._row_began, 1e-9)
        row = {"iteration": self.done, "lr": self.optimiser.param_groups[0]["lr"], **groups}
        row["seconds"] = round(seconds, 4)
        row["waiting"] = round(min(self._waited / seconds, 1.0), 4)
        row["memory_gb"] = memory_gb(self.device)
        self._row_began, self._waited, self.meter = now, 0.0, Meter()
        self.run.record(row)
        self._warn(groups["notes"])
        self._warn_of_explosions(groups["losses"])
        self.progress.row(row)

    def _refuse_non_finite(self) -> None:
        """Stop before anything broken is saved; keep the batch that did it (sample k is a function of (seed, k))."""
        found = self.meter.broken(self.ranks.reduce)
        if found is None:
            return
        t, terms = found
        path = self.run.path / "debug" / f"non-finite-{t:07d}.pt"
        raw = next(self.batches(t, t + 1))
        if self.run.writes:
            write_atomic(path, lambda file: torch.save({"terms": terms, "iteration": t, "batch": raw}, file))
        raise UserError(
            f"{', '.join(terms)} is not finite since iteration {t}; stopped. The batch is in {path}, the newest "
            "checkpoint is from before. Try train.precision=fp32, a smaller optimiser.lr, a smaller weight "
            "of the term, or its `clip` where it has one."
        )

    def _warn(self, notes: Mapping[str, float | None]) -> None:
        share = notes.get("largest_class")
        if share is not None and share > COLLAPSED:
            self.warn(
                "collapse", f"one class has {100 * share:.0f} % of the pseudo-labels: self-training is collapsing"
            )

    def _warn_of_explosions(self, losses: Mapping[str, float | None]) -> None:
        for name, value in losses.items():
            if value is not None and value > EXPLODED * self._at_first.setdefault(name, max(value, 1.0)):
                advice = "try a smaller weight or learning rate, or `clip` where the term has it"
                self.warn(f"explosion {name}", f"{name} explodes: {value:.3g} at iteration {self.done}; {advice}")

    def warn(self, key: str, text: str) -> None:
        """Say it once, on screen and in the log."""
        if key not in self._warned:
            self._warned.add(key)
            self.progress.note(f"warning: {text}")
            self.run.say(f"warning: {text}")

    def validate(self) -> None:
        """Evaluate the student; the best so far is remembered as *oracle selection* (it looked at target labels)."""
        assert self.evaluate is not None
        segmentor = self.learner.segmentor
        with self.phases("validation"):
            confusion = self.evaluate(segmentor).tolist()
        self.run.record({"iteration": self.done, "validation": confusion})
        self.validation = {"iteration": self.done, "confusion": confusion, "miou": self.score(confusion)}
        if self.best is None or not self.best["miou"] >= self.validation["miou"]:
            self.best = self.validation
            if self.run.writes:
                self.save_weights(self.run.best_weights, segmentor)
        self.progress.row(self.validation)
        self._row_began = time.monotonic()

    def save(self) -> None:
        """Checkpoint; every rank waits until it is on disk."""
        self._refuse_non_finite()
        if self.run.writes:
            state = self.state()
            try:
                path = checkpoint.save(self.run.checkpoints, state, self.keep_checkpoints)
            except (OSError, RuntimeError) as error:  # torch's writer raises the second
                raise UserError(
                    f"{self.run.checkpoints}: the checkpoint of iteration {self.done} cannot be written "
                    f"({str(error).splitlines()[0]}). Make room there; the one before is intact, and the same command "
                    "continues from it"
                ) from None
            self.run.say(f"checkpoint {path.name}")
        self.ranks.wait()
        self._saved_at = time.monotonic()

    def state(self) -> checkpoint.State:
        return {
            "iteration": self.done,
            "seed": self.seed,
            "fingerprint": self.fingerprint,
            "learner": self.learner.state_dict(),
            "teacher": self.teacher.state_dict() if self.teacher else None,
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "meter": vars(self.meter),
            "best": self.best,
            "validation": self.validation,
        }

    def restore(self) -> None:
        """Go on from the newest checkpoint that is whole, dropping log rows from after it; keep damaged ones aside."""
        damaged: dict[Path, str] = {}
        for path in reversed(checkpoint.listed(self.run.checkpoints)):
            try:
                self.load(path)
                break
            except checkpoint.Damaged as error:
                damaged[path] = str(error)
        self.ranks.wait()  # until all have read them
        if self.run.writes:
            for path, problem in damaged.items():
                kept = put_aside(path).name
                self.warn(problem, f"{problem}; it is kept as {kept}, the run goes on from iteration {self.done}")
            checkpoint.prune(self.run.checkpoints, self.keep_checkpoints)  # killed before it could be done
        if note := self.run.rewind(self.done):
            self.warn(note, note)
        if self.done:
            self.run.say(f"continued from iteration {self.done}")

    def load(self, path: Path) -> None:
        """Take a checkpoint's state; UserError for another run's, ``Damaged`` if it does not fit (nothing is taken)."""
        state = checkpoint.load(path, self.device)
        if state["seed"] != self.seed:
            raise UserError(f"{path}: of another run (seed {state['seed']} instead of {self.seed}); move it away")
        if state.get("fingerprint") not in (None, self.fingerprint, *self.run.fingerprints) and self.run.writes:
            raise UserError(f"{path}: of a run of another recipe; move it away")
        if not 0 <= state["iteration"] <= self.iterations:
            raise UserError(f"{path}: iteration {state['iteration']} is not one of this run's; move it away")
        parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        checkpoint.refuse_misfit(path, state, self.state(), parameters)
        self.learner.load_state_dict(state["learner"])
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.meter = Meter(**state["meter"])
        self.best, self.validation, self.done = state["best"], state["validation"], state["iteration"]


@dataclass
class Meter:
    """Sums of losses and notes since the last row, on the device; read once a row.

    Part of the checkpoint, so that an interrupted run writes the same rows. ``first_bad``: by term, the first iteration
    with a loss that is not finite, infinity while there is none.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    first_bad: dict[str, Tensor] = field(default_factory=dict)

    def add(self, losses: Mapping[str, Loss], notes: Mapping[str, Tensor], iteration: int) -> None:
        for name, loss in losses.items():
            bad = torch.where(loss.value.isfinite(), torch.inf, float(iteration))
            self.first_bad[name] = torch.minimum(self.first_bad.get(name, bad), bad)
            present = torch.ones_like(loss.value) if loss.present is None else loss.present.to(loss.value.dtype)
            self._add(f"losses/{name}", torch.where(present > 0, loss.value, 0.0), present)
        for name, value in notes.items():
            self._add(f"notes/{name}", value, torch.ones_like(value))

    def _add(self, name: str, value: Tensor, count: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts[name] + count if name in self.counts else count

    def read(self, reduce: Reduce = alone) -> dict[str, dict[str, float | None]]:
        """Means by group, over all ranks; None for a term that never had anything to measure."""
        numbers = reduce(torch.stack([*self.sums.values(), *self.counts.values()])).tolist() if self.sums else []
        half = len(numbers) // 2
        groups: dict[str, dict[str, float | None]] = {"losses": {}, "notes": {}}
        for name, total, count in zip(self.sums, numbers[:half], numbers[half:], strict=True):
            group, _, key = name.partition("/")
            groups[group][key] = total / count if count else None
        return groups

    def broken(self, reduce: Reduce = alone) -> tuple[int, list[str]] | None:
        """The first iteration with a loss that is not finite, and the terms that broke first; None if all is well."""
        if not self.first_bad:
            return None
        found = (-reduce(-torch.stack([*self.first_bad.values()]), "max")).tolist()
        if math.isinf(first := min(found)):
            return None
        return int(first), [name for name, t in zip(self.first_bad, found, strict=True) if t == first]


class Progress(Protocol):
    """What a person watching a run sees."""

    def begin(self, first: int, total: int) -> None: ...

    def row(self, row: Mapping[str, Any]) -> None: ...

    def advance(self, iteration: int) -> None: ...

    def note(self, text: str) -> None: ...

    def end(self) -> None: ...


class Interrupted(Exception):
    """The run was asked to stop and has saved itself; ``signal`` is what asked."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """SIGINT and SIGTERM: save and stop. SIGUSR1: save and go on. A second SIGINT stops at once."""

    def __init__(self) -> None:
        self.save = False
        self.stop: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.stop is not None:
            raise KeyboardInterrupt
        self.save = True
        if number != signal.SIGUSR1:
            self.stop = number


def memory_gb(device: torch.device) -> float | None:
    """Peak memory of the device so far in GB; of the process on the CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 3)
