"""`udaseg submit`: predictions of a benchmark's test split as the zip that its server takes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from udaseg.config.schema import DomainSection
from udaseg.console import Counting, out
from udaseg.data.classes import CITYSCAPES
from udaseg.data.loading import Normalise, evaluation_loader
from udaseg.data.servers import SERVERS, Server, check_prediction, encode, pack, prediction_names
from udaseg.engine import runs
from udaseg.engine.device import autocast, choose_device, choose_precision, set_up
from udaseg.engine.domains import images_of
from udaseg.errors import UserError
from udaseg.evaluation.evaluate import evaluating, predict
from udaseg.evaluation.inference import inference
from udaseg.files import write_atomic, write_json
from udaseg.models import weights_file
from udaseg.models.segmentor import Segmentor
from udaseg.models.weights_file import WeightsMetadata
from udaseg.problems import suggest

STAMP = "submit.json"
"""In the folder of predictions: what they were made with."""


def run(benchmark: str, path: Path, *, target: Path | None, teacher: bool, root: Path | None) -> None:
    """Predict, check, pack. Predictions wait in `<target>.partial`, where the same command continues."""
    name = benchmark.replace("-", "_")
    if name not in SERVERS:
        raise UserError(f"no server is known for {benchmark!r}; {suggest(name, SERVERS)}")
    server, target = SERVERS[name], target or default_target(name, path, teacher)
    refuse_target(target)
    module, metadata = runs.load_student(path, teacher=teacher)
    if metadata.classes != CITYSCAPES.names:
        raise UserError(
            f"{path} predicts {', '.join(metadata.classes)}; {name} needs the 19 Cityscapes classes in order"
        )
    section = DomainSection(dataset=name, split="test", root=str(root) if root else None, size=metadata.size)
    images: Any = images_of(section, 1, labels=False)  # metadata.size is scaled already
    index = images.dataset.domain.index
    names = prediction_names(server, index)
    folder = target.with_name(target.name + ".partial")
    made_with = {"size": metadata.size, "inference": metadata.inference, "crop": metadata.crop}
    claim(folder, {"server": name, "images": str(index.root), "network": weights_file.digest(module), **made_with})
    files = [folder / name for name in names]
    predict_missing(server, module, metadata, images, files)
    with Counting("checking") as progress:
        for done, file in enumerate(files, 1):
            check_prediction(server, file)
            progress(done, len(files))
    refuse_target(target)  # another program had hours to write it
    pack(server, files, target)
    tidy(folder, files)
    out.print(f"{target}: {len(files)} predictions of {metadata.recipe}, {'teacher' if teacher else 'student'}.")
    out.print(f"Upload it at {server.page}" + (f"\n{server.note}" if server.note else ""))


def default_target(name: str, path: Path, teacher: bool) -> Path:
    """`<benchmark>-<run>.zip`, here."""
    run = path.resolve()
    run = run.parent if run.name == "weights.safetensors" else run
    return Path(f"{name}-{run.stem if run.is_file() else run.name}{'-teacher' if teacher else ''}.zip")


def refuse_target(target: Path) -> None:
    if target.suffix != ".zip":
        raise UserError(f"--out {target}: the name must end in .zip")
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} exists and is not overwritten; choose another with --out")


def claim(folder: Path, stamp: dict[str, Any]) -> None:
    """Make the folder ours, or continue in it; UserError if it holds anything but this command's predictions."""
    file = folder / STAMP
    if file.is_file():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if before != json.loads(json.dumps(stamp)):
            raise UserError(f"{folder} holds predictions of other weights or images; delete it or choose another --out")
        return
    if folder.exists() and any(not entry.name.endswith(".tmp") for entry in folder.iterdir()):
        raise UserError(f"{folder} exists and is not a folder of predictions; choose another --out")
    write_json(file, stamp)


def predict_missing(
    server: Server, module: Segmentor, metadata: WeightsMetadata, images: Subset[Any], files: list[Path]
) -> None:
    """Write the predictions that are not there yet, one image in memory at a time."""
    todo = [i for i, file in enumerate(files) if not file.is_file()]
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    set_up(device, precision, None)
    module.to(device)
    normalise = Normalise(metadata.mean, metadata.std).to(device)
    cast, look = autocast(precision, device), inference(metadata.inference, metadata.crop)
    loader = evaluation_loader(Subset(images, todo), workers=2)
    with evaluating(module), Counting("predicting") as progress:
        for done, (i, item) in enumerate(zip(todo, loader, strict=True), len(files) - len(todo) + 1):
            image = normalise(item["image"][None].to(device))
            ids = predict(module, image, server.size[::-1], cast, look)[0]
            content = encode(server, ids.cpu().numpy())
            write_atomic(files[i], lambda file, content=content: file.write(content))  # type: ignore[misc]
            progress(done, len(files))


def tidy(folder: Path, files: list[Path]) -> None:
    """Remove what this command wrote; the folder too, unless somebody else put something into it."""
    for file in (*files, folder / STAMP, *folder.glob(".*.tmp")):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
