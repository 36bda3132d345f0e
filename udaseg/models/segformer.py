"""The SegFormer MLP head (Xie et al., NeurIPS 2021), and the plainest head there is.

As in the DAFormer code base levels are concatenated finest first; SegFormer's own code does it coarsest first, so the
fusion weights of its released segmentors do not fit. The unused ``conv_seg`` of public checkpoints does not exist here.

Shapes: B images, C_i channels of level i, D = width, K classes. h x w is the first map (stride 4 in MiT).
"""

from __future__ import annotations

from torch import Tensor, nn

from udaseg.models.blocks import ConvBNReLU, classifier
from udaseg.models.daformer import Embed
from udaseg.models.segmentor import Decoder, FusingDecoder


class SegFormerHead(FusingDecoder):
    """Encoder maps -> logits (B, K, h, w) at the first map's stride."""

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        classes: int,
        *,
        width: int = 768,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = Embed(channels, width=width)
        self.fuse = ConvBNReLU(width * len(channels), to=width)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, classes, 1)  # PyTorch's default initialisation, as in the public head

    def fused(self, features: tuple[Tensor, ...]) -> Tensor:
        """(B, D, h, w)."""
        return self.fuse(self.embed(features))


class LinearHead(Decoder):
    """One 1x1 convolution on the last map -> logits (B, K, h, w) at its stride."""

    reads = (-1,)

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.classifier = classifier(channels[-1], classes=classes)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.classifier(features[-1])
