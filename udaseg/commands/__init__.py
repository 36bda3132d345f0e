"""The commands, one module each; a module is imported when it is first used, so that `udaseg --help` stays light."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # isort: off
    from udaseg.commands import ablate, analyze, check, completing, demo, doctor, evaluate, export  # noqa: F401
    from udaseg.commands import importing, new  # noqa: F401
    from udaseg.commands import models, plot, predict, prepare, recipes, report, submit, train  # noqa: F401


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    return import_module(f"udaseg.commands.{name}")
