"""`udaseg check`: is a benchmark's data what its recipe takes it for?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from udaseg.config.checks import components, domains
from udaseg.config.load import Loaded, load
from udaseg.config.registry import settings_of_type, walk
from udaseg.config.schema import DomainSection, Recipe
from udaseg.console import out, table
from udaseg.data import cache
from udaseg.data.classes import ClassSet, colourise
from udaseg.data.dataset import Domain
from udaseg.data.index import Index
from udaseg.data.transforms import keep_ratio_size
from udaseg.engine.domains import class_set, ignored_classes, index_of, scaled
from udaseg.errors import UserError
from udaseg.files import write_free
from udaseg.problems import Problem, listed
from udaseg.ranges import ClassNames
from udaseg.report import figures
from udaseg.report.figures import Figure, Pixels

SHOWN = 6  # images of each domain
TUNED = 3000 / (1914 * 1052)
"""Share of an image that makes it count for a class in the published recipes: 3000 pixels of GTA5's size."""

Domains = dict[str, tuple[DomainSection, Index]]


def check_benchmark(benchmark: str, recipe: str, picture: Path | None) -> None:
    """Print what was found and write the picture; UserError for a data set that is not usable."""
    loaded = load(recipe, benchmark=benchmark)
    domains = prepared(loaded, benchmark)
    table(
        ("", "data set", "pairs", "left out", "labels", "images", "in the box", "copy"),
        [domain_row(key, *domain, loaded.recipe.data.scale) for key, domain in domains.items()],
        left=2,
    )
    classes = class_set(loaded.recipe)
    pixels = {key: index.counts.sum(0) for key, (_, index) in domains.items() if index.labelled}
    shares = {key: (100 * column / max(column.sum(), 1)).tolist() for key, column in pixels.items()}
    rows = [[name, *map(percentage, row)] for name, *row in zip(classes.names, *shares.values(), strict=True)]
    table(("class, % of labelled pixels", *shares), rows)
    notes = [*one_sided(shares, classes.names), *misfits(loaded.recipe, domains)]
    for note in notes or ["nothing found that does not fit"]:
        out.print(f"note: {note}" if notes else note, style="yellow" if notes else None)
    content = figures.rendered(draw(domains, loaded.recipe.data.scale, classes))
    written = write_free(picture or Path(f"check-{loaded.recipe.benchmark}.png"), content)
    out.print(f"\npicture {written}")


def prepared(loaded: Loaded, benchmark: str) -> Domains:
    """The domains with their indices in the recipe's classes; UserError with the remedy for each that is not usable."""
    usable: Domains = {}
    problems: list[Problem] = []
    names = class_set(loaded.recipe).names
    for key, section in domains(loaded.recipe).items():
        try:
            index = index_of(section)
            if key != "target" and not index.labelled:
                raise UserError(f"Data set {section.dataset!r} ({section.split}) in {index.root} has no labels.")
            usable[key] = section, index.as_classes(names, section.merge) if index.labelled else index
        except UserError as error:
            if all(problem.message != str(error) for problem in problems):
                problems.append(Problem(("data", key), str(error)))
    if problems:
        raise UserError(f"benchmark {benchmark!r} cannot be used:\n{listed(problems, loaded.origin)}")
    return usable


def domain_row(key: str, section: DomainSection, index: Index, scale: int) -> list[str]:
    """What there is of one domain; the commonest size stands for all."""
    sizes, times = np.unique(index.sizes, axis=0, return_counts=True)
    width, height = (int(side) for side in sizes[times.argmax()])
    box = scaled(section, scale)
    inside = keep_ratio_size((width, height), box) if box else (width, height)
    native = f"{width}x{height}" + (f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else "")
    return [
        key, f"{index.dataset} {index.split}", str(len(index)), str(len(index.left_out)),
        index.encoding if index.labelled else "none", native, f"{inside[0]}x{inside[1]}",
        "used" if cache.find(index, box) else "none",
    ]  # fmt: skip


def percentage(value: float) -> str:
    return "-" if value == 0 else f"{value:.3f}" if value < 0.1 else f"{value:.1f}"


def one_sided(shares: dict[str, list[float]], names: tuple[str, ...]) -> Iterator[str]:
    """Classes that only the source has, or only the target (its validation images count, too)."""
    present = {key: {n for n, share in zip(names, row, strict=True) if share} for key, row in shares.items()}
    source = present.pop("source")
    if not present:
        yield "the target has no labels here: its classes cannot be compared"
        return
    target = set().union(*present.values())
    for title, alone in (("the source", source - target), ("the target", target - source)):
        if alone:
            yield f"classes with pixels in {title} only: {', '.join(n for n in names if n in alone)}"


def misfits(recipe: Recipe, domains: Domains) -> Iterator[str]:
    """Values made for GTA5 -> Cityscapes that are active on other data, and values that the data make void."""
    data, names = recipe.data, class_set(recipe).names
    hidden = {"crop": data.crop_margins, "image": data.image_margins, "none": None}[data.margins]
    if hidden not in (None, (0, 0)) and "target" in domains and domains["target"][1].dataset != "cityscapes":
        yield (
            f"data.margins={data.margins} ({hidden}) hides the bonnet of the Cityscapes car; does the camera of "
            f"{domains['target'][1].dataset} see one? If not: data.margins=none"
        )
    yield from pixel_misfits(recipe, domains["source"][1], names)
    for key, (section, index) in domains.items():
        if index.labelled and (ignored := ignored_classes(section, names)):
            yield f"classes of {key} that become ignore (data.{key}.merge): {', '.join(ignored)}"
    for path, kind, part in components(recipe):
        for where, component, settings in walk(kind, part, path):
            for key in settings_of_type(component, ClassNames):
                strangers = [name for name in settings.get(key) or () if name not in names]
                if strangers:
                    yield f"{'.'.join((*where, key))}: no class is called {', '.join(strangers)}"


def pixel_misfits(recipe: Recipe, source: Index, names: tuple[str, ...]) -> Iterator[str]:
    """``data.min_pixels`` against the sizes of the images and what their labels hold."""
    if recipe.data.sampler["kind"] == "uniform":
        return
    wanted, area = recipe.data.min_pixels, float(np.median(source.sizes.prod(1)))
    if not TUNED / 4 <= wanted / area <= TUNED * 4:
        yield (
            f"data.min_pixels={wanted} is {100 * wanted / area:.2g} % of an image of {source.dataset}, "
            f"{100 * TUNED:.2g} % in the published recipes: about {max(1, round(TUNED * area))} would be alike"
        )
    never = [n for n, column in zip(names, source.counts.T, strict=True) if column.any() and column.max() <= wanted]
    if never:
        yield f"no source image has more than {wanted} pixels (data.min_pixels) of: {', '.join(never)}; never drawn"


def draw(domains: Domains, scale: int, classes: ClassSet) -> Figure:
    """Evenly spaced images of source and target beside the same with their labels' colours over them."""
    columns: list[list[tuple[str, Pixels]]] = []
    for key in ("source", "target"):
        if key in domains:
            section, index = domains[key]
            domain = Domain(index, size=scaled(section, scale), labels=index.labelled)
            titles = (f"{key}: {index.dataset}", "labels" if index.labelled else "no labels")
            places = np.linspace(0, len(domain) - 1, SHOWN).round()
            shown = [blended(domain, int(place), classes.palette) for place in places]
            for title, images in zip(titles, zip(*shown, strict=True), strict=True):
                columns.append([(title if row == 0 else "", image) for row, image in enumerate(images)])
    return figures.panels(list(zip(*columns, strict=True)), classes.names, classes.palette)


def blended(domain: Domain, position: int, palette: figures.Palette) -> tuple[Pixels, Pixels]:
    """An image, and the same under its labels' colours; ignored pixels are dark."""
    image, label = domain.load(position)
    colours = np.zeros_like(image) if label is None else colourise(label, palette)
    return image, (0.4 * image + 0.6 * colours).astype(np.uint8)
