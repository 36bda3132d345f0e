"""What is wrong with a component is found by the contract of that name, and said in a sentence that helps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from contract import broken

import udaseg
from udaseg.config.registry import REGISTRIES
from udaseg.testing import check, check_recipe, returns_a_scalar_loss


@pytest.mark.parametrize(
    ("component", "contract", "said"),
    [
        (broken.Reads, "stays_on_the_device", "reads the device inside the step"),
        (broken.Lists, "stays_on_the_device", r"\.tolist\(\) reads the device"),
        (broken.OnTheCpu, "stays_on_the_device", r"torch\.linspace makes a tensor on the CPU"),
        (broken.TrainsTheTeacher, "gradients_reach_what_they_should", "gradients reach the teacher"),
        (broken.Remembers, "resumes_exactly", r"goes on with other numbers.*register_buffer"),
        (broken.OwnDice, "draws_from_the_steps_numbers", r"numbers come from context\.rng"),
        (broken.OnePerImage, "returns_a_scalar_loss", r"value has the shape \(4,\), not \(\)"),
        (broken.Plain, "returns_a_scalar_loss", "forward returns Tensor, not Loss"),
        (broken.Detached, "gradients_reach_what_they_should", "no gradient reaches the student"),
        (broken.Unused, "gradients_reach_what_they_should", r"no gradient reaches its own head\.weight, head\.bias"),
        (broken.Half, "returns_a_scalar_loss", r"under autocast to bfloat16, value is torch\.bfloat16"),
        (broken.DividesByNothing, "survives_a_batch_without_labels", "value is nan|value is inf"),
        (broken.NeverPresent, "survives_a_batch_without_labels", "`present` is False but the value"),
        (broken.SumsItsOwn, "learns_the_same_on_two_ranks", "two processes with half of the images each differ"),
        (broken.ReducesSometimes, "learns_the_same_on_two_ranks", "one process calls context.reduce and the other"),
        (broken.NeedsNoTarget, "trains_without_a_target", "Declare `needs = TARGET`"),
        (broken.Positional, "has_described_settings", "width: settings are keyword-only"),
        (broken.ByRank, "is_the_same_on_two_ranks", r"context\.rng\.per_image"),
        (broken.OneImageMask, "returns_what_it_says", r"mask has the shape \(4, 64, 64\); \(4, 1, 64, 64\)"),
        (broken.SoftMask, "returns_what_it_says", r"other values than 1 \(kept\) and 0 \(masked\)"),
        (broken.Overwrites, "returns_what_it_says", "changes batch.source_image in place"),
        (broken.FloatLabels, "returns_what_it_says", "train ids are int64"),
        (broken.Coin, "draws_from_the_steps_numbers", "image: another result in the same step"),
        (broken.Small, "returns_what_it_says", r"image has the shape \(4, 3, 32, 32\)"),
        (broken.Ignores, "returns_what_it_says", "weight 0 says that a pixel does not count"),
        (broken.InTurn, "draws_from_the_given_generator", "remember nothing from draw to draw"),
        (broken.Outside, "draws_images_that_exist", "image 1000 of 24"),
        (broken.WrongStrides, "has_the_maps_it_declares", "channels and strides say"),
        (broken.LooksAround, "evaluates_images_one_by_one", "depend on the other images of its batch"),
        (broken.ReadsMore, "returns_logits_of_the_maps_it_reads", r"reads other maps than `reads` = \(-1,\)"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_is_found(component: Any, contract: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udaseg.testing.ranks.PATIENCE", 1.0)
    with pytest.raises(AssertionError, match=f"^{component.__name__}: {contract}: (.|\n)*({said})"):
        check(component)


def test_a_class_that_is_no_component_and_an_unknown_contract() -> None:
    with pytest.raises(AssertionError, match=r"is no component: it must derive from one of Encoder, .*udaseg\.plugin"):
        check(dict)
    with pytest.raises(AssertionError, match="leave_out: no contract resume; there are has_described_settings, "):
        check(broken.Good, leave_out=["resume"])


def test_registries_and_names_are_as_before() -> None:
    before = {kind: registry.entries for kind, registry in REGISTRIES.items()}
    returns_a_scalar_loss(broken.Good, weight=0.1)
    with pytest.raises(AssertionError):
        returns_a_scalar_loss(broken.Plain)
    assert {kind: registry.entries for kind, registry in REGISTRIES.items()} == before


def test_a_view_that_declares_its_target_is_held_to_nothing_without_one() -> None:
    check(broken.QuietTarget)


def test_a_recipe_is_checked_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: demo\nteacher: {alpha: 0.9}\n")
    check_recipe(str(tmp_path / "mine.yaml"), "views.mixed.jitter=0.1")


OUTSIDE = """
from torch import Tensor
from udaseg.plugin import Loss, Term, segmentation_loss
from udaseg.testing import check

class MyTerm(Term):
    \"\"\"Cross-entropy times ``factor``.\"\"\"
    def __init__(self, context, *, factor: float = 1.0):
        super().__init__(context)
        self.factor = factor
    def forward(self, view, output, context):
        return Loss(self.factor * segmentation_loss(output.predictions, view))

def test_my_term():
    check(MyTerm, factor=0.5, weight=0.1)
"""


def test_from_an_empty_folder_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pytest, without our tests, a data home, or a registered component; it leaves nothing behind."""
    (tmp_path / "test_mine.py").write_text(OUTSIDE)
    monkeypatch.setenv("PYTHONPATH", str(Path(udaseg.__file__).parents[1]))
    monkeypatch.delenv("UDASEG_DATA", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "test_mine.py")
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout
    assert not list(tmp_path.glob("udaseg-testing-*")) and not (tmp_path / "runs").exists()


def test_it_imports_no_pytest() -> None:
    files = Path(udaseg.__file__).with_name("testing").glob("*.py")
    assert not [path for path in files if "import pytest" in path.read_text() or "from pytest" in path.read_text()]
