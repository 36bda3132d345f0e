"""Every key of every shipped recipe of an add-on, as ``tests/contract/test_golden.py`` does for the baselines."""

from __future__ import annotations

import pytest
from golden import write

from udaseg.config.layers import shipped


@pytest.mark.parametrize("name", [path.stem for path in sorted(write.ADDON_RECIPES.glob("*.yaml"))])
def test_recipe_is_as_written_down(name: str) -> None:
    write.compare(write.ADDON_RECIPES / f"{name}.yaml", write.recipe_lines(name))


def test_all_recipes_are_written_down_once() -> None:
    here, there = ({path.stem for path in folder.glob("*.yaml")} for folder in (write.ADDON_RECIPES, write.RECIPES))
    assert here | there == set(shipped()) and not here & there
    assert here == set(write.addon_recipes())
