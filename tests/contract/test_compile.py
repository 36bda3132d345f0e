"""``train.compile``: every part is captured as a whole, for all the ways a step looks through it.

With dynamo's eager backend: what it captures, not how fast it is on a GPU (``tests/gpu``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from torch import nn
from torch._dynamo.utils import counters

from udaseg.engine.assembly import assemble


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ("daformer_mrm", "mic") if name in toy.recipes()])
def test_a_compiled_step_has_no_breaks_and_the_same_losses(
    name: str, streets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_part = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda part, **how: compile_part(part, **how, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=8):  # put back after the test
        assert losses(name, "train.compile=false") == pytest.approx(losses(name, "train.compile=true"), rel=1e-5)
    graphs = counters["stats"]["unique_graphs"]
    assert not counters["graph_break"] and 0 < graphs == counters["frames"]["ok"] == counters["frames"]["total"]


def losses(name: str, *overrides: Any) -> list[float]:
    """Of two steps, and the counts of an evaluation after them."""
    trainer = assemble(toy.load(name, "train.iterations=2", *overrides, base=toy.MIT)).trainer
    steps = [trainer.step(raw, t)[0] for t, raw in enumerate(trainer.batches(0, 2))]
    assert trainer.evaluate is not None
    counts = trainer.evaluate(trainer.learner.segmentor).flatten().tolist()
    return [loss.value.item() for step in steps for loss in step.values()] + counts
