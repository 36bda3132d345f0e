"""Foreground and background: classes that are things, and the rest, by name (OMUDA section III-B).

The paper says "object categories with clear instance boundaries" and lists person, rider and car; the ten names are
DAFormer's things. Poles are background.
"""

from __future__ import annotations

THINGS = (
    "traffic light", "traffic sign", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip


def is_foreground(names: tuple[str, ...], foreground: tuple[str, ...]) -> list[bool]:
    """For each class whether it is among ``foreground``, whose other names mean nothing here; ValueError if all do."""
    found = [name in foreground for name in names]
    if not any(found):
        raise ValueError(f"foreground {list(foreground)}: no class is called so; there are {', '.join(names)}")
    return found
