"""Loss terms: one file an idea, one row each here."""

from __future__ import annotations

from udaseg.addons.mrm.rebuild import Rebuild
from udaseg.addons.omuda.class_decoupling import ClassDecoupledCrossEntropy
from udaseg.addons.omuda.feature_distillation import RelationalDistillation
from udaseg.addons.t2s.contrast import Contrast
from udaseg.core.context import Term
from udaseg.core.terms.cross_entropy import CrossEntropy
from udaseg.core.terms.feature_distance import FeatureDistance

TERMS: dict[str, type[Term]] = {
    "cross_entropy": CrossEntropy,
    "class_decoupled_cross_entropy": ClassDecoupledCrossEntropy,
    "feature_distance": FeatureDistance,
    "relational_distillation": RelationalDistillation,
    "rebuild": Rebuild,
    "contrast": Contrast,
}
