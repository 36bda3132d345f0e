"""SePiCo (Xie et al., TPAMI 2023, arXiv 2204.08808): pixels of both domains are drawn to the source's classes.

The term ``semantic_contrast`` keeps, for every class, what the teacher's projected source features are like: their mean
and variance ("distribution", the paper's DistCL), the means of the last steps ("bank", BankCL), or their mean alone
("prototype", ProtoCL). The student's projected cells q of either domain have to fit their own class better than the
others. It stands on two views and is one term: one projection and one memory for both domains. The views are the source
and the target crop, each with colour jitter and blur.

B images, H x W pixels, h x w cells of the finest map that is read, N cells in all, D projected channels, K classes, M
entries of a bank; tau is the temperature, mu and Sigma a class's mean and (diagonal) covariance. Features are those of
the context branch, so a multi-resolution segmentor needs no special case. README.md says what the paper leaves open,
what the public code does, and what is not here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from udaseg.plugin import (
    IGNORE,
    TARGET,
    BuildContext,
    ColourAugment,
    ConvBNReLU,
    Loss,
    Needs,
    NotNegative,
    Output,
    Reduce,
    Share,
    StepContext,
    Term,
    View,
    ViewBuilder,
    alone,
    downscale_label,
    resize,
)


class SemanticContrast(Term):
    """Mean over the labelled cells of -log of how well a cell fits its class, plus ``regulariser`` x the regulariser.

    ``concept``: what a class is, see above. A cell has the class that covers ``min_ratio`` of its pixels. ``maps``:
    what is projected, "all" (MiT) or the "last" (ResNet), to ``width`` channels. ``memory``: entries of a class's bank.
    ``regulariser``: the public code's factor; below 0 it asks for balance instead. ``start``: the iteration from which
    the loss counts; the memory fills from the first one.
    """

    reads_predictions = False
    needs = Needs(passes={"teacher": 1})
    mean: Tensor
    variance: Tensor
    count: Tensor
    bank: Tensor
    filled: Tensor

    def __init__(
        self,
        context: BuildContext,
        *,
        concept: Literal["distribution", "bank", "prototype"] = "distribution",
        temperature: PositiveFloat = 100.0,
        min_ratio: Share = 0.75,
        maps: Literal["all", "last"] = "all",
        width: PositiveInt = 512,
        memory: PositiveInt = 200,
        regulariser: float = 1.0,
        start: NonNegativeInt = 3000,
    ) -> None:
        super().__init__(context)
        self.classes, self.concept = len(context.classes), concept
        self.temperature, self.min_ratio, self.regulariser, self.start = temperature, min_ratio, regulariser, start
        channels = context.maps.channels
        self.head = Head(channels if maps == "all" else channels[-1:], width)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(self.classes, width))
        self.register_buffer("variance", torch.zeros(self.classes, width))
        self.register_buffer("count", torch.zeros(self.classes))
        self.register_buffer("bank", torch.zeros(self.classes, memory if concept == "bank" else 0, width))
        self.register_buffer("filled", torch.zeros(self.classes, dtype=torch.long))

    def ema_pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        yield self.teacher_head, self.head

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        context.once(f"semantic concepts of {id(self)}", context.batch.source_image, lambda _: self.remember(context))
        projected = self.head(output.branches[0].features)
        if context.iteration < self.start:
            return Loss(0 * projected.float().sum(), torch.zeros((), dtype=torch.bool, device=projected.device))
        with torch.autocast(projected.device.type, enabled=False):
            cells, label = self.cells(projected, view.label)
            losses, valid = self.losses(cells, label.clamp(max=self.classes - 1))
            valid = valid & (label < self.classes)
            count = context.reduce(valid.sum()) / context.world
            loss = (losses * valid).sum() / count.clamp(min=1)
            return Loss(loss + self.regulariser * (count > 0) * self.balance(cells, valid, context), count > 0)

    def cells(self, projected: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised cells (N, D) of a map (B, D, h, w), and their classes (N,), K for none."""
        factor = label.shape[-1] // projected.shape[-1]
        small = downscale_label(label, factor, self.classes, self.min_ratio)
        small = F.pad(
            small, (0, projected.shape[3] - small.shape[2], 0, projected.shape[2] - small.shape[1]), value=IGNORE
        )
        flat = F.normalize(projected.float(), dim=1).permute(0, 2, 3, 1).flatten(0, 2)
        return flat, torch.where(small == IGNORE, self.classes, small).flatten()

    def remember(self, context: StepContext) -> None:
        """Put this step's source cells, as the teacher sees them, into the memory of their classes."""
        projected = self.teacher_head(context.teacher_features(context.batch.source_image))
        with torch.autocast(projected.device.type, enabled=False):
            count, mean, variance = moments(
                *self.cells(projected, context.batch.source_label), self.classes, context.reduce
            )
            if self.bank.shape[1]:
                self.bank.copy_(pushed(self.bank, mean, count > 0))
                self.filled.add_((count > 0).long()).clamp_(max=self.bank.shape[1])
            share = (count / (count + self.count).clamp(min=1))[:, None]
            apart = share * (1 - share) * (self.mean - mean).square()
            self.variance.copy_((1 - share) * self.variance + share * variance + apart)
            self.mean.copy_((1 - share) * self.mean + share * mean)
            self.count.add_(count)

    def losses(self, cells: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) for cells (N, D) of classes (N,), and where there is anything to compare with."""
        if self.concept == "bank":
            return bank_losses(cells, label, self.bank, self.filled, self.temperature)
        variance = self.variance if self.concept == "distribution" else None
        return fit_losses(cells, label, self.mean, variance, self.temperature), torch.ones_like(label, dtype=torch.bool)

    def balance(self, cells: Tensor, valid: Tensor, context: StepContext) -> Tensor:
        """sum_c log p_c(Q) / (K log K), p the softmax over prototypes, Q the mean cell: -1 where all p_c are alike.

        Q is the mean over all processes, through which the gradient of this one's cells goes.
        """
        own = (cells * valid[:, None]).sum(dim=0)
        total = context.reduce(own.detach()) + context.world * (own - own.detach())
        mean = total / context.reduce(valid.sum()).clamp(min=1)
        return (self.mean @ mean / self.temperature).log_softmax(dim=0).sum() / (self.classes * math.log(self.classes))


class Head(nn.Module):
    """Maps brought to the finest and put side by side, through two 1 x 1 convolutions, each with norm and ReLU."""

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.maps, inner = len(channels), sum(channels) // len(channels)
        self.layers = nn.Sequential(ConvBNReLU(sum(channels), to=inner), ConvBNReLU(inner, to=width))

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """(B, width, h, w) of the last so many maps."""
        read = features[-self.maps :]
        return self.layers(torch.cat([resize(level, read[0].shape[-2:]) for level in read], dim=1))


class Strong(ViewBuilder):
    """Colour jitter and blur of a crop, with the strengths and probabilities of the class mix."""

    def __init__(
        self,
        context: BuildContext,
        *,
        jitter: NotNegative = 0.2,
        jitter_probability: Share = 0.8,
        blur_probability: Share = 0.5,
    ) -> None:
        self.augment = ColourAugment(
            context.normalise, jitter=jitter, jitter_probability=jitter_probability, blur_probability=blur_probability
        )


class StrongSource(Strong):
    """The augmented source crop with its label."""

    def __call__(self, context: StepContext) -> View:
        return View(self.augment(context.batch.source_image, context.rng), context.batch.source_label)


class StrongTarget(Strong):
    """The augmented target crop with the pseudo-labels; those that weigh nothing (the margins) are ignored."""

    needs = TARGET

    def __call__(self, context: StepContext) -> View:
        pseudo = context.pseudo_labels
        label = torch.where(pseudo.weight == 0, IGNORE, pseudo.label)
        return View(self.augment(context.batch.target, context.rng), label)


def moments(cells: Tensor, label: Tensor, classes: int, reduce: Reduce = alone) -> tuple[Tensor, Tensor, Tensor]:
    """Number (K,), mean (K, D) and variance (K, D) of the cells (N, D) of each class, over all processes."""
    belongs = (torch.arange(classes, device=label.device)[:, None] == label).float()
    count = reduce(belongs.sum(dim=1))
    whole = count.clamp(min=1)[:, None]
    mean = reduce(belongs @ cells) / whole
    return count, mean, (reduce(belongs @ cells.square()) / whole - mean.square()).clamp(min=0)


def pushed(bank: Tensor, entry: Tensor, which: Tensor) -> Tensor:
    """Bank (K, M, D), newest first, with the entries (K, D) of classes where ``which`` (K,); the oldest fall out."""
    return torch.where(which[:, None, None], torch.cat([entry[:, None], bank[:, :-1]], dim=1), bank)


def fit_losses(cells: Tensor, label: Tensor, mean: Tensor, variance: Tensor | None, temperature: float) -> Tensor:
    """(N,): -log of softmax over classes of q mu / tau [+ q Sigma q / (2 tau^2)] [+ q Sigma_y q / (2 tau^2)].

    With the variance it is the bound on the contrast with infinitely many draws from every class's distribution.
    """
    fit = cells @ mean.T / temperature
    if variance is None:
        return F.cross_entropy(fit, label, reduction="none")
    spread = cells.square() @ variance.T / (2 * temperature**2)
    return F.cross_entropy(fit + spread, label, reduction="none") + spread.gather(1, label[:, None])[:, 0]


def bank_losses(
    cells: Tensor, label: Tensor, bank: Tensor, filled: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """(N,): mean over the entries m of a cell's own class of -log e^(q m) / (e^(q m) + sum over other classes of
    e^(mean of q n)), all over tau; and whether the class has an entry. Classes without entries are no negatives."""
    classes, memory, _ = bank.shape
    there = (torch.arange(memory, device=bank.device) < filled[:, None]).float()
    centre = bank.sum(dim=1) / filled.clamp(min=1)[:, None]  # places that are not filled hold 0
    against = cells @ centre.T / temperature
    other = (filled > 0) & (torch.arange(classes, device=bank.device) != label[:, None])
    rest = against.masked_fill(~other, -1e9).logsumexp(dim=1, keepdim=True)
    own = (cells @ bank.flatten(0, 1).T / temperature).view(len(cells), classes, memory)
    own = own.gather(1, label[:, None, None].expand(-1, 1, memory))[:, 0]
    counted = there[label]
    return (F.softplus(rest - own) * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1), filled[label] > 0


COMPONENTS = {
    "term": {"semantic_contrast": SemanticContrast},
    "view": {"strong_source": StrongSource, "strong_target": StrongTarget},
}
