"""Batches of uint8 samples in an order that depends only on the step, and normalisation on the device.

Source: ``docs/fidelity.md``, "Data pipeline". What differs from the public loader: step t of rank r takes the samples
k = t * total_batch + r * batch + (0 .. batch - 1), so the order is independent of the number of workers and a resumed
run replays nothing; pixels travel as uint8, a quarter of the bytes.

B batch, h, w crop size.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from udaseg.errors import UserError

RawBatch = dict[str, Tensor]
"""The tensors of B samples by name, uint8, not yet normalised."""


class _Guarded(Dataset[Any]):
    """Turns a UserError into its message: an exception from a worker would arrive wrapped in a traceback."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, k: int) -> Any:
        try:
            return self.dataset[k]
        except UserError as error:
            return str(error)


def training_loader(
    dataset: Dataset[dict[str, Tensor]],
    *,
    batch: int,
    workers: int,
    start: int,
    steps: int,
    slots: tuple[int, int] = (0, 1),
    device: torch.device | str = "cpu",
) -> Iterator[RawBatch]:
    """Batches of the steps `start` .. `steps` - 1 for rank `slots[0]` of `slots[1]`, `batch` samples each, on the CPU.

    `dataset` needs steps * batch * slots[1] samples. Raises a sample's UserError as it was.
    """
    rank, world = slots
    firsts = [(step * world + rank) * batch for step in range(start, steps)]
    order = [range(first, first + batch) for first in firsts]
    prefetch = 3 if workers else None
    return _loaded(dataset, workers, device, batch_sampler=order, collate_fn=_collate, prefetch_factor=prefetch)


def _loaded(dataset: Dataset[Any], workers: int, device: torch.device | str, **options: Any) -> Iterator[Any]:
    """Batches or items; a sample's UserError is raised as it was, also from a worker. Pinned for a CUDA device."""
    loader = DataLoader(
        _Guarded(dataset),
        num_workers=workers,
        pin_memory=torch.device(device).type == "cuda",
        worker_init_fn=_one_thread,
        generator=torch.Generator().manual_seed(0),  # the loader draws a base seed: keep off the global generator
        **options,
    )
    for item in loader:
        if isinstance(item, str):
            raise UserError(item)
        yield item


def _one_thread(worker: int) -> None:
    """One thread a worker; Ctrl-C is the main process's business, which saves the run before it stops."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate(items: Sequence[Any]) -> Any:
    """One batch, or the first message if a sample failed."""
    return next((item for item in items if isinstance(item, str)), None) or default_collate(list(items))


def to_device(batch: Mapping[str, Tensor], device: torch.device | str, non_blocking: bool = True) -> RawBatch:
    """The same batch on the device."""
    return {name: value.to(device, non_blocking=non_blocking) for name, value in batch.items()}


class Normalise(nn.Module):
    """uint8 (B,3,h,w) -> float32 (x - mean) / std on the 0-255 scale; `undo` gives [0, 1] and `redo` comes back."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised float32 of the same shape."""
        return (image.float() - self.mean) / self.std

    def undo(self, image: Tensor) -> Tensor:
        """Normalised -> [0, 1]."""
        return (image * self.std + self.mean) / 255

    def redo(self, image: Tensor) -> Tensor:
        """[0, 1] -> normalised."""
        return (image * 255 - self.mean) / self.std


def evaluation_loader(
    dataset: Dataset[dict[str, Any]], *, workers: int, rank: int = 0, world: int = 1, device: torch.device | str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Items one at a time, as they are; rank r of n takes every n-th. Raises a sample's UserError as it was."""
    share = Subset(dataset, range(rank, len(dataset), world))  # type: ignore[arg-type]
    return _loaded(share, workers, device, batch_size=None)
