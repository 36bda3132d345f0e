"""Training pairs and evaluation images on small data sets in the official formats."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from unit.data_files import cityscapes, gta5, statistics, truncate

from udaseg.data import dataset as dataset_module
from udaseg.data.dataset import Domain, EvaluationImages, TrainingPairs
from udaseg.data.index import Index, build_index
from udaseg.data.layouts import DATASETS
from udaseg.data.sampling import Choice, RareClass, Uniform
from udaseg.data.transforms import Margins
from udaseg.errors import UserError


@pytest.fixture
def indices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Index, Index]:
    monkeypatch.setenv("UDASEG_DATA", str(tmp_path))
    gta5(tmp_path / "gta5", n=6, size=(95, 53))
    cityscapes(tmp_path / "cityscapes")
    return build_index(DATASETS["gta5"], "train"), build_index(DATASETS["cityscapes"], "train")


def pairs(indices: tuple[Index, Index], **options: object) -> TrainingPairs:
    source, target = indices
    values: dict = {"sampler": Uniform(statistics(source)), "crop": (24, 24), "seed": 3, "length": 40}
    return TrainingPairs(
        Domain(source, size=(64, 36)), Domain(target, size=(48, 24), labels=False), **{**values, **options}
    )


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_sample_shapes_and_types(indices: tuple[Index, Index]) -> None:
    sample = pairs(indices, margins=Margins(2, 3, 1, 1, at=(64, 32)))[0]
    assert {k: (tuple(v.shape), v.dtype) for k, v in sample.items()} == {
        "source_image": ((3, 24, 24), torch.uint8),
        "source_label": ((24, 24), torch.uint8),
        "target_image": ((3, 24, 24), torch.uint8),
        "target_valid": ((24, 24), torch.uint8),
    }
    assert set(sample["source_label"].unique().tolist()) <= {*range(19), 255}
    assert set(sample["target_valid"].unique().tolist()) == {0, 1}
    assert "target_valid" not in pairs(indices)[0]


def test_sample_depends_only_on_seed_and_number(indices: tuple[Index, Index]) -> None:
    first, second = pairs(indices), pairs(indices)
    backwards = {k: second[k] for k in reversed(range(8))}
    assert all(equal(first[k], backwards[k]) for k in range(8))
    assert not equal(first[0], first[1])
    assert not equal(first[0], pairs(indices, seed=4)[0])
    alone = TrainingPairs(first.source, sampler=first.sampler, crop=(24, 24), seed=3, length=40)
    assert torch.equal(alone[5]["source_image"], first[5]["source_image"]) and "target_image" not in alone[5]
    assert equal(pickle.loads(pickle.dumps(first))[7], first[7])
    with pytest.raises(IndexError):
        first[40]


def test_crop_is_a_piece_of_the_resized_pair(indices: tuple[Index, Index]) -> None:
    data = pairs(indices, cat_max_ratio=1.0)
    whole = [data.source.load(i) for i in range(6)]
    for k in range(10):
        image = data[k]["source_image"].permute(1, 2, 0).numpy()
        label = data[k]["source_label"].numpy()
        assert any(occurs(image, label, *pair) or occurs(image[:, ::-1], label[:, ::-1], *pair) for pair in whole)


def occurs(image: np.ndarray, label: np.ndarray, whole: np.ndarray, whole_label: np.ndarray) -> bool:
    h, w = label.shape
    places = np.argwhere((whole[: whole.shape[0] - h + 1, : whole.shape[1] - w + 1] == image[0, 0]).all(-1))
    return any(
        np.array_equal(whole[y : y + h, x : x + w], image) and np.array_equal(whole_label[y : y + h, x : x + w], label)
        for y, x in places
    )


def test_target_labels_are_never_decoded(indices: tuple[Index, Index], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    original = dataset_module.read_label
    monkeypatch.setattr(dataset_module, "read_label", lambda path, pixels: read.append(path) or original(path, pixels))
    data = pairs(indices)
    for k in range(5):
        data[k]
    assert len(read) == 5 and all("gta5" in str(path) for path in read)


class Fixed:
    """Always the same choice."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice

    def draw(self, rng: np.random.Generator) -> Choice:
        return self.choice


def test_rare_class_recrop(indices: tuple[Index, Index], monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = indices
    whole = Domain(source, size=(64, 36)).load(0)[1]
    assert whole is not None
    wanted = int(np.unique(whole[whole != 255])[0])
    reads: list[Path] = []
    original = dataset_module.read_image
    monkeypatch.setattr(dataset_module, "read_image", lambda path: reads.append(path) or original(path))
    drawn: list[object] = []
    draw = TrainingPairs._draw
    monkeypatch.setattr(TrainingPairs, "_draw", lambda self, *a: drawn.append(0) or draw(self, *a))
    impossible = TrainingPairs(
        Domain(source, size=(64, 36)),
        sampler=Fixed(Choice(0, wanted, 24 * 24)),
        crop=(24, 24),
        seed=0,
        length=9,
    )
    impossible[0]
    assert len(drawn) == 11 and len(reads) == 1  # ten checked, the last one used unchecked; decoded once
    likely = TrainingPairs(impossible.source, sampler=Fixed(Choice(0, wanted, 20.0)), crop=(24, 24), seed=0, length=60)
    enough = [int((likely[k]["source_label"] == wanted).sum()) > 20 for k in range(60)]
    free = TrainingPairs(impossible.source, sampler=Fixed(Choice(0)), crop=(24, 24), seed=0, length=60)
    by_chance = [int((free[k]["source_label"] == wanted).sum()) > 20 for k in range(60)]
    assert sum(enough) >= 57 and sum(by_chance) < 57


def test_recrop_threshold_is_strict(indices: tuple[Index, Index], monkeypatch: pytest.MonkeyPatch) -> None:
    data = pairs(indices)
    label = np.zeros((24, 24), np.uint8)
    label[0, :10] = 5
    drawn: list[object] = []
    draw = TrainingPairs._draw
    monkeypatch.setattr(TrainingPairs, "_draw", lambda self, *a: drawn.append(0) or draw(self, *a))
    data._choose((24, 24), label, Choice(0, 5, 9.0), np.random.default_rng(0))
    assert len(drawn) == 1
    data._choose((24, 24), label, Choice(0, 5, 10.0), np.random.default_rng(0))
    assert len(drawn) == 1 + 11


def test_small_images_are_padded(indices: tuple[Index, Index]) -> None:
    sample = pairs(indices, crop=(40, 70), margins=Margins(at=(64, 32)))[0]
    assert (sample["source_label"][36:] == 255).all() and (sample["source_label"][:, 64:] == 255).all()
    assert (sample["target_valid"][24:] == 0).all() and (sample["target_valid"][:24, :48] == 1).all()
    assert sample["target_image"][:, 30, 60].tolist() == [124, 116, 104]


def test_valid_mask_is_flipped_with_the_image(indices: tuple[Index, Index]) -> None:
    data = pairs(indices, crop=(24, 48), margins=Margins(left=16, at=(64, 32)))
    sides = {(int(data[k]["target_valid"][0, 0]), int(data[k]["target_valid"][0, -1])) for k in range(20)}
    assert sides == {(0, 1), (1, 0)}
    plain = Domain(indices[1], size=(48, 24), labels=False)
    images = [torch.from_numpy(plain.load(i)[0].transpose(2, 0, 1).copy()) for i in range(6)]
    for k in range(6):
        sample = data[k]
        straight = any(torch.equal(sample["target_image"], image) for image in images)
        assert straight == (int(sample["target_valid"][0, 0]) == 0)


def test_cache_changes_nothing_and_is_bounded(indices: tuple[Index, Index]) -> None:
    source, target = indices
    plain, cached = pairs(indices), pairs(indices)
    each = 64 * 35 * 4
    cached.source = Domain(source, size=(64, 36), cache_bytes=3 * each + 1)
    cached.target = Domain(target, size=(48, 24), labels=False, cache_bytes=10**7)
    for _ in range(2):
        assert all(equal(plain[k], cached[k]) for k in range(20))
    assert len(cached.source._cache) <= 3 and len(cached.target._cache) == 6


def test_photometric_touches_only_the_source_image(indices: tuple[Index, Index]) -> None:
    plain, bright = pairs(indices), pairs(indices, photometric=True)
    changed = [not torch.equal(plain[k]["source_image"], bright[k]["source_image"]) for k in range(12)]
    assert sum(changed) > 6
    for name in ("source_label", "target_image"):
        assert all(torch.equal(plain[k][name], bright[k][name]) for k in range(12))


def test_real_rare_class_sampler(indices: tuple[Index, Index]) -> None:
    sampler = RareClass(statistics(indices[0]))
    assert equal(pairs(indices, sampler=sampler)[3], pairs(indices, sampler=sampler)[3])


def test_evaluation_images(indices: tuple[Index, Index]) -> None:
    _, target = indices
    data = EvaluationImages(Domain(target, size=(32, 16)))
    item = data[1]
    assert item["image"].shape == (3, 16, 32) and item["label"].shape == (32, 64) and item["label"].dtype == torch.uint8
    assert item["name"] == "leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png"
    assert "label" not in EvaluationImages(Domain(target, labels=False))[0]
    counts = np.stack([np.bincount(data[i]["label"].numpy().ravel(), minlength=256)[:19] for i in range(6)])
    assert np.array_equal(counts, target.counts)
    assert [d["name"] for d in data] == [p.image.as_posix() for p in target.pairs]


def test_errors_name_the_file(indices: tuple[Index, Index], tmp_path: Path) -> None:
    source, _ = indices
    truncate(tmp_path / "gta5/images/00001.png")
    with pytest.raises(UserError, match=r"images/00001\.png cannot be read"):
        Domain(source).load(0)


def test_source_needs_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDASEG_DATA", str(tmp_path))
    cityscapes(tmp_path / "cityscapes", kind=None)
    with pytest.raises(UserError, match="has no labels"):
        Domain(build_index(DATASETS["cityscapes"], "train"))
