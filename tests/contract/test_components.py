"""Every shipped component keeps the contracts of ``udaseg.testing``."""

from __future__ import annotations

from typing import Any

import pytest
from contract.test_models import NARROW, SMALL

from udaseg import testing
from udaseg.config.registry import REGISTRIES
from udaseg.models.zoo import ENCODERS
from udaseg.testing import check, contracts, has_described_settings
from udaseg.testing.toy import data_home

FREQUENT = ["road", "building", "sky"]
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("term", "relational_distillation"): {"foreground": FREQUENT, "min_ratio": 0.3},  # a toy crop has 2 x 2 cells
    ("term", "rebuild"): {"embed_dim": 32, "heads": 4},
    ("engine", "offline"): {"folder": "streets/gta5/images"},
    **{("decoder", name): settings for name, settings in NARROW.items()},
}
NOT_KEPT = {
    ("term", "relational_distillation"): ["learns_the_same_on_two_ranks"],  # relates the images of its process
    ("term", "contrast"): ["learns_the_same_on_two_ranks"],  # negatives are those of the process
}
COMPONENTS = {
    (kind, name): component
    for kind, registry in REGISTRIES.items()
    for name, component in (SMALL if kind == "encoder" else registry.entries).items()
}
"""All; of the encoders one of each family, with few blocks."""
STEPS = ("trains", "trains_at_two_resolutions", "trains_without_a_target", "trains_in_bfloat16", "resumes_exactly")
"""``test_recipes`` takes steps with every component already."""


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data_home())  # to a path in a setting


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_keeps_the_contracts_of_its_kind(kind: str, name: str) -> None:
    component = COMPONENTS[kind, name]
    left_out = [*NOT_KEPT.get((kind, name), []), *STEPS]
    promised = {contract.__name__ for contract in contracts(component)}
    check(component, leave_out=[name for name in left_out if name in promised], **SETTINGS.get((kind, name), {}))


@pytest.mark.parametrize("name", ENCODERS)
def test_settings_of_every_encoder_are_described(name: str) -> None:
    has_described_settings(ENCODERS[name])


@pytest.mark.parametrize("contract", STEPS)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=() if (kind, name) == ("term", "cross_entropy") else pytest.mark.slow)
        for kind, name in COMPONENTS
    ],
)
def test_trains_as_its_kind_promises(kind: str, name: str, contract: str) -> None:
    component, promise = COMPONENTS[kind, name], getattr(testing, contract)
    if promise in contracts(component):
        promise(component, **SETTINGS.get((kind, name), {}))


@pytest.mark.parametrize(("kind", "name"), NOT_KEPT)
def test_what_is_left_out_is_really_broken(kind: str, name: str) -> None:
    for contract in NOT_KEPT[kind, name]:
        with pytest.raises(AssertionError, match="two processes with half of the images each differ"):
            getattr(testing, contract)(COMPONENTS[kind, name], **SETTINGS.get((kind, name), {}))
