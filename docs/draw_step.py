"""Draws step.svg: one training step of a recipe as views, terms and passes. Run: `python docs/draw_step.py [RECIPE]`.

Views, terms and passes are read from the recipe, so that the picture cannot say something else.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from udaseg.config.load import load
from udaseg.config.registry import needs_of
from udaseg.config.schema import Recipe

HERE = Path(__file__).parent
SEEN = {
    "source": ("source crop", "ground truth"),
    "target": ("target crop", "pseudo-labels"),
    "mixed": ("source classes pasted\non the target crop", "true where pasted,\nelse pseudo-labels"),
    "masked": ("target crop with\nhidden blocks", "pseudo-labels"),
    "stylised": ("source crop in\nanother style", "ground truth"),
}
BLUE, ORANGE, GREEN, GREY = "#dbe9f6", "#fde3c8", "#dcefdc", "#eeeeee"
COLUMNS = {"view": 1.55, "pass": 4.15, "terms": 6.6, "backward": 9.15}
HIGH = 1.4


def draw(recipe: Recipe) -> None:
    count = len(recipe.views)
    width, height = 10.4, HIGH * count + 2.35
    figure, axes = plt.subplots(figsize=(width * 0.95, height * 0.95))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    top = height - 0.2
    text = "teacher (moving average of the student): one pass over the target crop gives the step's pseudo-labels"
    box(axes, 5.2, top - 0.25, 10.1, 0.5, GREEN, text)
    for x, text in zip(COLUMNS.values(), ("view: what is seen", "student", "terms", "gradients"), strict=True):
        axes.text(x, top - 0.88, text, ha="center", va="center", fontsize=10, weight="bold")
    for index, (name, stage) in enumerate(recipe.views.items()):
        y = top - 1.8 - HIGH * index
        image, label = SEEN[name]
        box(axes, COLUMNS["view"], y, 2.7, 1.2, BLUE, f"{name}\n{image}\nlabels: {label}", first=True)
        box(axes, COLUMNS["pass"], y, 1.5, 0.62, ORANGE, "one pass")
        box(axes, COLUMNS["terms"], y, 2.5, 1.2, GREY, terms_of(stage))
        box(axes, COLUMNS["backward"], y, 1.8, 0.8, ORANGE, "one backward,\ngraph is freed")
        arrow(axes, 2.92, 3.38, y)
        arrow(axes, 4.92, 5.33, y)
        arrow(axes, 7.87, 8.23, y)
    y = top - 1.8 - HIGH * count + 0.35
    box(axes, 5.2, y, 10.1, 0.5, GREEN, "one optimiser step with the sum of all gradients; then the teacher follows")
    figure.savefig(HERE / "step.svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.05)
    figure.savefig("/tmp/step.png", dpi=100, bbox_inches="tight") if "--png" in sys.argv else None


def terms_of(stage: object) -> str:
    lines = []
    for name, settings in stage.terms.items():
        needs = needs_of("term", {"kind": name, **settings})
        lines.append(f"{name} \u00d7 {stage.weights[name]:g}")
        if needs.pretrained_encoder:
            lines.append("(one pass of the\npretrained encoder)")
    return "\n".join(lines)


def box(
    axes: Axes, x: float, y: float, width: float, height: float, colour: str, text: str, first: bool = False
) -> None:
    """Around (x, y); ``first``: the first line of the text is bold."""
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(
        FancyBboxPatch(corner, width, height, "round,pad=0,rounding_size=0.1", fc=colour, ec="#555555", lw=0.8)
    )
    if first:
        title, _, text = text.partition("\n")
        axes.text(x, y + height / 2 - 0.17, title, ha="center", va="center", fontsize=9.5, weight="bold")
        y -= 0.14
    axes.text(x, y, text, ha="center", va="center", fontsize=8.5, linespacing=1.25)


def arrow(axes: Axes, start: float, end: float, y: float) -> None:
    axes.annotate("", (end, y), (start, y), arrowprops={"arrowstyle": "->", "color": "#555555"})


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "step"  # the same file every time
    names = [name for name in sys.argv[1:] if not name.startswith("-")]
    draw(load(names[0] if names else "mic_mrm").recipe)
