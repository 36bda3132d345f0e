"""`udaseg prepare` against what converting scripts do: open a label, numpy.unique, write it again as a label PNG.

    python tests/bench/prepare_speed.py [images]

One process each, seconds of its CPU. Target: 3 times as fast per image.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import scenes


def convert(labels: list[Path], folder: Path) -> None:
    """GTA5's labels -> train ids, with the counts of each file."""
    import numpy as np
    from PIL import Image

    from udaseg.data.classes import CITYSCAPES_IDS

    for path in labels:
        label = np.asarray(Image.open(path))
        ids = np.full(label.shape, 255, np.uint8)
        for value, train_id in CITYSCAPES_IDS.items():
            ids[label == value] = train_id
        np.unique(ids, return_counts=True)
        Image.fromarray(ids).save(folder / f"{path.stem}_labelTrainIds.png")


def unique_and_write(labels: list[Path], folder: Path) -> None:
    """Open, numpy.unique, write: the least a converting script can do."""
    import numpy as np
    from PIL import Image

    for path in labels:
        label = np.asarray(Image.open(path))
        np.unique(label, return_counts=True)
        Image.fromarray(label).save(folder / path.name)


def main(count: int) -> None:
    from udaseg.data.index import build_index, index_path
    from udaseg.data.layouts import dataset_spec

    home = scenes.home(count)
    labels = sorted((home / "gta5/labels").iterdir())[:count]
    files = len(list((home / "gta5/labels").iterdir()))
    times: dict[str, list[float]] = {"prepare": [], "unique + write": [], "full conversion": []}
    for _ in range(3):
        index_path(dataset_spec("gta5"), "train", home / "gta5").unlink(missing_ok=True)
        times["prepare"].append(scenes.timed(lambda: build_index(dataset_spec("gta5"), "train", workers=0)) / files)
        for name, work in (("unique + write", unique_and_write), ("full conversion", convert)):
            with tempfile.TemporaryDirectory() as folder:
                times[name].append(scenes.timed(lambda work=work, folder=folder: work(labels, Path(folder))) / count)
    ours = statistics.median(times["prepare"])
    print(scenes.machine())
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"{name:<16} {1000 * middle:7.1f} ms an image, {middle / ours:5.1f} x prepare")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 24)
