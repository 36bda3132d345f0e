"""Pulling target to source by contrast (T2S-DA, Wang et al.; equation numbers are its own).

B images, K classes, C channels and h x w cells of the map that is read, D projected channels, N cells, Q slots for
queries, m negatives a query. Queries are the student's features of the view the term stands on: on ``stylised``
pseudo-target is pulled (the method), on ``source`` or ``target`` it is those (rows of table 7). Keys are the teacher's
features; all features are those of the context branch, so a multi-resolution segmentor needs no special case. Labels
and confidence come to the map's size by nearest sampling; ignored cells are neither queries nor keys.

Eq. 5 prints the sum of the pair losses over a class's queries, whose number follows the class's share of the cells (eq.
16). ``reduction`` "base" divides it by the constant n: classes keep the printed shares. "mean" over a class's own
queries takes them away again. With "ceqs", where every class has n queries, base and mean are the same.

Prototypes, shares and confidences are those of the batch over all ranks, the percentile of eq. 14 and the negatives
those of the rank.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import PlainValidator, PositiveFloat, PositiveInt
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from udaseg.addons.t2s.pairs import (
    Projected,
    Slots,
    ceil_share,
    cells,
    class_counts,
    members,
    nearest,
    negative_pools,
    one_hot,
    pick,
    slots,
    unreliable,
    wanted_queries,
)
from udaseg.plugin import (
    Assumption,
    BuildContext,
    ConvBNReLU,
    Default,
    FeatureMaps,
    Loss,
    Needs,
    NotNegative,
    Output,
    Plan,
    PseudoLabels,
    Reduce,
    Settings,
    Share,
    StepContext,
    Term,
    TranslationEngine,
    View,
    alone,
)


def as_map(value: Any) -> Any:
    if value in ("last", "fused") or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise PydanticCustomError("map", "last, fused or an index is expected (0 is the finest map)")


MapName = Annotated[Literal["last", "fused"] | int, PlainValidator(as_map)]


class Contrast(Term):
    """InfoNCE or MSE between the view's features and the class prototypes of ``key``.

    ``n``: base number of queries a class; ``query_sampling``: cbqs by the share of the class, ceqs alike. ``m``:
    negatives a query; ``negative_sampling``: denps half of the key's domain, half unreliable target, sps from both
    together, source from the key's domain only. ``alpha``: unreliable share of the target. ``reweight``: dynamic
    weights of classes with exponent ``beta``. ``reduction`` over the queries of a class: base their sum divided by
    ``n``, sum (as printed in eq. 5), mean. ``map``: last of the encoder, that of an index (0 is the finest), or fused,
    the decoder's. ``engine``: what makes the image of key "stylised". The projector has two blocks of ``kernel`` x
    ``kernel`` convolutions to ``width`` channels.
    """

    reads_predictions = False

    def __init__(
        self,
        context: BuildContext,
        *,
        key: Literal["source", "stylised", "target"] = "source",
        objective: Literal["infonce", "mse"] = "infonce",
        temperature: PositiveFloat = 0.2,
        n: PositiveInt = 128,
        query_sampling: Literal["cbqs", "ceqs"] = "cbqs",
        m: PositiveInt = 1024,
        negative_sampling: Literal["denps", "sps", "source"] = "denps",
        alpha: Share = 0.5,
        reweight: Literal["dynamic", "none"] = "dynamic",
        beta: NotNegative = 0.5,
        reduction: Literal["base", "sum", "mean"] = "base",
        map: MapName = "last",
        width: PositiveInt = 256,
        kernel: PositiveInt = 3,
        engine: Annotated[TranslationEngine, Default("fda")],
    ) -> None:
        super().__init__(context)
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel}: an odd number is expected")
        self.classes = len(context.classes)
        self.engine, self.key = engine, key
        self.temperature = temperature if objective == "infonce" else None
        self.n, self.balanced = n, query_sampling == "cbqs"
        self.m, self.negative_sampling, self.alpha = m, negative_sampling, alpha
        self.beta = beta if reweight == "dynamic" else None
        self.reduction = reduction
        self.map: int | None = None if map == "fused" else -1 if map == "last" else map
        self.projector = nn.Sequential(
            ConvBNReLU(channels_of(context.maps, self.map), to=width, kernel=kernel),
            ConvBNReLU(width, to=width, kernel=kernel),
        )
        self.teacher_projector = copy.deepcopy(self.projector).requires_grad_(False)

    @classmethod
    def needs_with(cls, settings: Settings) -> Needs:
        """No target with all of: key source, no target among the negatives, no re-weighting (domain generalisation).

        The target's features come from the pass that labels it, all others from one more of the teacher.
        """
        negatives = settings["objective"] == "infonce" and settings["negative_sampling"] != "source"
        target = settings["key"] == "target" or negatives or settings["reweight"] == "dynamic"
        return Needs(target=target, passes={} if settings["key"] == "target" else {"teacher": 1})

    @classmethod
    def unused(cls, settings: Settings) -> frozenset[str]:
        return frozenset() if settings["key"] == "stylised" else frozenset({"engine"})

    @classmethod
    def problems(cls, settings: Settings, plan: Plan) -> list[tuple[str, str]]:
        if settings["map"] != "fused" or plan.decoder in plan.fusing:
            return []
        return [("map", f"the decoder fuses no maps; allowed: last, an index, or {', '.join(plan.fusing)} as it")]

    def ema_pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        yield self.teacher_projector, self.projector

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        queries = cells(self.projector(self.student_map(output, context)), view.label)
        with torch.no_grad():
            keys, target = self.keys(context), self.target_cells(context)
        with torch.autocast(queries.features.device.type, enabled=False):
            return self.pull(queries, keys, target, context)

    def student_map(self, output: Output, context: StepContext) -> Tensor:
        """(B, C, h, w) of the view, with a graph."""
        features = output.branches[0].features
        return context.segmentor.decoder.fused(features) if self.map is None else features[self.map]

    def teacher_map(self, context: StepContext, image: Tensor) -> Tensor:
        """The same map of an image (B, C, h, w), by the teacher."""
        return context.teacher_fused(image) if self.map is None else context.teacher_features(image)[self.map]

    def keys(self, context: StepContext) -> Projected:
        """The teacher's projected features of the key's domain."""
        if self.key == "target":
            return self.project(context, context.batch.target, context.pseudo_labels.label)
        image = context.batch.source_image if self.key == "source" else self.engine(context)
        return self.project(context, image, context.batch.source_label)

    def target_cells(self, context: StepContext) -> Projected | None:
        """The teacher's projected features of the target, if negatives are among them."""
        if self.temperature is None or self.negative_sampling == "source":
            return None
        return self.project(context, context.batch.target, context.pseudo_labels.label)

    def project(self, context: StepContext, image: Tensor, label: Tensor) -> Projected:
        return cells(self.teacher_projector(self.teacher_map(context, image)), label)

    def pull(self, queries: Projected, keys: Projected, target: Projected | None, context: StepContext) -> Loss:
        """Eq. 5: (1 / K) sum over classes of weight x the pair losses of a class as ``reduction`` has it."""
        reduce = context.reduce
        own = class_counts(queries.label, self.classes)
        everywhere = reduce(own)
        wanted = wanted_queries(everywhere, self.n, self.balanced)
        here = ceil_share(wanted * own, everywhere)  # this rank's, by its share of the cells
        chosen = slots(here, self.classes * (self.n + 1))
        positive, known = prototypes(keys, self.classes, reduce)
        losses = self.pair_losses(queries, positive, chosen, keys, target, context)
        mean = torch.zeros_like(known).index_add(0, chosen.row, losses * chosen.used) / here.clamp(min=1)
        share = context.world * own / everywhere.clamp(min=1)
        times = {"mean": torch.ones_like(mean), "sum": wanted, "base": wanted / self.n}[self.reduction]
        scale = self.class_weights(context) * known * share * times
        return Loss((scale * mean).sum() / self.classes, (known * everywhere).sum() > 0)

    def pair_losses(
        self,
        queries: Projected,
        positive: Tensor,
        chosen: Slots,
        keys: Projected,
        target: Projected | None,
        context: StepContext,
    ) -> Tensor:
        """(Q,) eq. 4 or the squared distance of each query and its class's prototype."""
        belongs = one_hot(queries.label, self.classes)
        pool = members(belongs, context.rng.per_image(belongs.shape[1]))
        features = F.normalize(queries.features, dim=1)
        query = features[pick(pool, chosen.row, chosen.number[:, None])[:, 0]]
        if self.temperature is None:
            return (query - positive[chosen.row]).square().sum(dim=1)
        with torch.no_grad():
            against, negative, valid = self.negatives(chosen, keys, target, context)
        return info_nce(query, positive[chosen.row], against, negative, valid, self.temperature)

    def negatives(
        self, chosen: Slots, keys: Projected, target: Projected | None, context: StepContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised features (M, D) to draw from, the cells drawn (Q, m), and whether there were any (Q,)."""
        features, label, doubtful = keys.features, None, None
        if target is not None:
            features, label = torch.cat([features, target.features]), target.label
            size = self.teacher_map(context, context.batch.target).shape[-2:]
            doubtful = unreliable(nearest(context.pseudo_labels.confidence, size), self.alpha)
        found = negative_pools(keys.label, label, doubtful, self.classes, self.negative_sampling == "denps")
        pools = [members(pool, context.rng.per_image(pool.shape[1])) for pool in found]
        drawn = []
        for pool, number in zip(pools, split(self.m, len(pools)), strict=True):
            start = context.rng.per_image(len(chosen.row)) * pool.size[chosen.row]
            position = start.long()[:, None] + torch.arange(number, device=start.device)
            drawn.append(pick(pool, chosen.row, position))
        return F.normalize(features, dim=1), torch.cat(drawn, dim=1), pools[0].size[chosen.row] > 0

    def class_weights(self, context: StepContext) -> Tensor:
        """(K,) with sum 1: eq. 17, or all alike."""
        if self.beta is None:
            return torch.full((self.classes,), 1 / self.classes, device=context.batch.source_label.device)
        return dynamic_weights(context.pseudo_labels, self.classes, self.beta, context.reduce)

    assumptions = (
        Assumption(
            "Projector g",
            "two Conv-BN-ReLU blocks of that kernel and width",
            "two blocks: section 4; kernel and width: silent",
            ("kernel", "width"),
        ),
        Assumption(
            "Which map g reads",
            "the encoder's last. `fused`: the decoder's; the decoders of student and teacher run once more over every "
            "image that is read (their BatchNorm counts those passes, too). DAFormer at crops of 512 and batch 2 has "
            "32,768 cells then instead of 512, and the similarities of queries and negatives (2,451 x 65,536) alone "
            "take 0.6 GB in float32",
            'section 4: "the feature provided by the encoder"; which of its maps: silent',
            ("map",),
            "an index, 0 being the finest map",
        ),
        Assumption(
            "Teacher's projector",
            "the moving average of the student's, by the teacher's rule; learning rate of the decoder",
            "rate: section 4; average: a momentum teacher",
        ),
        Assumption("Labels at feature size", "nearest sampling; ignored cells are neither queries nor keys", "silent"),
        Assumption(
            "Queries of a class",
            "ceil(K p(c) n), drawn without replacement; they go round when a class has fewer cells. `ceqs`: n for "
            "every class",
            "eq. 16; the draw: silent",
            ("n", "query_sampling"),
        ),
        Assumption(
            "Reduction over the queries of a class, eq. 5",
            "the printed sum divided by the constant n: the classes keep their shares, and the loss the size that "
            "lambda = 0.1 asks for. `sum`: as printed, n times larger. `mean`: over the class's own queries",
            "eq. 5 prints a sum; with it, lambda = 0.1 would dominate the loss",
            ("reduction",),
            "with `mean`, the rows of Tables 8 (CBQS) and 16 hardly differ: the gradients of two rows have a cosine of "
            "0.995 to 0.9999, where other random draws alone give 0.9992 (MiT, crops of 512, batch 2)",
        ),
        Assumption(
            "Which domain are the keys of?",
            "the source: the class's prototype of the teacher",
            "eq. 10",
            ("key",),
            "Table 7",
        ),
        Assumption(
            "Table 7, keys of the pseudo-target for queries of another view",
            "images of FDA",
            "silent",
            ("engine",),
            "any engine",
        ),
        Assumption("Classes that the source crop lacks", "have no queries", "silent"),
        Assumption(
            "Objective",
            "InfoNCE; all features normalised, in float32",
            "eq. 4; precision: silent",
            ("objective", "temperature"),
        ),
        Assumption(
            "Negatives of a query",
            "`denps`: half source cells of other classes, half unreliable target cells not predicted as the class; a "
            "contiguous stretch of a random order, starting anywhere, going round. `sps`: from both together; "
            "`source`: no target",
            "section 3.3; the draw: silent",
            ("m", "negative_sampling"),
        ),
        Assumption(
            "An empty pool of negatives",
            "the other pool serves for both; without any negative the loss is 0",
            "silent",
        ),
        Assumption(
            "Unreliable cells",
            "confidence below the percentile 100 alpha of all cells of the batch on this rank",
            "of which cells: silent",
            ("alpha",),
            "Table 15",
        ),
        Assumption("Prototypes and confidences", "those of the batch, over all ranks", "section 3.5: the mini-batch"),
        Assumption(
            "Dynamic weights",
            "(1 - confidence of the class) to the power beta, normalised to sum 1",
            "eq. 17, 18",
            ("reweight", "beta"),
        ),
        Assumption("A class that the teacher never predicts", "has confidence 0, so the largest weight", "silent"),
        Assumption(
            "HRDA and MIC",
            "the context branch only; the stylised view has no detail and no decoder",
            '"on the LR branch of HRDA"',
        ),
        Assumption("Table 17, which images of GTA5", "all", "silent", ("data.validation",)),
    )


def channels_of(maps: FeatureMaps, index: int | None) -> int:
    """C of the map; None: the decoder's fused one. ValueError if there is none."""
    if index is None:
        if maps.fused is None:
            raise ValueError("map fused: the decoder fuses no maps (or does not set `fused_channels`)")
        return maps.fused
    if not -len(maps.channels) <= index < len(maps.channels):
        last = len(maps.channels) - 1
        raise ValueError(f"map {index}: the encoder has maps 0 (finest) to {last} (-1 is the last)")
    return maps.channels[index]


def prototypes(keys: Projected, classes: int, reduce: Reduce = alone) -> tuple[Tensor, Tensor]:
    """Eq. 10, 11: normalised mean feature of each class, (K, D), and 1.0 where the class has any, (K,)."""
    belongs = one_hot(keys.label, classes).float()
    total, count = reduce(belongs @ keys.features), reduce(belongs.sum(dim=1))
    return F.normalize(total / count.clamp(min=1)[:, None], dim=1), (count > 0).float()


def info_nce(
    query: Tensor, positive: Tensor, against: Tensor, negative: Tensor, valid: Tensor, temperature: float
) -> Tensor:
    """Eq. 4 for queries and their positives (Q, D), all normalised; ``negative`` (Q, m) are rows of ``against`` (M, D).

    Where ``valid`` (Q,) is False there are no negatives and the loss is 0.
    """
    agreement = (query * positive).sum(dim=1, keepdim=True) / temperature
    apart = (query @ against.T).gather(1, negative) / temperature
    apart = apart.masked_fill(~valid[:, None], -torch.inf)
    return (torch.cat([agreement, apart], dim=1).logsumexp(dim=1, keepdim=True) - agreement)[:, 0]


def dynamic_weights(pseudo: PseudoLabels, classes: int, beta: float, reduce: Reduce = alone) -> Tensor:
    """Eq. 17, 18: (K,) with sum 1, larger where the teacher is less sure of a class; one it never predicts has
    confidence 0."""
    label, confidence = pseudo.label.flatten(), pseudo.confidence.flatten().float()
    zeros = torch.zeros(classes, device=label.device)
    total = reduce(zeros.scatter_add(0, label, confidence))
    count = reduce(zeros.scatter_add(0, label, torch.ones_like(confidence)))
    doubt = (1 - total / count.clamp(min=1)).clamp(min=1e-6)  # all classes certain: all alike
    weight = (doubt / doubt.max()) ** beta
    return weight / weight.sum()


def split(number: int, parts: int) -> list[int]:
    """As equal as possible, the larger first."""
    return [(number + parts - 1 - i) // parts for i in range(parts)]
