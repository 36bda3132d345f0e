"""The order of samples, workers, ranks, errors and normalisation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from unit.data_files import cityscapes, gta5, statistics, truncate

from udaseg.data.dataset import Domain, TrainingPairs
from udaseg.data.index import build_index
from udaseg.data.layouts import DATASETS
from udaseg.data.loading import Normalise, to_device, training_loader
from udaseg.data.sampling import RareClass
from udaseg.errors import UserError
from udaseg.models.segmentor import IMAGENET_MEAN, IMAGENET_STD


class Numbers(Dataset[dict[str, Tensor]]):
    """Sample k is k, and the number of torch threads it was made with."""

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        if k == 1000:
            raise UserError("file x is broken; download it again.")
        if k == 2000:
            raise RuntimeError("a bug")
        return {"k": torch.tensor(k), "threads": torch.tensor(torch.get_num_threads())}


def numbers(start: int, steps: int, workers: int = 0, **options: object) -> list[list[int]]:
    loader = training_loader(Numbers(), batch=2, workers=workers, start=start, steps=steps, **options)  # type: ignore
    return [batch["k"].tolist() for batch in loader]


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingPairs:
    monkeypatch.setenv("UDASEG_DATA", str(tmp_path))
    gta5(tmp_path / "gta5", n=6, size=(95, 53))
    cityscapes(tmp_path / "cityscapes")
    source, target = (build_index(DATASETS[name], "train") for name in ("gta5", "cityscapes"))
    sampler = RareClass(statistics(source))
    return TrainingPairs(
        Domain(source), Domain(target, labels=False), sampler=sampler, crop=(24, 24), seed=1, length=99
    )


def test_order_start_and_ranks() -> None:
    assert numbers(0, 3) == [[0, 1], [2, 3], [4, 5]]
    assert numbers(2, 4) == numbers(0, 4)[2:] == numbers(2, 4, workers=2)
    ranks = [numbers(1, 3, slots=(rank, 2)) for rank in (0, 1)]
    assert ranks == [[[4, 5], [8, 9]], [[6, 7], [10, 11]]]
    assert numbers(5, 5) == []


def test_batches_do_not_depend_on_workers_or_start(pairs: TrainingPairs) -> None:
    def batches(workers: int, start: int = 0) -> list[dict[str, Tensor]]:
        return list(training_loader(pairs, batch=2, workers=workers, start=start, steps=5))

    reference = batches(0)
    assert len(reference) == 5 and reference[0]["source_image"].shape == (2, 3, 24, 24)
    for other in (batches(1), batches(2), [*batches(0)[:2], *batches(2, start=2)]):
        assert all(torch.equal(a[k], b[k]) for a, b in zip(reference, other, strict=True) for k in a)


def test_workers_use_one_thread_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    batch = next(training_loader(Numbers(), batch=2, workers=1, start=0, steps=1))
    assert batch["threads"].tolist() == [1, 1]
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_user_errors_arrive_as_they_are(workers: int) -> None:
    with pytest.raises(UserError) as error:
        numbers(499, 502, workers)
    assert str(error.value) == "file x is broken; download it again."
    with pytest.raises(RuntimeError, match="a bug"):
        numbers(999, 1002, workers)


def test_broken_file_in_a_worker(pairs: TrainingPairs) -> None:
    for file in (pairs.source.index.root / "images").iterdir():
        truncate(file)
    with pytest.raises(UserError, match=r"^/.*png cannot be read"):
        next(training_loader(pairs, batch=2, workers=1, start=0, steps=2))


def test_normalise() -> None:
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
    image = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    x = normalise(image)
    assert x.dtype == torch.float32 and not normalise.state_dict()
    expected = (image[0, 1].double() - 116.28) / 57.12
    assert torch.allclose(x[0, 1].double(), expected, atol=1e-6)
    assert torch.allclose(normalise.undo(x), image / 255, atol=1e-6)
    assert torch.allclose(normalise.redo(image / 255), x, atol=1e-5)
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1) / 255
    assert normalise.redo(mean).abs().max() < 1e-6
    moved = to_device({"a": image}, "cpu")
    assert torch.equal(moved["a"], image)
