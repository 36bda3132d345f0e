"""Checkpoints: everything a run needs to continue exactly.

Only tensors and plain values, so that loading runs no pickled code (``weights_only=True``). Written atomically; the
last two are kept. Random numbers and the sampler's position need no state: both are functions of (seed, iteration).
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from udaseg.errors import UserError
from udaseg.files import write_atomic

FORMAT = 2
State = dict[str, Any]


def save(folder: Path, state: State, *, keep: int = 2) -> Path:
    """Write ``step-NNNNNNN.pt`` for ``state["iteration"]`` finished iterations; delete all but the newest ``keep``."""
    path = folder / f"step-{state['iteration']:07d}.pt"
    write_atomic(path, lambda file: torch.save({"format": FORMAT, **state}, file))
    for old in listed(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def listed(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def newest(folder: Path) -> Path | None:
    """The last checkpoint, None without any."""
    return max(listed(folder), default=None)


def load(path: Path, device: torch.device | str = "cpu") -> State:
    """Read a checkpoint; UserError if it is damaged or of another format."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(
            f"{path}: not a readable checkpoint ({str(error).splitlines()[0]}); delete it to use the one before"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(
            f"{path}: not a checkpoint of this version of udaseg (format {FORMAT}). A run that an older version began "
            "is finished with that version; or train it anew in another folder with --out"
        )
    return state
