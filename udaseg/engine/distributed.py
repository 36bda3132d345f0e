"""One process, or several under ``torchrun``: gradients are averaged by one explicit all-reduce, without DDP."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process's place among its peers."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """The process that writes files and talks to the user."""
        return self.rank == 0

    def reduce(self, value: Tensor, operation: str = "sum") -> Tensor:
        """Sum or maximum over all ranks, of a detached tensor; a new tensor, the same on every rank."""
        if self.world == 1:
            return value
        value = value.clone()
        dist.all_reduce(value, op=getattr(dist.ReduceOp, operation.upper()))
        return value

    def average_gradients(self, module: nn.Module) -> None:
        """One flat all-reduce of all gradients; a missing gradient counts as zero."""
        if self.world == 1:
            return
        parameters = [p for p in module.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        parts = (flat / self.world).split([g.numel() for g in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

    def same_start(self, module: nn.Module) -> None:
        """Copy the first rank's parameters and buffers to all ranks."""
        if self.world > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()


def join(device: str) -> Ranks:
    """Join the process group that ``torchrun`` describes in the environment; alone without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Ranks(dist.get_rank(), world)


def leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
