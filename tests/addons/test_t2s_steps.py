"""T2S-DA in a step: encoder passes, and every setting on a pretended GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pretend
import pytest
import toy
from engine.test_step import passes_of, trainer_of
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.fixture
def mode(streets: Path) -> Iterator[FakeTensorMode]:
    with pretend.card() as mode:
        yield mode


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("daformer_t2s", {"student": [2, 2, 2], "teacher": [2, 2], "pretrained": [2]}),
        ("hrda_t2s", {"student": [4, 4, 2], "teacher": [2, 18, 2], "pretrained": [2]}),
    ],
)
def test_encoder_passes_are_those_of_the_paper(streets: Path, name: str, expected: dict[str, list[int]]) -> None:
    assert passes_of(trainer_of(name, base=toy.MIT)) == expected


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *(("daformer_t2s", f"views.stylised.engine={kind}") for kind in ("color_jitter", "gaussian_blur", "none")),
        *(("daformer_t2s", f"views.stylised.terms.contrast.key={key}") for key in ("stylised", "target")),
        ("daformer_t2s", "views.stylised.terms.contrast.negative_sampling=sps"),
        ("daformer_t2s", "views.stylised.terms.contrast.objective=mse"),
        ("daformer_t2s", "views.stylised.engine.scope=crop"),
        *(("daformer_t2s", f"views.stylised.terms.contrast.map={which}") for which in ("fused", "0")),
        *(("daformer_t2s", f"views.stylised.terms.contrast.reduction={way}") for way in ("sum", "mean")),
        *(("dg_t2s", f"views.stylised.engine.use=[{style}]") for style in "ADE"),
        ("dacs", "pseudo_labels=reweighted_share"),
        ("dacs", "pseudo_labels.share=image"),
    ],
)
def test_no_setting_mixes_devices_or_waits(name: str, setting: str, mode: FakeTensorMode) -> None:
    pretend.take_step(toy.load(name, setting), mode)
