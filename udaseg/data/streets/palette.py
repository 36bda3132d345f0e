"""What the two domains are made of, as plain data: label ids, colours, layout statistics, texture strengths."""

from __future__ import annotations

from typing import Literal, NamedTuple

Domain = Literal["game", "camera"]
Colour = tuple[int, int, int]
Span = tuple[float, float]

# Cityscapes label ids (not train ids).
EGO = 1
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN = 7, 8, 11, 12, 13, 17, 19, 20
VEGETATION, TERRAIN, SKY, PERSON, RIDER = 21, 22, 23, 24, 25
CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = 26, 27, 28, 31, 32, 33

GROUND = (ROAD, SIDEWALK, TERRAIN)
LABELS = (
    *(EGO, ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION),
    *(TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE),
)

LABEL_COLOURS: tuple[Colour, ...] = (
    *((0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0)),
    *((111, 74, 0), (81, 0, 81), (128, 64, 128), (244, 35, 232), (250, 170, 160)),
    *((230, 150, 140), (70, 70, 70), (102, 102, 156), (190, 153, 153), (180, 165, 180)),
    *((150, 100, 100), (150, 120, 90), (153, 153, 153), (153, 153, 153), (250, 170, 30)),
    *((220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60)),
    *((255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 0, 90)),
    *((0, 0, 110), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
)
"""The official Cityscapes colour of every label id from 0 to 33."""


class Swatch(NamedTuple):
    """The colours one material comes in: saturated in the game, muted and overlapping in the camera."""

    game: tuple[Colour, ...]
    camera: tuple[Colour, ...]


MATERIALS: dict[str, Swatch] = {
    "road": Swatch(
        game=((72, 72, 84), (80, 78, 88)),
        camera=((104, 102, 98), (120, 116, 112), (88, 88, 86)),
    ),
    "mark": Swatch(
        game=((240, 240, 240), (244, 240, 232)),
        camera=((196, 194, 186), (160, 158, 152)),
    ),
    "centre mark": Swatch(
        game=((240, 200, 60), (240, 240, 240)),
        camera=((196, 194, 186), (170, 166, 156)),
    ),
    "sidewalk": Swatch(
        game=((196, 150, 120), (205, 160, 135)),
        camera=((142, 138, 132), (156, 150, 142), (128, 126, 124)),
    ),
    "building": Swatch(
        game=((214, 112, 70), (226, 170, 80), (190, 80, 72), (232, 196, 140), (206, 96, 112)),
        camera=((134, 124, 112), (162, 150, 132), (112, 100, 96), (178, 172, 160), (128, 96, 84), (98, 100, 106)),
    ),
    "wall": Swatch(
        game=((168, 150, 204), (148, 136, 188)),
        camera=((122, 120, 112), (144, 142, 134)),
    ),
    "fence": Swatch(
        game=((136, 128, 44), (120, 112, 36)),
        camera=((88, 92, 82), (86, 80, 64), (104, 106, 98)),
    ),
    "pole": Swatch(
        game=((48, 48, 60), (60, 60, 70), (120, 120, 128)),
        camera=((112, 114, 112), (84, 86, 86)),
    ),
    "light": Swatch(game=((30, 30, 30),), camera=((46, 50, 44), (30, 34, 32))),
    "sign": Swatch(
        game=((230, 30, 30), (30, 70, 230), (250, 210, 30)),
        camera=((170, 54, 50), (52, 78, 134), (190, 176, 96), (196, 196, 190)),
    ),
    "sign face": Swatch(game=((240, 240, 240),), camera=((206, 204, 198),)),
    "vegetation": Swatch(
        game=((40, 140, 40), (60, 160, 50), (30, 120, 50)),
        camera=((60, 84, 44), (76, 94, 50), (48, 68, 40), (88, 92, 48)),
    ),
    "trunk": Swatch(game=((88, 62, 44),), camera=((66, 50, 38),)),
    "terrain": Swatch(
        game=((150, 200, 70), (170, 190, 80)),
        camera=((124, 124, 66), (108, 116, 60), (134, 118, 76)),
    ),
    "sky": Swatch(
        game=((90, 170, 250), (120, 190, 255)),
        camera=((200, 210, 220), (180, 200, 222), (220, 222, 222)),
    ),
    "cloud": Swatch(game=((188, 222, 252), (214, 234, 252)), camera=((204, 208, 214), (226, 228, 230))),
    "person": Swatch(
        game=((220, 40, 120), (40, 60, 200), (240, 220, 40), (40, 180, 160), (60, 52, 52), (96, 80, 90)),
        camera=((52, 50, 56), (88, 70, 62), (64, 78, 96), (116, 96, 88), (140, 136, 132)),
    ),
    "rider": Swatch(
        game=((250, 60, 60), (60, 220, 220), (250, 130, 20), (60, 60, 70), (110, 100, 60)),
        camera=((58, 56, 62), (96, 72, 60), (140, 128, 70), (70, 84, 104)),
    ),
    "skin": Swatch(
        game=((224, 180, 150), (150, 100, 70)),
        camera=((174, 140, 118), (118, 78, 56)),
    ),
    "car": Swatch(
        game=(
            *((210, 20, 30), (20, 60, 200), (240, 240, 250), (250, 200, 20)),
            *((20, 150, 90), (60, 60, 66), (150, 150, 155)),
        ),
        camera=((42, 44, 50), (120, 122, 126), (176, 178, 178), (96, 34, 34), (44, 58, 84), (200, 200, 198)),
    ),
    "truck": Swatch(
        game=((240, 130, 30), (70, 120, 230), (240, 240, 230)),
        camera=((176, 176, 170), (86, 98, 112), (150, 90, 60)),
    ),
    "bus": Swatch(
        game=((250, 190, 0), (0, 160, 80), (220, 40, 40)),
        camera=((164, 130, 60), (150, 60, 54), (170, 172, 170)),
    ),
    "train": Swatch(
        game=((180, 30, 60), (30, 120, 130), (230, 230, 240)),
        camera=((120, 52, 52), (140, 142, 140), (84, 100, 96)),
    ),
    "glass": Swatch(game=((70, 110, 150), (60, 90, 120)), camera=((48, 54, 60), (44, 50, 54))),
    "motorcycle": Swatch(game=((120, 20, 20), (30, 30, 120)), camera=((40, 38, 40), (80, 40, 40))),
    "bicycle": Swatch(game=((20, 160, 200), (200, 60, 160)), camera=((50, 52, 54), (96, 60, 52))),
    "ego": Swatch(game=((40, 30, 50),), camera=((46, 48, 50), (72, 74, 76))),
}

DETAILS = frozenset({"mark", "centre mark", "sign face", "trunk", "cloud", "skin", "glass", "ego"})
"""Materials of mere parts of things: always in the domain's own colours, whatever the gap."""

BRIGHTNESS_SPREAD: dict[Domain, Span] = {"game": (0.9, 1.1), "camera": (0.8, 1.2)}
"""Range of the random factor that each object's colour is multiplied by."""


class Layout(NamedTuple):
    """Statistics of one domain's streets. Lengths in metres, image lengths in image heights, counts per image."""

    horizon: Span
    focal: Span
    half_road: Span
    sidewalk: Span
    setback: Span
    building_height: Span
    segments: dict[str, float]
    lanes: tuple[int, int]
    most_poles: int
    cars: float
    persons: float
    cycles: float
    truck: float
    bus: float
    train: float
    curvature: float
    ego: float


LAYOUTS: dict[Domain, Layout] = {
    "game": Layout(
        horizon=(0.40, 0.46),
        focal=(1.445, 1.68),
        half_road=(4.0, 6.5),
        sidewalk=(1.8, 3.6),
        setback=(0.5, 4.0),
        building_height=(7.0, 26.0),
        segments={"building": 0.44, "wall": 0.12, "fence": 0.16, "trees": 0.19, "open": 0.09},
        lanes=(2, 4),
        most_poles=5,
        cars=3.5,
        persons=3.0,
        cycles=1.5,
        truck=0.30,
        bus=0.28,
        train=0.24,
        curvature=0.0010,
        ego=0.5,
    ),
    "camera": Layout(
        horizon=(0.37, 0.44),
        focal=(1.52, 1.84),
        half_road=(3.6, 6.2),
        sidewalk=(2.0, 4.0),
        setback=(0.0, 2.5),
        building_height=(8.0, 20.0),
        segments={"building": 0.42, "wall": 0.12, "fence": 0.15, "trees": 0.24, "open": 0.07},
        lanes=(2, 3),
        most_poles=6,
        cars=4.5,
        persons=4.0,
        cycles=1.9,
        truck=0.26,
        bus=0.28,
        train=0.24,
        curvature=0.0015,
        ego=0.8,
    ),
}

TEXTURE: dict[int, tuple[float, float, float]] = {
    ROAD: (5, 3, 4),
    SIDEWALK: (6, 5, 4),
    BUILDING: (3, 5, 6),
    WALL: (7, 6, 4),
    FENCE: (5, 3, 2),
    VEGETATION: (15, 15, 7),
    TERRAIN: (12, 9, 6),
    SKY: (1, 1, 4),
    PERSON: (8, 8, 3),
    RIDER: (8, 8, 3),
    **dict.fromkeys((CAR, TRUCK, BUS, TRAIN), (3.0, 5.0, 5.0)),
}
"""Standard deviation in grey levels of the fine, middle and coarse texture of a class; others have none."""
