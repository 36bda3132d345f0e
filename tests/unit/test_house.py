"""The house rule: what a paper brings lies in its add-on, and the package works without the add-ons."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import udaseg

PACKAGE = Path(udaseg.__file__).parent
ADDONS = PACKAGE / "addons"
SHARED_WORDS = {"none", "grid", "offline", "GaussianBlur"}
"""Names that others have, too: everyday words, one of which W&B wants, and Pillow's filter."""


def test_nothing_outside_the_addons_names_what_a_paper_brings() -> None:
    files = [path for path in ADDONS.rglob("*.py") if path.parent != ADDONS]
    classes = {node.name for path in files for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)}
    recipe_names = {key for path in files if path.stem == "__init__" for key in keys(path)}
    assert {"Rebuild", "Contrast", "FixedRatio"} <= classes
    assert {"rebuild", "contrast", "stylised", "context_aware", "fda", "CCD"} <= recipe_names
    outside = [path for path in PACKAGE.rglob("*.py") if not path.is_relative_to(ADDONS)]
    named = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in outside
        for node in ast.walk(tree(path))
        if mentioned(node) in classes - SHARED_WORDS
        or (isinstance(node, ast.Constant) and node.value in recipe_names - SHARED_WORDS)
        or "addons" in (getattr(node, "module", None) or "").split(".")
    ]
    assert not named


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def keys(path: Path) -> Iterator[str]:
    """Keys whose values are classes: the names of components in recipes."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Name):
                    yield str(key.value)


def mentioned(node: ast.AST) -> str | None:
    """The name that a node reads, imports or defines."""
    return next((str(getattr(node, field)) for field in ("id", "attr", "name") if hasattr(node, field)), None)


@pytest.fixture(scope="module")
def without_addons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of package, recipes and tests with the add-ons deleted."""
    copy = tmp_path_factory.mktemp("house")
    for folder in ("udaseg", "recipes", "tests"):
        shutil.copytree(PACKAGE.parent / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "addons"))
    shutil.copy(PACKAGE.parent / "pyproject.toml", copy)
    return copy


STEPS = """
import toy
from udaseg.engine.assembly import assemble
for name in ("dacs", "daformer", "hrda", "mic"):
    trainer = assemble(toy.load(name, "train.iterations=1", base=toy.small(name))).trainer
    for t, raw in enumerate(trainer.batches(0, 1)):
        losses, _ = trainer.step(raw, t)
        assert all(loss.value.isfinite() for loss in losses.values())
try:
    toy.load("daformer_mrm")
except ValueError as error:
    print(error)
"""


def test_without_addons_the_baselines_train(without_addons: Path, streets: Path) -> None:
    environment = {"PYTHONPATH": f"{without_addons}:{without_addons / 'tests'}"}
    answer = python("-c", STEPS, environment=environment, folder=streets)
    assert answer.returncode == 0, answer.stderr
    assert "unknown term 'rebuild'; allowed: cross_entropy, feature_distance" in answer.stdout


@pytest.mark.slow
def test_without_addons_the_remaining_tests_pass(without_addons: Path) -> None:
    options = ("-q", "-p", "no:cacheprovider", "--deselect", "tests/unit/test_house.py", "tests")
    answer = python("-m", "pytest", *options, environment={"PYTHONPATH": str(without_addons)}, folder=without_addons)
    assert answer.returncode == 0, answer.stdout[-6000:]


def python(*arguments: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
