"""Where and in which precision to compute."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from udaseg.errors import UserError


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto``: the GPU if there is one. Under torchrun each process takes its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"runtime.device={name}: no CUDA device is available here; allowed: auto, cpu. See `udaseg doctor`."
        )
    if name == "cuda":
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(f"runtime.device={name!r} is not a device; allowed: auto, cpu, cuda, cuda:N, mps") from None


def choose_precision(name: str, device: torch.device) -> str:
    """``auto``: bf16 where the device computes it natively, else fp32 (fp16 needs to be asked for)."""
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """A fresh autocast context; softmax and losses stay in float32 inside it."""
    if precision == "fp32":
        return nullcontext
    kind = torch.bfloat16 if precision == "bf16" else torch.float16
    return lambda: torch.autocast(device.type, dtype=kind)


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error means; torch has a type of its own for a GPU only."""
    texts = ("not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in texts)


def set_up(device: torch.device, precision: str, threads: int | None) -> None:
    """Process-wide switches: threads, TF32 where mixed precision leaves float32, cuDNN's choice of kernels."""
    if threads:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        torch.backends.cudnn.benchmark = True
