"""Translation engines: source images in another domain's look, with their own labels (T2S-DA section 3.2, table 11).

B images, H x W pixels of the crop. FDA works on the step's own crops, image i of the source with image i of the target:
the paper takes a 1024 x 512 crop of both and cuts the training crop out of the result afterwards, which would need a
second, larger crop from the loader [choice]. ``beta`` is a share of the side, so the frequencies that are swapped stay
the same in cycles a pixel along the shorter side. Source and translated image are the same pixels in either order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from udaseg.addons.t2s.styles import Augmentors
from udaseg.core.augment import SIGMA, Normalisation, colour_jitter, draw_jitter, gaussian_blur, swap_amplitude
from udaseg.core.context import Iteration
from udaseg.ranges import NotNegative, Share


class Engine(Protocol):
    """A step -> its source crop (B, 3, H, W), translated; normalised."""

    needs_target: bool

    def __call__(self, iteration: Iteration) -> Tensor: ...


class FDA:
    """Fourier domain adaptation (Yang and Soatto, CVPR 2020): the target's amplitude at low frequencies.

    ``beta``: half-width of the swapped window as a share of the shorter side, 0.01 to 0.15 in FDA's own experiments.
    """

    needs_target = True

    def __init__(self, *, normalise: Normalisation, beta: Share = 0.01) -> None:
        self.normalise = normalise
        self.beta = beta

    def __call__(self, iteration: Iteration) -> Tensor:
        source, target = (self.normalise.undo(i) for i in (iteration.batch.source_image, iteration.batch.target))
        return self.normalise.redo(swap_amplitude(source, target, self.beta).clamp(0, 1))


class ColorJitter:
    """Brightness, contrast, saturation and hue of every image by factors of strength ``jitter`` [choice], always."""

    needs_target = False

    def __init__(self, *, normalise: Normalisation, jitter: NotNegative = 0.5) -> None:
        self.normalise = normalise
        self.jitter = jitter

    def __call__(self, iteration: Iteration) -> Tensor:
        image = self.normalise.undo(iteration.batch.source_image)
        order, factors = draw_jitter(iteration.draws, image.shape[0], self.jitter)
        return self.normalise.redo(colour_jitter(image, order, factors))


class GaussianBlur:
    """Every image blurred with a sigma of its own, drawn from that of the mixed view [choice]."""

    needs_target = False

    def __call__(self, iteration: Iteration) -> Tensor:
        image = iteration.batch.source_image
        drawn = iteration.draws.per_image(image.shape[0])
        return gaussian_blur(image, SIGMA[0] + (SIGMA[1] - SIGMA[0]) * drawn)


class Offline:
    """Images translated before the training, by CyCADA and the like: files in ``folder`` with the source's names.

    The loader reads them and cuts the same crop (``data.dataset``); they may have any size.
    """

    needs_target = False

    def __init__(self, *, folder: str) -> None:
        self.folder = folder

    def __call__(self, iteration: Iteration) -> Tensor:
        assert iteration.batch.source_translated is not None
        return iteration.batch.source_translated


class Untranslated:
    """The source as it is."""

    needs_target = False

    def __call__(self, iteration: Iteration) -> Tensor:
        return iteration.batch.source_image


ENGINES: dict[str, type[Engine]] = {
    "fda": FDA,
    "color_jitter": ColorJitter,
    "gaussian_blur": GaussianBlur,
    "offline": Offline,
    "augmentors": Augmentors,
    "none": Untranslated,
}


def engine_needs_target(settings: Mapping[str, Any]) -> bool:
    """Of an engine as recipes name it, {kind, settings...}; False for one there is not, which is refused elsewhere."""
    return settings["kind"] in ENGINES and ENGINES[settings["kind"]].needs_target
