"""Names, colours and label ids of the street classes, and named evaluation protocols.

Source: the Cityscapes class table (19 evaluated classes), the GTA5 labels (same ids) and the SYNTHIA label ids as used
by the public DACS family. A label file keeps its own values on disk; `lookup` turns them into train ids when it is
read, so nothing is ever converted or written back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IGNORE = 255
"""Train id of pixels that belong to no class: never counted, never trained on, never evaluated."""

UNKNOWN_COLOUR = 254
"""Raw label value given to a pixel whose colour is in no table (reported as an unknown label value)."""


@dataclass(frozen=True)
class ClassSet:
    """K classes in train id order; the names decide which classes of two data sets match."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int:
        return len(self.names)


# name, Cityscapes and GTA5 label id, SYNTHIA label id, RGB colour; the row number is the train id
_TABLE: tuple[tuple[str, int, int, tuple[int, int, int]], ...] = (
    ("road", 7, 3, (128, 64, 128)),
    ("sidewalk", 8, 4, (244, 35, 232)),
    ("building", 11, 2, (70, 70, 70)),
    ("wall", 12, 21, (102, 102, 156)),
    ("fence", 13, 5, (190, 153, 153)),
    ("pole", 17, 7, (153, 153, 153)),
    ("traffic light", 19, 15, (250, 170, 30)),
    ("traffic sign", 20, 9, (220, 220, 0)),
    ("vegetation", 21, 6, (107, 142, 35)),
    ("terrain", 22, 16, (152, 251, 152)),
    ("sky", 23, 1, (70, 130, 180)),
    ("person", 24, 10, (220, 20, 60)),
    ("rider", 25, 17, (255, 0, 0)),
    ("car", 26, 8, (0, 0, 142)),
    ("truck", 27, 18, (0, 0, 70)),
    ("bus", 28, 19, (0, 60, 100)),
    ("train", 31, 20, (0, 80, 100)),
    ("motorcycle", 32, 12, (0, 0, 230)),
    ("bicycle", 33, 11, (119, 11, 32)),
)

CITYSCAPES = ClassSet(tuple(row[0] for row in _TABLE), tuple(row[3] for row in _TABLE))
CITYSCAPES_IDS: dict[int, int] = {row[1]: train_id for train_id, row in enumerate(_TABLE)}
SYNTHIA_IDS: dict[int, int] = {row[2]: train_id for train_id, row in enumerate(_TABLE)}
SYNTHIA_VOID = frozenset({0, 13, 14, 22, IGNORE})
TRAIN_IDS: dict[int, int] = {train_id: train_id for train_id in range(len(_TABLE))}

CITYSCAPES_VOID = frozenset(range(35)) - frozenset(CITYSCAPES_IDS) | {IGNORE}
"""Known label ids without a class: ignored silently, unlike values that no table lists. -1 is 255 in 8 bits."""

CITYSCAPES_COLOURS: dict[tuple[int, int, int], int] = {
    (0, 0, 0): 0,
    (20, 20, 20): 4,  # GTA5's colour of "static"
    (111, 74, 0): 5,
    (81, 0, 81): 6,
    (250, 170, 160): 9,
    (230, 150, 140): 10,
    (180, 165, 180): 14,
    (150, 100, 100): 15,
    (150, 120, 90): 16,
    (0, 0, 90): 29,
    (0, 0, 110): 30,
    **{row[3]: row[1] for row in _TABLE},  # license plate shares car's colour, pole group pole's
}
"""RGB colour -> Cityscapes label id, for label files that a tool expanded from palette to colour."""

CITYSCAPES_NAMES: dict[str, int] = {
    **{row[0]: row[1] for row in _TABLE},
    **{"unlabeled": 0, "ego vehicle": 1, "rectification border": 2, "out of roi": 3, "static": 4, "dynamic": 5},
    **{"ground": 6, "parking": 9, "rail track": 10, "guard rail": 14, "bridge": 15, "tunnel": 16, "polegroup": 18},
    **{"caravan": 29, "trailer": 30, "license plate": -1},
}
"""Names in Cityscapes polygon files -> label id."""

CAMVID = ClassSet(
    ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    (
        *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
        *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
    ),
)
"""The 11 classes of the SegNet tutorial's copy, in its order."""

_SYNTHIA16 = tuple(n for n in CITYSCAPES.names if n not in ("terrain", "truck", "train"))
PROTOCOLS: dict[str, tuple[str, ...]] = {
    "cityscapes19": CITYSCAPES.names,
    "synthia16": _SYNTHIA16,
    "synthia13": tuple(n for n in _SYNTHIA16 if n not in ("wall", "fence", "pole")),
    "camvid11": CAMVID.names,
    "all": (),
}
"""Classes that an mIoU is the mean of; none named: all that the model has."""


def colourise(label: npt.NDArray[np.uint8], palette: Sequence[tuple[int, int, int]]) -> npt.NDArray[np.uint8]:
    """Train ids (H, W) -> RGB (H, W, 3) in the colours of the classes; ignored pixels are black."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    return colours[label]


def lookup(mapping: Mapping[int, int]) -> npt.NDArray[np.uint8]:
    """(256,) table: raw label value -> train id; values that are not listed become IGNORE."""
    table = np.full(256, IGNORE, dtype=np.uint8)
    for value, train_id in mapping.items():
        table[value] = train_id
    return table


def match_classes(own: Sequence[str], wanted: Sequence[str], merge: Mapping[str, str]) -> tuple[int, ...]:
    """For each class of a data set its train id among the wanted ones: what `merge` says, else the one of that name,
    else IGNORE."""
    ids = {name: train_id for train_id, name in enumerate(wanted)}
    return tuple(ids.get(merge.get(name, name), IGNORE) for name in own)
