"""A trained network as one file that runs without udaseg, checked against the network it was made from.

The graph takes pixels (B, 3, h, w) uint8 RGB at the scale of training (fit the image into the metadata's ``size``) and
gives logits (B, K, h, w) float32: normalisation and up-sampling are inside. Batch and image size are free where the
network can be traced so; HRDA and window attention have one size. The metadata goes along as JSON under "udaseg".

Shapes: B images, K classes, h x w pixels as the network sees them.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from udaseg.data.loading import Normalise
from udaseg.deploy.model import Model
from udaseg.errors import UserError
from udaseg.files import write_atomic
from udaseg.models import weights_file
from udaseg.models.weights_file import WeightsMetadata

Format = Literal["safetensors", "torch", "onnx"]
SUFFIX: dict[Format, str] = {"safetensors": ".safetensors", "torch": ".pt2", "onnx": ".onnx"}
TOLERATED = 1e-3
"""Share of pixels that may change class; a sound export stays far below it."""
ONNX_BYTES = 2**31 - 2**24  # protobuf's limit, less some room for the graph
INPUT = "image: uint8 RGB (batch, 3, height, width), fitted into `size` (width, height) with its ratio kept"
OUTPUT = "logits: float32 (batch, classes, height, width); argmax over the classes gives train ids"


@dataclass(frozen=True)
class Check:
    """``free``: any batch and size. Largest difference of a logit, the largest logit, share of changed classes."""

    free: bool
    size: tuple[int, int]
    difference: float
    largest: float
    changed: float


class PixelsToLogits(nn.Module):
    """What is exported: normalisation, network, up-sampling."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.segmentor = model.segmentor
        self.normalise = Normalise(model.metadata.mean, model.metadata.std)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, h, w) uint8 -> (B, K, h, w)."""
        return self.segmentor.logits(self.normalise(image))


def export(
    model: Model, target: Path, *, form: Format, size: tuple[int, int], images: Sequence[Tensor]
) -> Check | None:
    """Write ``target`` (it must not exist) from a model on the CPU; ``size``: (w, h) of the traced image.

    ``images``: (1, 3, h, w) uint8 to compare on, cut or repeated to the size where that is fixed. A copy of the
    weights (safetensors) has nothing to compare. UserError if the file would not compute the same.
    """
    if target.exists():
        raise UserError(f"{target} exists; choose another file with --out")
    if form == "safetensors":
        weights_file.save(target, model.segmentor, model.metadata)
        return None
    if form == "onnx":
        require_onnx()
        held = sum(tensor.nbytes for tensor in model.segmentor.state_dict().values())
        if held >= ONNX_BYTES:
            raise UserError(
                f"--format onnx: one file holds 2 GB at most, these weights have {held / 1e9:.1f}; use torch"
            )
    network = PixelsToLogits(model).eval()
    with quiet():
        program, free = traced(network, size, free=model.metadata.wrapper is None and not windowed(network))
        content, again = (as_onnx if form == "onnx" else as_torch)(program, described(model.metadata, free, size))
    check = compared(network, again, images, size, free)
    if check.changed > TOLERATED:
        raise UserError(f"the {form} export differs from the network: {100 * check.changed:.2f} % of the pixels change")
    write_atomic(target, content)
    return check


def windowed(network: nn.Module) -> bool:
    """Has it window attention (Swin, SAM)? Tracing it with free sizes takes hours: shape terms grow with each stage."""
    return any(bool(getattr(part, "window_size", None)) for part in network.modules())


def traced(network: PixelsToLogits, size: tuple[int, int], *, free: bool) -> tuple[ExportedProgram, bool]:
    """The graph, and whether batch and size are free in it; a network that cannot be traced so gets fixed ones."""
    image = torch.zeros(2 if free else 1, 3, size[1], size[0], dtype=torch.uint8)
    with torch.no_grad():
        if not free:
            return torch.export.export(network, (image,)), False
        try:
            shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
            return torch.export.export(network, (image,), dynamic_shapes=shapes), True
        except (RuntimeError, ValueError, AssertionError, torch._dynamo.exc.UserError):
            return traced(network, size, free=False)


def as_torch(program: ExportedProgram, text: str) -> tuple[Callable[[Any], object], Callable[[Tensor], Tensor]]:
    """How to write the program, and the program as a function."""
    return lambda file: torch.export.save(program, file, extra_files={"udaseg.json": text}), program.module()


def as_onnx(program: ExportedProgram, text: str) -> tuple[Callable[[Any], object], Callable[[Tensor], Tensor]]:
    """How to write the ONNX file, and its session as a function."""
    import onnxruntime

    made = torch.onnx.export(program, (), dynamo=True, verbose=False, input_names=["image"], output_names=["logits"])
    assert made is not None
    made.model.metadata_props["udaseg"] = text
    content = made.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda file: file.write(content), lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0])


def require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f'--format onnx: {error}; install what it needs: pip install "udaseg[onnx]"') from None


def described(metadata: WeightsMetadata, free: bool, size: tuple[int, int]) -> str:
    """The metadata as JSON, with how to call the graph."""
    shape = "any" if free else f"batch 1, {size[0]}x{size[1]}"
    return json.dumps({**asdict(metadata), "input": INPUT, "output": OUTPUT, "shape": shape})


@torch.no_grad()
def compared(
    network: nn.Module, again: Callable[[Tensor], Tensor], images: Sequence[Tensor], size: tuple[int, int], free: bool
) -> Check:
    """The network and its export on every image; NaNs propagate."""
    rows = []
    for image in images if free else [filled(image, size) for image in images]:
        want, have = network(image), again(image)
        changed = (want.argmax(1) != have.argmax(1)).float().mean()
        rows.append(torch.stack([(want - have).abs().max(), want.abs().max(), changed]))
    measured = torch.stack(rows)
    difference, largest, _ = measured.amax(0).tolist()
    return Check(free, size, difference, largest, float(measured[:, 2].mean()))


def filled(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, 3, h, w) cut, or repeated, to (w, h) ``size``."""
    times = (-(-size[1] // image.shape[2]), -(-size[0] // image.shape[3]))
    return image.repeat(1, 1, *times)[..., : size[1], : size[0]].contiguous()


def generated(size: tuple[int, int], number: int = 2) -> list[Tensor]:
    """Blotches of colour, for want of photographs: (1, 3, h, w) uint8 each."""
    draws = torch.Generator().manual_seed(0)
    coarse = [torch.rand(1, 3, max(size[1] // 8, 1), max(size[0] // 8, 1), generator=draws) for _ in range(number)]
    return [(255 * nn.functional.interpolate(c, (size[1], size[0]), mode="bilinear")).byte() for c in coarse]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' warnings, which concern their own code only."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
