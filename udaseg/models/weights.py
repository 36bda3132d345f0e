"""Weights from public files: where they come from, reading them safely, loading them into a network.

Two things differ from the public loaders on purpose. A file that does not fit is an error: the usual non-strict load
leaves random weights without a word. And a file is only read as tensors: any other pickle is refused unexecuted.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from udaseg.errors import UserError
from udaseg.models.segmentor import Encoder
from udaseg.models.zoo import TIMM

ENOUGH = 0.95  # share of the encoder's tensors that a file must hold, and of the file's that the encoder must know
UNCOUNTED = "num_batches_tracked"  # older files have none, and nothing depends on it
WRAPPINGS = ("state_dict", "model", "state_dict_ghiasi")
STEMS = {"deep": "stem.0.conv.weight", "plain": "stem.conv.weight"}
"""A ResNet's setting ``stem`` and a tensor that only this stem has."""

# --- where they come from ------------------------------------------------------------------------------------------


class Official(NamedTuple):
    """The file the papers start from, where it comes from, and under which licence."""

    file: str
    source: str
    licence: str


def _at(url: str) -> Official:
    return Official(url.rpartition("/")[2], url, UNKNOWN)


UNKNOWN = "unknown, check"
_SEGFORMER = (
    "the SegFormer release (https://github.com/NVlabs/SegFormer, section Training: ImageNet-1K weights; those "
    "of https://huggingface.co/smp-hub/mit_b{n}.imagenet or https://huggingface.co/nvidia/mit-b{n} "
    "will do under that name, too)"
)
_NVIDIA = "NVIDIA Source Code License, non-commercial"
OFFICIAL: dict[str, Official] = {
    **{f"mit_b{n}": Official(f"mit_b{n}.pth", _SEGFORMER.format(n=n), _NVIDIA) for n in range(6)},
    "resnet50": _at("https://download.openmmlab.com/pretrain/third_party/resnet50_v1c-2cccc1ad.pth"),
    "resnet101": _at("https://download.openmmlab.com/pretrain/third_party/resnet101_v1c-e67eebb6.pth"),
}
PLAIN_STEM: dict[str, Official] = {
    "resnet50": _at("https://download.pytorch.org/models/resnet50-0676ba61.pth"),
    "resnet101": _at("https://download.pytorch.org/models/resnet101-63fe2227.pth"),
}

# --- into a network ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadReport:
    """How a file fits, by our names. ``missing`` tensors (or of another shape) kept their initialisation."""

    path: Path
    sha256: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_encoder(encoder: Encoder, path: str | Path, *, name: str | None = None) -> LoadReport:
    """Fill ``encoder`` in place from a public (or our own) .pth or .safetensors file.

    ``name``: the encoder's row in the zoo, for the advice in an error. Raises UserError when the file is missing, is
    not a pure tensor file, or is some other network's; the encoder is then as before.
    """
    path = Path(path)
    wanted = {key: value for key, value in encoder.state_dict().items() if encoder.learning_rate_scale(key) is not None}
    remedy = advice(name, path, "plain" if STEMS["plain"] in wanted else None)
    if not path.is_file():
        raise UserError(f"Encoder weights: {path} does not exist. {remedy}")
    try:
        state = encoder.from_public(read_tensors(path))
    except (ValueError, RuntimeError, LookupError, AttributeError) as error:  # the last ones: tensors of odd shapes
        raise UserError(f"{path}: {error}\n{remedy}") from error
    report = _compare(path, state, wanted)
    _refuse_other_stem(report, state, name)
    _refuse_misfit(report, state, wanted, remedy)
    encoder.load_state_dict({key: state[key] for key in report.matched}, strict=False)
    return report


def advice(name: str | None, path: Path, stem: str | None = None) -> str:
    """Which file to fetch, from where, and where to put it."""
    if (official := official_file(name, stem=stem)) is None:
        return f"Encoders with public weights: {', '.join(OFFICIAL)} and most timm/NAME."
    return f"For {name} fetch {official.file} from {official.source} and put it at {path}."


def official_file(name: str | None, *, stem: str | None = None, revision: str = "main") -> Official | None:
    """An encoder's public weights, if it has any; ``stem``: a ResNet's, ``revision``: of timm's repositories."""
    if name is None or not name.startswith(TIMM):
        return (PLAIN_STEM if stem == "plain" else OFFICIAL).get(str(name))
    from udaseg.models import timm_encoders as timm

    name = name.removeprefix(TIMM)
    if (on_hub := timm.hub_file(name)) is None:
        return None
    repository, file, licence = on_hub
    source = f"https://huggingface.co/{repository}/resolve/{revision}/{file}"
    return Official(name + Path(file).suffix, source, licence or UNKNOWN)


def load_segmentor(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> LoadReport:
    """Fill a whole segmentor (it may lie on the meta device) with tensors under our names, read from ``path``.

    Raises UserError if a tensor is missing, or one between image and logits is left over. Other surplus (auxiliary
    heads) is in the report.
    """
    wanted = module.state_dict()
    report = _compare(path, state, wanted)
    children = tuple(f"{name}." for name, _ in module.named_children())
    lines = [_miss(key, state, wanted) for key in report.missing]
    lines += [f"no place for: {key}" for key in report.unexpected if key.startswith((*children, "neck."))]
    if lines:
        raise UserError(f"{path} does not hold this network; {len(lines)} tensors do not fit:\n{_listing(lines)}")
    counters = {key: torch.zeros_like(value, device="cpu") for key, value in wanted.items() if key.endswith(UNCOUNTED)}
    tensors = counters | {key: state[key].to(wanted[key].dtype) for key in report.matched}
    module.load_state_dict(tensors, assign=True)
    return report


def _compare(path: Path, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> LoadReport:
    """How a file's tensors (under our names) fit a network's state."""
    fits = {key: key in state and state[key].shape == value.shape for key, value in wanted.items()}
    matched = tuple(key for key, fit in fits.items() if fit)
    missing = tuple(key for key, fit in fits.items() if not fit and not key.endswith(UNCOUNTED))
    unexpected = tuple(key for key in state if key not in wanted and not key.endswith(UNCOUNTED))
    return LoadReport(path, sha256(path), matched, missing, unexpected)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _refuse_other_stem(report: LoadReport, state: Mapping[str, Tensor], name: str | None) -> None:
    """A ResNet with the other stem fits by 98 % and would start from a random one."""
    if report.missing and all(key.startswith("stem.") for key in report.missing):
        for stem, key in STEMS.items():
            if key in state and key not in report.matched:
                raise UserError(
                    f"{report.path} has a {stem} stem, the network here another; use the file with "
                    f"model.encoder={{kind: {name}, stem: {stem}}}"
                )


def _refuse_misfit(report: LoadReport, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], remedy: str) -> None:
    fit = sum(not key.endswith(UNCOUNTED) for key in report.matched)
    total, surplus = fit + len(report.missing), len(report.unexpected)
    if fit < ENOUGH * total:
        problem = f"is not for this encoder: {fit} of {total} tensors fit, needed are {ENOUGH:.0%}."
        lines = [_miss(key, state, wanted) for key in report.missing]
    elif fit < ENOUGH * (fit + surplus):
        problem = f"is a larger network's: this encoder has no place for {surplus} of its tensors."
        lines = [f"unknown: {key}" for key in report.unexpected]
    else:
        return
    raise UserError(f"{report.path} {problem}\n{_listing(lines)}\n{remedy}")


def _miss(key: str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    if key not in state:
        return f"not in the file: {key}"
    return f"wrong shape: {key} is {tuple(state[key].shape)}, needed {tuple(wanted[key].shape)}"


def _listing(lines: list[str], limit: int = 20) -> str:
    more = [f"  ... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n".join([f"  {line}" for line in lines[:limit]] + more)


# --- out of a file -------------------------------------------------------------------------------------------------


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a .pth / .safetensors file, bare or in one of the ``WRAPPINGS``. Executes nothing.

    The content decides which kind of file it is, not the name. Raises UserError for a file of another kind.
    """
    with path.open("rb") as file:
        head = file.read(9)
    try:
        with torch.serialization.safe_globals(_numbers()):
            safetensors = head[8:] == b"{"
            content: Any = load_file(path) if safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise UserError(f"{path} {_why_unreadable(head, error)}") from error
    items = content if isinstance(content, dict) else {}
    for _ in WRAPPINGS:  # a container may hold itself
        items = next((items[key] for key in WRAPPINGS if isinstance(items.get(key), dict)), items)
    tensors = {key: value for key, value in items.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors: expected a state dict, bare or under 'state_dict' or 'model'.")
    return tensors


def _numbers() -> list[Any]:
    """What unpickles numpy's numbers: harmless, and common among the settings that are saved beside weights."""
    scalar = np.float64().__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64))]


def _why_unreadable(head: bytes, error: Exception) -> str:
    """The rest of a sentence about a file that begins with ``head``."""
    if head[8:] != b"{" and not head.startswith((b"PK", b"\x80")):
        return f"is not a weights file: it begins with {head!r}. Was a web page saved instead of the file?"
    cause = str(error.__context__ or error).partition("\n")[0][:200]  # torch's own message is advice, not the cause
    if isinstance(error, pickle.UnpicklingError):
        return (
            "is refused: it is a pickle that holds more than tensors, and loading it could run any code its author "
            "put inside. If you trust it, convert it once on a machine you can afford to lose: "
            "torch.load(..., weights_only=False), then safetensors.torch.save_file on the tensors alone. "
            f"({cause.split('. Please')[0]})"
        )
    return f"cannot be read as weights; it is damaged or incomplete, fetch it again ({type(error).__name__}: {cause})."
