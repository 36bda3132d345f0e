"""Public checkpoints: their parameter names in terms of ours, and ImageNet weights for an encoder.

Source: baselines.md sections 6.1 - 6.9 (names, files). Two things differ from the public loaders on purpose. A file
that does not fit is an error: the usual non-strict load turns a misnamed file into random weights without a word. And a
file is only ever read as tensors: a pickle that asks for anything else is refused unexecuted.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from udaseg.errors import UserError
from udaseg.models.segmentor import Encoder
from udaseg.models.zoo import TIMM

# --- names ---------------------------------------------------------------------------------------------------------

Rule = tuple[str, str | Callable[[re.Match[str]], str] | None]  # pattern, replacement; None drops the tensor


def _less(template: str) -> Callable[[re.Match[str]], str]:
    """A replacement in which {0} is the first group minus one (public stages count from 1, ours from 0)."""
    return lambda match: template.format(int(match[1]) - 1, *match.groups()[1:])


def _stem(index: int) -> tuple[int, str]:
    """Public stems count conv, norm, ReLU one by one. A single rule: two would apply one after the other."""
    return index // 3, "bn" if index % 3 else "conv"


# Public block -> ours, for the heads: the outer name of a convolution module stays in front of "conv" or "bn".
SEPARABLE: tuple[Rule, ...] = ((r"\.depthwise_conv\.", ".depthwise."), (r"\.pointwise_conv\.", ".pointwise."))
CONV_SEG: Rule = (r"^conv_seg\.", "classifier.")

# MiT as Hugging Face names it. Its query, key and value are three tensors; ``joined`` makes "kv" of the last two.
HF_MIT: tuple[Rule, ...] = (
    (r"^patch_embeddings\.(\d)\.", r"stages.\1.embed."),
    (r"^block\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^layer_norm\.(\d)\.", r"stages.\1.norm."),
    (r"\.embed\.layer_norm\.", ".embed.norm."),
    (r"\.layer_norm_(\d)\.", r".norm\1."),
    (r"\.attention\.self\.query\.", ".attn.q."),
    (r"\.attention\.self\.kv\.", ".attn.kv."),
    (r"\.attention\.self\.sr\.", ".attn.reduce."),
    (r"\.attention\.self\.layer_norm\.", ".attn.reduce_norm."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.mlp\.dense(\d)\.", r".mlp.fc\1."),
)

RULES: dict[str, tuple[Rule, ...]] = {
    "mit": (
        (r"^head\.", None),
        (r"^patch_embed(\d)\.", _less("stages.{0}.embed.")),
        (r"^norm(\d)\.", _less("stages.{0}.norm.")),
        (r"^block(\d)\.(\d+)\.", _less("stages.{0}.blocks.{1}.")),
        (r"\.attn\.sr\.", ".attn.reduce."),
        (r"\.attn\.norm\.", ".attn.reduce_norm."),
        (r"\.mlp\.dwconv\.dwconv\.", ".mlp.mix."),
        *HF_MIT,
    ),
    "resnet": (
        (r"^fc\.", None),
        (r"^(conv|bn)1\.", r"stem.\1."),
        (r"^stem\.(\d)\.", lambda match: "stem.{}.{}.".format(*_stem(int(match[1])))),
        (r"^layer(\d)\.", _less("stages.{0}.")),
        (r"\.(conv|bn)1\.", r".reduce.\1."),
        (r"\.(conv|bn)2\.", r".conv.\1."),
        (r"\.(conv|bn)3\.", r".expand.\1."),
        (r"\.downsample\.0\.", ".shortcut.conv."),
        (r"\.downsample\.1\.", ".shortcut.bn."),
    ),
    "daformer": (
        CONV_SEG,
        (r"^embed_layers\.(\d)\.proj\.", r"embed.linears.\1."),
        (r"^fuse_layer\.aspp_modules\.", "fuse.branches."),
        (r"^fuse_layer\.", "fuse."),
        *SEPARABLE,
    ),
    "segformer": (
        (r"^conv_seg\.", None),  # never used, of a wrong size
        (r"^linear_c\.(\d)\.proj\.", r"embed.linears.\1."),
        (r"^linear_fuse\.", "fuse."),
        (r"^linear_pred\.", "classifier."),
    ),
    "deeplabv2": ((r"^aspp_modules\.(\d)\.conv\.", r"branches.\1."),),
    "deeplabv3plus": (
        CONV_SEG,
        (r"^image_pool\.1\.", "context.pool."),
        (r"^aspp_modules\.", "context.branches."),
        (r"^bottleneck\.", "context.bottleneck."),
        (r"^c1_bottleneck\.", "detail."),
        (r"^sep_bottleneck\.", "refine."),
        *SEPARABLE,
    ),
}


def rename(name: str, family: str) -> str | None:
    """A public name inside its part (no ``backbone.``) -> ours; None if the tensor has no use. Others stay as is."""
    for pattern, replacement in RULES[family]:
        if replacement is None:
            if re.search(pattern, name):
                return None
        else:
            name = re.sub(pattern, replacement, name)
    return name


def family(encoder: str) -> str:
    """The rules for an encoder of the zoo: mit_b5 -> mit, resnet101 -> resnet. A decoder's name is its family."""
    return "mit" if encoder.startswith("mit") else "resnet" if encoder.startswith("resnet") else encoder


class Part(NamedTuple):
    """Where a part sits in a public checkpoint, where in ours, and by which rules its names change."""

    public: str
    ours: str
    family: str


def segmentor_parts(encoder: str, decoder: str, *, hrda: bool = False) -> tuple[Part, ...]:
    """The parts of a segmentor by the names of the zoo; HRDA's attention is a second decoder of the same kind."""
    body = Part("backbone.", "encoder.", family(encoder))
    if not hrda:
        return body, Part("decode_head.", "decoder.", decoder)
    attention = Part("decode_head.scale_attention.", "attention.", decoder)
    return body, Part("decode_head.head.", "decoder.", decoder), attention


def public_names(names: Iterable[str], parts: Iterable[Part]) -> dict[str, str]:
    """Public name -> our name. Unused tensors are left out; names of no part stay, for a strict load to report."""
    table = {}
    parts = tuple(parts)
    for name in names:
        part = next((part for part in parts if name.startswith(part.public)), None)
        if part is None:
            table[name] = name
        elif (inner := rename(name.removeprefix(part.public), part.family)) is not None:
            table[name] = part.ours + inner
    return table


def from_public(state: Mapping[str, Tensor], parts: Iterable[Part]) -> dict[str, Tensor]:
    """A public state dict under our names."""
    return {ours: state[public] for public, ours in public_names(state, parts).items()}


# --- files ---------------------------------------------------------------------------------------------------------


class Official(NamedTuple):
    """The file the papers start from, where it comes from, and under which licence."""

    file: str
    source: str
    licence: str


_SEGFORMER = (
    "the SegFormer release (https://github.com/NVlabs/SegFormer, section Training: ImageNet-1K weights; those "
    "of https://huggingface.co/smp-hub/mit_b{n}.imagenet or https://huggingface.co/nvidia/mit-b{n} "
    "will do under that name, too)"
)
_NVIDIA = "NVIDIA Source Code License, non-commercial"
UNKNOWN = "unknown, check"


def _at(url: str, licence: str = UNKNOWN) -> Official:
    return Official(url.rpartition("/")[2], url, licence)


OFFICIAL: dict[str, Official] = {
    **{f"mit_b{n}": Official(f"mit_b{n}.pth", _SEGFORMER.format(n=n), _NVIDIA) for n in range(6)},
    "resnet50": _at("https://download.openmmlab.com/pretrain/third_party/resnet50_v1c-2cccc1ad.pth"),
    "resnet101": _at("https://download.openmmlab.com/pretrain/third_party/resnet101_v1c-e67eebb6.pth"),
}
PLAIN_STEM: dict[str, Official] = {
    "resnet50": _at("https://download.pytorch.org/models/resnet50-0676ba61.pth"),
    "resnet101": _at("https://download.pytorch.org/models/resnet101-63fe2227.pth"),
}
STEMS = {"deep": "stem.0.conv.weight", "plain": "stem.conv.weight"}
"""A ResNet's setting ``stem`` and a tensor that only this stem has."""


def official_file(name: str | None, *, stem: str | None = None, revision: str = "main") -> Official | None:
    """An encoder's public weights, if it has any; ``stem``: a ResNet's, ``revision``: of timm's repositories."""
    if name is None or not name.startswith(TIMM):
        return (PLAIN_STEM if stem == "plain" else OFFICIAL).get(str(name))
    from udaseg.models import timm_encoders as timm

    name = name.removeprefix(TIMM)
    if (found := timm.hub_file(name)) is None:
        return None
    repository, file = found
    source = f"https://huggingface.co/{repository}/resolve/{revision}/{file}"
    return Official(name + Path(file).suffix, source, timm.description(name).license or UNKNOWN)


ENOUGH = 0.95  # share of the encoder's tensors that a file must hold, and of the file's that the encoder must know
UNCOUNTED = "num_batches_tracked"  # older files have none, and nothing depends on it


@dataclass(frozen=True)
class LoadReport:
    """What came out of a file, by our names. ``missing`` (or of another shape) kept their initialisation."""

    path: Path
    sha256: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_encoder(encoder: nn.Module, path: str | Path, *, name: str | None = None) -> LoadReport:
    """Fills ``encoder`` in place from a public (or our own) .pth or .safetensors file.

    ``name``: the encoder's row in the zoo, for the advice in an error. Raises UserError when the file is missing, is
    not a pure tensor file, or is some other network's.
    """
    path, pretrained = Path(path), cast(Encoder, encoder).learning_rate_scale
    wanted = {name: tensor for name, tensor in encoder.state_dict().items() if pretrained(name) is not None}
    remedy = advice(name, path, "plain" if STEMS["plain"] in wanted else None)
    if not path.is_file():
        raise UserError(f"Encoder weights: {path} does not exist. {remedy}")
    state = read_tensors(path)
    try:
        state = getattr(encoder, "from_public", _own_names)(state)  # timm knows the names in its files itself
    except ValueError as error:
        raise UserError(f"{path}: {error}\n{remedy}") from error
    report = compared(path, state, wanted)
    _refuse_other_stem(report, state, name)
    _refuse_misfit(report, state, wanted, remedy)
    encoder.load_state_dict({key: state[key] for key in report.matched}, strict=False)
    return report


def load_segmentor(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> LoadReport:
    """Fills a whole segmentor (it may lie on the meta device) with tensors under our names, read from ``path``.

    Nothing may be missing, and no tensor on the way from image to logits left over: the network would say something
    else than the one that was trained. Other surplus (auxiliary heads) is in the report.
    """
    wanted = module.state_dict()
    report = compared(path, state, wanted)
    ours = tuple(f"{name}." for name, _ in module.named_children())
    lines = [_miss(key, state, wanted) for key in report.missing]
    lines += [f"no place for: {key}" for key in report.unexpected if key.startswith((*ours, "neck."))]
    if lines:
        raise UserError(f"{path} does not hold this network; {len(lines)} tensors do not fit:\n{_listing(lines)}")
    counters = {key: torch.zeros_like(value, device="cpu") for key, value in wanted.items() if key.endswith(UNCOUNTED)}
    tensors = counters | {key: state[key].to(wanted[key].dtype) for key in report.matched}
    module.load_state_dict(tensors, assign=True)
    return report


def compared(path: Path, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> LoadReport:
    """What of a file (under our names) fits a network's state."""
    fits = {key: key in state and state[key].shape == value.shape for key, value in wanted.items()}
    matched = tuple(key for key, fit in fits.items() if fit)
    missing = tuple(key for key, fit in fits.items() if not fit and not key.endswith(UNCOUNTED))
    unexpected = tuple(key for key in state if key not in wanted and not key.endswith(UNCOUNTED))
    return LoadReport(path, sha256(path), matched, missing, unexpected)


def advice(name: str | None, path: Path, stem: str | None = None) -> str:
    """Which file to fetch, from where, and where to put it."""
    if (official := official_file(name, stem=stem)) is None:
        return f"Encoders with public weights: {', '.join(OFFICIAL)} and most timm/NAME."
    return f"For {name} fetch {official.file} from {official.source} and put it at {path}."


WRAPPINGS = ("state_dict", "model", "state_dict_ghiasi")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a .pth / .safetensors file, bare or in one of the ``WRAPPINGS``. Executes nothing.

    The content decides which kind of file it is, not the name.
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
    while inner := next((items[key] for key in WRAPPINGS if isinstance(items.get(key), dict)), None):
        items = inner
    tensors = {key: value for key, value in items.items() if isinstance(value, Tensor)}
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
    cause = _first_line(error.__context__ or error)  # torch's own message says what to switch off, not what was found
    if isinstance(error, pickle.UnpicklingError):
        return (
            "is refused: it is a pickle that holds more than tensors, and loading it could run any code its author "
            "put inside. If you trust it, convert it once on a machine you can afford to lose: "
            "torch.load(..., weights_only=False), then safetensors.torch.save_file on the tensors alone. "
            f"({cause.split('. Please')[0]})"
        )
    return f"cannot be read as weights; it is damaged or incomplete, fetch it again ({type(error).__name__}: {cause})."


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of a file under our names. MiT's and ResNet's public names have nothing in common.

    Of a whole training checkpoint that is the student (``model.``), not the teacher (``ema_model.``).
    """
    for prefix in ("module.", "model.", "backbone.", "segformer.", "encoder."):
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if any(key.startswith("stages.") for key in state):  # one of our own files
        return state
    renamed = {}
    for key, value in joined(state).items():
        ours = rename(key, "mit" if re.match(r"patch_embed|block|norm|head|layer_norm", key) else "resnet")
        if ours is not None:
            renamed[ours] = value
    return renamed


def joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's key and value as one "kv" tensor, keys first (baselines.md 6.1); everything else as it is."""
    whole = dict(state)
    for key in state:
        value = key.replace(".self.key.", ".self.value.")
        if value != key and value in state:
            whole[key.replace(".self.key.", ".self.kv.")] = torch.cat([whole.pop(key), whole.pop(value)])
    return whole


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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
