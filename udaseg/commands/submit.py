"""`udaseg submit`: predictions of a benchmark's test split as the zip that its server takes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from udaseg.console import Counting, out
from udaseg.data.classes import CITYSCAPES
from udaseg.data.index import load_index
from udaseg.data.servers import SERVERS, check_prediction, encode, pack, prediction_names
from udaseg.deploy import model as deploy
from udaseg.deploy.files import title
from udaseg.errors import UserError
from udaseg.files import write_atomic, write_json
from udaseg.models import weights_file
from udaseg.problems import suggest

STAMP = "submit.json"
"""In the folder of predictions: what they were made with."""


def submit(benchmark: str, path: Path, *, target: Path | None, teacher: bool, root: Path | None) -> None:
    """Predict, check, pack. Predictions wait in `<target>.partial`, where the same command continues."""
    name = benchmark.replace("-", "_")
    if name not in SERVERS:
        raise UserError(f"no server is known for {benchmark!r}; {suggest(name, SERVERS)}")
    server, target = SERVERS[name], target or Path(f"{name}-{title(path, teacher=teacher)}.zip")
    refuse_target(target)
    model = deploy.load(path, teacher=teacher)
    metadata = model.metadata
    if metadata.classes != CITYSCAPES.names:
        raise UserError(
            f"{path} predicts {', '.join(metadata.classes)}; {name} needs the 19 Cityscapes classes in order"
        )
    index = load_index(name, "test", root)
    names = prediction_names(server, index)
    folder = target.with_name(target.name + ".partial")
    made_with = {"size": metadata.size, "inference": metadata.inference, "crop": metadata.crop}
    network = weights_file.digest(model.segmentor)
    claim(folder, {"server": name, "images": str(index.root), "network": network, **made_with})
    files = [folder / name for name in names]
    with Counting("predicting") as progress:
        for done, (pair, file) in enumerate(zip(index.pairs, files, strict=True), 1):
            if not file.is_file():
                content = encode(server, model.predict(index.root / pair.image).label)
                write_atomic(file, lambda handle, content=content: handle.write(content))  # type: ignore[misc]
            progress(done, len(files))
    with Counting("checking") as progress:
        for done, file in enumerate(files, 1):
            check_prediction(server, file)
            progress(done, len(files))
    refuse_target(target)  # another program had hours to write it
    pack(server, files, target)
    tidy(folder, files)
    out.print(f"{target}: {len(files)} predictions of {metadata.recipe}, {'teacher' if teacher else 'student'}.")
    out.print(f"Upload it at {server.page}" + (f"\n{server.note}" if server.note else ""))


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


def tidy(folder: Path, files: list[Path]) -> None:
    """Remove what this command wrote; the folder too, unless somebody else put something into it."""
    for file in (*files, folder / STAMP, *folder.glob(".*.tmp")):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
