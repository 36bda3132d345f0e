"""Parameter groups of DAFormer-B5, name by name (docs/fidelity.md, "Optimisation")."""

from __future__ import annotations

import json

import torch
from torch import nn

from parity.rule import DATA, public_shapes, segmentor
from udaseg.core.base import Term
from udaseg.core.context import BuildContext
from udaseg.core.step import Learner, Stage
from udaseg.core.terms.cross_entropy import CrossEntropy
from udaseg.core.views import Source
from udaseg.data.loading import Normalise
from udaseg.engine.optim import parameter_groups
from udaseg.models import renaming
from udaseg.models.segmentor import IMAGENET_MEAN, IMAGENET_STD

OFFICIAL = json.loads((DATA / "optim_daformer.json").read_text())
CONTEXT = BuildContext(("road",), Normalise(IMAGENET_MEAN, IMAGENET_STD))


def learner(encoder: str, decoder: str) -> Learner:
    with torch.device("meta"):
        model = segmentor(encoder, decoder)
    return Learner(model, {"source": Stage(Source(CONTEXT), {"ce": CrossEntropy(CONTEXT)}, {"ce": 1.0})})


def by_name(model: Learner) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(model, lr=6e-5, weight_decay=0.01)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    return {name: found[id(p)] for name, p in model.segmentor.named_parameters()}


def test_every_parameter_of_daformer_has_its_official_rate_and_decay() -> None:
    parts = renaming.segmentor_parts("mit_b5", "daformer")
    table = renaming.public_names(public_shapes("daformer_sepaspp_mitb5"), parts)
    ours = by_name(learner("mit_b5", "daformer"))
    official = {name.removeprefix("model."): value for name, value in OFFICIAL["params"].items()}
    assert len(official) == len(ours) == 1086
    for name, (rate, decay) in official.items():
        lr, wd = ours[table[name]]
        assert abs(lr - rate) < 1e-12 and abs(wd - decay) < 1e-12, name


def test_sizes_of_the_groups() -> None:
    def sizes(encoder: str, decoder: str) -> dict[str, tuple[int, int]]:
        groups = parameter_groups(learner(encoder, decoder), lr=6e-5, weight_decay=0.01)
        return {g["name"]: (len(g["params"]), sum(p.numel() for p in g["params"])) for g in groups}

    assert sizes("mit_b5", "daformer") == {"base": (730, 81_350_208), "norm": (322, 92_800), "head": (34, 3_712_275)}
    assert sizes("resnet101", "deeplabv2") == {"base": (318, 42_519_392), "head": (4, 700_454)}


def test_small_networks_from_scratch_may_leave_vectors_undecayed() -> None:
    groups = parameter_groups(
        learner("tiny", "fpn"), lr=1e-3, weight_decay=0.01, head_lr_factor=1, decay_one_dimensional=False
    )
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


class Still(Term):
    """A term with a network that is not trained."""

    def __init__(self, context: BuildContext) -> None:
        super().__init__(context)
        self.layer = nn.Linear(3, 3)


def test_frozen_parameters_are_not_in_any_group() -> None:
    model = learner("tiny", "fpn")
    model.stages["source"].terms["frozen"] = Still(CONTEXT).requires_grad_(False)
    total = sum(len(g["params"]) for g in parameter_groups(model, lr=1e-3, weight_decay=0.0))
    assert total == len(list(model.segmentor.parameters()))
