"""What no machine can hold is refused with the number, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import toy

from udaseg.engine import memory
from udaseg.engine.assembly import assemble
from udaseg.errors import UserError


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("train.batch=65536", "train.batch", "for a step of 65536 crops of 64x64 pixels, at least 23.6 GB of memory"),
        ("data.crop=[65536,65536]", "train.batch", "for a step of 2 crops of 65536x65536 pixels, at least 755.9 GB"),
        ("data.scale=64", "train.batch", "2 crops of 4096x4096 pixels"),
        ("data.source.size=[65536,65536]", "data.source.size", "for a label, at least 2.1 GB"),
        (
            "data.validation.size=[65536,65536]",
            "data.validation.size",
            "for an image and its logits, at least 189.0 GB",
        ),
    ],
)
def test_settings_beyond_the_memory(
    streets: Path, monkeypatch: pytest.MonkeyPatch, override: str, key: str, words: str
) -> None:
    monkeypatch.setattr(memory, "memory_of", lambda device: 2e9)
    with pytest.raises(UserError) as error:
        assemble(toy.load("source_only", override))
    assert f": {key}: " in str(error.value) and words in str(error.value) and "there are 2.0 GB" in str(error.value)


def test_images_kept_in_memory_count_once_a_process_and_at_most_all(
    streets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("runtime.cache_gb=1000", "runtime.workers=3")
    kept = 3 * 24 * 128 * 64 * 4  # of 24 source images
    monkeypatch.setattr(memory, "memory_of", lambda device: kept)
    assemble(toy.load("source_only", *settings))
    monkeypatch.setattr(memory, "memory_of", lambda device: kept - 1)
    with pytest.raises(UserError, match=r"runtime\.cache_gb: in 3 processes, at least 0.0 GB"):
        assemble(toy.load("source_only", *settings))


def test_this_machine_has_memory() -> None:
    import torch

    assert 1e8 < memory.memory_of(torch.device("cpu")) < 1e15
    with pytest.raises(UserError, match=r"--size 65536x65536: for an image and its logits, at least 378"):
        memory.refuse_large_input((65536, 65536), 19, "--size")
