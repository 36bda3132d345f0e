"""Generated street scenes in two domains, "game" (source) and "camera" (target), with the 19 Cityscapes classes.

Both domains share one scene grammar and camera geometry; they differ in colours, light, texture, haze, noise and, a
little, in how streets are laid out.
"""

from udaseg.data.streets.render import draw
from udaseg.data.streets.write import write_streets

__all__ = ["draw", "write_streets"]
