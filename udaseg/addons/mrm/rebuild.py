"""Masked representation modelling (MRM, Zhou et al.) and every ablation of its paper; eq. 6 and 7 are ``masked``.

The features of the view's one student pass are masked on a grid, rebuilt from what is left, decoded once more and asked
for the view's labels, with the view's weights and the segmentor's own coefficients (eq. 4). The domain is the view that
the term stands on: ``mixed`` (the target of the DACS family), ``target`` or ``source``; two views have two Rebuilders.

Shapes: B images, H x W pixels, C channels and h x w cells of a feature map, g x g cells of the grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from udaseg.addons.mrm.rebuilder import ASSUMPTIONS, Projector, Rebuilder
from udaseg.plugin import (
    Assumption,
    BuildContext,
    Decoded,
    Encoded,
    FeatureMaps,
    Loss,
    Needs,
    Output,
    Segmentor,
    Settings,
    Share,
    StepContext,
    StepRng,
    Term,
    View,
    segmentation_loss,
)

Mode = Annotated[
    Literal["off", "mask_only", "rebuild"],
    BeforeValidator(lambda value: "off" if value is False else value),  # YAML reads a bare off as false
]
Objective = Literal["classification", "feature_teacher", "feature_student", "pixel_regression"]


class Rebuild(Term):
    """Loss on what masked features (``position`` latent) or pixels (input) still say.

    ``embed_dim``, ``blocks``, ``heads``, ``grid``: the Rebuilder's. ``mode``: ``mask_only`` puts 0 into masked places.
    ``exact``: mask that share of every image's cells instead of each cell with that probability. ``train_encoder``,
    ``train_decoder``: whether this loss has gradients for them. ``resolution``: which branches of a segmentor with two
    are rebuilt; with ``context`` the prediction of the detail alone is left out. ``learning_rate``: of the term's own
    parameters; ``clip``: largest norm of their gradient.
    """

    def __init__(
        self,
        context: BuildContext,
        *,
        embed_dim: PositiveInt = 512,
        blocks: PositiveInt = 2,
        heads: PositiveInt = 16,
        mode: Mode = "rebuild",
        grid: PositiveInt = 16,
        objective: Objective = "classification",
        mask_ratio: Share = 0.4,
        exact: bool = False,
        train_encoder: bool = True,
        train_decoder: bool = True,
        position: Literal["none", "input", "latent"] = "latent",
        bn: Literal["train", "frozen"] = "train",
        resolution: Literal["both", "context", "detail"] = "both",
        learning_rate: PositiveFloat = 2e-4,
        clip: PositiveFloat | None = None,
    ) -> None:
        super().__init__(context)
        maps = context.maps
        self.off = mode == "off" or position == "none"
        if not self.off and (mode, position) != ("rebuild", "latent") and objective != "classification":
            raise ValueError(f"objective {objective}: only with mode=rebuild and position=latent")
        if mode == "mask_only" and position == "input":
            raise ValueError("mode mask_only: only with position=latent")
        self.read, self.objective = maps.read, objective
        self.grid, self.mask_ratio, self.exact = grid, mask_ratio, exact
        self.train_encoder, self.train_decoder, self.frozen_bn = train_encoder, train_decoder, bn == "frozen"
        self.resolution, self.learning_rate, self.clip = resolution, learning_rate, clip
        self.pixel_token = (
            nn.Parameter(torch.empty(3, 1, 1).normal_(std=0.02)) if position == "input" and not self.off else None
        )
        self.patch = tuple(max(side // grid, 1) for side in maps.image)
        self.rebuilder: Rebuilder | None = None
        if mode == "rebuild" and position == "latent":
            projectors: list[nn.Module] = [level_projector(maps, i, embed_dim=embed_dim, grid=grid) for i in maps.read]
            if objective == "pixel_regression":
                projectors = [nn.Conv2d(embed_dim, 3 * self.patch[0] * self.patch[1], 1)]
            self.rebuilder = Rebuilder(
                maps.channels[-1], projectors=projectors, embed_dim=embed_dim, blocks=blocks, heads=heads, grid=grid
            )

    @classmethod
    def needs_with(cls, settings: Settings) -> Needs:
        """One more pass: of the student over masked pixels, or of the teacher over the mixed image."""
        if settings["mode"] == "off" or settings["position"] == "none":
            return Needs()
        if settings["position"] == "input":
            return Needs(passes={"student": 1})
        return Needs(passes={"teacher": 1}) if settings["objective"] == "feature_teacher" else Needs()

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        if self.off:
            return Loss(0 * output.predictions[0].logits.float().mean(), torch.zeros((), device=view.image.device) > 0)
        if self.objective == "classification":
            return Loss(segmentation_loss(self.decode_again(view, output, context), view))
        rebuilt = [branch for branch in output.branches if self.rebuilds(branch, output)]
        return Loss(torch.stack([self.regression(branch, context) for branch in rebuilt]).mean())

    def rebuilds(self, branch: Encoded, output: Output) -> bool:
        """Is this branch one that ``resolution`` asks for? The only one of a plain segmentor always is."""
        wanted = "context" if branch is output.branches[0] else "detail"
        return len(output.branches) == 1 or self.resolution in ("both", wanted)

    def decode_again(self, view: View, output: Output, context: StepContext) -> tuple[Decoded, ...]:
        """Predictions from masked features (or pixels)."""
        segmentor = context.segmentor
        with restrained(segmentor, self.train_encoder, self.train_decoder, frozen_bn=self.frozen_bn):
            if self.pixel_token is not None:
                keep = spread(self.draw(view.image, context.rng), view.image)
                return segmentor(torch.where(keep, view.image, self.pixel_token)).predictions
            branches = tuple(
                replace(branch, features=self.masked(branch, context)) if self.rebuilds(branch, output) else branch
                for branch in self.detached(output.branches)
            )
            predictions = segmentor.decode(branches)
        plain = len(branches) == 1 or self.resolution != "context"
        return predictions if plain else tuple(p for p in predictions if p.box is None)

    def masked(self, branch: Encoded, context: StepContext) -> tuple[Tensor, ...]:
        """The maps with the places of one mask rebuilt or, without a Rebuilder, 0 (eq. 6, 7)."""
        keep, features = self.draw(branch.image, context.rng), list(branch.features)
        offsets = [features[i].new_zeros(()) for i in self.read]
        if self.rebuilder is not None:
            offsets = self.rebuilder(features[-1], keep, [features[i].shape[-2:] for i in self.read])
        for i, offset in zip(self.read, offsets, strict=True):
            features[i] = torch.where(spread(keep, features[i]), features[i], offset)
        return tuple(features)

    def regression(self, branch: Encoded, context: StepContext) -> Tensor:
        """Error at masked places: the square on normalised pixels of patches, or smooth-L1 on features."""
        assert self.rebuilder is not None
        (branch,) = self.detached((branch,))
        keep, targets = self.draw(branch.image, context.rng), self.targets(branch, context)
        found = self.rebuilder(branch.features[-1], keep, [target.shape[-2:] for target in targets])
        error = F.mse_loss if self.objective == "pixel_regression" else F.smooth_l1_loss
        losses = [
            masked_mean(error(x.float(), target.float(), reduction="none"), ~spread(keep, target))
            for x, target in zip(found, targets, strict=True)
        ]
        return torch.stack(losses).mean()

    def targets(self, branch: Encoded, context: StepContext) -> tuple[Tensor, ...]:
        """What is to be rebuilt: patches of pixels, or the maps that the decoder reads; without gradient."""
        if self.objective == "pixel_regression":
            return (patches(branch.image, self.grid, self.patch),)
        teacher = self.objective == "feature_teacher"
        maps = context.features("teacher", branch.image) if teacher else branch.features
        return tuple(maps[i].detach() for i in self.read)

    def detached(self, branches: tuple[Encoded, ...]) -> tuple[Encoded, ...]:
        """Without a way back into the encoder, where it is not to be trained."""
        if self.train_encoder:
            return branches
        return tuple(replace(branch, features=tuple(x.detach() for x in branch.features)) for branch in branches)

    def draw(self, image: Tensor, rng: StepRng) -> Tensor:
        """(B, 1, g, g) bool, True where kept."""
        drawn = rng.per_image(image.shape[0], 1, self.grid, self.grid)
        if self.exact:
            ranks = drawn.flatten(1).argsort(dim=1).argsort(dim=1).view_as(drawn)
            return ranks >= round(self.mask_ratio * self.grid**2)
        return drawn >= self.mask_ratio

    assumptions = (
        Assumption(
            'Which image is "the target image"?',
            "the mixed image: its student features exist already, so no encoder pass is added",
            "Table 3 names domains only; the printed cost of 1.13 times allows no further pass",
            ("views.mixed.terms.rebuild",),
            "`views.target.terms.rebuild={}` (one more student pass), `views.source.terms.rebuild={}`, or several, "
            "each with a Rebuilder of its own",
        ),
        Assumption(
            "How is the mask drawn?",
            "every cell of the grid is masked with that probability",
            "ratio: section 4.1; draw: public module",
            ("mask_ratio", "exact"),
            "`exact=true`: that share of each image's cells, as in MAE",
        ),
        Assumption("How large is the grid?", "square, the same for all maps", "section 4.1", ("grid",), "Table 2d"),
        *ASSUMPTIONS,
        Assumption("Maps", "all that the decoder reads, rebuilt from the last one; one mask for all of them", "eq. 7"),
        Assumption(
            "Pixel weights of the loss",
            "the weights and the average of the view's own cross-entropy",
            "eq. 4 has none",
        ),
        Assumption(
            "BatchNorm in the second decode",
            "updates its statistics as in any other pass; `frozen`: they are used and left alone",
            "silent",
            ("bn",),
        ),
        Assumption(
            "Learning rate of the Rebuilder",
            "with the schedule and weight decay of the rest",
            "rate: section 4.1; schedule and decay: silent",
            ("learning_rate",),
        ),
        Assumption(
            "Clipping",
            "none",
            "silent; the supplement says that larger Rebuilders are unstable",
            ("clip",),
            "a largest norm of the Rebuilder's own gradient",
        ),
        Assumption(
            "HRDA",
            "one Rebuilder for context and detail, each with a mask of its own; loss on the fused and the detail "
            "prediction with HRDA's shares 0.9 and 0.1",
            "predictions: section 4.1; masks and shares: silent",
            ("resolution",),
        ),
        Assumption(
            "Table 2e, feature targets of the teacher",
            "`feature_teacher`: its features of the very image that the student sees; one more teacher pass, since it "
            "has not seen the mixed image",
            "silent",
            ("objective",),
            "`feature_student` needs no further pass",
        ),
        Assumption(
            "Table 2e, loss of the regressions",
            "smooth-L1 on features, squared error on pixels (each patch with mean 0 and variance 1); masked places "
            "only, mean over maps and branches",
            "silent",
            ("objective",),
        ),
        Assumption(
            'Table 4, "encoder" or "decoder" alone',
            "no gradient of this loss for the other",
            "silent",
            ("train_encoder", "train_decoder"),
        ),
        Assumption("Table 2c, masking alone", "`mask_only`: masked places become 0", "silent", ("mode",)),
        Assumption(
            "Table 6, input space",
            "`input`: masked patches of the image are replaced by one learnable colour, no Rebuilder, a second full "
            "student pass",
            "2.00 times the cost: supplement; the rest: silent",
            ("position",),
        ),
    )


def level_projector(maps: FeatureMaps, index: int, *, embed_dim: int, grid: int) -> Projector:
    """To the map of that index."""
    side = max(maps.image[0] // maps.strides[index], 1)
    return Projector(embed_dim, to=maps.channels[index], grid=grid, side=side)


def spread(keep: Tensor, like: Tensor) -> Tensor:
    """The mask (B, 1, g, g) at another map's size, nearest."""
    return F.interpolate(keep.float(), like.shape[-2:]) > 0


def masked_mean(error: Tensor, masked: Tensor) -> Tensor:
    """Mean of (B, C, h, w) over the places where (B, 1, h, w) is true; 0 if there are none."""
    return (error * masked).sum() / (masked.sum() * error.shape[1]).clamp(min=1)


def patches(image: Tensor, grid: int, side: tuple[int, ...]) -> Tensor:
    """Pixels of g x g patches, (B, 3, H, W) -> (B, 3 sides, g, g); mean 0 and variance 1 in every patch, as in MAE."""
    height, width = side
    size = (grid * height, grid * width)
    image = image if image.shape[-2:] == size else F.interpolate(image, size, mode="bilinear")
    cut = image.unflatten(3, (grid, width)).unflatten(2, (grid, height))  # (B, 3, g, height, g, width)
    cut = cut.permute(0, 1, 3, 5, 2, 4).flatten(1, 3).float()
    variance, mean = torch.var_mean(cut, dim=1, keepdim=True)
    return (cut - mean) / (variance + 1e-6).sqrt()


@contextmanager
def restrained(segmentor: Segmentor, encoder: bool, decoder: bool, *, frozen_bn: bool) -> Iterator[None]:
    """Inside, what is computed has gradients for the encoder, and for the rest of the segmentor, only if so wished."""
    untrained = [
        parameter
        for name, parameter in segmentor.named_parameters()
        if parameter.requires_grad and not (encoder if name.startswith("encoder.") else decoder)
    ]
    norms = [m for m in segmentor.modules() if isinstance(m, _BatchNorm) and m.training] if frozen_bn else []
    for parameter in untrained:
        parameter.requires_grad_(False)
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for parameter in untrained:
            parameter.requires_grad_(True)
        for norm in norms:
            norm.train()
