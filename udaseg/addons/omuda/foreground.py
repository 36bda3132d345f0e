"""Foreground and background: classes that are things, and the rest, by name (OMUDA section III-B).

Unknown names are skipped, so that one list serves all benchmarks.
"""

from __future__ import annotations

from udaseg.plugin import Assumption

THINGS = (
    "traffic light", "traffic sign", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip


def foreground_mask(classes: tuple[str, ...], foreground: tuple[str, ...]) -> list[bool]:
    """Boolean per class: is it foreground? Unknown names are skipped; ValueError if all are unknown."""
    mask = [name in foreground for name in classes]
    if not any(mask):
        raise ValueError(f"foreground {list(foreground)}: no class is called so; there are {', '.join(classes)}")
    return mask


FOREGROUND = Assumption(
    "Which classes are foreground?",
    "the ten that DAFormer calls things; poles are background",
    'section III-B: "object categories with clear instance boundaries (e.g., person, rider, car)"',
    ("foreground",),
    "any names of classes",
)
