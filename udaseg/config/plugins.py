"""Plugins: components from outside the package, found by a recipe, on the command line or in an installed package.

A plugin is a module on ``udaseg.plugin`` with a table ``COMPONENTS``, as an add-on of this package is: one file, or a
module of a package. Its names stand beside the shipped ones from then on. An installed package is found by its entry
points of the group ``udaseg``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from udaseg.config.layers import OVERRIDE, plugin_places
from udaseg.config.registry import REGISTRIES, Settings, refuse_flaws, register, settings_model, walk
from udaseg.errors import UserError

GROUP = "udaseg"
EXPECTED = 'a table is expected: COMPONENTS = {"term": {"my_loss": MyLoss}}; kinds: ' + ", ".join(REGISTRIES)


@dataclass(frozen=True)
class Plugin:
    """``name``: a file's path or a module's name, as given. ``sha256``: of its file, or of all of its package."""

    name: str
    module: str
    file: str
    version: str | None
    sha256: str

    @property
    def short(self) -> str:
        """In messages and tables: the file's name, or the module's."""
        return Path(self.name).name if self.name.endswith(".py") else self.name


LOADED: dict[str, Plugin] = {}
"""Every plugin of this process by its name."""
BROKEN: dict[str, str] = {}
"""Installed plugins that could not be used, and why."""


def load_plugins(names: Iterable[str]) -> None:
    """Put their components into the registries. UserError for one that cannot be found, imported or used."""
    for name in names:
        if name not in LOADED:
            LOADED[name] = load(name)


def load_named(names: Iterable[str]) -> None:
    """Those of the command line."""
    places = plugin_places(list(names), OVERRIDE)
    load_plugins(places)


def load(name: str, entry: EntryPoint | None = None) -> Plugin:
    """Import one, check its table, register it."""
    module = import_file(Path(name)) if name.endswith(".py") else import_module(name)
    components = getattr(module, "COMPONENTS", None)
    if not isinstance(components, dict) or not all(isinstance(entries, dict) for entries in components.values()):
        raise UserError(f"plugin {name}: {EXPECTED}")
    file = str(module.__file__)
    version = getattr(module, "__version__", None) or (entry.dist.version if entry and entry.dist else None)
    plugin = Plugin(name, module.__name__, file, version and str(version), digest(module))
    try:
        refuse_flaws(components)
        for kind, entries in components.items():
            for component in entries.values():
                refuse_constructor(component, REGISTRIES[kind].supplied)
        register(components)
    except UserError as error:
        raise UserError(f"plugin {name}: {error}") from None
    return plugin


def refuse_constructor(component: type, supplied: tuple[str, ...]) -> None:
    """UserError where positional parameters are not those supplied, or a setting (keyword-only) has no type."""
    kinds = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    positional = [p for p in inspect.signature(component).parameters.values() if p.kind in kinds]
    if len(positional) < len(supplied) or any(p.default is p.empty for p in positional[len(supplied) :]):
        rule = f"__init__({', '.join(['self', *supplied, '*', 'setting: float = 1.0'])})"
        raise UserError(f"{component.__name__}: its constructor has to be as in {rule}: settings stand after the *")
    try:
        settings_model(component)
    except Exception as error:  # whatever a wrong annotation leads to
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{component.__name__}: every setting needs a type and a fitting default ({reason})") from None


@functools.cache
def load_installed() -> None:
    """The plugins of all installed packages, looked for once. One that is broken is passed over: it may be none of the
    recipe's."""
    for entry in entry_points(group=GROUP):
        if entry.module not in LOADED:
            try:
                LOADED[entry.module] = load(entry.module, entry)
            except UserError as error:
                BROKEN[entry.module] = str(error)


def import_file(path: Path) -> ModuleType:
    """A file as a top-level module, so that processes that load data can import it, too."""
    name = path.stem
    if not path.is_file():
        raise UserError(f"plugin {path}: no such file")
    if not name.isidentifier():
        raise UserError(f"plugin {path}: its name has to be a Python name, as my_method.py")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    module = import_module(name, str(path))
    if not module.__file__ or not Path(module.__file__).samefile(path):
        raise UserError(f"plugin {path}: Python knows another module {name} ({module.__file__}); rename the file")
    return module


def import_module(name: str, shown: str | None = None) -> ModuleType:
    """UserError with the place in the plugin's own code if it cannot be imported."""
    shown = shown or name
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and (name + ".").startswith(error.name + "."):
            advice = "install its package, or give the path of a file that ends in .py"
            raise UserError(f"plugin {shown}: there is no module {error.name}; {advice}") from None
        raise UserError(
            f"plugin {shown} cannot be imported: {place_of(error)}{type(error).__name__}: {error}"
        ) from None


def place_of(error: BaseException) -> str:
    """'file, line N: ' of the last line outside Python's import system."""
    if isinstance(error, SyntaxError):
        return ""  # says so itself
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    inside = [frame for frame in frames if frame.filename != __file__]
    return f"{inside[-1].filename}, line {inside[-1].lineno}: " if inside else ""


def digest(module: ModuleType) -> str:
    """SHA-256 of a file; of a module in a package: of all Python files of the top package."""
    top = sys.modules[module.__name__.partition(".")[0]]
    folders = [Path(folder) for folder in getattr(top, "__path__", [])]
    files = sorted(file for folder in folders for file in folder.rglob("*.py")) or [Path(str(module.__file__))]
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()


def plugins_of(components: Iterable[tuple[str, Settings]]) -> list[Plugin]:
    """Where these (kind, {kind, settings...}), and the components within them, come from."""
    modules = {top_package(component.__module__) for kind, part in components for _, component, _ in walk(kind, part)}
    return [plugin for plugin in LOADED.values() if top_package(plugin.module) in modules]


def provenance(component: type) -> str:
    """The short name of the plugin that brings a class; "" for one of this package."""
    own = (plugin for plugin in LOADED.values() if top_package(plugin.module) == top_package(component.__module__))
    return next((plugin.short for plugin in own), "")


def top_package(module: str) -> str:
    return module.partition(".")[0]


def changes(before: Iterable[Mapping[str, Any]], now: Iterable[Plugin]) -> list[str]:
    """A sentence for each plugin whose code is another than it was, by a run's stamp (``asdict`` of ``Plugin``)."""
    old = {Path(entry["name"]).name: entry["sha256"] for entry in before}
    return [
        f"plugin {plugin.name} was changed since this run used it"
        for plugin in now
        if old.get(Path(plugin.name).name, plugin.sha256) != plugin.sha256
    ]
