"""Tests of the pages need the pages: where the package is tested without them, they are left out."""

from pathlib import Path

collect_ignore_glob = [] if (Path(__file__).parents[2] / "docs").is_dir() else ["test_*.py"]
