"""The components of the baselines: DACS, DAFormer, HRDA, MIC. An add-on has such a table of its own."""

from __future__ import annotations

from udaseg.core.masking import Blocks
from udaseg.core.terms.cross_entropy import CrossEntropy
from udaseg.core.terms.feature_distance import FeatureDistance
from udaseg.core.views import Masked, Mixed, Source, Target
from udaseg.core.weighting import ConfidenceShare

COMPONENTS: dict[str, dict[str, type]] = {
    "view": {"source": Source, "target": Target, "mixed": Mixed, "masked": Masked},
    "masker": {"blocks": Blocks},
    "pseudo_labels": {"confidence_share": ConfidenceShare},
    "term": {"cross_entropy": CrossEntropy, "feature_distance": FeatureDistance},
}
