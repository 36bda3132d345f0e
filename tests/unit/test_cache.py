"""The copy at training size: the same samples, resuming, staleness, damage, disk."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from unit.data_files import cityscapes, gta5, photo, save, statistics

from udaseg.data import cache
from udaseg.data import dataset as dataset_module
from udaseg.data.cache import Cached, build, find, layout, missing_bytes
from udaseg.data.dataset import Domain, EvaluationImages, TrainingPairs
from udaseg.data.index import Index, build_index
from udaseg.data.layouts import DATASETS
from udaseg.data.loading import training_loader
from udaseg.data.sampling import RareClass
from udaseg.errors import UserError

RAW = np.arange(256, dtype=np.uint8)
SIZE, TARGET = (64, 36), (48, 24)


@pytest.fixture
def indices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Index, Index]:
    """Images of two sizes in the source; an unlabelled target."""
    monkeypatch.setenv("UDASEG_DATA", str(tmp_path))
    gta5(tmp_path / "gta5", n=6, size=(95, 53))
    gta5(tmp_path / "more", n=9, size=(80, 40))
    for name in ("images", "labels"):
        shutil.copy(tmp_path / f"more/{name}/00009.png", tmp_path / f"gta5/{name}/00009.png")
    cityscapes(tmp_path / "cityscapes", kind=None)
    return build_index(DATASETS["gta5"], "train"), build_index(DATASETS["cityscapes"], "train")


def load(index: Index, size: tuple[int, int] = SIZE) -> cache.Load:
    return Domain(index, lut=RAW, size=size, labels=index.labelled).load


def batches(indices: tuple[Index, Index], workers: int = 0) -> list[dict[str, torch.Tensor]]:
    source, target = indices
    pairs = TrainingPairs(
        Domain(source, size=SIZE), Domain(target, size=TARGET, labels=False),
        sampler=RareClass(statistics(source)), crop=(24, 24), seed=1, length=99, photometric=True,
    )  # fmt: skip
    return list(training_loader(pairs, batch=2, workers=workers, start=0, steps=12))


def same(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> bool:
    return len(a) == len(b) and all(torch.equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)


def refuse(path: Path) -> None:
    raise AssertionError(f"{path} was read")


def test_identical_batches_without_a_file_read(indices: tuple[Index, Index], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = batches(indices)
    for index, size in zip(indices, (SIZE, TARGET), strict=True):
        need, seen = missing_bytes(index, size), []
        cached = build(index, size, load(index, size), progress=lambda *counts, seen=seen: seen.append(counts))
        assert need == sum(path.stat().st_size for path in cached.folder.glob("*.bin"))
        assert seen == [(i + 1, len(index)) for i in range(len(index))] and missing_bytes(index, size) == 0
    monkeypatch.setattr(dataset_module, "read_image", refuse)
    monkeypatch.setattr(dataset_module, "read_label", refuse)
    assert same(plain, batches(indices))
    assert same(plain, batches(indices, workers=2))


def test_evaluation_reads_the_copy(indices: tuple[Index, Index], monkeypatch: pytest.MonkeyPatch) -> None:
    index = indices[0]
    plain = [EvaluationImages(Domain(index, size=SIZE))[i] for i in range(len(index))]
    build(index, SIZE, load(index))
    monkeypatch.setattr(dataset_module, "read_image", refuse)
    copied = [EvaluationImages(Domain(index, size=SIZE))[i] for i in range(len(index))]
    for one, other in zip(plain, copied, strict=True):
        assert one["name"] == other["name"] and torch.equal(one["image"], other["image"])  # type: ignore[arg-type]
        assert torch.equal(one["label"], other["label"])  # type: ignore[arg-type]


def test_only_where_the_size_matches(indices: tuple[Index, Index]) -> None:
    index = indices[0]
    build(index, SIZE, load(index))
    assert isinstance(Domain(index, size=SIZE).copy, Cached)
    assert Domain(index, size=(32, 18)).copy is None and Domain(index).copy is None
    assert find(indices[1], SIZE) is None


def test_classes_are_looked_up_when_read(indices: tuple[Index, Index]) -> None:
    index = indices[0]
    lut = np.roll(RAW, 7)
    before = Domain(index, size=SIZE, lut=lut).load(2)[1]
    build(index, SIZE, load(index))
    after = Domain(index, size=SIZE, lut=lut)
    assert after.copy is not None and before is not None and np.array_equal(after.load(2)[1], before)


def test_processes_write_the_same_bytes(indices: tuple[Index, Index]) -> None:
    index = indices[0]
    folder = build(index, SIZE, load(index)).folder
    first = {path.name: path.read_bytes() for path in folder.glob("*.bin")}
    shutil.rmtree(folder)
    build(index, SIZE, load(index), workers=2)
    assert {path.name: path.read_bytes() for path in folder.glob("*.bin")} == first and find(index, SIZE)


def test_interrupted_copy_resumes(indices: tuple[Index, Index], monkeypatch: pytest.MonkeyPatch) -> None:
    index, read, original = indices[0], [], load(indices[0])
    whole = build(index, SIZE, original)
    expected = {path.name: path.read_bytes() for path in whole.folder.glob("*.bin")}
    shutil.rmtree(whole.folder)

    def interrupted(i: int) -> tuple[np.ndarray, np.ndarray | None]:
        read.append(i)
        if len(read) == 4:
            raise KeyboardInterrupt
        return original(i)

    with pytest.raises(KeyboardInterrupt):
        build(index, SIZE, interrupted)
    assert find(index, SIZE) is None and Domain(index, size=SIZE).copy is None
    assert missing_bytes(index, SIZE) == 4 * int(whole.starts[-1] - whole.starts[3])
    build(index, SIZE, interrupted)
    assert read == [0, 1, 2, 3, 3, 4, 5, 6]
    assert {path.name: path.read_bytes() for path in whole.folder.glob("*.bin")} == expected
    build(index, SIZE, refuse)  # type: ignore[arg-type]


def test_changed_files_make_it_stale(indices: tuple[Index, Index]) -> None:
    index = indices[0]
    build(index, SIZE, load(index))
    path = index.root / index.pairs[1].image
    save(path, photo(np.random.default_rng(9), (95, 53)))
    os.utime(path, ns=(1, 1))
    fresh = build_index(DATASETS["gta5"], "train")
    assert find(fresh, SIZE) is None
    before = Domain(fresh, size=SIZE).load(1)[0]
    build(fresh, SIZE, load(fresh))
    after = Domain(fresh, size=SIZE)
    assert after.copy is not None and np.array_equal(after.load(1)[0], before)


@pytest.mark.parametrize("damage", ["shorter", "gone", "state"])
def test_a_damaged_copy_is_not_used_and_made_again(indices: tuple[Index, Index], damage: str) -> None:
    index = indices[0]
    cached = build(index, SIZE, load(index))
    good = (cached.folder / "labels.bin").read_bytes()
    if damage == "shorter":
        (cached.folder / "labels.bin").write_bytes(good[:-1])
    elif damage == "gone":
        (cached.folder / "labels.bin").unlink()
    else:
        (cached.folder / "state.json").write_text(json.dumps({"key": 3}))
    assert find(index, SIZE) is None and missing_bytes(index, SIZE) == 4 * int(cached.starts[-1])
    build(index, SIZE, load(index))
    assert (cached.folder / "labels.bin").read_bytes() == good and find(index, SIZE)


def test_a_copy_that_is_being_mended_does_not_count_as_whole(indices: tuple[Index, Index]) -> None:
    """A `kill -9` then leaves a file of the right length, but of zeros."""
    index, original = indices[0], load(indices[0])
    (build(index, SIZE, original).folder / "labels.bin").unlink()
    found = []

    def looking(i: int) -> tuple[np.ndarray, np.ndarray | None]:
        found.append(find(index, SIZE))
        return original(i)

    build(index, SIZE, looking)
    assert found == [None] * len(index) and find(index, SIZE)


def test_too_little_disk(indices: tuple[Index, Index], monkeypatch: pytest.MonkeyPatch) -> None:
    index = indices[0]
    need, usage = missing_bytes(index, SIZE), shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=need - 1))
    with pytest.raises(UserError, match="UDASEG_DATA to a larger disk"):
        build(index, SIZE, load(index))
    assert not layout(index, SIZE).folder.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=need))
    assert find(index, SIZE) is None and build(index, SIZE, load(index))


def test_a_stale_copy_makes_room_for_the_new_one(indices: tuple[Index, Index], monkeypatch: pytest.MonkeyPatch) -> None:
    index, _ = indices
    build(index, SIZE, load(index))
    os.utime(index.root / index.pairs[0].image, (1, 1))
    assert find(index, SIZE) is None and missing_bytes(index, SIZE) > 0
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    build(index, SIZE, load(index))
    assert find(index, SIZE) is not None


def test_an_image_of_another_size_is_an_error(indices: tuple[Index, Index]) -> None:
    index = indices[0]
    save(index.root / index.pairs[2].image, photo(np.random.default_rng(0), (95, 60)))
    with pytest.raises(UserError, match="prepare the data set again"):
        build(index, SIZE, load(index))
    assert find(index, SIZE) is None


def test_it_is_small_to_send_to_a_process(indices: tuple[Index, Index]) -> None:
    index = indices[0]
    cached = build(index, SIZE, load(index))
    assert len(pickle.dumps(cached)) < 2000 < cached.image(0).nbytes
    with pytest.raises(ValueError, match="read-only"):
        cached.image(0)[0] = 0
