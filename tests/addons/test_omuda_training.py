"""OMUDA's figure 1: measures of a training, by hand and through the real command on runs that kept checkpoints."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy
from PIL import Image
from torch import Tensor
from toy import run

from udaseg.addons.omuda.inconsistency import Drift, Fluctuation, PseudoLabelError
from udaseg.data.loading import Normalise
from udaseg.engine import checkpoint, runs
from udaseg.engine.domains import images_of
from udaseg.plugin import Centres, UserError
from udaseg.testing import check


class Left:
    """A training that left what it is given."""

    def __init__(self, **found: list[tuple[int, object]]) -> None:
        self.found = found

    def validations(self) -> Iterator[tuple[int, Tensor]]:
        yield from self.found["validations"]  # type: ignore[misc]

    def centres(self) -> Iterator[tuple[int, Centres]]:
        yield from self.found["centres"]  # type: ignore[misc]

    def pseudo_labels(self) -> Iterator[tuple[int, Tensor]]:
        yield from self.found["labels"]  # type: ignore[misc]


def counts(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def test_fluctuation_is_the_deviation_of_the_iou_over_runs() -> None:
    first = Left(validations=[(10, counts([6, 2], [2, 0])), (20, counts([8, 0], [0, 2]))])
    second = Left(validations=[(20, counts([4, 4], [0, 2])), (30, counts([8, 0], [0, 2]))])
    (track,) = Fluctuation()({"a": first, "b": second}).values()
    assert track.iterations == [20]
    expected = [np.std([100, 100 * 4 / 8], ddof=1), np.std([100, 100 * 2 / 6], ddof=1)]
    assert track.values[0].tolist() == pytest.approx(expected)
    with pytest.raises(UserError, match="two or more runs"):
        Fluctuation()({"a": first})
    with pytest.raises(UserError, match="no validation at the same iteration"):
        Fluctuation()({"a": first, "b": Left(validations=[(30, counts([1, 0], [0, 1]))])})


def test_drift_is_the_turn_of_the_mean_feature() -> None:
    def centres(*means: list[float]) -> Centres:
        number = torch.tensor([5.0, 0.0])
        return Centres(torch.tensor(means).double() * 5, torch.zeros(2), number)

    found = Left(centres=[(5, centres([1, 0], [0, 0])), (9, centres([0, 2], [0, 0])), (12, centres([3, 3], [0, 0]))])
    track = Drift()({"a": found})["a"]
    assert track.iterations == [5, 9, 12] and track.values[:, 1].isnan().all()
    assert track.values[:, 0].tolist() == pytest.approx([0, 1, 1 - 0.5**0.5])
    with pytest.raises(UserError, match=r"a: drift needs two or more checkpoints.*runtime\.keep_checkpoints"):
        Drift()({"a": Left(centres=[(5, centres([1, 0], [0, 0]))])})


def test_the_error_of_pseudo_labels_is_of_what_is_predicted() -> None:
    track = PseudoLabelError()({"a": Left(labels=[(5, counts([6, 0, 1], [2, 0, 3], [0, 0, 4]))])})["a"]
    assert track.values[0, [0, 2]].tolist() == pytest.approx([25, 50]) and track.values[0, 1].isnan()


@pytest.mark.parametrize("measure", [Fluctuation, Drift, PseudoLabelError])
def test_measures_keep_the_contracts_of_their_kind(measure: type) -> None:
    check(measure)


@pytest.fixture(scope="module")
def trained(streets_home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds, four iterations, validated at 2 and 4, the last three checkpoints kept."""
    folders = [tmp_path_factory.mktemp("trained") / f"seed{seed}" for seed in (0, 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UDASEG_DATA", str(streets_home))
        for seed, folder in enumerate(folders):
            start = ("train", "--recipe", "dacs", "--benchmark", "streets", "--seed", str(seed), "--out", str(folder))
            more = ("evaluation.every=2", "runtime.checkpoint_minutes=0", "runtime.keep_checkpoints=3")
            assert run(*start, *toy.TINY, "train.iterations=4", "optimiser.lr=0.01", *more) == 0
    return folders


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def column(rows: list[dict[str, str]], name: str, **wanted: str) -> list[float]:
    return [float(row[name] or "nan") for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_figure_1a_from_the_logs(trained: list[Path], streets: Path) -> None:
    assert run("analyze", "training", "fluctuation", *map(str, trained)) == 0
    rows = rows_of(Path("fluctuation.csv"))
    assert rows[0].keys() == {"class", "pixels, %", "run", "iteration", "fluctuation"}
    share = [float(row["pixels, %"]) for row in rows]
    assert share == sorted(share, reverse=True) and sum(share[::2]) == pytest.approx(100, abs=0.01)
    logged = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in trained]
    matrices = [{row["iteration"]: np.array(row["validation"]) for row in log if "validation" in row} for log in logged]
    expected = []
    for t in (2, 4):
        hits = [100 * m[t][0, 0] / (m[t][0].sum() + m[t][:, 0].sum() - m[t][0, 0]) for m in matrices]
        expected.append(np.std(hits, ddof=1))
    assert column(rows, "fluctuation", **{"class": "road"}) == pytest.approx(expected, abs=1e-4)
    with Image.open("fluctuation.png") as picture:
        assert picture.width > 1000


def test_figure_1c_and_1d_from_the_checkpoints(trained: list[Path], streets: Path) -> None:
    folder = trained[0]
    assert [path.name for path in checkpoint.listed(folder / "checkpoints")] == [
        f"step-000000{t}.pt" for t in (2, 3, 4)
    ]
    section = runs.read_recipe(folder).recipe.data.validation
    means, wrong = [], []
    assert section is not None
    for t in (2, 3, 4):
        path = folder / "checkpoints" / f"step-000000{t}.pt"
        student, metadata = runs.load_student(path)
        teacher, _ = runs.load_student(path, teacher=True)
        cells, labels, said = [], [], []
        for item in images_of(section, 1, metadata.classes):
            image = Normalise(metadata.mean, metadata.std)(item["image"][None])
            with torch.no_grad():
                features = student.eval().encoder(image)[-1][0]
                guess = F.interpolate(teacher.eval().logits(image), item["label"].shape, mode="bilinear").argmax(1)[0]
            small = F.interpolate(item["label"][None, None].float(), features.shape[-2:])[0, 0]
            cells.append(features[:, small == 0].numpy())  # road
            labels.append(item["label"].flatten().numpy())
            said.append(guess.flatten().numpy())
        means.append(np.concatenate(cells, axis=1).mean(axis=1, dtype=np.float64))
        truth, guesses = np.concatenate(labels), np.concatenate(said)
        as_road = (guesses == 0) & (truth != 255)
        wrong.append(100 * (truth[as_road] != 0).mean() if as_road.any() else np.nan)
    cosine = [m @ means[0] / np.linalg.norm(m) / np.linalg.norm(means[0]) for m in means]
    assert run("analyze", "training", "drift", str(folder), "--out", "c.csv") == 0
    road = {"class": "road", "run": str(folder)}
    assert column(rows_of(Path("c.csv")), "drift", **road) == pytest.approx(1 - np.array(cosine), abs=2e-3)
    assert column(rows_of(Path("c.csv")), "iteration", **road) == [2, 3, 4]
    assert run("analyze", "training", "pseudo_label_error", str(folder), "--out", "d.csv") == 0
    found = column(rows_of(Path("d.csv")), "pseudo_label_error", **road)
    assert found == pytest.approx(wrong, abs=1e-3, nan_ok=True) and np.isfinite(found).any()


def test_wrong_inputs_are_messages(trained: list[Path], streets: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bare = streets / "bare"
    shutil.copytree(trained[0], bare, ignore=shutil.ignore_patterns("*.pt"))
    fresh = streets / "fresh"
    shutil.copytree(trained[0], fresh, ignore=shutil.ignore_patterns("metrics.jsonl"))
    for arguments, words in (
        (("drifts", str(bare)), "did you mean 'drift'? allowed: drift, fluctuation, pseudo_label_error"),
        (("drift", str(bare)), "bare: no checkpoint in its folder checkpoints"),
        (("fluctuation", str(bare)), "give two or more runs"),
        (("fluctuation", str(fresh), str(bare)), "nothing has been validated yet"),
        (("drift", "nowhere"), "not a run folder"),
        (("drift", str(bare), "--out", "x.png"), "the name of a .csv file is expected"),
    ):
        capfd.readouterr()
        assert run("analyze", "training", *arguments) == 2
        captured = capfd.readouterr()
        assert words in " ".join(captured.err.split()) and "Traceback" not in captured.err, captured.err
    assert not [*streets.glob("*.csv"), *streets.glob("*.png")]


def test_a_checkpoint_can_be_evaluated(trained: list[Path], streets: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = trained[0] / "checkpoints" / "step-0000004.pt"
    scores = []
    for of in (trained[0], path):
        capfd.readouterr()
        assert run("evaluate", str(of), "--json") == 0
        scores.append(json.loads(capfd.readouterr().out)["miou"])
    assert scores[0] == scores[1]
    assert run("evaluate", str(path), "--teacher") == 0
    lost = streets / "step-0000004.pt"
    shutil.copy(path, lost)
    assert run("evaluate", str(lost)) == 2
    assert "not a run folder" in " ".join(capfd.readouterr().err.split())
