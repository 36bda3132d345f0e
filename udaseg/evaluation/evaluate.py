"""Evaluate a segmentor on labelled images; recompute its BatchNorm statistics on unlabelled ones.

Logits at the decoder's stride -> bilinear to the network's input size -> bilinear to the label's own size -> argmax.
Resizing to the label size in one step gives other numbers (docs/fidelity.md, "Classes and evaluation").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from udaseg.errors import UserError
from udaseg.evaluation.confusion import count
from udaseg.evaluation.inference import Inference
from udaseg.models.segmentor import Segmentor, upsample

Autocast = Callable[[], AbstractContextManager[object]]


def evaluate(
    segmentor: Segmentor,
    images: Iterable[dict[str, Any]],
    normalise: Callable[[Tensor], Tensor],
    *,
    classes: int,
    device: torch.device,
    autocast: Autocast = nullcontext,
    inference: Inference = Inference(),  # noqa: B008 - frozen
) -> Tensor:
    """(K, K) int64 confusion counts over ``images`` (one at a time: ``image`` uint8 (3, h, w), ``label`` (H, W))."""
    counts = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    with evaluating(segmentor):
        for item in images:
            label = item["label"].to(device, non_blocking=True)
            image = normalise(item["image"][None].to(device, non_blocking=True))
            counts += count(predict(segmentor, image, tuple(label.shape), autocast, inference)[0], label, classes)
    return counts


def predict(
    segmentor: Segmentor,
    image: Tensor,
    size: tuple[int, int],
    autocast: Autocast = nullcontext,
    inference: Inference = Inference(),  # noqa: B008 - frozen
) -> Tensor:
    """Train ids (B, *size) int64 for a normalised image (B, 3, H, W) already at test size."""
    with autocast():
        logits = inference(segmentor, image)
    return upsample(logits, size).argmax(dim=1)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards each submodule gets its own mode back (a teacher's differ)."""
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def recompute_batchnorm(
    segmentor: Segmentor,
    batches: Iterable[Tensor],
    inference: Inference = Inference(),  # noqa: B008 - frozen
) -> None:
    """Replace all BatchNorm running statistics by the mean over ``batches`` of unlabelled images, in place.

    The control experiment for what BatchNorm alone contributes to an adaptation (Li et al., AdaBN). ``batches``:
    normalised (B, 3, H, W), which pass through the network as ``inference`` says. Everything but BatchNorm stays in
    eval mode. UserError for a network without BatchNorm, and for one in which a BatchNorm sees a single value.
    """
    norms = [m for m in segmentor.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise UserError("BatchNorm statistics cannot be recomputed: the network has no BatchNorm")
    before = [norm.momentum for norm in norms]
    segmentor.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
        norm.train()
    try:
        with torch.no_grad():
            for batch in batches:
                inference(segmentor, batch)
    except ValueError as error:  # torch's word for a single value a channel, as behind a mean over the image
        raise UserError(f"BatchNorm statistics cannot be recomputed image by image: {error}") from None
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    segmentor.eval()
