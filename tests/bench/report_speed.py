"""A report over many run folders: their overview, as text and as HTML, through the real command.

    python tests/bench/report_speed.py [runs]

Target: seconds for 1,000; the first line is what the command takes without any (importing torch).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from fake_runs import write_run, write_start

from udaseg.data.classes import CITYSCAPES


def taken(*arguments: object) -> float:
    began = time.monotonic()
    command = [sys.executable, "-m", "udaseg.cli", "report", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def main(number: int) -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        root, empty = Path(place) / "runs", Path(place) / "empty"
        empty.mkdir()
        for i in range(number):
            if i % 10 == 9:
                write_start(root / f"run{i}", seed=i % 3, steps=800)
            else:
                confusion = rng.integers(0, 10**8, (19, 19)).tolist()
                write_run(root / f"run{i}", seed=i % 3, lr=str(i // 3), classes=CITYSCAPES.names, confusion=confusion)
        for name, arguments in (
            ("no runs", ("--runs", empty)),
            (f"{number} runs, terminal", ("--runs", root)),
            (f"{number} runs, HTML", ("--runs", root, "--out", Path(place) / "x.html")),
            (f"{number} runs, a study of 33 cells", ("mrm_1_gta5", "--runs", root)),
        ):
            print(f"{name:40} {taken(*arguments):6.1f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
