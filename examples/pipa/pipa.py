"""PiPa (Chen et al., ACM MM 2023, arXiv 2211.07609): pixel- and patch-wise contrast beside any self-training.

Two terms and a view. ``pixel_contrast`` on the labelled source pulls pixels of one class together and apart from the
rest of the image. ``patch_contrast`` stands on the view ``patches``: two overlapping patches of a target crop, whose
shared pixels have to look alike in both contexts. The total loss is that of the host + alpha x pixel + beta x patch;
alpha and beta are the ``weight`` of the terms. The two projection heads are not part of the network that is saved.

B images, H x W pixels, h x w cells of the finest map, N = h w, S sampled cells of an image, D projected channels, K
classes. Features are those of the context branch, so a multi-resolution segmentor needs no special case. README.md says
what the paper leaves open, what the public code does, and which setting gives which.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from udaseg.plugin import (
    IGNORE,
    TARGET,
    Box,
    BuildContext,
    ColourAugment,
    ConvBNReLU,
    Default,
    Extent,
    Loss,
    NotNegative,
    Output,
    Share,
    StepContext,
    Term,
    UserError,
    View,
    ViewBuilder,
    resize,
)

NOTHING = -1e9
"""A logarithm that leaves nothing of its term in a sum of exponentials, and no NaN in its gradient."""
PLACES = "places of patches"
"""The product of a step under which ``patches`` says where its patches lie."""


class PixelContrast(Term):
    """Eq. of L_pixel: -log r(e_i, e_j) / sum_k r(e_i, e_k) over pairs of one class; r = exp(cosine / ``temperature``).

    Mean over the partners of an anchor and over the anchors [choice: printed as a sum]. Anchors and partners are
    ``samples`` cells of each image at most, as many of each class, ``per_class`` at most, and of classes with more than
    ``min_share`` of the cells. ``denominator``: "all" other cells as printed, or the pair and the "negatives" (public
    code). ``pairs``: within an "image" as printed, or within the "batch" of a process (public code). The head has
    ``width`` outputs.
    """

    reads_predictions = False

    def __init__(
        self,
        context: BuildContext,
        *,
        temperature: PositiveFloat = 0.1,
        samples: PositiveInt = 512,
        per_class: PositiveInt = 100,
        min_share: Share = 0.0061,
        denominator: Literal["all", "negatives"] = "all",
        pairs: Literal["image", "batch"] = "image",
        width: PositiveInt = 256,
    ) -> None:
        super().__init__(context)
        self.classes, self.temperature = len(context.classes), temperature
        self.samples, self.per_class, self.min_share = samples, per_class, min_share
        self.denominator, self.pairs = denominator, pairs
        self.head = Head(context.maps.channels, width, norm=True)

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        projected = self.head(output.branches[0].features)
        with torch.autocast(projected.device.type, enabled=False):
            features = F.normalize(projected.float().flatten(2), dim=1).transpose(1, 2)  # (B, N, D)
            label = nearest(view.label, projected.shape[-2:])
            at, used = self.choose(label, context.rng.per_image(*label.shape))
            features, label = features.gather(1, at[..., None].expand(-1, -1, features.shape[2])), label.gather(1, at)
            if self.pairs == "batch":
                features, label, used = (part.flatten(0, 1)[None] for part in (features, label, used))
            losses, valid = pixel_losses(features, label, used, self.temperature, self.denominator == "all")
            count = context.reduce(valid.sum()) / context.world
            return Loss((losses * valid).sum() / count.clamp(min=1), count > 0)

    def choose(self, label: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Cells (B, S) of label (B, N), by random ``scores`` (B, N), and which of them count: equally many a class."""
        cells = label.shape[1]
        slot = torch.where(label == IGNORE, self.classes, label)
        shuffled = scores.argsort(dim=1)
        order = shuffled.gather(1, slot.gather(1, shuffled).argsort(dim=1, stable=True))  # by class, random within it
        counts = torch.zeros(len(label), self.classes + 1, dtype=torch.long, device=label.device)
        counts.scatter_add_(1, slot, torch.ones_like(slot))
        taking_part = counts > self.min_share * cells
        taking_part[:, self.classes] = False
        quota = (self.samples // taking_part.sum(dim=1, keepdim=True).clamp(min=1)).clamp(max=self.per_class)
        by_class = slot.gather(1, order)
        rank = torch.arange(cells, device=label.device) - (counts.cumsum(dim=1) - counts).gather(1, by_class)
        wanted = taking_part.gather(1, by_class) & (rank < quota)
        first = (~wanted).int().argsort(dim=1, stable=True)[:, : self.samples]
        return order.gather(1, first), wanted.gather(1, first)


class Patches(ViewBuilder):
    """Two patches of every image of the view ``of``, (2 B, 3, h, w), with their labels: patches 2 i and 2 i + 1 are
    those of image i.

    ``side``: of a patch as a share of the crop's, 720 of 1024 pixels at HRDA's scale and 360 of 512 at DAFormer's,
    rounded down to whole cells of the coarsest map; corners are drawn in cells of the finest. Each patch is coloured
    and blurred by itself, with the strengths and probabilities of the class mix.
    """

    needs = TARGET

    def __init__(
        self,
        context: BuildContext,
        *,
        side: Extent = 0.703125,
        jitter: NotNegative = 0.2,
        jitter_probability: Share = 0.8,
        blur_probability: Share = 0.5,
        of: Annotated[ViewBuilder, Default("target")],
    ) -> None:
        self.of, self.side, self.maps = of, side, context.maps
        self.augment = ColourAugment(
            context.normalise, jitter=jitter, jitter_probability=jitter_probability, blur_probability=blur_probability
        )
        if any(2 * patch_side(length, side, max(self.maps.strides)) <= length for length in self.maps.image):
            raise ValueError(f"side {side}: patches of a crop this small may lie apart; take a larger share")

    def __call__(self, context: StepContext) -> View:
        whole = self.of(context)
        size, scale = whole.image.shape[-2:], whole.image.shape[-2] // self.maps.image[0]
        cell, coarse = scale * min(self.maps.strides), scale * max(self.maps.strides)
        sides = [patch_side(length, self.side, coarse) for length in size]
        drawn = context.rng.choices(len(whole.image), 4)
        places = [(draw_box(size, sides, cell, four[:2]), draw_box(size, sides, cell, four[2:])) for four in drawn]
        image, label = cut(whole.image, places), cut(whole.label, places)
        weight = None if whole.weight is None else cut(whole.weight, places)
        image = self.augment(image, context.rng)
        context.once(PLACES, image, lambda _: Places(places, cell))
        return View(image, label, weight)


class PatchContrast(Term):
    """Eq. of L_patch: -log r(f_i, f_j) / sum_k r(f_i, f_k), i and j one place in both patches, in either direction.

    The sum runs over the sampled cells of both patches of all images of the process, i itself left out: ``samples``
    cells of each overlap. ``negatives``: "all" as printed, or cells of "other_classes" by the view's label (public
    code, by a label of its own). ``start``: the iteration from which it counts; 0 with zero gradient before.
    """

    reads_predictions = False

    def __init__(
        self,
        context: BuildContext,
        *,
        temperature: PositiveFloat = 0.1,
        samples: PositiveInt = 1024,
        negatives: Literal["all", "other_classes"] = "all",
        start: NonNegativeInt = 0,
        width: PositiveInt = 128,
    ) -> None:
        super().__init__(context)
        self.temperature, self.samples, self.start = temperature, samples, start
        self.across_classes = negatives == "all"
        self.head = Head(context.maps.channels, width, norm=False)

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        projected = self.head(output.branches[0].features)
        if context.iteration < self.start:
            return Loss(0 * projected.float().sum(), torch.zeros((), dtype=torch.bool, device=projected.device))
        places = context.once(PLACES, view.image, no_places)
        with torch.autocast(projected.device.type, enabled=False):
            features = F.normalize(projected.float(), dim=1)
            height, width = features.shape[-2:]
            at, used = self.choose(places, context.rng.per_image(len(places.boxes), height, width))
            flat = firsts_then_seconds(features.flatten(2).transpose(1, 2))
            cells = flat.gather(1, at[..., None].expand(-1, -1, flat.shape[2])).flatten(0, 1)
            label = firsts_then_seconds(nearest(view.label, (height, width))).gather(1, at).flatten()
            losses = patch_losses(cells, None if self.across_classes else label, used.flatten(), self.temperature)
            count = context.reduce(used.sum()) / context.world
            return Loss((losses * used.flatten()).sum() / count.clamp(min=1), count > 0)

    def choose(self, places: Places, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Cells of the first patches and then of the second, (2 B, S), by random ``scores`` (B, h, w), and which of
        them lie in the overlap: row B + b has the places of row b in the other patch."""
        width, firsts, seconds, used = scores.shape[2], [], [], []
        for (one, other), score in zip(places.boxes, scores, strict=True):
            score = torch.where(inside_overlap(score, one, other, places.cell), score, 2.0).flatten()
            first = score.argsort()[: self.samples]
            down, right = (one.top - other.top) // places.cell, (one.left - other.left) // places.cell
            used.append(score[first] < 2)
            firsts.append(first)
            seconds.append(torch.where(used[-1], first + down * width + right, 0))
        return torch.stack([*firsts, *seconds]), torch.stack([*used, *used])


class Head(nn.Module):
    """All maps, brought to the finest and put side by side, through two 1 x 1 convolutions: (B, ``width``, h, w)."""

    def __init__(self, channels: tuple[int, ...], width: int, *, norm: bool) -> None:
        super().__init__()
        self.inner = ConvBNReLU(sum(channels), to=sum(channels), norm=norm)
        self.outer = nn.Conv2d(sum(channels), width, 1)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        size = features[0].shape[-2:]
        return self.outer(self.inner(torch.cat([resize(level, size) for level in features], dim=1)))


class Places(NamedTuple):
    """Of each image both patches in the crop, in pixels, and the side of a cell."""

    boxes: list[tuple[Box, Box]]
    cell: int


def pixel_losses(
    features: Tensor, label: Tensor, used: Tensor, temperature: float, against_all: bool
) -> tuple[Tensor, Tensor]:
    """Of every anchor in features (B, S, D), normalised, the mean over its partners, (B, S), and whether it has any."""
    agreement = features @ features.transpose(1, 2) / temperature
    other = used[:, None, :] & ~torch.eye(used.shape[1], dtype=torch.bool, device=used.device)
    same = label[:, :, None] == label[:, None, :]
    partner = (other & same).float()
    rest = agreement.masked_fill(~(other if against_all else other & ~same), NOTHING).logsumexp(dim=2, keepdim=True)
    share = agreement - (rest if against_all else torch.logaddexp(agreement, rest))
    partners = partner.sum(dim=2)
    return -(share * partner).sum(dim=2) / partners.clamp(min=1), used & (partners > 0)


def patch_losses(cells: Tensor, label: Tensor | None, used: Tensor, temperature: float) -> Tensor:
    """Of cells (2 M, D), normalised, whose partner is M further on; of others only those with another ``label``, if
    there is one, count: (2 M,)."""
    agreement = cells @ cells.T / temperature
    partner = torch.arange(len(cells), device=cells.device).roll(len(cells) // 2)
    counts = used[None, :] & ~torch.eye(len(cells), dtype=torch.bool, device=cells.device)
    if label is not None:
        counts = counts & (label[:, None] != label[None, :])
    positive = agreement.gather(1, partner[:, None])
    counts = counts.scatter(1, partner[:, None], True)
    return (agreement.masked_fill(~counts, NOTHING).logsumexp(dim=1, keepdim=True) - positive)[:, 0]


def nearest(label: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, H, W) -> its nearest values at the size (h, w), (B, h w)."""
    return F.interpolate(label[:, None].float(), size).long().flatten(1)


def patch_side(length: int, share: float, coarse: int) -> int:
    """The share of a side in whole coarse cells."""
    return int(share * length) // coarse * coarse


def draw_box(size: tuple[int, ...], sides: list[int], cell: int, drawn: list[float]) -> Box:
    """A box of these sides in a crop of this size; its corner is a multiple of the cell."""
    top, left = (
        int(u * ((whole - side) // cell + 1)) * cell for u, whole, side in zip(drawn, size, sides, strict=True)
    )
    return Box(top, top + sides[0], left, left + sides[1])


def cut(plane: Tensor, places: list[tuple[Box, Box]]) -> Tensor:
    """(B, ..., H, W) -> both patches of every image, (2 B, ..., h, w)."""
    pairs = zip(plane, places, strict=True)
    return torch.stack([image[..., b.top : b.bottom, b.left : b.right] for image, both in pairs for b in both])


def firsts_then_seconds(patches: Tensor) -> Tensor:
    """(2 B, ...) with the two of an image side by side -> the first of every image, then the second."""
    return torch.cat([patches[::2], patches[1::2]])


def inside_overlap(patch: Tensor, one: Box, other: Box, cell: int) -> Tensor:
    """(h, w) bool: the cells of patch ``one`` that lie in the ``other``, too."""
    inside = torch.zeros_like(patch, dtype=torch.bool)
    rows = slice(max(other.top - one.top, 0) // cell, (min(other.bottom, one.bottom) - one.top) // cell)
    columns = slice(max(other.left - one.left, 0) // cell, (min(other.right, one.right) - one.left) // cell)
    inside[rows, columns] = True
    return inside


def no_places(image: Tensor) -> Places:
    raise UserError("patch_contrast stands on the view `patches` only: it needs two patches of each image")


COMPONENTS = {
    "term": {"pixel_contrast": PixelContrast, "patch_contrast": PatchContrast},
    "view": {"patches": Patches},
}
