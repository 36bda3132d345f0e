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
def streets_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data home with a small, prepared `streets`: 24 source, 12 + 6 target scenes of 64 x 32."""
    from udaseg.data.prepare import prepare
    from udaseg.data.streets import write_streets

    home = tmp_path_factory.mktemp("home")
    write_streets(home / "streets", size=(64, 32), source=24, target_train=12, target_val=6, source_val=2, workers=1)
    before = os.environ.get("UDASEG_DATA")
    os.environ["UDASEG_DATA"] = str(home)
    try:
        for name in ("streets_source", "streets_target"):
            prepare(name, workers=1)
    finally:
        os.environ.pop("UDASEG_DATA") if before is None else os.environ.update(UDASEG_DATA=before)
    return home


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
