"""Types for settings that have a range; what lies outside is refused when a recipe is loaded, with its file and key."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Share = Annotated[float, Field(ge=0, le=1)]
Extent = Annotated[float, Field(gt=0, le=1)]  # a length as a share of another
Momentum = Annotated[float, Field(ge=0, lt=1)]  # what a running mean keeps of itself
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=True)]  # infinity: all classes alike
