"""Loss terms: one file an idea, one row each here."""

from __future__ import annotations

from udaseg.uda.terms.distillation import FeatureDistance
from udaseg.uda.terms.segmentation import CrossEntropy

TERMS = {"cross_entropy": CrossEntropy, "feature_distance": FeatureDistance}
