"""Street scenes drawn once in the official formats and sizes, for the scripts beside this file."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

GTA5, CITYSCAPES = (1914, 1052), (2048, 1024)


def one(job: tuple[Path, int]) -> None:
    """Scene i of both domains. Noise of a game and a camera, so the PNGs are as large as real ones (about 2 MB)."""
    from PIL import Image
    from unit.data_files import save_palette

    from udaseg.data.classes import CITYSCAPES_IDS
    from udaseg.data.streets import draw

    home, i = job
    ids = {train_id: label_id for label_id, train_id in CITYSCAPES_IDS.items()}
    import numpy as np

    raw = np.array([ids.get(v, 0) for v in range(256)], np.uint8)
    for kind, size in (("game", GTA5), ("camera", CITYSCAPES)):
        image, label = draw(kind, 0, i, size=size)
        stem = f"ulm/ulm_{i:06d}_000019"
        paths = {
            "game": (home / f"gta5/images/{i + 1:05d}.png", home / f"gta5/labels/{i + 1:05d}.png"),
            "camera": (
                home / f"cityscapes/leftImg8bit/train/{stem}_leftImg8bit.png",
                home / f"cityscapes/gtFine/train/{stem}_gtFine_labelIds.png",
            ),
        }[kind]
        if all(path.is_file() for path in paths):
            continue
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(paths[0])
        if kind == "game":
            save_palette(paths[1], raw[label])
        else:
            Image.fromarray(raw[label]).save(paths[1])


def home(count: int) -> Path:
    """A data home with `count` scenes of each domain, kept between runs."""
    place = Path(os.environ.get("UDASEG_BENCH", "/tmp/udaseg-bench"))
    os.environ["UDASEG_DATA"] = str(place)
    with ProcessPoolExecutor() as pool:
        list(pool.map(one, [(place, i) for i in range(count)]))
    return place


def timed(work: Callable[[], object]) -> float:
    """Seconds of this process's CPU: what else runs on the machine counts little, and so do disk waits."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def machine() -> str:
    """Where a number came from."""
    import numpy
    import PIL

    load = os.getloadavg()[0]
    return (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, "
        f"Python {platform.python_version()}, numpy {numpy.__version__}, Pillow {PIL.__version__}"
    )
