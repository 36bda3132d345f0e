"""OMUDA (Ou et al.): context-aware (CAM), feature distillation (FDM) and class decoupling masking (CDM)."""

from __future__ import annotations

from udaseg.addons.omuda.class_decoupling import ClassDecoupledCrossEntropy
from udaseg.addons.omuda.context_aware import ContextAwareMasker, ContextAwareSampler, FixedRatio, GridMasker
from udaseg.addons.omuda.feature_distillation import RelationalDistillation

COMPONENTS = {
    "sampler": {"context_aware": ContextAwareSampler, "fixed_ratio": FixedRatio},
    "masker": {"context_aware": ContextAwareMasker, "grid": GridMasker},
    "term": {
        "class_decoupled_cross_entropy": ClassDecoupledCrossEntropy,
        "relational_distillation": RelationalDistillation,
    },
}
