"""What the two domains are made of, as plain data: labels, colours, layout statistics, texture strengths."""

from __future__ import annotations

from typing import Any, Literal

from udaseg.data.classes import CITYSCAPES, CITYSCAPES_IDS

Domain = Literal["game", "camera"]
Colour = tuple[int, ...]
Span = tuple[float, float]

LABEL_IDS: dict[str, int] = {"ego": 1, **dict(zip(CITYSCAPES.names, CITYSCAPES_IDS, strict=True))}
GROUND = ("road", "sidewalk", "terrain")

MATERIALS: dict[str, tuple[str, str]] = {
    "road": ("484854 504e58", "686662 787470 585856"),
    "mark": ("f0f0f0 f4f0e8", "c4c2ba a09e98"),
    "centre mark": ("f0c83c f0f0f0", "c4c2ba aaa69c"),
    "sidewalk": ("c49678 cda087", "8e8a84 9c968e 807e7c"),
    "building": ("d67046 e2aa50 be5048 e8c48c ce6070", "867c70 a29684 706460 b2aca0 806054 62646a"),
    "wall": ("a896cc 9488bc", "7a7870 908e86"),
    "fence": ("88802c 787024", "585c52 565040 686a62"),
    "pole": ("30303c 3c3c46 787880", "707270 545656"),
    "traffic light": ("1e1e1e", "2e322c 1e2220"),
    "traffic sign": ("e61e1e 1e46e6 fad21e", "aa3632 344e86 beb060 c4c4be"),
    "sign face": ("f0f0f0", "ceccc6"),
    "vegetation": ("288c28 3ca032 1e7832", "3c542c 4c5e32 304428 585c30"),
    "trunk": ("583e2c", "423226"),
    "terrain": ("96c846 aabe50", "7c7c42 6c743c 86764c"),
    "sky": ("5aaafa 78beff", "c8d2dc b4c8de dcdede"),
    "cloud": ("bcdefc d6eafc", "ccd0d6 e2e4e6"),
    "person": ("dc2878 283cc8 f0dc28 28b4a0 3c3434 60505a", "343238 58463e 404e60 746058 8c8884"),
    "rider": ("fa3c3c 3cdcdc fa8214 3c3c46 6e643c", "3a383e 60483c 8c8046 465468"),
    "skin": ("e0b496 966446", "ae8c76 764e38"),
    "car": ("d2141e 143cc8 f0f0fa fac814 14965a 3c3c42 96969b", "2a2c32 787a7e b0b2b2 602222 2c3a54 c8c8c6"),
    "truck": ("f0821e 4678e6 f0f0e6", "b0b0aa 566270 965a3c"),
    "bus": ("fabe00 00a050 dc2828", "a4823c 963c36 aaacaa"),
    "train": ("b41e3c 1e7882 e6e6f0", "783434 8c8e8c 546460"),
    "glass": ("466e96 3c5a78", "30363c 2c3236"),
    "motorcycle": ("781414 1e1e78", "282628 502828"),
    "bicycle": ("14a0c8 c83ca0", "323436 603c34"),
    "ego": ("281e32", "2e3032 484a4c"),
}
"""The colours (RRGGBB) each material comes in: saturated in the game, muted and overlapping in the camera."""

DETAILS = frozenset({"mark", "centre mark", "sign face", "trunk", "cloud", "skin", "glass", "ego"})
"""Materials of mere parts of things: always in the domain's own colours, whatever the gap."""

LAYOUT: dict[str, tuple[Any, Any]] = {
    "horizon": ((0.40, 0.46), (0.37, 0.44)),
    "focal": ((1.445, 1.68), (1.52, 1.84)),
    "curvature": (0.0010, 0.0015),
    "half road": ((4.0, 6.5), (3.6, 6.2)),
    "lanes": ((2, 4), (2, 3)),
    "sidewalk": ((1.8, 3.6), (2.0, 4.0)),
    "setback": ((0.5, 4.0), (0.0, 2.5)),
    "segments": ((0.44, 0.12, 0.16, 0.19, 0.09), (0.42, 0.12, 0.15, 0.24, 0.07)),  # shares of SEGMENTS
    "building height": ((7.0, 26.0), (8.0, 20.0)),
    "most poles": (5, 6),
    **{"cars": (3.5, 4.5), "persons": (3.0, 4.0), "cycles": (1.5, 1.9)},  # about how many in an image
    **{"truck": (0.30, 0.26), "bus": (0.28, 0.28), "train": (0.24, 0.24), "ego": (0.5, 0.8)},  # chance of one
    "brightness": ((0.9, 1.1), (0.8, 1.2)),  # range of the random factor of each object's colour
}
"""Statistics of the streets of the game and the camera. Lengths in metres, image lengths in image heights."""

SEGMENTS = ("building", "wall", "fence", "trees", "open")
"""What a stretch of the street is lined with."""

TEXTURE: dict[str, tuple[float, float, float]] = {
    "road": (5, 3, 4),
    "sidewalk": (6, 5, 4),
    "building": (3, 5, 6),
    "wall": (7, 6, 4),
    "fence": (5, 3, 2),
    "vegetation": (15, 15, 7),
    "terrain": (12, 9, 6),
    "sky": (1, 1, 4),
    **dict.fromkeys(("person", "rider"), (8.0, 8.0, 3.0)),
    **dict.fromkeys(("car", "truck", "bus", "train"), (3.0, 5.0, 5.0)),
}
"""Standard deviation in grey levels of the fine, middle and coarse texture of a class; others have none."""
