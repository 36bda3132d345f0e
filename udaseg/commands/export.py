"""`udaseg export`: weights for use elsewhere."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from udaseg.console import out, table
from udaseg.deploy import export as exporting
from udaseg.deploy.files import title
from udaseg.deploy.model import LEAST, load
from udaseg.engine.domains import images_of
from udaseg.engine.measure import data_section
from udaseg.engine.memory import refuse_large_input
from udaseg.errors import UserError
from udaseg.models.weights_file import WeightsMetadata
from udaseg.ranges import parse_size


def export_weights(path: Path, *, form: exporting.Format, target: Path | None, size: str | None, teacher: bool) -> None:
    """Export, compare with the network, print both."""
    if size and form == "safetensors":
        raise UserError("--size: a copy of the weights has no size; leave it out, or choose --format torch or onnx")
    wanted = parse_size(size, LEAST, "--size") if size else None  # a wrong one is told before anything is loaded
    model = load(path, teacher=teacher, device="cpu")
    if wanted:
        refuse_large_input(wanted, len(model.metadata.classes), "--size")
    target = target or Path(title(path, teacher=teacher) + exporting.SUFFIX[form])
    shape = wanted or usual_size(model.metadata)
    images, what = samples(model.metadata, shape) if form != "safetensors" else ([], "")
    check = exporting.export(model, target, form=form, size=shape, images=images)
    if check is not None:
        show(check, model.metadata, f"{len(images)} {what}")
    out.print(f"written {target}")


def usual_size(metadata: WeightsMetadata) -> tuple[int, int]:
    """(w, h) of the network's input in evaluation: a window, else the box of training, else a training crop."""
    crop = (metadata.crop[1], metadata.crop[0]) if metadata.crop else (512, 512)
    return crop if metadata.inference == "slide" else metadata.size or crop


def samples(metadata: WeightsMetadata, size: tuple[int, int]) -> tuple[list[Tensor], str]:
    """Two validation images if they are here, else generated ones; and which they are."""
    data = data_section(metadata, None)
    section = data.validation or data.source
    try:
        images = images_of(section, data.scale, labels=False, limit=2)
        return [images[i]["image"][None] for i in range(len(images))], f"images of {section.dataset} {section.split}"
    except UserError:
        return exporting.generated(size), f"generated images ({section.dataset} is not here)"


def show(check: exporting.Check, metadata: WeightsMetadata, images: str) -> None:
    rows = [
        ["input", "uint8 RGB (batch, 3, height, width)"],
        ["shape", "any batch and size" if check.free else f"batch 1, {check.size[0]}x{check.size[1]} only"],
        ["compared on", images],
        ["largest difference of a logit", f"{check.difference:.2e} (largest logit {check.largest:.1f})"],
        ["pixels that change class", f"{100 * check.changed:.4f} %"],
    ]
    if metadata.inference == "slide":
        rows.append(["note", "the network is meant to look through windows of this size: slide them over the image"])
    table(("export", ""), rows, left=2)
