"""Base classes of what a step is made of; each declares what it needs (``udaseg.component``).

Samplers have theirs in ``data.sampling``; encoders, decoders and wrappers in ``models.segmentor``. A constructor gets
the ``BuildContext`` and, as keyword-only parameters, its settings.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor, nn

from udaseg.component import Component, Needs
from udaseg.core.context import BuildContext, Loss, PseudoLabels, StepContext, StepRng, View
from udaseg.models.segmentor import Output


class Term(nn.Module, Component):
    """A loss on one view. Owns its parameters and buffers.

    ``reads_predictions``: False if the features of the view's context are enough; a view with such terms only is not
    decoded. ``learning_rate``: of its own parameters; None: the head's. ``clip``: largest norm of their gradient.
    """

    reads_predictions: ClassVar[bool] = True
    learning_rate: float | None = None
    clip: float | None = None

    def __init__(self, context: BuildContext) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        """The loss of the student's output on the view."""

    def ema_pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """(average, student) modules of its own that follow the teacher's rule."""
        return ()


class ViewBuilder(Component):
    """Makes a view from the batch, without gradient."""

    def __init__(self, context: BuildContext) -> None: ...

    @abstractmethod
    def __call__(self, context: StepContext) -> View:
        """The view of this step."""


class Masker(Component):
    """Decides which pixels of an image the student gets to see."""

    def __init__(self, context: BuildContext) -> None: ...

    @abstractmethod
    def __call__(self, label: Tensor, rng: StepRng) -> Tensor:
        """Pseudo-label (B, H, W) -> (B, 1, H, W) float, 1 where a pixel is kept, 0 where it is masked."""


class PseudoLabelRule(Component):
    """Turns the teacher's logits on the target into pseudo-labels with weights."""

    def __init__(self, context: BuildContext) -> None: ...

    @abstractmethod
    def __call__(self, logits: Tensor, context: StepContext) -> PseudoLabels:
        """Logits (B, K, H, W) at image size -> pseudo-labels."""


class TranslationEngine(Component):
    """Gives source images another domain's style; they keep their labels."""

    def __init__(self, context: BuildContext) -> None: ...

    @abstractmethod
    def __call__(self, context: StepContext) -> Tensor:
        """The step's source crop (B, 3, H, W), translated; normalised."""


TARGET = Needs(target=True)
"""Declared by a component that looks at the target and needs nothing else."""
