"""A trained network ready for use: any picture in, a label map of its own size out.

The path of a pixel is that of `udaseg evaluate`: the image is fitted into the size of training with its ratio kept,
passed through the network whole or in windows as the weights file says, logits go bilinearly to the image's own size,
then argmax. What differs: the logits of a large image are never all in memory. They are up-sampled in strips of rows;
and where images are used at their own size (training size null), large ones are passed in windows, band by band.

Shapes: K classes, H x W pixels of the image, h x w as the network sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from udaseg.data.classes import colourise
from udaseg.data.images import Bytes, as_rgb
from udaseg.data.loading import Normalise
from udaseg.data.transforms import MEAN_COLOUR, keep_ratio_size, pad, resize_image
from udaseg.engine.device import autocast, choose_device, choose_precision, set_up
from udaseg.evaluation.evaluate import evaluating
from udaseg.evaluation.inference import Inference, inference
from udaseg.models.segmentor import Segmentor, upsample
from udaseg.models.weights_file import WeightsMetadata
from udaseg.models.windows import bands, grid

LARGE = 2**22
"""Pixels; a larger image that is not rescaled goes through the network in windows. Two images of Cityscapes."""
LEAST = 64
"""Shortest side of an input in pixels: the coarsest map has stride 32, and HRDA's context half the resolution."""
STRIP = 2**26
"""Most logits of a strip in up-sampling, 256 MiB in float32; an image of Cityscapes is one strip."""
WINDOW = (512, 512)


@dataclass(frozen=True)
class Prediction:
    """``label``: train ids (H, W) uint8. ``probabilities``: (K, H, W) float16 if they were asked for."""

    image: Bytes
    label: Bytes
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    probabilities: npt.NDArray[np.float16] | None = None

    def colour(self) -> Bytes:
        """(H, W, 3) RGB in the colours of the classes."""
        return colourise(self.label, self.palette)

    def index(self) -> Image.Image:
        """The train ids as an 8-bit palette image."""
        picture = Image.fromarray(self.label)
        picture.putpalette([value for entry in self.palette for value in entry])
        return picture

    def overlay(self) -> Image.Image:
        """Image and colours, half and half."""
        return Image.blend(Image.fromarray(self.image), Image.fromarray(self.colour()), 0.5)


@dataclass(frozen=True)
class Model:
    """A network on its device, and the metadata that says how it wants to be used."""

    segmentor: Segmentor
    metadata: WeightsMetadata
    device: torch.device

    def predict(self, image: Image.Image | Bytes | str | Path, *, probabilities: bool = False) -> Prediction:
        """Classes of every pixel of a picture: a file, a Pillow image, or an RGB array (H, W, 3) uint8."""
        picture = as_rgb(image)
        label = np.empty(picture.shape[:2], np.uint8)
        shares = np.empty((len(self.metadata.classes), *label.shape), np.float16) if probabilities else None
        top = 0
        with evaluating(self.segmentor):
            for logits in self._logits(picture):
                bottom = top + logits.shape[1]
                label[top:bottom] = logits.argmax(0).byte().cpu().numpy()
                if shares is not None:
                    shares[:, top:bottom] = logits.softmax(0).half().cpu().numpy()
                top = bottom
        return Prediction(picture, label, self.metadata.classes, self.metadata.palette, shares)

    def _logits(self, picture: Bytes) -> Iterator[Tensor]:
        """(K, r, W) float32 of an image (H, W, 3), strips of rows from the top."""
        native, metadata = picture.shape[:2], self.metadata
        width, height = fitted((native[1], native[0]), metadata.size)
        resized = pad(resize_image(picture, (width, height)), (LEAST, LEAST), MEAN_COLOUR)
        image = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))[None]
        if metadata.size is None and width * height > LARGE:
            window = metadata.crop or WINDOW
            boxes = grid(image.shape[-2:], window, [side // 2 for side in window])
            for band in bands(lambda tiles: self._infer(tiles, Inference()), image, boxes, tiles=3):
                yield band[0, :, :, :width]
        else:
            mode = inference(metadata.inference, metadata.crop)
            yield from strips(self._infer(image, mode)[0, :, :height, :width], native)

    def _infer(self, image: Tensor, mode: Inference) -> Tensor:
        """Logits (B, K, h, w) of pixels (B, 3, h, w) uint8."""
        normalise = Normalise(self.metadata.mean, self.metadata.std).to(self.device)
        with autocast(choose_precision("auto", self.device), self.device)():
            return mode(self.segmentor, normalise(image.to(self.device))).float()


def load(path: str | Path, *, teacher: bool = False, device: str = "auto") -> Model:
    """The network of a weights file or a run folder (``path``); ``teacher`` needs the folder.

    ``device``: auto, cpu, cuda, cuda:N or mps. UserError for what is no weights file, is damaged, or has no teacher.
    """
    from udaseg.engine import runs  # it can train, too: not needed by whoever has a network already

    segmentor, metadata = runs.load_student(Path(path), teacher=teacher)
    place = choose_device(device)
    set_up(place, choose_precision("auto", place), None)
    torch.backends.cudnn.benchmark = False  # pictures differ in size, and each new one would be timed for seconds
    return Model(segmentor.to(place).eval(), metadata, place)


def fitted(native: tuple[int, int], box: tuple[int, int] | None) -> tuple[int, int]:
    """(w, h) of an image in the box of training, however thin it is; None: its own."""
    width, height = keep_ratio_size(native, box) if box else native
    return max(width, 1), max(height, 1)


def strips(logits: Tensor, size: tuple[int, int], most: int = STRIP) -> Iterator[Tensor]:
    """``upsample`` of (K, h, w) to (K, *size) in strips of rows of at most ``most`` values (but at least one row).

    Bilinear interpolation is separable: along the columns here, then along the rows.
    """
    step = max(most // (len(logits) * size[1]), 1)
    if step >= size[0]:
        yield upsample(logits[None], size)[0]
        return
    last = logits.shape[1] - 1
    at = ((torch.arange(size[0], dtype=torch.float64) + 0.5) * (logits.shape[1] / size[0]) - 0.5).clamp(0, last)
    above = at.long()
    share = (at - above).to(logits.device, torch.float32)[:, None]
    above, below = above.to(logits.device), (above + 1).clamp(max=last).to(logits.device)
    for top in range(0, size[0], step):
        rows = slice(top, top + step)
        lines = torch.lerp(logits[:, above[rows]].float(), logits[:, below[rows]].float(), share[rows])
        yield F.interpolate(lines[None], (lines.shape[1], size[1]), mode="bilinear")[0]
