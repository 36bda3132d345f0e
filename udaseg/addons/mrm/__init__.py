"""MRM (Zhou et al.): masked features of the mixed image are rebuilt and must be labelled like the whole ones.

"Masked Representation Modeling for Domain-Adaptive Segmentation". The component is the term `rebuild`.

Rows called "DACS" are DACS as the DAFormer repository runs it: 40,000 iterations with AdamW, not the original's 250,000
with SGD. The paper prints the original's score, 52.1, for its DACS row.
"""

from __future__ import annotations

from udaseg.addons.mrm.rebuild import Rebuild

COMPONENTS = {"term": {"rebuild": Rebuild}}
