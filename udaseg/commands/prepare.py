"""`udaseg prepare`: index a data set, or draw the generated one."""

from __future__ import annotations

from pathlib import Path

from udaseg.console import Counting, out, table
from udaseg.data import prepare as preparation
from udaseg.data.index import Index
from udaseg.data.layouts import data_home
from udaseg.errors import UserError


def dataset(name: str, root: Path | None, *, workers: int | None, strict: bool) -> None:
    """Index all splits of a data set and print what was found, expected and left out."""
    with Counting(f"reading {name}") as progress:
        indices = preparation.prepare(name, root=root, workers=workers, strict=strict, progress=progress)
    for index in indices:
        show(index)


def streets(root: Path | None, *, size: str, gap: float, seed: int, workers: int | None) -> None:
    """Draw `streets` into ``root`` (default: the data home) in the formats of GTA5 and Cityscapes, and index it."""
    from udaseg.data.streets import write_streets
    from udaseg.data.streets.render import SMALLEST

    place = root or data_home() / "streets"
    with Counting("drawing street scenes") as progress:
        write_streets(place, size=parse_size(size, SMALLEST), gap=gap, seed=seed, workers=workers, progress=progress)
    for name, folder in (("streets_source", "gta5"), ("streets_target", "cityscapes")):
        dataset(name, place / folder if root else None, workers=workers, strict=True)


def parse_size(text: str, smallest: int) -> tuple[int, int]:
    """'256x128' -> (256, 128), both at least ``smallest``."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and min(int(width), int(height)) >= smallest):
        raise UserError(
            f"--size {text!r}: expected WIDTHxHEIGHT, as in 256x128 or 1024x512, each at least {smallest} pixels"
        )
    return int(width), int(height)


def show(index: Index) -> None:
    """The summary of one split."""
    table(("", ""), [list(row) for row in preparation.summary(index)], title=f"{index.dataset} {index.split}", left=2)
    out.print()
