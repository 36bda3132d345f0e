"""Generated street scenes on disk, in the official layouts and formats of GTA5 and Cityscapes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from udaseg.data.classes import CITYSCAPES_COLOURS
from udaseg.data.parallel import Progress, results
from udaseg.data.streets.palette import Domain
from udaseg.data.streets.render import check_choices, draw
from udaseg.errors import UserError
from udaseg.files import check_room, replacing, write_json

GENERATOR_VERSION = 1  # to be raised whenever the same parameters give other images
MANIFEST, PARTIAL = "streets.json", "streets.partial.json"
FOLDERS = {"source": "gta5", "source_val": "gta5_val", "target_train": "cityscapes", "target_val": "cityscapes"}
CITIES = {"target_train": ("gridton", "rasterford"), "target_val": ("blockville",)}


class Job(NamedTuple):
    """One image to draw and the two files to write it to."""

    domain: Domain
    scene: int
    image: Path
    label: Path


def write_streets(
    root: Path,
    *,
    size: tuple[int, int] = (256, 128),
    gap: float = 0.5,
    seed: int = 0,
    source: int = 400,
    target_train: int = 400,
    target_val: int = 100,
    source_val: int = 50,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the data set under `root`; what an earlier call with the same parameters wrote is kept.

    `gta5/` is the source, `gta5_val/` held-out source images in the same format, `cityscapes/` the target;
    `streets.json` is written last. For `size`, `gap` and `seed` see `draw`; `workers` are processes, None for as many
    as are of use; `progress` is called with (images done, images in all). Raises ValueError if a parameter
    is out of its range, UserError if `root` holds other data; nothing has been changed then.
    """
    root = Path(root)
    counts = {"source": source, "source_val": source_val, "target_train": target_train, "target_val": target_val}
    check_choices("game", seed, 0, size, gap)
    parameters = {"generator": GENERATOR_VERSION, "seed": seed, "size": list(size), "gap": float(gap), "counts": counts}
    complete = _is_complete(root, parameters)
    jobs = list(_jobs(root, counts))
    pending = [job for job in jobs if not (job.image.exists() and job.label.exists())]  # files appear whole
    check_room(root, len(pending) * size[0] * size[1], "choose a smaller size or another root")
    if pending or not complete:
        write_json(root / PARTIAL, parameters)
    done = len(jobs) - len(pending)
    if progress is not None:
        progress(done, len(jobs))
    work = partial(_write, size=size, gap=gap, seed=seed)
    for _ in results(work, pending, workers, progress=progress, done=done):
        pass
    if not complete:
        write_json(root / MANIFEST, parameters)
    (root / PARTIAL).unlink(missing_ok=True)


def _is_complete(root: Path, parameters: dict[str, Any]) -> bool:
    """Whether `root` says that it is complete; UserError unless it is new or has these very parameters."""
    manifests = [root / name for name in (MANIFEST, PARTIAL) if (root / name).exists()]
    for folder in FOLDERS.values():
        if not manifests and (root / folder).exists():
            raise UserError(f"{root / folder} exists but was not made by `streets`; choose another root")
    for path in manifests:
        try:
            written, wanted = _flat(json.loads(path.read_text(encoding="utf-8"))), _flat(parameters)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: cannot be read ({error}); choose another root") from error
        for key in (*wanted, *written):
            if written.get(key) != wanted.get(key):
                raise UserError(
                    f"{path}: written with {key} = {written.get(key)!r}, asked for {wanted.get(key)!r}; "
                    "choose another root or the same parameters"
                )
    return root / MANIFEST in manifests


def _flat(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters under the names `write_streets` has for them."""
    return {**parameters, **parameters["counts"], "counts": None}


def _jobs(root: Path, counts: dict[str, int]) -> Iterator[Job]:
    """What to write, and where; a million scenes for each split, so that no two ever share one."""
    for position, (split, count) in enumerate(counts.items()):
        folder, cities = root / FOLDERS[split], CITIES.get(split, ())
        for number in range(count):
            scene = 1_000_000 * position + number
            if not cities:
                name = f"{number + 1:05d}.png"
                yield Job("game", scene, folder / "images" / name, folder / "labels" / name)
                continue
            city = cities[number % len(cities)]
            stem = f"{split.removeprefix('target_')}/{city}/{city}_{number // len(cities):06d}_000019"
            image, label = f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_labelIds.png"
            yield Job("camera", scene, folder / image, folder / label)


def _write(job: Job, *, size: tuple[int, int], gap: float, seed: int) -> None:
    image, label = map(Image.fromarray, draw(job.domain, seed, job.scene, size=size, gap=gap))
    if job.domain == "game":
        colours = {label_id: bytes(colour) for colour, label_id in CITYSCAPES_COLOURS.items()}
        label.putpalette(b"".join(colours.get(label_id, b"\0\0\0") for label_id in range(256)))
    for path, content in ((job.image, image), (job.label, label)):
        if not path.exists():
            with replacing(path) as temporary:
                content.save(temporary, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
