"""Experiment trackers: what a run logs, also in TensorBoard, Weights & Biases or MLflow (``runtime.trackers``).

A tracker is a guest. One that fails is said once and left out, and the run goes on; it changes nothing that is
computed. ``metrics.jsonl`` has every number in any case.
"""

from __future__ import annotations

import math
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from udaseg.config.layers import leaves
from udaseg.engine.trainer import Progress
from udaseg.errors import UserError
from udaseg.files import read_bytes, write_json
from udaseg.problems import Problem, first_problem
from udaseg.yamls import as_yaml

Pixels = npt.NDArray[np.uint8]
Tree = dict[str, Any]
IDS = "trackers.json"
"""In the run folder: tracker -> the id that it knows the run by."""
PROJECT = "udaseg"
"""Of W&B ($WANDB_PROJECT wins), and MLflow's experiment ($MLFLOW_EXPERIMENT_NAME wins)."""
MANNERS = {
    "WANDB_FINISH_TIMEOUT": "300",
    "WANDB_QUIET": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""Variables of the packages, unless the user has set them: a server that does not answer holds a run up for seconds
(W&B: at its end, for minutes), and little is printed."""


class Tracker(ABC):
    """Keeps what a run logs. ``packages``: what must be installed. A method may raise: then it is not asked again."""

    packages: ClassVar[tuple[str, ...]]

    @abstractmethod
    def start(self, folder: Path, recipe: Tree, done: int) -> None:
        """Begin in the run folder, or go on after ``done`` iterations; ``recipe`` is the flattened one."""

    @abstractmethod
    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Finite numbers by name, as in ``losses/source/cross_entropy``."""

    @abstractmethod
    def image(self, iteration: int, name: str, picture: Pixels) -> None:
        """An RGB picture (H, W, 3)."""

    @abstractmethod
    def close(self, finished: bool) -> None:
        """Write everything; ``finished``: the run is complete, otherwise it may go on later."""


class TensorBoard(Tracker):
    """Event files in the folder ``tensorboard``; rows that a resumed run computes again are shown once."""

    packages = ("tensorboard",)

    def start(self, folder: Path, recipe: Tree, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
        self.writer.add_text("recipe", f"```\n{as_yaml(recipe)}```", done)

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, iteration)

    def image(self, iteration: int, name: str, picture: Pixels) -> None:
        self.writer.add_image(name, picture, iteration, dataformats="HWC")

    def close(self, finished: bool) -> None:
        self.writer.close()


class WandB(Tracker):
    """Weights & Biases, by its own variables (WANDB_MODE, WANDB_PROJECT, ...); offline where nobody is logged in.

    An offline run lies in the folder ``wandb``, for ``wandb sync``.
    """

    packages = ("wandb",)

    def start(self, folder: Path, recipe: Tree, done: int) -> None:
        import wandb

        name = known_id(folder, "wandb") or uuid.uuid4().hex[:8]
        keep_id(folder, "wandb", name)
        offline = "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=name,
            resume="allow",
            dir=folder,
            config=recipe,
            mode="offline" if offline else None,
            settings=wandb.Settings(console="off", allow_val_change=True),  # keys under runtime may change
        )
        self.run.define_metric("iteration")
        self.run.define_metric("*", step_metric="iteration")  # W&B's own steps cannot go back to a checkpoint

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        self.run.log({"iteration": iteration, **values})

    def image(self, iteration: int, name: str, picture: Pixels) -> None:
        import wandb

        self.run.log({"iteration": iteration, name: wandb.Image(picture)})

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class MLflow(Tracker):
    """MLflow, on the server of $MLFLOW_TRACKING_URI; without it, an SQLite store in the folder ``mlflow``."""

    packages = ("mlflow", "sqlalchemy", "alembic")

    def start(self, folder: Path, recipe: Tree, done: int) -> None:
        from mlflow import MlflowClient, MlflowException
        from mlflow.entities import Param

        own = (folder / "mlflow").resolve()
        uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if uri is None:
            own.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{own}/mlflow.db", f"{own.as_uri()}/artifacts"
        self.client = MlflowClient(tracking_uri=uri)
        if (known := known_id(folder, "mlflow")) is not None:
            self.id = known
            with suppress(MlflowException):  # a server that does not know the run gets a new one
                return self.client.update_run(known, status="RUNNING")
        self.id = self.client.create_run(self.experiment(artifacts), run_name=folder.name).info.run_id
        keep_id(folder, "mlflow", self.id)
        parameters = [Param(".".join(path), str(value)) for path, value in leaves(recipe)]
        for first in range(0, len(parameters), 100):  # the most that a server takes at once
            self.client.log_batch(self.id, params=parameters[first : first + 100])

    def experiment(self, artifacts: str | None) -> str:
        """Its id; it is made where it is not there yet, perhaps by another run at this moment."""
        from mlflow import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        if (known := self.client.get_experiment_by_name(name)) is None:
            with suppress(MlflowException):
                self.client.create_experiment(name, artifacts)
            known = self.client.get_experiment_by_name(name)
        assert known is not None
        return str(known.experiment_id)

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(self.id, metrics=[Metric(name, value, now, iteration) for name, value in values.items()])

    def image(self, iteration: int, name: str, picture: Pixels) -> None:
        self.client.log_image(self.id, picture, key=name, step=iteration)

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


class Tracked:
    """A run's progress, on the ``screen`` and in its trackers; inside ``with``, which closes them.

    ``picture``: what the student makes of a few validation images; None without validation. ``say``: writes a line to
    the run's log.
    """

    def __init__(
        self,
        screen: Progress,
        names: Sequence[str],
        folder: Path,
        recipe: Tree,
        picture: Callable[[], Pixels] | None,
        say: Callable[[str], None],
    ) -> None:
        self.screen, self.folder, self.recipe, self.picture, self.say = screen, folder, recipe, picture, say
        self.trackers = {name: TRACKERS[name]() for name in names}
        for name, value in MANNERS.items() if names else ():
            os.environ.setdefault(name, value)

    def __enter__(self) -> Tracked:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.ask_all(lambda tracker: tracker.close(kind is None))

    def begin(self, first: int, total: int) -> None:
        self.screen.begin(first, total)
        self.ask_all(lambda tracker: tracker.start(self.folder, self.recipe, first))

    def row(self, row: Mapping[str, Any]) -> None:
        self.screen.row(row)
        values = dict(numbers(row))
        self.ask_all(lambda tracker: tracker.scalars(row["iteration"], values))
        if "confusion" in row and self.picture is not None and self.trackers:
            picture = self.picture()
            self.ask_all(lambda tracker: tracker.image(row["iteration"], "panel", picture))

    def advance(self, iteration: int) -> None:
        self.screen.advance(iteration)

    def note(self, text: str) -> None:
        self.screen.note(text)

    def end(self) -> None:
        self.screen.end()

    def ask_all(self, act: Callable[[Tracker], object]) -> None:
        """Let every tracker act; one that cannot is said and left out."""
        for name, tracker in list(self.trackers.items()):
            try:
                act(tracker)
            except Exception as error:  # whatever a network, a disk or a package comes up with
                del self.trackers[name]
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                text = f"warning: tracker {name} failed: {reason}. The run goes on without it; the same command, given "
                text += "again later, tries it again. metrics.jsonl has every number"
                self.screen.note(text)
                self.say(text)


def missing_packages(names: Sequence[str]) -> list[Problem]:
    """What the chosen trackers need and is not installed, with the command that installs it."""
    return [
        Problem(("runtime", "trackers"), f'{name} is not installed: pip install "udaseg[{name}]"')
        for name in names
        if any(find_spec(package) is None for package in TRACKERS[name].packages)
    ]


def numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The finite numbers of a log row, ``group/name`` in a group; of a validation its mIoU, in %."""
    if "confusion" in row:
        row = {"validation": {"miou": row["miou"]}}
    for path, value in leaves(dict(row)):
        if path != ("iteration",) and isinstance(value, int | float) and math.isfinite(value):
            yield "/".join(path), value


def known_id(folder: Path, tracker: str) -> str | None:
    """The id under which a tracker knows the run, if it does; UserError for a damaged file."""
    return read_ids(folder / IDS).get(tracker)


def keep_id(folder: Path, tracker: str, name: str) -> None:
    write_json(folder / IDS, {**read_ids(folder / IDS), tracker: name})


def read_ids(path: Path) -> dict[str, str]:
    try:
        return TypeAdapter(dict[str, str]).validate_json(read_bytes(path))
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise UserError(f"{path}: damaged ({first_problem(error)})") from None
