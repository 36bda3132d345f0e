"""Run folders that nobody trained: what a run leaves behind, with counts that are chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CLASSES = ("road", "car")


def counts(iou: Sequence[int], wrong: int = 10_000) -> list[list[int]]:
    """Of two classes with these IoU (%, below 100): hits / (hits + wrong), half of the wrong pixels in each corner."""
    a, b = (round(wrong * value / (100 - value)) for value in iou)
    return [[a, wrong // 2], [wrong // 2, b]]


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    recipe: str = "dacs",
    benchmark: str = "streets",
    fingerprint: str = "",
    iou: Sequence[int] = (50, 30),
    oracle: Sequence[int] | None = None,
    classes: Sequence[str] = CLASSES,
    confusion: list[list[int]] | None = None,
    protocol: str = "all",
    iterations: int = 40,
    lr: str = "0.001",
    **more: Any,
) -> Path:
    """A finished run; ``iou``: of road and car, in percent below 100. ``more``: keys of the result."""
    write_start(folder, seed=seed, recipe=recipe, benchmark=benchmark, iterations=iterations, lr=lr)
    last = confusion or counts(iou)
    result = {
        "recipe": recipe, "benchmark": benchmark, "seed": seed, "fingerprint": fingerprint or f"{folder.name}",
        "iterations": iterations, "finished": "2026-11-21T00:00:00+0000", "classes": list(classes),
        "protocol": protocol, "validation": {"iteration": iterations, "confusion": last},
        "oracle_selection": {"iteration": 20, "confusion": counts(oracle) if oracle else last}, **more,
    }  # fmt: skip
    write_log(folder, [{"iteration": iterations, "validation": last}], mode="a")
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def write_start(
    folder: Path,
    *,
    seed: int = 0,
    recipe: str = "dacs",
    benchmark: str = "streets",
    iterations: int = 40,
    lr: str = "0.001",
    steps: int = 4,
) -> Path:
    """A run that was interrupted after ``steps`` rows of its log."""
    folder.mkdir(parents=True)
    text = (
        f"benchmark: {benchmark}\nname: {recipe}\noptimiser:\n  lr: {lr}\nruntime:\n  workers: {seed}\nseed: {seed}\n"
    )
    (folder / "recipe.yaml").write_text(text + f"train:\n  iterations: {iterations}\n  batch: 2\n", encoding="utf-8")
    write_log(folder, [
        {"iteration": 5 * i, "lr": 1e-3, "losses": {"source/ce": 3 / i, "mixed/ce": None if i == 2 else 1 / i}}
        for i in range(1, steps + 1)
    ])  # fmt: skip
    return folder


def write_log(folder: Path, rows: Sequence[Mapping[str, Any]], *, mode: str = "w") -> None:
    with open(folder / "metrics.jsonl", mode, encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
