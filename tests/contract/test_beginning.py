"""Which weights a run begins from: the student's, and those of the frozen encoder its losses compare with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toy

from udaseg.engine.networks import initial_networks, weights_metadata
from udaseg.errors import UserError
from udaseg.models import weights_file
from udaseg.models.segmentor import Segmentor


def written(path: Path, seed: int) -> Segmentor:
    """A weights file of the toy network, and what is in it."""
    loaded = toy.load("source_only", f"seed={seed}")
    module = initial_networks(loaded.recipe)[0]
    weights_file.save(path, module, weights_metadata(loaded.recipe, module))
    return module


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_start_may_name_a_file_for_each_seed(streets: Path) -> None:
    """So the rows of a study begin from the runs of their own seeds."""
    modules = {seed: written(Path(f"start-{seed}.safetensors"), seed) for seed in (7, 8)}
    for seed, module in modules.items():
        recipe = toy.load("dacs", "model.start=start-{seed}.safetensors", f"seed={seed}").recipe
        student, _, stamp = initial_networks(recipe)
        assert same(student, module)
        assert stamp["start"] == {"file": f"start-{seed}.safetensors", "sha256": weights_file.digest(module)}
    with pytest.raises(UserError, match=r"no such weights file: start-9\.safetensors"):
        initial_networks(toy.load("dacs", "model.start=start-{seed}.safetensors", "seed=9").recipe)


def test_the_frozen_encoder_is_the_starts_where_nothing_was_pretrained(streets: Path) -> None:
    module = written(Path("start.safetensors"), 7)
    frozen = initial_networks(toy.load("daformer", "model.start=start.safetensors").recipe)[1]
    assert frozen is not None and same(frozen.module, module.encoder)


def test_it_is_the_pretrained_one_where_there_is_one(streets: Path) -> None:
    written(Path("start.safetensors"), 7)
    pretrained = initial_networks(toy.load("source_only", "seed=5").recipe)[0].encoder
    torch.save(pretrained.state_dict(), "encoder.pth")
    recipe = toy.load("daformer", "model.start=start.safetensors", "model.weights=encoder.pth").recipe
    student, frozen, _ = initial_networks(recipe)
    assert frozen is not None and same(frozen.module, pretrained) and not same(student.encoder, pretrained)
