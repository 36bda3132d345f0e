"""A data set of the user's own, described by one YAML file instead of code.

    name: fieldB
    root: ${DATA}/fieldB            # or relative to this file
    classes: [soil, crop, weed]     # names decide which classes of source and target match
    splits:
      train: {images: "frames/**/*.jpg"}                              # an unlabelled target
      val: {images: "val/img/*.png", masks: "val/lab/{stem}_mask.png"}
    encoding: {kind: index, map: {0: soil, 1: crop, 2: weed}, ignore: [255], unknown: error}
    palette: {soil: [120, 80, 40]}  # optional

With `kind: colour` the keys of `map` and the values of `ignore` are colours: "255,255,255" or "#ffffff". Without `map`,
value i is class i. Nothing in the file is executed; masks lie below the root.

In `masks`, {stem} is the image's file name without its ending, {match} what the `*` in it stood for (of a_image.jpg by
`*_image.jpg`: a), {folder} the folders below the fixed part of `images`.
"""

from __future__ import annotations

import colorsys
import contextlib
import os
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from udaseg.data.classes import IGNORE, UNKNOWN_COLOUR, ClassSet
from udaseg.data.images import Pixels
from udaseg.data.spec import DataSetSpec, Encoding, Listing, match
from udaseg.errors import UserError
from udaseg.files import user_path
from udaseg.problems import Problem, explain, suggest
from udaseg.yamls import read_yaml

Colour = tuple[int, int, int]
FileName = Annotated[StrictStr, Field(pattern=r"^\w[\w.-]*$")]  # a part of the index's
Byte = Annotated[StrictInt, Field(ge=0, le=255)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Split(_Section):
    images: str
    masks: str | None = None


class _Encoding(_Section):
    kind: Literal["index", "colour"] = "index"
    map: dict[StrictInt | StrictStr, str] | None = None
    ignore: list[StrictInt | StrictStr] = []
    unknown: Literal["error", "ignore"] = "error"


class _File(_Section):
    """`channels` and `scale` are part of the contract; other values than these are not supported yet."""

    name: FileName
    root: str
    classes: list[str] = Field(min_length=1, max_length=UNKNOWN_COLOUR)
    splits: dict[FileName, _Split] = Field(min_length=1)
    encoding: _Encoding = _Encoding()
    palette: dict[str, tuple[Byte, Byte, Byte]] = {}
    channels: Literal[3] = 3
    scale: Literal["native"] = "native"


_WILDCARD = re.compile(r"([^*?\[]*)\*([^*?\[]*)")
"""A file name with one `*`: what stands before and after it."""
_PLACEHOLDERS = {"name": "x", "root": ".", "classes": ["x"], "splits": {"x": {"images": "x"}}}


def load_custom(name: str) -> DataSetSpec:
    """What the file describes; UserError with all that is wrong with it, each with its key."""
    path = Path(os.path.abspath(user_path(name)))  # one name for every spelling: it is part of the index's
    tree = read_yaml(path, "data set", number_keys=True)
    problems, refused = [], set()
    try:
        file = _File.model_validate(tree)
    except ValidationError as error:
        problems = explain(error, _File)
        refused = {problem.path[0] for problem in problems}
        file = _File.model_validate({**_PLACEHOLDERS, **{k: v for k, v in tree.items() if str(k) not in refused}})
    problems += [p for p in _inconsistencies(file, refused) if p.path[0] not in refused]
    if problems:
        lines = [f"  {'.'.join(p.path)}: {p.message}" for p in problems]
        raise UserError("\n".join([f"data set {path} has {len(lines)} problem(s):", *lines]))
    return _spec(path, file)


def _spec(path: Path, file: _File) -> DataSetSpec:
    encoding = _encoding(file)
    root = path.parent / user_path(os.path.expandvars(file.root))
    tree = [f"  {split}: {s.images}" + (f" with {s.masks}" if s.masks else "") for split, s in file.splits.items()]
    return DataSetSpec(
        name=str(path),
        title=file.name,
        classes=ClassSet(tuple(file.classes), _palette(file, encoding)),
        find=partial(_find, file.splits),
        encodings={"ids": encoding},
        folders=(str(root),),
        needs=(),
        splits=tuple(file.splits),
        tree="\n".join([f"{root}/", *tree]),
        unlabelled=frozenset(name for name, split in file.splits.items() if split.masks is None),
        refuse_unknown=file.encoding.unknown == "error",
    )


def _inconsistencies(file: _File, refused: set[str]) -> Iterator[Problem]:
    for name, times in Counter(file.classes).items():
        if times > 1:
            yield Problem(("classes",), f"{name!r} occurs {times} times")
    unset = [v for v in re.findall(r"\$\{?(\w*)\}?", file.root) if v not in os.environ]
    if unset:
        yield Problem(("root",), f"{file.root!r}: there is no environment variable {unset[0]!r}; set it")
    for name, split in file.splits.items():
        yield from _path_problems(("splits", name, "images"), split.images, fields=())
        if split.masks is not None:
            where = ("splits", name, "masks")
            yield from _path_problems(where, split.masks, fields=("stem", "match", "folder"))
            if "{match}" in split.masks and not _WILDCARD.fullmatch(PurePosixPath(split.images).name):
                message = f"{split.masks!r}: for {{match}}, the file name in `images` has one * and no other wildcard"
                yield Problem(where, message)
    yield from _encoding_problems(file, known=None if "classes" in refused else file.classes)
    for name in file.palette if "classes" not in refused else ():
        if name not in file.classes:
            yield Problem(("palette", name), f"no class {name!r}; {suggest(name, file.classes)}")


def _path_problems(where: tuple[str, ...], text: str, fields: tuple[str, ...]) -> Iterator[Problem]:
    """A glob (no `fields`) or a template, relative to the root and inside it."""
    parts = PurePosixPath(text).parts
    if not parts or text.startswith(("/", "~")) or ".." in parts or (os.name == "nt" and ":" in text):
        yield Problem(where, f"{text!r} is not allowed: a path below the root is expected")
    for sign, example in (("**", "frames/**/*.png"), ("{folder}", "masks/{folder}/x")):
        if any(sign in part and part != sign for part in parts):
            yield Problem(where, f"{text!r} is not allowed: {sign} stands for whole folders, as in {example}")
    if not fields:
        return
    if "*" in text or "?" in text:
        yield Problem(where, f"{text!r} is not allowed: one mask of each image is expected, as in masks/{{stem}}.png")
    try:
        used = {name: f"{form}{how or ''}" for _, name, form, how in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        yield Problem(where, f"{text!r} is not allowed: {error}")
        return
    for name, extra in used.items():
        if name not in fields or extra:
            yield Problem(where, f"{text!r}: {{{name}}} is not allowed; {suggest(name, fields)}")
    if not {"stem", "match"} & used.keys():
        yield Problem(where, f"{text!r} needs {{stem}}, the image's file name without its ending, or {{match}}")


def _encoding_problems(file: _File, known: list[str] | None) -> Iterator[Problem]:
    kind, written = file.encoding.kind, file.encoding.map or {}
    if kind == "colour" and not written:
        yield Problem(("encoding", "map"), "is missing: which colour is which class?")
    for key, name in written.items():
        if known is not None and name not in known:
            yield Problem(("encoding", "map", str(key)), f"no class {name!r}; {suggest(name, known)}")
    what = 'a colour such as "255,255,255" or "#ffffff"' if kind == "colour" else "a number from 0 to 255"
    seen: dict[int | Colour | None, str] = {}
    if kind == "index" and not written:
        seen = {
            value: f"class {name!r}, for without `map` value i is class i" for value, name in enumerate(known or ())
        }
    for place, keys in (("map", [*written]), ("ignore", file.encoding.ignore)):
        for key in keys:
            value = _value(key, kind)
            if value is None:
                yield Problem(("encoding", place), f"{key!r} is not allowed: {what} is expected")
            elif value in seen:
                yield Problem(("encoding", place), f"{key!r} is {seen[value]}")
            seen[value] = "listed twice"


def _value(key: int | str, kind: str) -> int | Colour | None:
    """A raw label value or a colour as written in the file; None if it is neither."""
    if kind == "index":
        return key if isinstance(key, int) and 0 <= key <= 255 else None
    if isinstance(key, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", key):
        return int(key[1:3], 16), int(key[3:5], 16), int(key[5:], 16)
    if isinstance(key, str) and re.fullmatch(r"\s*\d{1,3}\s*(,\s*\d{1,3}\s*){2}", key):
        r, g, b = (int(part) for part in key.split(","))
        return (r, g, b) if max(r, g, b) <= 255 else None
    return None


def _encoding(file: _File) -> Encoding:
    """Colours become raw values: of class c the value c, of the ignored ones 255."""
    train_id = {name: c for c, name in enumerate(file.classes)}
    written: Mapping[Any, str] = file.encoding.map or dict(enumerate(file.classes))
    ids = {_value(key, file.encoding.kind): train_id[name] for key, name in written.items()}
    ignored = [_value(key, file.encoding.kind) for key in file.encoding.ignore]
    if file.encoding.kind == "index":
        return Encoding(ids, frozenset(ignored), Pixels())  # type: ignore[arg-type]
    colours = (*ids.items(), *((colour, IGNORE) for colour in ignored))
    return Encoding({c: c for c in train_id.values()}, frozenset({IGNORE}), Pixels("colour", colours))  # type: ignore[arg-type]


def _palette(file: _File, encoding: Encoding) -> tuple[Colour, ...]:
    """The file's colours, else those of the masks, else hues far apart."""
    of_masks = {value: colour for colour, value in reversed(encoding.pixels.colours)}
    palette = []
    for c, name in enumerate(file.classes):
        r, g, b = (round(255 * part) for part in colorsys.hsv_to_rgb(c * 0.618 % 1, 0.7, 0.9 - 0.15 * (c % 3)))
        palette.append(file.palette.get(name) or of_masks.get(c) or (r, g, b))
    return tuple(palette)


def _find(splits: Mapping[str, _Split], root: Path, split: str) -> Listing:
    section = splits[split]
    images = {path.as_posix(): path for path in sorted(_glob(root, section.images))}
    if section.masks is None:
        return match(images, {})
    masks = {key: _mask(section, image) for key, image in images.items()}
    owners: dict[Path, str] = {}
    shared: dict[str, str] = {}
    for key, mask in masks.items():
        if mask in owners:
            shared[key] = f"shares its mask {mask} with {owners[mask]}"
        elif (root / mask).is_file():
            owners[mask] = key
    unused = _glob(root, section.masks.format(stem="*", match="*", folder="**")) - owners.keys() - {*images.values()}
    labels = {**{key: mask for mask, key in owners.items()}, **{f"\0{mask}": mask for mask in unused}}
    # masks may lie among the images
    kept = {key: image for key, image in images.items() if key not in shared and image not in owners}
    matched = match(kept, labels)
    alone = [(name, f"{why}: there is no {masks[name]}" if name in kept else why) for name, why in matched.unmatched]
    return replace(matched, unmatched=(*alone, *shared.items()))


def _mask(section: _Split, image: Path) -> Path:
    """Where the mask of an image must lie."""
    assert section.masks is not None
    folder = image.parent.relative_to(Path(*_fixed(section.images))).as_posix()
    around = _WILDCARD.fullmatch(PurePosixPath(section.images).name)
    inside = image.name.removeprefix(around[1]).removesuffix(around[2]) if around else ""
    return Path(section.masks.format(stem=image.stem, match=inside, folder=folder))


def _fixed(pattern: str) -> Iterator[str]:
    """The folders of a glob before its first wildcard."""
    for part in PurePosixPath(pattern).parts[:-1]:
        if any(sign in part for sign in "*?["):
            return
        yield part


def _glob(root: Path, pattern: str) -> set[Path]:
    """Files relative to the root; ** enters linked folders, too."""
    *parents, name = PurePosixPath(pattern).parts
    places = [root]
    for part in parents:
        below = (_folders(place) if part == "**" else place.glob(part) for place in places)
        places = list(dict.fromkeys(place for found in below for place in found if place.is_dir()))
    files = (path for place in places for path in place.glob(name))
    return {path.relative_to(root) for path in files if path.is_file() and not path.name.startswith(".")}


def _folders(top: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """A folder and all below it; a link back to a folder on the way down is not followed."""
    real = os.path.realpath(top)
    if real in above:
        return
    yield top
    with contextlib.suppress(PermissionError):
        for entry in sorted(os.scandir(top), key=lambda entry: entry.name):
            if entry.is_dir():
                yield from _folders(top / entry.name, (*above, real))
