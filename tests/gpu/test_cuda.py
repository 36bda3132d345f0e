"""What only a GPU can show. Run with ``pytest -m gpu``; the default suite leaves these out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toy

from udaseg.engine.assembly import assemble
from udaseg.engine.profile import profile

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
ON_GPU = ("runtime.device=cuda", "train.iterations=8")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["source_only", "dacs", "daformer"])
def test_no_step_waits_for_the_device(streets: Path, name: str, precision: str) -> None:
    trainer = assemble(toy.load(name, *ON_GPU, f"train.precision={precision}", base=toy.MIT)).trainer
    batches = [{k: v.pin_memory() for k, v in raw.items()} for raw in trainer.batches(0, 4)]
    trainer.step(batches[0], 0)  # the first step may allocate and tune
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in (1, 2, 3):
            losses, _ = trainer.step(batches[t], t)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(loss.value) for loss in losses.values())


@pytest.mark.parametrize("name", ["dacs", "daformer"])
def test_a_compiled_model_learns_the_same(streets: Path, name: str) -> None:
    results = []
    for compiled in ("false", "true"):
        overrides = (*ON_GPU, "train.precision=fp32", f"train.compile={compiled}")
        trainer = assemble(toy.load(name, *overrides, base=toy.MIT)).trainer
        losses = [trainer.step(raw, t)[0] for t, raw in enumerate(trainer.batches(0, 3))]
        results.append([value.value.item() for step in losses for value in step.values()])
    assert results[0] == pytest.approx(results[1], rel=1e-2)


def test_profile_reports_the_card(streets: Path) -> None:
    trainer = assemble(toy.load("daformer", *ON_GPU, base=toy.MIT)).trainer
    measured = profile(trainer, batch=2, precision="bf16", steps=2)
    assert measured.device == torch.cuda.get_device_name() and measured.peak_memory_gb
