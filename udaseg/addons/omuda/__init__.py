"""OMUDA (Ou et al.): context-aware (CAM), feature distillation (FDM) and class decoupling masking (CDM).

"OMUDA: Omni-level Masking for Unsupervised Domain Adaptation in Semantic Segmentation"; there is no public code.
Components: the sampler and the masker `context_aware` (CAM), the term `relational_distillation` on the source view
(FDM), and the term `class_decoupled_cross_entropy` (CDM).

The two readings of beta are compared on generated scenes: [results.md](results.md#add-ons-on-generated-scenes).
"""

from __future__ import annotations

from udaseg.addons.omuda.class_decoupling import ClassDecoupledCrossEntropy
from udaseg.addons.omuda.context_aware import ContextAwareMasker, ContextAwareSampler, FixedRatio, GridMasker
from udaseg.addons.omuda.feature_distillation import RelationalDistillation
from udaseg.addons.omuda.inconsistency import Drift, Fluctuation, PseudoLabelError

COMPONENTS = {
    "sampler": {"context_aware": ContextAwareSampler, "fixed_ratio": FixedRatio},
    "masker": {"context_aware": ContextAwareMasker, "grid": GridMasker},
    "term": {
        "class_decoupled_cross_entropy": ClassDecoupledCrossEntropy,
        "relational_distillation": RelationalDistillation,
    },
    "training_measure": {"fluctuation": Fluctuation, "drift": Drift, "pseudo_label_error": PseudoLabelError},
}
