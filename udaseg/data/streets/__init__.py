"""Generated street scenes with the 19 Cityscapes classes, in two domains: "game" (source) and "camera" (target)."""

from udaseg.data.streets.render import draw
from udaseg.data.streets.write import write_streets

__all__ = ["draw", "write_streets"]
