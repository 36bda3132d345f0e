"""What an import costs. In which direction modules may import one another is import-linter's (pyproject.toml)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "numpy", "pydantic", "PIL", "yaml", "jinja2", "safetensors", "matplotlib", "timm")


def imported_by(code: str, modules: tuple[str, ...] = HEAVY) -> list[str]:
    """Which of the modules are there after the code has run in a fresh interpreter."""
    report = f"import sys; {code}; print(*[m for m in {modules!r} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True).stdout.split()


def test_the_package_itself_imports_nothing_until_it_is_asked() -> None:
    assert imported_by("import udaseg", (*HEAVY, "udaseg.api")) == []


def test_the_command_line_imports_nothing_heavy() -> None:
    assert imported_by("import udaseg.cli") == []


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("train --recipe nosuch", "no recipe 'nosuch'"),
        ("train --recipe dacs --benchmark nosuch", "no benchmark 'nosuch'"),
        ("train --recipe dacs train.batchh=3", "did you mean 'batch'?"),
        ("train --recipe dacs train.batch", "expected key=value"),
        ("train --recipe dacs train.batch=[", "not a valid YAML value"),
        ("profile --recipe dacs runtime.device=gpu", "'gpu' is not a device"),
        ("recipe show dacs optimiser.lr=0", "greater than 0"),
        ("recipe validate broken.yaml", "not valid YAML"),
        ("recipe cp nosuch x.yaml", "no recipe 'nosuch'"),
        ("ablate nosuch", "no study"),
        ("demo --recipe nosuch", "no recipe 'nosuch'"),
        ("check nosuch", "no benchmark 'nosuch'"),
        ("evaluate run --benchmark nosuch", "no benchmark 'nosuch'"),
    ],
)
def test_a_trivial_error_is_told_without_torch(tmp_path: Path, command: str, complaint: str) -> None:
    (tmp_path / "broken.yaml").write_text("train: {batch: ")
    call = f"from udaseg import cli\ntry: cli.main({command.split()!r})\nfinally: print('torch' in sys.modules)"
    code = f"import sys; {call}"
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (2, "False\n") and complaint in answer.stderr


def test_flattening_a_recipe_needs_no_torch() -> None:
    assert imported_by("from udaseg.config import layers; layers.flatten('daformer')", ("torch", "yaml")) == ["yaml"]
