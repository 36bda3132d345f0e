"""`udaseg evaluate`: a run or a weights file on labelled images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from udaseg import build, runs
from udaseg import recipe as recipes
from udaseg.console import Counting, out, percent, table
from udaseg.data.classes import PROTOCOLS
from udaseg.data.loading import Normalise, evaluation_loader
from udaseg.engine.device import autocast, choose_device, choose_precision, set_up
from udaseg.errors import UserError
from udaseg.evaluation.confusion import Scores, scores
from udaseg.evaluation.evaluate import evaluate, recompute_batchnorm
from udaseg.models.package import Card
from udaseg.parts import suggest
from udaseg.recipe import DataSection, DomainSection


def run(
    path: Path,
    *,
    protocol: str | None,
    teacher: bool,
    split: str | None,
    benchmark: str | None,
    domain: str,
    recompute_bn: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """Evaluate and print; nothing is written."""
    module, card = runs.load_student(path, teacher=teacher)
    protocol = protocol or card.protocol
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol!r}: {suggest(protocol, PROTOCOLS)}")
    data = data_section(card, benchmark)
    section = domain_section(data, domain).model_copy(update={"split": split} if split else {})
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    set_up(device, precision, None)
    module.to(device).eval()
    if recompute_bn:
        recompute_batchnorm(module, unlabelled(data, device))
    images = build.images_of(section, data.scale, card.classes, limit=limit)
    with Counting("evaluating") as progress:
        counts = evaluate(
            module, reporting(images, progress), Normalise(), classes=len(card.classes), device=device,
            autocast=autocast(precision, device), inference=build.inference(card.inference, card.crop),
        )  # fmt: skip
    result = scores(counts.cpu().numpy(), card.classes, PROTOCOLS[protocol])
    network = ("teacher" if teacher else "student") + (" + recomputed BatchNorm" if recompute_bn else "")
    title = f"{network} of {card.recipe} on {section.dataset} {section.split} ({len(images)} images), {protocol}"
    if as_json:
        print(json.dumps(as_dict(result, title, protocol, counts)))
    else:
        show(result, title)
        if ignored := build.ignored_classes(section, card.classes):
            out.print(f"classes of {section.dataset} that the model does not have, left out: {', '.join(ignored)}")


def data_section(card: Card, benchmark: str | None) -> DataSection:
    """The data to evaluate on: a benchmark's, or those the model was trained with."""
    if benchmark is None:
        return DataSection.model_validate({**card.data, "crop": (1, 1)})
    return recipes.benchmark_data(benchmark)


def domain_section(data: DataSection, domain: str) -> DomainSection:
    """The domain of that name; where there is no validation, the source takes its place."""
    allowed = ("source", "target", "validation")
    if domain not in allowed:
        raise UserError(f"--domain {domain!r}: {suggest(domain, allowed)}")
    section: DomainSection | None = getattr(data, domain) or (data.source if domain == "validation" else None)
    if section is None:
        raise UserError(f"--domain {domain}: the run has none; choose a --benchmark that has data.{domain}")
    return section


def reporting(images: Subset[Any], progress: Any) -> Iterator[dict[str, Any]]:
    for done, item in enumerate(evaluation_loader(images, workers=2), 1):
        yield item
        progress(done, len(images))


def unlabelled(data: DataSection, device: torch.device) -> Iterator[Tensor]:
    """Normalised images of the target's training split, one at a time; labels are not read."""
    target: DomainSection | None = data.target
    if target is None:
        raise UserError("--recompute-bn needs a target domain; choose a --benchmark that has one")
    normalise = Normalise()
    for item in evaluation_loader(build.images_of(target, data.scale, labels=False), workers=2):
        yield normalise(item["image"][None].to(device))


def as_dict(result: Scores, title: str, protocol: str, counts: Tensor) -> dict[str, Any]:
    iou = {name: None if np.isnan(value) else value for name, value in zip(result.names, result.iou, strict=True)}
    return {
        "what": title, "protocol": protocol, "miou": result.miou, "classes": result.counted, "iou": iou,
        "confusion": counts.tolist(),
    }  # fmt: skip


def show(result: Scores, title: str) -> None:
    rows = [[name, percent(value)] for name, value in zip(result.names, result.iou, strict=True)]
    rows.append([f"mIoU over {result.counted} of {len(result.names)} classes", f"{result.miou:.2f}"])
    table(("class", "IoU %"), rows, title=title)
    if result.counted < len(result.names):
        out.print("-: the class is neither in the labels nor predicted, and left out of the mean")
