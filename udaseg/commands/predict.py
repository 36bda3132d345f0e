"""`udaseg predict`: label maps for pictures and videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from udaseg.console import Counting, out
from udaseg.deploy.files import DEFAULT, default_folder, kinds, predict
from udaseg.errors import UserError

SHOWN = 20  # failures named one by one


def predict_files(weights: Path, inputs: list[str], *, folder: Path | None, save: Sequence[str], teacher: bool) -> None:
    """Predict all; UserError at the end that lists the files that failed."""
    folder = folder or default_folder(weights, teacher=teacher)
    if "probabilities" in save:
        out.print("note: probabilities take 2 bytes a class and pixel before compression", style="yellow")
    with Counting("predicting") as progress:
        results = predict(weights, inputs, out=folder, save=kinds(save or DEFAULT), teacher=teacher, progress=progress)
    failed = [result.error for result in results if result.error]
    fresh = sum(result.fresh for result in results)
    out.print(f"{fresh} predicted, {len(results) - fresh - len(failed)} finished before, in {folder}")
    if failed:
        more = f"\n  and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
        listed = "\n  ".join(str(reason) for reason in failed[:SHOWN])
        raise UserError(f"{len(failed)} of {len(results)} failed:\n  {listed}{more}")
