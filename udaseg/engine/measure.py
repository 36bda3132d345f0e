"""Measure a run or a weights file on labelled images of a data set: the work of `udaseg evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from udaseg.config.load import benchmark_data
from udaseg.config.schema import DataSection, DomainSection
from udaseg.data.classes import PROTOCOLS
from udaseg.data.layouts import dataset_spec
from udaseg.data.loading import Normalise, evaluation_loader
from udaseg.engine import runs
from udaseg.engine.batchnorm import IMAGES, recompute_on_target, recomputed
from udaseg.engine.device import autocast, choose_device, set_up
from udaseg.engine.domains import ignored_classes, images_of
from udaseg.errors import UserError
from udaseg.evaluation.confusion import Scores, scores
from udaseg.evaluation.evaluate import evaluate
from udaseg.evaluation.inference import inference
from udaseg.models.weights_file import WeightsMetadata
from udaseg.problems import suggest

DOMAINS = ("source", "target", "validation")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Measured:
    """Scores under a protocol and the (K, K) counts they come from: of each condition, if asked for, and of "all".

    ``title``: which network on which images, and in which ``precision``.
    ``ignored``: classes of the data set that the network does not have.
    """

    scores: dict[str, Scores]
    counts: dict[str, Tensor]
    protocol: str
    precision: str
    title: str
    dataset: str
    ignored: list[str]


def measure(
    path: Path,
    *,
    protocol: str | None = None,
    teacher: bool = False,
    split: str | None = None,
    benchmark: str | None = None,
    domain: str = "validation",
    recompute_bn: bool = False,
    bn_images: int = IMAGES,
    precision: str = "fp32",
    limit: int | None = None,
    per_condition: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Evaluate on a domain of the network's own data or of a ``benchmark``, on the first ``limit`` images.

    Defaults come from the recipe. ``precision``: fp32, as published scores are, or bf16.
    ``recompute_bn``: first recompute BatchNorm on at most ``bn_images`` unlabelled images of the target; ``progress``
    counts them first, then the images of the evaluation.
    UserError for a name that does not exist, a missing network, data that is not prepared.
    """
    module, metadata = runs.load_student(path, teacher=teacher)
    protocol = protocol or metadata.protocol
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol!r}: {suggest(protocol, PROTOCOLS)}")
    if strange := [name for name in PROTOCOLS[protocol] if name not in metadata.classes]:
        raise UserError(
            f"--protocol {protocol}: {path} does not have its class{'es' * (len(strange) > 1)} {', '.join(strange)}; "
            "`all` always fits"
        )
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision!r}: {suggest(precision, PRECISIONS)}")
    data = data_section(metadata, benchmark)
    section = domain_section(data, domain).model_copy(update={"split": split} if split else {})
    device = choose_device("auto")
    set_up(device, precision, None)
    module.to(device).eval()
    normalise = Normalise(metadata.mean, metadata.std).to(device)
    images = images_of(section, data.scale, metadata.classes, limit=limit)
    groups = by_condition(images) if per_condition else {"all": images}  # each image is in one of them
    network, mode = network_of(metadata, teacher), inference(metadata.inference, metadata.crop)
    if recompute_bn:
        count = recompute_on_target(module, data, normalise, device, mode, most=bn_images, progress=progress)
        network = recomputed(network, count)
    counts = {
        name: evaluate(
            module, reporting(group, progress), normalise, classes=len(metadata.classes), device=device,
            autocast=autocast(precision, device), inference=mode,
        ).cpu()
        for name, group in groups.items()
    }  # fmt: skip
    counts["all"] = torch.stack(list(counts.values())).sum(0)
    return Measured(
        scores={name: scores(own.numpy(), metadata.classes, PROTOCOLS[protocol]) for name, own in counts.items()},
        counts=counts,
        protocol=protocol,
        precision=precision,
        title=f"{network} of {metadata.recipe} on {section.dataset} {section.split} ({len(images)} images), "
        f"{protocol}, {precision}",
        dataset=section.dataset,
        ignored=ignored_classes(section, metadata.classes),
    )


def network_of(metadata: WeightsMetadata, teacher: bool = False) -> str:
    """Which of a run's networks the weights are: student, teacher, or what the file's header says."""
    return "teacher" if teacher else (metadata.origin or {}).get("network", "student")


def data_section(metadata: WeightsMetadata, benchmark: str | None) -> DataSection:
    """The data to evaluate on: a benchmark's, or those the model was trained with."""
    if benchmark is None:
        if not metadata.data:
            raise UserError("the weights file does not say what data it was trained with; choose a --benchmark")
        return DataSection.model_validate({**metadata.data, "crop": (1, 1)})
    return benchmark_data(benchmark)


def domain_section(data: DataSection, domain: str) -> DomainSection:
    """The domain of that name; without a validation domain, the source takes its place."""
    if domain not in DOMAINS:
        raise UserError(f"--domain {domain!r}: {suggest(domain, DOMAINS)}")
    section: DomainSection | None = getattr(data, domain) or (data.source if domain == "validation" else None)
    if section is None:
        raise UserError(f"--domain {domain}: the run has none; choose a --benchmark that has data.{domain}")
    return section


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


def reporting(images: Subset[Any], progress: Callable[[int, int], None]) -> Iterator[dict[str, Any]]:
    """Load the images one by one and report each after it was used."""
    for done, item in enumerate(evaluation_loader(images, workers=2), 1):
        yield item
        progress(done, len(images))
