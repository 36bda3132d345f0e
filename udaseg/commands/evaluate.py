"""`udaseg evaluate`: a run or a weights file on labelled images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from udaseg import build
from udaseg.config import recipe as recipes
from udaseg.config.parts import suggest
from udaseg.config.recipe import DataSection, DomainSection
from udaseg.console import Counting, out, percent, table
from udaseg.data.classes import PROTOCOLS
from udaseg.data.layouts import dataset_spec
from udaseg.data.loading import Normalise, evaluation_loader
from udaseg.engine import runs
from udaseg.engine.device import autocast, choose_device, choose_precision, set_up
from udaseg.errors import UserError
from udaseg.evaluation.confusion import Scores, scores
from udaseg.evaluation.evaluate import evaluate, recompute_batchnorm
from udaseg.models.weights_file import WeightsMetadata


@dataclass(frozen=True)
class Measured:
    """Scores under a protocol, the (K, K) counts they come from, and what was measured on what.

    ``scores`` and ``counts``: of each condition that was asked for, and of "all".
    """

    scores: dict[str, Scores]
    counts: dict[str, Tensor]
    protocol: str
    title: str
    left_out: str


def run(path: Path, *, as_json: bool, **choices: Any) -> None:
    """Evaluate and print; nothing is written."""
    with Counting("evaluating") as progress:
        found = measure(path, progress=progress, **choices)
    if as_json:
        trees = {name: as_dict(result, found.counts[name]) for name, result in found.scores.items()}
        head = {"what": found.title, "protocol": found.protocol, **trees.pop("all")}
        print(json.dumps({**head, "conditions": trees} if trees else head))
        return
    show(found.scores, found.title)
    if found.left_out:
        out.print(found.left_out)


def measure(
    path: Path,
    *,
    protocol: str | None = None,
    teacher: bool = False,
    split: str | None = None,
    benchmark: str | None = None,
    domain: str = "validation",
    recompute_bn: bool = False,
    limit: int | None = None,
    per_condition: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """A run or weights file on labelled images: of a split, of a benchmark, the first ``limit``."""
    module, metadata = runs.load_student(path, teacher=teacher)
    protocol = protocol or metadata.protocol
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol!r}: {suggest(protocol, PROTOCOLS)}")
    data = data_section(metadata, benchmark)
    section = domain_section(data, domain).model_copy(update={"split": split} if split else {})
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    set_up(device, precision, None)
    module.to(device).eval()
    images = build.images_of(section, data.scale, metadata.classes, limit=limit)
    groups = by_condition(images) if per_condition else {"all": images}  # each image is in one of them
    normalise, look = (
        Normalise(metadata.mean, metadata.std).to(device),
        build.inference(metadata.inference, metadata.crop),
    )
    if recompute_bn:
        recompute_batchnorm(module, unlabelled(data, normalise, device))
    counts: dict[str, Tensor] = {}
    for name, group in groups.items():
        counts[name] = evaluate(
            module, reporting(group, progress), normalise, classes=len(metadata.classes), device=device,
            autocast=autocast(precision, device), inference=look,
        ).cpu()  # fmt: skip
    counts["all"] = torch.stack(list(counts.values())).sum(0)
    network = "teacher" if teacher else (metadata.origin or {}).get("network", "student")
    network += " + recomputed BatchNorm" if recompute_bn else ""
    title = f"{network} of {metadata.recipe} on {section.dataset} {section.split} ({len(images)} images), {protocol}"
    found = {name: scores(own.numpy(), metadata.classes, PROTOCOLS[protocol]) for name, own in counts.items()}
    ignored = build.ignored_classes(section, metadata.classes)
    left_out = f"classes of {section.dataset} that the model does not have, left out: {', '.join(ignored)}"
    return Measured(found, counts, protocol, title, left_out if ignored else "")


def data_section(metadata: WeightsMetadata, benchmark: str | None) -> DataSection:
    """The data to evaluate on: a benchmark's, or those the model was trained with."""
    if benchmark is None:
        return DataSection.model_validate({**metadata.data, "crop": (1, 1)})
    return recipes.benchmark_data(benchmark)


def by_condition(images: Subset[Any]) -> dict[str, Subset[Any]]:
    """The images of each condition (fog, night, ...), in the data set's order of conditions."""
    index = images.dataset.domain.index  # type: ignore[attr-defined]
    known, conditions = dataset_spec(index.dataset).conditions, index.conditions[: len(images)]
    if not all(conditions):
        where = f"{index.dataset} {index.split} in {index.root}"
        raise UserError(
            f"--per-condition: no folder names the condition of the images of {where}; allowed: "
            "acdc and dark_zurich in their official folders (DAFormer's flat copy of ACDC does not tell)"
        )
    groups = {name: [i for i, own in enumerate(conditions) if own == name] for name in known}
    return {name: Subset(images, group) for name, group in groups.items() if group}


def domain_section(data: DataSection, domain: str) -> DomainSection:
    """The domain of that name; where there is no validation, the source takes its place."""
    allowed = ("source", "target", "validation")
    if domain not in allowed:
        raise UserError(f"--domain {domain!r}: {suggest(domain, allowed)}")
    section: DomainSection | None = getattr(data, domain) or (data.source if domain == "validation" else None)
    if section is None:
        raise UserError(f"--domain {domain}: the run has none; choose a --benchmark that has data.{domain}")
    return section


def reporting(images: Subset[Any], progress: Callable[[int, int], None]) -> Iterator[dict[str, Any]]:
    for done, item in enumerate(evaluation_loader(images, workers=2), 1):
        yield item
        progress(done, len(images))


def unlabelled(data: DataSection, normalise: Normalise, device: torch.device) -> Iterator[Tensor]:
    """Normalised images of the target's training split, one at a time; labels are not read."""
    target: DomainSection | None = data.target
    if target is None:
        raise UserError("--recompute-bn needs a target domain; choose a --benchmark that has one")
    for item in evaluation_loader(build.images_of(target, data.scale, labels=False), workers=2):
        yield normalise(item["image"][None].to(device))


def as_dict(result: Scores, counts: Tensor) -> dict[str, Any]:
    iou = {name: None if np.isnan(value) else value for name, value in zip(result.names, result.iou, strict=True)}
    return {"miou": result.miou, "classes": result.counted, "iou": iou, "confusion": counts.tolist()}


def show(results: dict[str, Scores], title: str) -> None:
    """A column for each condition, if there are any, and one for all images."""
    every = results["all"]
    columns = zip(*(result.iou for result in results.values()), strict=True)
    rows = [[name, *(percent(value) for value in values)] for name, values in zip(every.names, columns, strict=True)]
    mean = "mIoU" if len(results) > 1 else f"mIoU over {every.counted} of {len(every.names)} classes"
    rows.append([mean, *(f"{result.miou:.2f}" for result in results.values())])
    if len(results) > 1:
        rows.append(["classes in the mean", *(str(result.counted) for result in results.values())])
    table(("class", *(results if len(results) > 1 else ["IoU %"])), rows, title=title)
    if any(result.counted < len(result.names) for result in results.values()):
        out.print("-: the class is neither in the labels nor predicted, and left out of the mean")
