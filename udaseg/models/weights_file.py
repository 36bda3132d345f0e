"""Our weights file: safetensors with a header (`udaseg`, JSON) that says how to use it. Loading runs no code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from udaseg.errors import UserError
from udaseg.files import write_atomic
from udaseg.problems import first_problem

PUBLIC = "A public checkpoint becomes a weights file with `udaseg import FILE`."
MOST_PIXELS = 2**26
"""Of an image as the network sees it; 32 images of Cityscapes."""

Side = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Byte = Annotated[int, Field(ge=0, le=255)]
Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
Positive = Annotated[float, Field(allow_inf_nan=False, ge=1e-6, le=1e6)]


@dataclass(frozen=True, kw_only=True)
class WeightsMetadata:
    """The header: components of the model, classes, normalisation, image size in training, origin of the weights.

    ``size``: (width, height) images were resized into, None for native. ``crop``: (height, width) of a training crop;
    ``inference`` "slide" moves a window of that size over an image, "whole" passes it at once. ``origin``: of an
    imported file, name and sha256 of the public checkpoint; its ``network`` says which one this is, if not a run's
    student as it was trained. ``plugins``: that the network's components come from; they are named, and never imported
    because a file names them.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    encoder: dict[str, Any]
    decoder: dict[str, Any]
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=255)]
    palette: tuple[tuple[Byte, Byte, Byte], ...]
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    size: tuple[Side, Side] | None = None
    recipe: str
    benchmark: str | None
    protocol: str
    seed: int | None
    iterations: int | None
    data: dict[str, Any] = field(default_factory=dict)
    wrapper: dict[str, Any] | None = None
    crop: tuple[Side, Side] | None = None
    inference: Literal["whole", "slide"] = "whole"
    origin: dict[str, str] | None = None
    plugins: tuple[str, ...] = ()
    format: Literal[1] = 1

    @model_validator(mode="after")
    def _fits(self) -> WeightsMetadata:
        """What several keys say together."""
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: a name occurs twice")
        if len(self.palette) != len(self.classes):
            raise ValueError(f"palette: {len(self.palette)} colours for {len(self.classes)} classes")
        for name, area in (("size", self.size), ("crop", self.crop)):
            if area and area[0] * area[1] > MOST_PIXELS:
                raise ValueError(f"{name}: {area[0]} x {area[1]} pixels are more than {MOST_PIXELS}")
        if self.crop is None and (self.wrapper or self.inference == "slide"):
            raise ValueError("crop: is missing, and wrapper or inference needs it")
        return self


def save(path: Path, module: nn.Module, metadata: WeightsMetadata) -> None:
    """Write the module's tensors and the metadata, atomically."""
    header = {key: value for key, value in asdict(metadata).items() if key != "plugins" or value}
    content = to_bytes(_tensors(module), metadata={"udaseg": json.dumps(header)})
    write_atomic(path, lambda file: file.write(content))


def digest(module: nn.Module) -> str:
    """SHA-256 of the module's tensors, whatever file they come from."""
    return hashlib.sha256(to_bytes(_tensors(module))).hexdigest()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def read(path: Path) -> tuple[WeightsMetadata, Mapping[str, Tensor]]:
    """Header and tensors of a file that ``save`` wrote. UserError for any other."""
    metadata = read_metadata(path)
    with opened(path) as file:
        return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def read_metadata(path: Path) -> WeightsMetadata:
    """The header of a file that ``save`` wrote. UserError for any other."""
    with opened(path) as file:
        header = (file.metadata() or {}).get("udaseg")
    if header is None:
        raise UserError(f"{path}: has no udaseg header; it is not a weights file written by `udaseg train`. {PUBLIC}")
    try:
        return TypeAdapter(WeightsMetadata).validate_json(header)
    except ValidationError as error:
        raise damaged(path, error) from None


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file; UserError if it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}). {PUBLIC}") from None


def damaged(path: Path, error: ValidationError, key: str = "") -> UserError:
    """What to raise for a header that does not fit its schema; ``key``: the one that the error is about, if not all."""
    reason = key + first_problem(error)
    return UserError(f"{path}: its udaseg header is damaged or of another version of udaseg ({reason})")


def restore(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load the tensors, all of them and nothing else. UserError if they do not fit or are not finite."""
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise UserError(f"{path}: does not fit the network it is for: {str(error).splitlines()[-1].strip()}") from None
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} holds values that are not finite: the training that wrote it diverged")
