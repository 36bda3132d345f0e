"""udaseg: unsupervised domain-adaptive semantic segmentation.

    import udaseg

    model = udaseg.load_model("weights.safetensors")
    found = model.predict("photo.jpg")  # or a Pillow image, or a uint8 RGB array
    found.label  # train ids, uint8, of the photo's size
    found.overlay().save("overlay.png")
    shares = {name: float((found.label == i).mean()) for i, name in enumerate(found.classes)}
    results = udaseg.predict("weights.safetensors", "photos", out="masks", save=["index"])
    failed = {result.source: result.error for result in results if result.error}

The functions are those of ``udaseg.api``; it is imported when the first of them is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udaseg.api import Model, Prediction, Result, Scores, UserError, evaluate, load_model, predict, train

__version__ = "0.2.0"
__all__ = ["Model", "Prediction", "Result", "Scores", "UserError", "evaluate", "load_model", "predict", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'udaseg' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("udaseg.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
