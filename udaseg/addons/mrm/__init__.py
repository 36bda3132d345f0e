"""MRM (Zhou et al.): masked features of the mixed image are rebuilt and must be labelled like the whole ones."""

from __future__ import annotations

from udaseg.addons.mrm.rebuild import Rebuild

COMPONENTS = {"term": {"rebuild": Rebuild}}
