"""Contracts of all that works inside a step, called directly."""

from __future__ import annotations

from collections.abc import Sequence

from udaseg.testing.case import Case, contract, require, same
from udaseg.testing.guards import guarded, other_numbers
from udaseg.testing.parts import PARTS, Part
from udaseg.testing.terms import OnView, on_views


def ready(case: Case) -> Sequence[Part | OnView]:
    """The component, and the step that it is called in; a term on each of its views."""
    return on_views(case) if case.kind == "term" else [Part(case)]


@contract(*PARTS, "term")
def stays_on_the_device(case: Case) -> None:
    """No value is read, no tensor is made on the CPU."""
    for one in ready(case):
        call = one.prepared(one.scene.context())
        with guarded():
            call()


@contract(*PARTS, "term")
def draws_from_the_steps_numbers(case: Case) -> None:
    """The same step gives the same result, whatever the generators of the process have done in between."""
    for one in ready(case):
        first = one.prepared(one.scene.context())()
        again = one.prepared(one.scene.context())
        with other_numbers():
            second = again()
        differ = [name for name, value in first.items() if not same(value, second[name])]
        require(
            not differ,
            f"{', '.join(differ)}: another result in the same step. Random numbers come from context.rng (per_image, "
            "choices, decide), never from torch.rand, random or numpy, whose state no checkpoint and no other process "
            "has",
        )
