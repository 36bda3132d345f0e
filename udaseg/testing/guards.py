"""What must not happen in a step, noticed on the CPU: waiting for a device, a tensor on the wrong one, other numbers.

A GPU works through its queue while Python runs ahead; whatever looks at a value makes Python wait. On the CPU that
costs nothing and so is never felt: hence these guards.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = "arange empty eye full linspace ones rand randint randn randperm tensor tril_indices triu_indices zeros"
FACTORIES = {getattr(torch, name): name for name in NAMES.split()}
READING = {Tensor.cpu: "cpu", Tensor.numpy: "numpy", Tensor.tolist: "tolist"}
MOVING = (Tensor.to, Tensor.copy_, Tensor.__getitem__, Tensor.__setitem__)
"""What may have a tensor of the CPU beside one of a GPU."""


class NoReading(TorchDispatchMode):
    """Refuses every operation that would make the host wait for a GPU, on the CPU too."""

    FORBIDDEN = (
        "_local_scalar_dense",
        "nonzero",
        "_unique",
        "unique",
        "bincount",
        "masked_select",
        "equal",
        "is_nonzero",
    )

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = function.__name__.split(".")[0]
        boolean = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in arguments[1])
        if name == "equal" and arguments[0].ndim == 0 and torch.__version__.startswith("2.6."):
            return function(*arguments)  # its quantile checks the share so, on the CPU alone
        if boolean or any(name.startswith(word) for word in self.FORBIDDEN):
            raise AssertionError(
                f"{name} reads the device inside the step, so that a GPU stands still: no .item(), no `if` on a tensor "
                "and no boolean index; use torch.where, weights of 0, or Loss.present"
            )
        return function(*arguments, **(keywords or {}))


class OnDevice(TorchFunctionMode):
    """Refuses to bring the step's tensors to the CPU, and to combine them with tensors that torch makes there because
    no device was named; single numbers may be."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[Tensor, str]] = {}
        """On the CPU, by whom; kept, so that an id stays its own."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        given = list(tensors((arguments, keywords)))
        makers = [self.made[id(x)][1] for x in given if id(x) in self.made]
        if function in READING and not makers:
            raise AssertionError(
                f".{READING[function]}() reads the device inside the step, so that a GPU stands still: compute with "
                "the tensor where it is"
            )
        if makers and len(makers) < len(given) and function not in MOVING:
            raise AssertionError(
                f"torch.{makers[0]} makes a tensor on the CPU, which cannot be combined with one on a GPU: give it "
                "device=view.image.device, make it a buffer, or (random numbers) use context.rng"
            )
        result = function(*arguments, **keywords)
        if function in FACTORIES and keywords.get("device") is None and not given:
            makers = [FACTORIES[function]]
        for x in tensors(result):
            if function is Tensor.to:
                self.made.pop(id(x), None)  # here, it may be the very same tensor
            elif makers and len(makers) >= len(given):
                self.made[id(x)] = x, makers[0]
        return result


def tensors(value: Any) -> Iterator[Tensor]:
    """All in nested lists, tuples and maps, but for single numbers."""
    if isinstance(value, Tensor):
        if value.ndim:
            yield value
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


@contextmanager
def guarded() -> Iterator[None]:
    """Both guards."""
    with OnDevice(), NoReading():
        yield


@contextmanager
def other_numbers() -> Iterator[None]:
    """Inside, the generators that a whole process shares are in another state than any step leaves them in."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.manual_seed(987654321)
    random.seed(987654321)
    np.random.seed(987654321)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])


def quiet(*modules: nn.Module | None) -> None:
    """Without dropout, drop path and batch statistics: what a network says of an image depends on nothing else."""
    for module in modules:
        for part in module.modules() if module is not None else ():
            name = type(part).__name__
            if "Dropout" in name or "BatchNorm" in name or name == "DropPath":
                part.eval()
