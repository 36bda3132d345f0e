"""HRDA: a segmentor at two resolutions (Hoyer et al., ECCV 2022; docs/fidelity.md, "HRDA").

The *context* branch sees the whole crop at half its resolution, the *detail* branch a part of it in full. Both share
encoder and decoder. A second decoder on the context features, the scale attention, weights the branches for each class
and place: fused = up((1 - a) z_context) + up(a) z_detail.

Kept from the public code: attention outside the detail box is cut off *before* it is up-sampled, so it bleeds one cell;
the product with 1 - a is formed before up-sampling; offsets of the box are multiples of 8 and never reach the far
border; with a decoder of stride 8 the box is truncated to whole cells of the context. Nothing is detached.
Different: where the encoder has no BatchNorm and both branches have one size, they form one batch, which changes
nothing but rounding; any image size is accepted (padded to whole cells with the mean colour).

Shapes: B images, K classes, H x W pixels of the crop, h x w of the detail box, o the decoder's output stride.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from udaseg.models.segmentor import (
    Box,
    Decoded,
    Decoder,
    Encoded,
    Encoder,
    FeatureMaps,
    InferencePass,
    Wrapper,
    upsample,
)
from udaseg.models.windows import crop, grid, slide
from udaseg.ranges import Share

STEP = 8  # offsets of the detail box: half resolution x DAFormer's output stride 4
CELL = 32  # pixels of the coarsest maps' cells
EVALUATION_TILES = 6  # detail windows at once in eval mode, unless window_batch says otherwise


class HRDA(Wrapper):
    """Two branches (context, detail), two predictions (fused, detail).

    ``attention``: a decoder with K outputs, for the context features. ``crop``: (height, width) of a training crop.
    ``detail``: side of the detail crop as a share of it. ``detail_weight``: lambda_d, the detail prediction's share of
    the loss; the fused one has the rest. ``window_batch``: detail windows (of single images) in a batch of ``infer``;
    None: all in train mode, where a decoder's BatchNorm needs them as one batch (public code), and a few in eval mode.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        attention: Decoder,
        crop: tuple[int, int],
        *,
        detail: Share = 0.5,
        detail_weight: Share = 0.1,
        window_batch: PositiveInt | None = None,
    ) -> None:
        super().__init__(encoder, decoder, attention, crop)
        self.window = (_cells(detail * crop[0]), _cells(detail * crop[1]))
        self.detail_weight = detail_weight
        self.window_batch = window_batch
        self.joint = not any(isinstance(module, _BatchNorm) for module in encoder.modules())
        maps = super().feature_maps(crop)
        cell = math.lcm(maps.strides[maps.read[0]], encoder.multiple)  # of sides that maps cover exactly
        if CELL % cell:
            raise ValueError(
                f"it needs an encoder that takes multiples of a power of two up to {CELL}, not of {encoder.multiple}"
            )
        if any(side % (2 * cell) for side in crop):
            raise ValueError(f"the training crop is {crop[0]} x {crop[1]}, not in multiples of {2 * cell}")
        self.unit = max(CELL, 2 * cell)

    def encode(self, image: Tensor, box: Box | None = None) -> tuple[Encoded, ...]:
        """Context and detail of (B, 3, H, W); the box is drawn for this call, one for all images, unless given."""
        box = draw_box(image.shape[-2:], self.window) if box is None else box
        context, detail = self.context(image), crop(image, box)
        if self.joint and context.shape == detail.shape:
            pairs = [level.chunk(2) for level in self.encoder(torch.cat([context, detail]))]
            features = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
        else:
            features = tuple(self.encoder(context)), tuple(self.encoder(detail))
        return Encoded(features[0], context), Encoded(features[1], detail, box)

    def decode(self, branches: tuple[Encoded, ...]) -> tuple[Decoded, ...]:
        """Fused logits (B, K, H / o, W / o) and the detail's (B, K, h / o, w / o)."""
        context, detail = branches
        assert detail.box is not None
        coarse, fine = self.decoder(context.features), self.decoder(detail.features)
        attention = self.attention(context.features).sigmoid()
        cell = detail.image.shape[-1] // fine.shape[-1]
        inside = attention * box_mask(attention, detail.box, 2 * cell)
        fused = fuse(coarse, on_canvas(fine, detail.box, coarse.shape[-2:], cell), inside)
        share = self.detail_weight
        parts = [Decoded(fine, detail.box, share)]
        whole = tuple(2 * side for side in context.image.shape[-2:])
        if detail.image.shape[-2:] == whole:  # HRDA's ablation: then the context has a loss, too
            parts.append(Decoded((1 - inside) * coarse, None, share))
        return Decoded(fused, coefficient=1 - share * len(parts)), *parts

    def feature_maps(self, crop: tuple[int, int]) -> FeatureMaps:
        """The context's; the detail's have the same size where it is half of the crop."""
        return super().feature_maps((crop[0] // 2, crop[1] // 2))

    def context(self, image: Tensor) -> Tensor:
        """The image at half its resolution."""
        return half(image)

    def infer(self, image: Tensor) -> InferencePass:
        """Detail from overlapping windows (stride half a window), attention everywhere."""
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % self.unit, 0, -height % self.unit))
        pixels = self.context(padded)
        context = tuple(self.encoder(pixels))
        coarse = self.decoder(context)
        boxes = grid(padded.shape[-2:], self.window, tuple(_cells(side / 2) for side in self.window))
        tiles = self.window_batch or (None if self.training else EVALUATION_TILES)
        cell = pixels.shape[-1] // coarse.shape[-1]
        fine = slide(lambda tile: self.decoder(tuple(self.encoder(tile))), padded, boxes, cell=cell, tiles=tiles)
        fused = fuse(coarse, fine, self.attention(context).sigmoid())
        return InferencePass(upsample(fused, padded.shape[-2:])[..., :height, :width], Encoded(context, pixels))


def half(image: Tensor) -> Tensor:
    """Half the resolution: bilinear without anti-aliasing, which is the mean of 2 x 2 pixels."""
    return F.avg_pool2d(image, 2)


def draw_box(size: torch.Size | tuple[int, int], window: tuple[int, int]) -> Box:
    """A box of the window's size at offsets 0, 8, .., from torch's own CPU generator (seeded anew every iteration).

    For 1024 and 512 that is 0 .. 504: the far border is never reached, as in the public code.
    """
    corners = []
    for side, extent, drawn in zip(size, window, torch.rand(2).tolist(), strict=True):
        offset = STEP * int(drawn * ((side - extent + 1) // STEP))
        corners += [offset, offset + min(side, extent)] if side > extent else [0, side]
    return Box(*corners)


def box_mask(like: Tensor, box: Box, cell: int) -> Tensor:
    """(h, w) of the map: 1 inside the box, whose corners are truncated to cells."""
    mask = like.new_zeros(like.shape[-2:])
    mask[box.top // cell : box.bottom // cell, box.left // cell : box.right // cell] = 1
    return mask


def on_canvas(fine: Tensor, box: Box, coarse: torch.Size, cell: int) -> Tensor:
    """Detail logits at their place in a map twice as large as the coarse one, zero elsewhere."""
    top, left = box.top // cell, box.left // cell
    bottom, right = 2 * coarse[0] - top - fine.shape[-2], 2 * coarse[1] - left - fine.shape[-1]
    return F.pad(fine, (left, right, top, bottom))


def fuse(coarse: Tensor, fine: Tensor, attention: Tensor) -> Tensor:
    """up(a) z_detail + up((1 - a) z_context); coarse and attention (B, K, h, w), fine (B, K, 2h, 2w)."""
    size = fine.shape[-2:]
    return upsample(attention, size) * fine + upsample((1 - attention) * coarse, size)


def _cells(side: float) -> int:
    """A whole number of the coarsest maps' cells, at least one."""
    return max(int(side) // CELL * CELL, CELL)


WRAPPERS: dict[str, type[Wrapper]] = {"hrda": HRDA}
