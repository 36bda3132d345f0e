"""BatchNorm statistics of the target: recomputed on a few of its images, without labels.

The student's running statistics blend its views: source, mixed and masked images. Those of the target alone suit the
images that it is used on better, with or without self-training (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Subset

from udaseg.config.schema import DataSection
from udaseg.data.loading import Normalise, evaluation_loader
from udaseg.engine.domains import images_of
from udaseg.errors import UserError
from udaseg.evaluation.evaluate import recompute_batchnorm
from udaseg.evaluation.inference import Inference
from udaseg.models.segmentor import Segmentor

IMAGES = 64
"""Enough: more change the mIoU by no more than other images do (docs/results.md, "BatchNorm statistics")."""


def recompute_on_target(
    segmentor: Segmentor,
    data: DataSection,
    normalise: Normalise,
    device: torch.device,
    inference: Inference,
    *,
    most: int = IMAGES,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Recompute them in place on ``most`` images of the target's training split, drawn evenly; how many there were.

    They pass as in evaluation (``inference``), one at a time. ``progress``: called with (done, total) images.
    UserError without a target, without BatchNorm, and for data that is not prepared.
    """
    if data.target is None:
        raise UserError("recomputing BatchNorm statistics needs a target domain; choose a --benchmark that has one")
    images = images_of(data.target, data.scale, labels=False)
    chosen = Subset(images, evenly(len(images), most))

    def normalised() -> Iterator[Tensor]:
        for done, item in enumerate(evaluation_loader(chosen, workers=workers), 1):
            yield normalise(item["image"][None].to(device))
            progress(done, len(chosen))

    recompute_batchnorm(segmentor, normalised(), inference)
    return len(chosen)


def recomputed(network: str, images: int) -> str:
    """What a network is called after that."""
    return f"{network} + BatchNorm recomputed on {images} target images"


def evenly(total: int, most: int) -> list[int]:
    """At most ``most`` of the positions 0 .. total - 1, spread evenly; all of them if there are no more."""
    count = min(total, most)
    return [position * total // count for position in range(count)]
