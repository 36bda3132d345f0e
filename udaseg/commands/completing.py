"""What the shell offers after Tab: names, read from file names and tables. torch is never imported.

A path instead of a name is the shell's own business: it offers files where nothing here begins as the word does.
"""

from __future__ import annotations

from udaseg.config.layers import shipped


def recipes() -> list[str]:
    return list(shipped())


def benchmarks() -> list[str]:
    return list(shipped("benchmarks"))


def studies() -> list[str]:
    return list(shipped("studies"))


def datasets() -> list[str]:
    """What `udaseg prepare` takes: the two domains of `streets` are prepared as one."""
    from udaseg.data.layouts import DATASETS

    return sorted({name.removesuffix("_source").removesuffix("_target") for name in DATASETS})


def servers() -> list[str]:
    from udaseg.data.servers import SERVERS

    return [name.replace("_", "-") for name in SERVERS]


def protocols() -> list[str]:
    from udaseg.data.classes import PROTOCOLS

    return list(PROTOCOLS)
