"""Loss terms: one file an idea, one row each here."""

from __future__ import annotations

from udaseg.uda.terms.contrast import Contrast
from udaseg.uda.terms.decoupled import ClassDecoupledCrossEntropy
from udaseg.uda.terms.distillation import FeatureDistance
from udaseg.uda.terms.rebuild import Rebuild
from udaseg.uda.terms.relational import RelationalDistillation
from udaseg.uda.terms.segmentation import CrossEntropy
from udaseg.uda.types import Term

TERMS: dict[str, type[Term]] = {
    "cross_entropy": CrossEntropy,
    "class_decoupled_cross_entropy": ClassDecoupledCrossEntropy,
    "feature_distance": FeatureDistance,
    "relational_distillation": RelationalDistillation,
    "rebuild": Rebuild,
    "contrast": Contrast,
}
