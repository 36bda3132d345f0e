"""Every key of every shipped recipe and benchmark, against files that a person reads in a review.

A change on purpose: run the command of the message and look at `git diff`. Recipes of add-ons: tests/addons.
"""

from __future__ import annotations

import pytest
from golden import write

from udaseg.config.layers import shipped


@pytest.mark.parametrize("name", [path.stem for path in sorted(write.RECIPES.glob("*.yaml"))])
def test_recipe_is_as_written_down(name: str) -> None:
    write.compare(write.RECIPES / f"{name}.yaml", write.recipe_lines(name))


@pytest.mark.parametrize("name", [path.stem for path in sorted(write.BENCHMARKS.glob("*.yaml"))])
def test_benchmark_is_as_written_down(name: str) -> None:
    write.compare(write.BENCHMARKS / f"{name}.yaml", write.benchmark_lines(name))


def test_all_that_need_no_addon_are_written_down() -> None:
    assert {path.stem for path in write.RECIPES.glob("*.yaml")} == set(write.baselines())
    assert {path.stem for path in write.BENCHMARKS.glob("*.yaml")} == set(shipped("benchmarks"))


def test_a_difference_is_named_with_the_remedy() -> None:
    path = write.RECIPES / "daformer.yaml"
    changed = {**write.recipe_lines("daformer"), "teacher.alpha": 0.9, "data.new": 1}
    del changed["seed"]
    message = "seed: 0 -> absent\n  teacher.alpha: 0.999 -> 0.9\n  data.new: absent -> 1\n(.|\n)*golden/write.py"
    with pytest.raises(pytest.fail.Exception, match=message):
        write.compare(path, changed)
    lines = write.recipe_lines("daformer")
    with pytest.raises(pytest.fail.Exception, match="order"):
        write.compare(path, dict(reversed(lines.items())))
