"""Foreground and background: classes that are things, and the rest, by name (OMUDA section III-B).

The paper says "object categories with clear instance boundaries" and lists person, rider and car; the ten names are
DAFormer's things. Poles are background.
"""

from __future__ import annotations

THINGS = (
    "traffic light", "traffic sign", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip


def foreground_mask(classes: tuple[str, ...], foreground: tuple[str, ...]) -> list[bool]:
    """Boolean per class: is it foreground? Unknown names are skipped; ValueError if all are unknown."""
    mask = [name in foreground for name in classes]
    if not any(mask):
        raise ValueError(f"foreground {list(foreground)}: no class is called so; there are {', '.join(classes)}")
    return mask
