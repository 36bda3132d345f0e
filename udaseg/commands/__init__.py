"""The commands, one module each; a module is imported when it is first used, so that `udaseg --help` stays light."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udaseg.commands import (  # noqa: F401  # noqa: F401
        ablate,
        analyze,
        check,
        demo,
        doctor,
        evaluate,
        export,
        importing,
        models,
        plot,
        predict,
        prepare,
        recipes,
        report,
        submit,
        train,
    )


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    return import_module(f"udaseg.commands.{name}")
