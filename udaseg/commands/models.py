"""`udaseg models`: the encoders and decoders. Networks are made without memory (on the meta device)."""

from __future__ import annotations

import fnmatch
import json
from dataclasses import asdict, dataclass

import torch

from udaseg.config.plugins import load_installed, provenance
from udaseg.config.registry import REGISTRIES
from udaseg.console import out, table
from udaseg.errors import UserError
from udaseg.models.segmentor import IMAGENET_MEAN, IMAGENET_STD
from udaseg.models.weights import official_file
from udaseg.models.zoo import ENCODERS, TIMM
from udaseg.problems import suggest

MOST = 40  # networks whose parameters are counted; one takes about half a second
LEGEND = """\
M: million parameters. images: any size is taken; best 32 n: multiples of 32 are tiled exactly; to 14 n: resized to
multiples of 14, and training crops are rounded down to them. mean; std: 0-255 scale, where not ImageNet's. weights: the
file model.weights=auto looks for under weights/ in the data home; hub: it fetches them. --json has the addresses."""
REFERENCE = "mit_b5"  # decoders are counted on it, with 19 classes


@dataclass(frozen=True)
class Row:
    """An encoder; ``parameters`` in millions. What only the network tells is None or empty where it was not made."""

    name: str
    parameters: float | None
    strides: tuple[int, ...] | None
    images: str
    normalisation: str
    file: str
    weights: str
    licence: str


def list_models(pattern: str | None, as_json: bool) -> None:
    """Print the encoders that match, and without a pattern the decoders, too."""
    load_installed()
    names = matching(pattern)
    rows = [encoder_row(name, made=len(names) <= MOST) for name in names]
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    header = ("encoder", "M", "strides", "images", "mean; std", "weights", "licence of weights")
    table(header, [cells(row) for row in rows], left=len(header))
    out.print(f"\n{LEGEND}")
    if len(names) > MOST:
        out.print(f"\n{len(names)} networks: parameters are counted for up to {MOST}; give a narrower pattern")
    if pattern is None:
        out.print()
        table((f"decoder on {REFERENCE}", "M parameters"), decoder_rows())
        out.print(f"\nand {len(timm_names())} pretrained networks of timm: udaseg models 'timm/*dinov2*'")


def matching(pattern: str | None) -> list[str]:
    """Names that match; our own if nothing is asked for. UserError with suggestions if there are none."""
    known = REGISTRIES["encoder"].entries
    if pattern is None or pattern in known:
        return list(known) if pattern is None else [pattern]
    wanted = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    if names := fnmatch.filter([*known, *timm_names()], wanted):
        return names
    raise UserError(f"no encoder matches {pattern!r}; {suggest(pattern, {*known, *ENCODERS.near(pattern)})}")


def timm_names() -> list[str]:
    """timm's pretrained networks, with their tags."""
    import timm

    return [TIMM + name for name in timm.list_pretrained()]


def encoder_row(name: str, *, made: bool) -> Row:
    """``made``: also build the network; else the row has its weights only."""
    official = official_file(name)
    known = (official.file, official.source, official.licence) if official else ("none", "", "")
    if plugin := provenance(REGISTRIES["encoder"].component(name)):
        known = ("none", "", f"plugin {plugin}")
    if not made:
        return Row(name, None, None, "", "", *known)
    try:
        with torch.device("meta"):
            encoder = REGISTRIES["encoder"].create({"kind": name})
    except (UserError, RuntimeError) as error:  # not every network can be made without memory
        return Row(name, None, None, str(error).rpartition(": ")[2], "", *known)
    normalisation = ""
    if (encoder.mean, encoder.std) != (IMAGENET_MEAN, IMAGENET_STD):
        normalisation = "; ".join("/".join(f"{value:.0f}" for value in part) for part in (encoder.mean, encoder.std))
    tiled = "any, best 32 n" if name.startswith("mit") else "any"
    images = f"any, to {encoder.multiple} n" if encoder.multiple > 1 else tiled
    return Row(name, millions(encoder), encoder.strides, images, normalisation, *known)


def decoder_rows() -> list[list[str]]:
    with torch.device("meta"):
        encoder = REGISTRIES["encoder"].create({"kind": REFERENCE})
        given = encoder.channels, encoder.strides, 19
        create = REGISTRIES["decoder"].create
        origins = {name: provenance(REGISTRIES["decoder"].component(name)) for name in REGISTRIES["decoder"].entries}
        return [
            [f"{name} ({plugin})" if plugin else name, f"{millions(create({'kind': name}, *given)):.1f}"]
            for name, plugin in origins.items()
        ]


def millions(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def cells(row: Row) -> list[str]:
    parameters = "" if row.parameters is None else f"{row.parameters:.1f}"
    strides = " ".join(str(stride) for stride in row.strides or ())
    weights = "hub" if row.weights.startswith("https://huggingface.co/") else row.file
    return [row.name, parameters, strides, row.images, row.normalisation, weights, row.licence]
