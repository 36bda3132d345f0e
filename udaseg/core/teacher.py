"""The mean teacher (docs/fidelity.md, "Pseudo-labels and teacher").

Traps kept on purpose: the average covers *parameters* only; BatchNorm buffers of the teacher are never copied, they
follow its own passes over the target. While it labels, the teacher is in train mode, so that BatchNorm uses the
statistics of the target batch, but dropout and drop path are off. The first update copies the student.

What differs from the public code: the iteration that drives copy or average is the trainer's, so it survives a resume
(the public counter restarts at 0 and copies the student into the teacher); foreach instead of a loop over tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from udaseg.models.blocks import DropPath
from udaseg.models.segmentor import InferencePass, Segmentor

_STOCHASTIC = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, DropPath)


class Teacher(nn.Module):
    """Moving average of the student: theta' <- a_t theta' + (1 - a_t) theta, a_t = min(1 - 1/(t+1), alpha)."""

    def __init__(self, student: Segmentor, *, alpha: float = 0.999) -> None:
        super().__init__()
        self.alpha = alpha
        self.segmentor = copy.deepcopy(student).requires_grad_(False)
        self.train()

    @torch.no_grad()
    def update(self, student: Segmentor, iteration: int, ema_pairs: Iterable[tuple[nn.Module, nn.Module]] = ()) -> None:
        """Called at the start of iteration t = 0, 1, ..., before any forward pass.

        ``ema_pairs``: (average, student) modules of terms that follow the same rule.
        """
        rate = min(1.0 - 1.0 / (iteration + 1), self.alpha)
        for average, followed in ((self.segmentor, student), *ema_pairs):
            parameters: list[Tensor] = list(average.parameters())
            torch._foreach_mul_(parameters, rate)  # not lerp: it rounds otherwise than the public code
            torch._foreach_add_(parameters, list(followed.parameters()), alpha=1.0 - rate)

    @torch.no_grad()
    def infer(self, image: Tensor) -> InferencePass:
        """One pass over the image (B, 3, H, W): logits at its own size, and the features they were made from."""
        return self.segmentor.infer(image)

    @torch.no_grad()
    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        """The encoder's maps of the image (B, 3, H, W), finest first."""
        return tuple(self.segmentor.encoder(image))

    @torch.no_grad()
    def fuse(self, features: tuple[Tensor, ...]) -> Tensor:
        """The single map (B, C, h, w) that its decoder makes of the encoder's; the decoder must fuse."""
        return self.segmentor.decoder.fused(features)

    def train(self, mode: bool = True) -> Teacher:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _STOCHASTIC):
                module.eval()
        return self
