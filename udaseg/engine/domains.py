"""The data of a recipe: its classes, and each domain's index and images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from udaseg.config.checks import needs
from udaseg.config.registry import REGISTRIES
from udaseg.config.schema import DomainSection, Recipe
from udaseg.data.classes import IGNORE, ClassSet, match_classes
from udaseg.data.dataset import Domain, EvaluationImages, Margins, TrainingPairs
from udaseg.data.index import Index, load_index
from udaseg.data.layouts import dataset_spec
from udaseg.data.sampling import LabelStatistics


def training_pairs(recipe: Recipe, multiple: int = 1) -> TrainingPairs:
    """The samples of a run; sample k is a function of (seed, k). ``multiple``: of the crop's sides."""
    data, cache, names = recipe.data, recipe.runtime.cache_gb / 2, class_set(recipe).names
    labelled = data.target if data.labelled == "target" else data.source
    assert labelled is not None
    source = domain(labelled, data.scale, names, labels=True, cache_gb=cache)
    target = None
    if data.target and needs(recipe).target:
        target = domain(data.target, data.scale, labels=False, cache_gb=cache)
    margins = data.image_margins if data.margins == "image" else None
    statistics = LabelStatistics(source.index.counts, names, data.min_pixels)
    return TrainingPairs(
        source,
        target,
        sampler=REGISTRIES["sampler"].create(data.sampler, statistics),
        crop=training_crop(recipe, multiple),
        seed=recipe.seed,
        length=recipe.train.iterations * recipe.train.batch,
        cat_max_ratio=data.cat_max_ratio,
        photometric=data.photometric,
        margins=Margins(**margins.model_dump()) if margins else None,
        extras=needs(recipe).extras,
    )


def validation_domain(recipe: Recipe) -> Domain | None:
    """The images that the run is validated on, with labels in terms of its classes."""
    data = recipe.data
    return domain(data.validation, data.scale, class_set(recipe).names, labels=True) if data.validation else None


def class_set(recipe: Recipe) -> ClassSet:
    """The classes that are learnt, predicted and evaluated."""
    return dataset_spec(recipe.data.classes or recipe.data.source.dataset).classes


def images_of(
    section: DomainSection,
    scale: int,
    names: tuple[str, ...] | None = None,
    *,
    labels: bool = True,
    limit: int | None = None,
) -> Subset[Any]:
    """Whole images of a split at test size, with native labels of the named classes if wanted; the first ``limit``."""
    images = EvaluationImages(domain(section, scale, names, labels=labels))
    return Subset(images, range(min(limit or len(images), len(images))))


def domain(
    section: DomainSection, scale: int, names: tuple[str, ...] | None = None, *, labels: bool, cache_gb: float = 0.0
) -> Domain:
    """`names`: the classes of its labels; None: the data set's own."""
    index = index_of(section, names)
    return Domain(index, size=scaled(section, scale), labels=labels, cache_bytes=int(cache_gb * 2**30))


def index_of(domain: DomainSection, names: tuple[str, ...] | None = None) -> Index:
    """The index of a domain in terms of its own classes or, matched by name, of others."""
    index = load_index(domain.dataset, domain.split, Path(domain.root) if domain.root else None)
    return index if names is None else index.as_classes(names, domain.merge)


def ignored_classes(domain: DomainSection, names: tuple[str, ...]) -> list[str]:
    """Classes of a domain's data set that have no partner among the named ones."""
    own = dataset_spec(domain.dataset).classes.names
    return [name for name, i in zip(own, match_classes(own, names, domain.merge), strict=True) if i == IGNORE]


def training_crop(recipe: Recipe, multiple: int = 1) -> tuple[int, int]:
    """(height, width) of what the student sees: a multiple of what the encoder asks for, rounded down."""
    height, width = (side * recipe.data.scale // multiple * multiple for side in recipe.data.crop)
    return height, width


def scaled(domain: DomainSection, scale: int) -> tuple[int, int] | None:
    return (domain.size[0] * scale, domain.size[1] * scale) if domain.size else None
