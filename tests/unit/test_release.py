"""The version and its date, which people read in four places."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml

import udaseg

ROOT = Path(udaseg.__file__).parents[1]

pytestmark = pytest.mark.skipif(not (ROOT / "CITATION.cff").is_file(), reason="not a checkout")


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    newest = next(heading for heading in headings if heading != "Unreleased")
    assert citation["version"] == udaseg.__version__
    assert newest == f"{udaseg.__version__} ({citation['date-released']})"
    assert re.fullmatch(r"\d+\.\d+\.\d+", udaseg.__version__)


def test_ci_runs_what_the_package_claims() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    claimed = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    matrix = jobs["tests"]["strategy"]["matrix"]
    assert matrix["python"] == claimed and f'requires-python = ">={claimed[0]}"' in project
    assert {"python": claimed[0], "torch": "lowest"}.items() <= matrix["include"][0].items()
    lowest = re.findall(r'"(torch(?:vision)?)>=([\d.]+)"', project)
    commands = " ".join(step.get("run", "") for step in jobs["tests"]["steps"])
    assert len(lowest) == 2 and all(f'"{name}=={version}.*"' in commands for name, version in lowest)


def test_every_check_of_ci_is_a_hook() -> None:
    """All that takes seconds is asked before a commit, too."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    for check in ("ruff check", "ruff format", "mypy", "lint-imports"):
        assert check in script and any(hook["entry"].startswith(check) for hook in hooks)


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "load_model"])
def test_the_public_functions_say_what_each_argument_is(name: str) -> None:
    function = getattr(udaseg, name)
    text = inspect.getdoc(function) or ""
    assert not [word for word in inspect.signature(function).parameters if f"``{word}``" not in text]
    assert "UserError" in text
