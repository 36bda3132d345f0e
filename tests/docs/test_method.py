"""The tutorial docs/method.md, as a new user goes through it: its files are written, its commands run as they stand."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import toy

PAGE = Path(__file__).parents[2] / "docs" / "method.md"
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.M | re.S)


def test_the_tutorial_works(fresh_registries: None, capfd: pytest.CaptureFixture[str]) -> None:
    for language, title, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if title:
            assert Path(title).parent.is_dir(), f"{title} comes before its folder"
            Path(title).write_text(text, encoding="utf-8")
        elif language == "sh":
            for line in text.splitlines():
                run(line)
    said = "".join(capfd.readouterr())
    assert "mixed/my_loss" in said, "the term is in the log of the training"
    report = said[said.rindex("my_loss on streets") :].partition("\n\n")[0]
    assert [report.count(row) for row in ("self-training", "+ my_loss", "alpha 0", "reproduced")] == [1, 2, 1, 3]


def run(line: str) -> None:
    """One command line, as in a new process."""
    program, *words = shlex.split(line)
    toy.forget_plugins()
    if program == "udaseg":
        assert toy.run(*words) == 0, line
    else:
        assert program == "python"
        subprocess.run([sys.executable, *words], check=True)
