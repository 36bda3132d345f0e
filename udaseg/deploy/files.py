"""Predictions into a folder: <out>/<kind>/<name>, nothing written twice, one bad file does not stop the others.

``predictions.json`` in the folder says which weights it is of and which file each name stands for, so that a second
run can trust what it finds: finished images are skipped, a mixture of weights or of inputs is refused.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image

from udaseg.deploy import video
from udaseg.deploy.inputs import RECORD, Source, find_sources
from udaseg.deploy.model import Model, Prediction, load
from udaseg.engine.device import out_of_memory
from udaseg.errors import UserError
from udaseg.files import write_atomic, write_json
from udaseg.models import weights_file

Kind = Literal["index", "color", "overlay", "probabilities"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DEFAULT: tuple[Kind, ...] = ("index", "overlay")
LONGEST = 65500  # pixels of a JPEG's side


@dataclass(frozen=True)
class Result:
    """What became of one input: its files by kind; ``fresh`` if this run wrote any; or why there are none."""

    source: Path
    files: Mapping[Kind, Path]
    fresh: bool = False
    error: str | None = None


def predict(
    weights: str | Path,
    inputs: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    save: Kind | Sequence[Kind] = DEFAULT,
    teacher: bool = False,
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """Predict the ``inputs``, files, folders and globs, into ``out`` (default: predictions/<name of the weights>).

    ``weights``: a weights file or a run folder, of which ``teacher`` takes the teacher. ``save``: index, color, overlay
    or probabilities. ``device``: auto, cpu, cuda, cuda:N or mps. ``progress``: called with (done, total) inputs.
    UserError for what is wrong with the request; a file that cannot be read becomes a result with an ``error``.
    """
    wanted = kinds(save)
    sources = find_sources([inputs] if isinstance(inputs, (str, Path)) else inputs)
    folder = Path(out) if out is not None else default_folder(Path(weights), teacher=teacher)
    model = load(weights, teacher=teacher, device=device)
    claim(folder, weights_file.digest(model.segmentor), sources)
    results: list[Result] = []
    for source in sources:
        results.append(_predict(model, source, folder, wanted, progress))
        progress(len(results), len(sources))
    return results


def kinds(names: str | Sequence[str]) -> tuple[Kind, ...]:
    """The named kind or kinds of outputs, once each; UserError for an unknown one and for none."""
    names = [names] if isinstance(names, str) else names
    strange = [name for name in names if name not in KINDS]
    if strange or not names:
        raise UserError(f"save: {', '.join(strange) or 'nothing'} is not allowed; choose from {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in names)


def default_folder(weights: Path, *, teacher: bool = False) -> Path:
    return Path("predictions") / title(weights, teacher=teacher)


def title(weights: Path, *, teacher: bool = False) -> str:
    """What a run or a weights file is called; a run's own weights as its folder, with BatchNorm of the target as
    <folder>-bn."""
    path = weights.resolve()
    if path.name in ("weights.safetensors", "weights_bn.safetensors"):
        name = path.parent.name + path.stem.removeprefix("weights").replace("_", "-")
    else:
        name = path.stem if path.is_file() else path.name
    return f"{name}-teacher" if teacher else name


def claim(folder: Path, digest: str, sources: Sequence[Source]) -> None:
    """Note weights and sources in the folder; UserError if it holds other ones, or is not for predictions."""
    path = folder / RECORD
    weights, known = digest, dict[str, str]()
    if path.is_file():
        weights, known = _record(path)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is no folder of predictions; choose another with --out")
    if weights != digest:
        raise UserError(f"{folder} holds predictions of other weights; choose another folder with --out")
    for source in sources:
        name = source.name.as_posix()
        if known.setdefault(name, str(source.path)) != str(source.path):
            raise UserError(f"{folder}: {name} is the prediction of {known[name]}, not of {source.path}; use --out")
    write_json(path, {"weights": digest, "sources": known})


def _record(path: Path) -> tuple[str, dict[str, str]]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record["weights"], dict(record["sources"])
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} is damaged; choose another folder with --out") from None


def _predict(
    model: Model, source: Source, folder: Path, save: Sequence[Kind], frames: Callable[[int, int], None]
) -> Result:
    """Write the missing outputs of one source. A video gives an overlay, whatever ``save``."""
    wanted = {kind: folder / kind / f"{source.name}{OUTPUTS[kind].suffix}" for kind in save}
    if source.video:
        wanted = {"overlay": folder / "overlay" / f"{source.name}.mp4"}
    missing = {kind: path for kind, path in wanted.items() if not path.exists()}
    try:
        if missing and source.video:
            video.overlay(model, source.path, missing["overlay"], frames=frames)
        elif missing:
            prediction = model.predict(source.path, probabilities="probabilities" in missing)
            for kind, path in missing.items():
                write(prediction, kind, path)
    except UserError as error:
        return Result(source.path, {}, error=str(error))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        torch.cuda.empty_cache()
        return Result(source.path, {}, error=f"{source.path}: out of memory; cut it up or make it smaller")
    return Result(source.path, wanted, bool(missing))


def write(prediction: Prediction, kind: Kind, path: Path) -> None:
    """One output of an image, atomically."""
    if kind == "overlay" and max(prediction.label.shape) > LONGEST:
        raise UserError(f"{path}: a JPEG cannot have more than {LONGEST} pixels a side; choose --save color")
    write_atomic(path, lambda file: OUTPUTS[kind].write(prediction, file))


class Output(NamedTuple):
    """How a kind of output is written."""

    suffix: str
    write: Callable[[Prediction, IO[bytes]], None]


def _write_picture(picture: Image.Image, file: IO[bytes], form: str, **options: Any) -> None:
    """Through memory: Pillow itself takes no notice when only a part of its bytes still fits on a disk."""
    encoded = io.BytesIO()
    picture.save(encoded, form, **options)
    file.write(encoded.getbuffer())


def _write_probabilities(prediction: Prediction, file: IO[bytes]) -> None:
    assert prediction.probabilities is not None
    np.savez_compressed(file, probabilities=prediction.probabilities, classes=np.array(prediction.classes))


OUTPUTS: dict[Kind, Output] = {
    "index": Output(".png", lambda prediction, file: _write_picture(prediction.index(), file, "PNG")),
    "color": Output(".png", lambda prediction, file: _write_picture(Image.fromarray(prediction.colour()), file, "PNG")),
    "overlay": Output(".jpg", lambda prediction, file: _write_picture(prediction.overlay(), file, "JPEG", quality=90)),
    "probabilities": Output(".npz", _write_probabilities),
}
