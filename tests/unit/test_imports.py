"""What an import costs. In which direction modules may import one another is import-linter's (pyproject.toml)."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "torchvision", "numpy", "pydantic", "PIL", "yaml", "jinja2", "safetensors", "matplotlib", "timm")


def imported_by(code: str, modules: tuple[str, ...] = HEAVY) -> list[str]:
    """Which of the modules are there after the code has run in a fresh interpreter."""
    report = f"import sys; {code}; print(*[m for m in {modules!r} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True).stdout.split()


def test_the_package_itself_imports_nothing_until_it_is_asked() -> None:
    assert imported_by("import udaseg", (*HEAVY, "udaseg.api")) == []


def test_the_command_line_imports_nothing_heavy() -> None:
    assert imported_by("import udaseg.cli") == []


def test_flattening_a_recipe_needs_no_torch() -> None:
    assert imported_by("from udaseg.config import layers; layers.flatten('daformer')", ("torch", "yaml")) == ["yaml"]
