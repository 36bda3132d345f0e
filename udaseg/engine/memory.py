"""The least memory that settings need: what no machine can hold is refused with the number before work begins.

Lower bounds only, of what is held at one time; what passes may still be too much.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from udaseg.config.schema import Recipe
from udaseg.data.dataset import Domain, TrainingPairs
from udaseg.data.index import Index
from udaseg.data.transforms import Size, keep_ratio_size
from udaseg.engine.domains import class_set
from udaseg.errors import UserError
from udaseg.problems import Problem

IMAGE, LOGIT = 12, 4  # bytes a pixel of a normalised image and of one class's logits


def memory_problems(
    recipe: Recipe, pairs: TrainingPairs, validation: Domain | None, device: torch.device, world: int
) -> Iterator[Problem]:
    """Crops and batch, sizes of images, and the images kept in memory, that do not fit into what there is."""
    of_pixel = IMAGE + LOGIT * len(class_set(recipe))
    here, machine = memory_of(device), memory_of(torch.device("cpu"))
    images, (height, width) = recipe.train.batch // world, pairs.crop
    need: float = images * height * width * of_pixel
    if need > here:
        what = f"for a step of {images} crops of {width}x{height} pixels"
        yield Problem(("train", "batch"), f"{what}, {in_words(need, here)} (data.crop and data.scale count, too)")
    domains = {recipe.data.labelled: pairs.source, **({"target": pairs.target} if pairs.target else {})}
    for key, domain in domains.items():
        if (need := max(areas(domain.index, domain.size))) > machine:  # a byte a pixel: the label is resized whole
            yield Problem(("data", key, "size"), f"for a label, {in_words(need, machine)} (data.scale counts, too)")
    if validation is not None:
        logits = int(of_pixel * max(areas(validation.index, validation.size)))
        if logits > here:
            text = f"for an image and its logits, {in_words(logits, here)} (data.scale counts, too)"
            yield Problem(("data", "validation", "size"), text)
    workers = max(recipe.runtime.workers, 1)
    cache = workers * sum(cached(domain, recipe.runtime.cache_gb / 2) for domain in domains.values())
    if cache > machine:
        yield Problem(("runtime", "cache_gb"), f"in {workers} processes, {in_words(cache, machine)}")


def refuse_large_input(size: Size, classes: int, option: str) -> None:
    """UserError where an image of (w, h) pixels and its logits are more than this machine can hold."""
    need, there = math.prod(size) * (IMAGE + LOGIT * classes), memory_of(torch.device("cpu"))
    if need > there:
        raise UserError(f"{option} {size[0]}x{size[1]}: for an image and its logits, {in_words(need, there)}")


def memory_of(device: torch.device) -> float:
    """Bytes of the device's memory; infinity where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf
    try:  # a container may have less
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return total


def in_words(need: float, there: float) -> str:
    return f"at least {need / 1e9:.1f} GB of memory are needed and there are {there / 1e9:.1f} GB"


def areas(index: Index, box: Size | None) -> dict[int, int]:
    """Pixels of the resized images -> how many of them there are."""
    sizes, times = np.unique(index.sizes, axis=0, return_counts=True)
    resized = [keep_ratio_size((int(w), int(h)), box) if box else (int(w), int(h)) for w, h in sizes]
    return {math.prod(size): int(n) for size, n in zip(resized, times, strict=True)}


def cached(domain: Domain, gigabytes: float) -> float:
    """Bytes of a domain that a process keeps in memory once it has seen every image."""
    pixels = sum(area * n for area, n in areas(domain.index, domain.size).items())
    return min(gigabytes * 2**30, pixels * (4 if domain.labels else 3))
