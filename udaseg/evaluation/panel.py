"""A picture of how a network does: for a few images, the image, the truth and the prediction side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from udaseg.data.classes import colourise
from udaseg.evaluation.evaluate import evaluating, predict
from udaseg.evaluation.inference import Inference
from udaseg.models.segmentor import Segmentor

Pixels = npt.NDArray[np.uint8]
ROWS = 4
WIDTH = 384  # of each of the three columns


def panel(
    segmentor: Segmentor,
    images: Subset[Any],
    normalise: Callable[[Tensor], Tensor],
    palette: Sequence[tuple[int, int, int]],
    device: torch.device,
    inference: Inference,
) -> Pixels:
    """RGB (H, 3 * WIDTH, 3), a row for each image.

    ``images``: ``image`` uint8 (3, h, w) at test size, ``label`` uint8 (H, W) of train ids.
    """
    rows = []
    with evaluating(segmentor):
        for item in (images[i] for i in range(len(images))):
            image = normalise(item["image"][None].to(device))
            guess = predict(segmentor, image, tuple(item["label"].shape), inference=inference)[0]
            labels = item["label"].numpy(), guess.to(torch.uint8).cpu().numpy()
            pictures = [item["image"].permute(1, 2, 0).numpy(), *(colourise(label, palette) for label in labels)]
            height = max(1, round(WIDTH * labels[0].shape[0] / labels[0].shape[1]))
            rows.append(np.hstack([resized(picture, height) for picture in pictures]))
    return np.vstack(rows)


def spread(images: Dataset[Any]) -> Subset[Any]:
    """ROWS of the images (or all), evenly over them; the same ones every time."""
    count = len(images)  # type: ignore[arg-type]
    return Subset(images, range(0, count, max(1, -(-count // ROWS))))


def resized(picture: Pixels, height: int) -> Pixels:
    """To WIDTH x height, without colours in between."""
    return np.asarray(Image.fromarray(picture).resize((WIDTH, height), Image.Resampling.NEAREST))
