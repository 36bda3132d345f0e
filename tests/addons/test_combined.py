"""Papers beside one another: every shipped recipe is known, and a recipe may name components of several."""

from __future__ import annotations

from pathlib import Path

import pytest
import toy

from udaseg.config.layers import shipped
from udaseg.engine.assembly import assemble
from udaseg.engine.trainer import Meter


def test_every_component_that_a_shipped_recipe_names_is_registered() -> None:
    assert toy.recipes() == tuple(shipped())


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("daformer_omuda", ("views.mixed.terms.rebuild={embed_dim: 32, heads: 4}",)),
        ("mic", ("views.mixed.terms.rebuild={embed_dim: 32, heads: 4}", "views.stylised.terms.contrast={n: 4, m: 8}")),
        ("daformer_t2s", ("views.mixed.terms={cross_entropy: null, class_decoupled_cross_entropy: {}}",)),
    ],
)
def test_papers_combine_by_naming_both(name: str, added: tuple[str, ...], streets: Path) -> None:
    """Two or three add-ons in one recipe: nothing but the recipe knows of it."""
    loaded = toy.load(name, "train.iterations=2", "train.batch=3", *added, base=toy.small(name))
    trainer = assemble(loaded).trainer
    meter = Meter()
    for t, raw in enumerate(trainer.batches(0, 2)):
        meter.add(*trainer.step(raw, t), t)
    assert meter.broken() is None
    for term in (text.split("=")[0].rpartition(".")[2] for text in added if "terms." in text):
        assert any(key.endswith(f"/{term}") for key in meter.read()["losses"])
