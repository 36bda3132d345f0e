"""Types for settings that have a range; what lies outside is refused when a recipe is loaded, with its file and key."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from udaseg.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]
Extent = Annotated[float, Field(gt=0, le=1)]  # a length as a share of another
HalfTurn = Annotated[float, Field(ge=0, le=0.5)]  # of the circle of hues, to either side
Momentum = Annotated[float, Field(ge=0, lt=1)]  # what a running mean keeps of itself
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
ClassNames = Annotated[tuple[str, ...], "names of classes"]  # `udaseg check` names unknown ones
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=True)]  # infinity: all classes alike


def parse_size(text: str, smallest: int, option: str, largest: int = 2**16) -> tuple[int, int]:
    """'256x128' -> (256, 128), both from ``smallest`` to ``largest``."""
    sides = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text.lower(), re.ASCII)
    if not sides or not all(smallest <= int(side) <= largest for side in sides.groups()):
        raise UserError(
            f"{option} {text!r}: expected WIDTHxHEIGHT, as in 256x128 or 1024x512, each at least {smallest} pixels "
            f"and at most {largest}"
        )
    return int(sides[1]), int(sides[2])
