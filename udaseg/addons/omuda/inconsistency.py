"""Class by class through a training (OMUDA figure 1 a, c, d): how scores fluctuate, features drift, labels err.

K classes, T moments of a training, R runs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.plugin import Assumption, Track, Training, TrainingMeasure, UserError, class_iou


class Fluctuation(TrainingMeasure):
    """Figure 1 a: standard deviation over runs of a class's IoU, at every validation that all of them have."""

    label = "standard deviation of the IoU over the runs, in % of IoU"

    def __call__(self, trainings: Mapping[str, Training]) -> Mapping[str, Track]:
        if len(trainings) < 2:
            raise UserError("fluctuation is over trials: give two or more runs, as of one recipe with other seeds")
        logs = [
            {t: torch.from_numpy(class_iou(counts.numpy())) for t, counts in training.validations()}
            for training in trainings.values()
        ]
        common = sorted(set.intersection(*map(set, logs)))
        if not common:
            raise UserError("fluctuation: the runs have no validation at the same iteration")
        values = torch.stack([torch.stack([log[t] for log in logs]).std(dim=0) for t in common])
        return {f"{len(logs)} runs": Track(common, values)}

    assumptions = (
        Assumption(
            "Figure 1 a, fluctuation of a class",
            "standard deviation of its IoU over runs that differ in their seed (`udaseg analyze training fluctuation`)",
            '"performance fluctuations across trials"; the measure: silent',
        ),
    )


class Drift(TrainingMeasure):
    """Figure 1 c: 1 - cosine of a class's mean feature and that of the first checkpoint."""

    label = "1 - cosine of the mean feature and that of the first checkpoint"

    def __call__(self, trainings: Mapping[str, Training]) -> Mapping[str, Track]:
        return {name: self.track(name, training) for name, training in trainings.items()}

    def track(self, name: str, training: Training) -> Track:
        found = [(t, centres.mean) for t, centres in training.centres()]
        if len(found) < 2:
            raise UserError(
                f"{name}: drift needs two or more checkpoints, and there is {len(found)}; train with "
                "runtime.keep_checkpoints=20 and a runtime.checkpoint_minutes that fits"
            )
        first = found[0][1]
        return Track([t for t, _ in found], torch.stack([1 - F.cosine_similarity(mean, first) for _, mean in found]))

    assumptions = (
        Assumption(
            "Figure 1 c, drift of a class",
            "1 - cosine of its mean feature (encoder's last map, validation images) and that of the first kept "
            "checkpoint (`udaseg analyze training drift`)",
            "silent",
            ("runtime.keep_checkpoints", "runtime.checkpoint_minutes"),
        ),
    )


class PseudoLabelError(TrainingMeasure):
    """Figure 1 d: share of the pixels that the teacher labels as a class and that are not of it, in percent."""

    label = "share of the teacher's labels that are wrong, %"

    def __call__(self, trainings: Mapping[str, Training]) -> Mapping[str, Track]:
        found = {name: dict(training.pseudo_labels()) for name, training in trainings.items()}
        return {name: Track([*log], torch.stack([wrong(counts) for counts in log.values()]))
                for name, log in found.items()}  # fmt: skip

    assumptions = (
        Assumption(
            "Figure 1 d, error of pseudo-labels",
            "share of the pixels that the teacher labels as the class and that are not of it, on validation images in "
            "eval mode, of every kept checkpoint (`udaseg analyze training pseudo_label_error`; `--domain target`: on "
            "the images that are adapted to)",
            '"pseudo-label reliability varies across classes"; the measure: silent',
            ("runtime.keep_checkpoints", "runtime.checkpoint_minutes"),
        ),
    )


def wrong(counts: Tensor) -> Tensor:
    """(K, K) counts -> percent of each class's predictions that are of another; NaN for one never predicted."""
    return 100 * (1 - counts.diagonal().double() / counts.sum(dim=0))
