"""Imports point one way (architecture.md, section Layout), there are no cycles, and the command line starts light."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import udaseg

ROOT = Path(udaseg.__file__).parent
BASE = {"udaseg", "udaseg.errors", "udaseg.files", "udaseg.addons.omuda.foreground", "udaseg.ranges", "udaseg.yamls"}
"""What everything may import: version, the one exception, writing files, names of things, ranges, reading YAML."""

ALLOWED: dict[str, set[str]] = {
    "udaseg.errors": set(),
    "udaseg.files": set(),
    "udaseg.addons.omuda.foreground": set(),
    "udaseg.ranges": set(),
    "udaseg.console": set(),
    "udaseg.config.parts": set(),
    "udaseg.config.recipe": {"udaseg.config.parts"},
    "udaseg.yamls": set(),
    "udaseg.data": set(),
    "udaseg.data.custom": {"udaseg.data", "udaseg.config.parts"},
    "udaseg.models": set(),
    "udaseg.uda": {"udaseg.models"},
    "udaseg.core.terms": {
        "udaseg.models.blocks", "udaseg.models.segmentor", "udaseg.addons.mrm.rebuilder", "udaseg.core.context",
    },
    "udaseg.evaluation": {"udaseg.models"},
    "udaseg.evaluation.measure": {
        "udaseg.build", "udaseg.config", "udaseg.engine", "udaseg.data", "udaseg.evaluation", "udaseg.models",
    },
    "udaseg.engine": {"udaseg.data.loading", "udaseg.models", "udaseg.uda", "udaseg.evaluation"},
    "udaseg.report": {
        "udaseg.build", "udaseg.engine.runs", "udaseg.config.recipe", "udaseg.config.parts", "udaseg.evaluation", "udaseg.data.classes",
        "udaseg.console", "udaseg.engine",
    },
    "udaseg.build": {
        "udaseg.config.recipe", "udaseg.config.parts", "udaseg.data", "udaseg.models", "udaseg.uda", "udaseg.engine",
        "udaseg.evaluation",
    },
    "udaseg.engine.runs": {"udaseg.build", "udaseg.config.recipe", "udaseg.engine", "udaseg.models", "udaseg.console"},
    "udaseg.deploy": {
        "udaseg.build", "udaseg.engine.runs", "udaseg.data", "udaseg.models", "udaseg.evaluation", "udaseg.engine.device",
        "udaseg.report.figures",
    },
    "udaseg.commands": {"udaseg"},
    "udaseg.api": {"udaseg"},
    "udaseg.cli": {"udaseg"},
}  # fmt: skip
"""Package or module -> what it may import besides itself and BASE; the longest prefix of a module decides.

``udaseg`` stands for everything. ``udaseg.core.terms`` does not inherit what ``udaseg.uda`` may.
"""
HEAVY = ("torch", "torchvision", "numpy", "pydantic", "PIL", "yaml", "jinja2", "safetensors", "matplotlib")


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name -> file of everything in the package."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: set[str]) -> set[str]:
    """Our own modules that a file imports, anywhere in it (inside functions and TYPE_CHECKING, too)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute(name, path, node)
            inside = {f"{base}.{alias.name}" for alias in node.names} & known
            found |= inside or {base}
    return {module for module in found if module in known} - {name}


def absolute(name: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def rule(module: str) -> str:
    """The row of ALLOWED that a module stands under."""
    rows = [row for row in ALLOWED if within(module, row)]
    if not rows:
        raise AssertionError(f"{module} stands under no rule: add it to ALLOWED (architecture.md, Layout)")
    return max(rows, key=len)


def forbidden(module: str, imported: set[str]) -> set[str]:
    row = rule(module)
    allowed = ALLOWED[row] | {row}
    return {
        other
        for other in imported - BASE
        if not any(within(other, package) for package in allowed) or within(other, "udaseg.cli")
    }


KNOWN = modules()
GRAPH = {name: imports(name, path, set(KNOWN)) for name, path in KNOWN.items()}


@pytest.mark.parametrize("module", [name for name in KNOWN if name != "udaseg"])
def test_imports_point_one_way(module: str) -> None:
    assert not forbidden(module, GRAPH[module])


def test_the_package_itself_imports_nothing_until_it_is_asked() -> None:
    assert GRAPH["udaseg"] == {"udaseg.api"}  # for type checkers
    code = f"import sys, udaseg; print([m for m in {HEAVY!r} if m in sys.modules], 'udaseg.api' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[] False"


def test_nothing_is_imported_in_a_circle() -> None:
    inside = {name: found - {"udaseg"} for name, found in GRAPH.items() if name != "udaseg"}
    tuple(TopologicalSorter(inside).static_order())  # CycleError names the circle


def test_the_rules_can_be_broken() -> None:
    """So that a mistake in this file does not pass for order in the package."""
    assert len(KNOWN) > 40 and GRAPH["udaseg.core.step"] >= {"udaseg.models.segmentor", "udaseg.core.context"}
    for module, bad in (
        ("udaseg.data.dataset", "udaseg.models.mit"),
        ("udaseg.data.dataset", "udaseg.core.context"),
        ("udaseg.models.mit", "udaseg.data.classes"),
        ("udaseg.core.step", "udaseg.data.loading"),
        ("udaseg.core.terms.cross_entropy", "udaseg.core.step"),
        ("udaseg.core.terms.cross_entropy", "udaseg.models.mit"),
        ("udaseg.engine.trainer", "udaseg.data.dataset"),
        ("udaseg.engine.trainer", "udaseg.build"),
        ("udaseg.evaluation.evaluate", "udaseg.core.context"),
        ("udaseg.commands.train", "udaseg.cli"),
        ("udaseg.config.recipe", "udaseg.build"),
    ):
        assert forbidden(module, {bad}) == {bad}, (module, bad)


def test_imports_are_found_however_they_are_written(tmp_path: Path) -> None:
    known = {"udaseg.data", "udaseg.data.index", "udaseg.errors", "udaseg.core.context", "udaseg.uda"}
    path = tmp_path / "step.py"
    path.write_text(
        "from udaseg import data\nimport udaseg.errors as e\n\n\ndef late():\n    from udaseg.data.index import Index\n"
        "    from .types import View\n    from . import types\n",
        encoding="utf-8",
    )
    found = imports("udaseg.core.step", path, known)
    assert found == {"udaseg.data", "udaseg.errors", "udaseg.data.index", "udaseg.core.context"}


def test_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, udaseg.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_recipes_need_no_torch() -> None:
    """A recipe can be flattened where torch is broken."""
    code = "import sys, udaseg.config.recipe; udaseg.config.recipe.flatten('daformer'); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
