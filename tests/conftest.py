"""Lets tests import what they share (``from parity.rule import ...``), and draws one small data set for all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker of pytest-xdist has a core to itself; before torch is imported

from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))


@pytest.fixture(scope="session")
def streets_home() -> Path:
    """A data home with a small, prepared `streets`, one for each process."""
    from udaseg.testing.toy import data_home

    return data_home()


@pytest.fixture
def streets(streets_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The small data set as data home, and an empty folder (returned) as working folder."""
    monkeypatch.setenv("UDASEG_DATA", str(streets_home))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fresh_registries(streets: Path) -> Iterator[None]:
    """An empty working folder whose plugins are forgotten before and after the test."""
    import toy

    path = [*sys.path]
    toy.forget_plugins()
    yield
    toy.forget_plugins()
    sys.path[:] = path
