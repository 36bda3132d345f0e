"""T2S-DA (Wang et al.): features of stylised source images are pulled to source prototypes; domain generalisation.

"Pulling Target to Source: A New Perspective on Domain Adaptive Semantic Segmentation". Components: the view `stylised`
with its `engine`, and the term `contrast`.

Rows called "DACS" are DACS as the DAFormer repository runs it: 40,000 iterations with AdamW, not the original's 250,000
with SGD.

48.6 in Table 6 was reached with styles A to E. Without style images and weights, A is ours, and B and C are off.
"""

from __future__ import annotations

from udaseg.addons.t2s.contrast import Contrast
from udaseg.addons.t2s.discriminability import ClassCentreDistance, PixelDistance
from udaseg.addons.t2s.engines import ColorJitter, GaussianBlur, Offline, Stylised, Untranslated
from udaseg.addons.t2s.fourier import FDA
from udaseg.addons.t2s.reweighting import ReweightedShare
from udaseg.addons.t2s.styles import Augmentors

COMPONENTS = {
    "measure": {"CCD": ClassCentreDistance, "PDD": PixelDistance},
    "view": {"stylised": Stylised},
    "term": {"contrast": Contrast},
    "pseudo_labels": {"reweighted_share": ReweightedShare},
    "engine": {
        "fda": FDA,
        "color_jitter": ColorJitter,
        "gaussian_blur": GaussianBlur,
        "offline": Offline,
        "augmentors": Augmentors,
        "none": Untranslated,
    },
}
