"""Does a component keep its promises? The contracts of `udaseg` as functions, for anybody's component.

A test of a loss term that lies in a file of one's own, whole::

    from udaseg.testing import check
    from my_method import MyTerm

    def test_my_term():
        check(MyTerm, temperature=0.1)

``check`` finds out by the base class what the component is (encoder, decoder, wrapper, sampler, view, masker, engine,
weighting rule, term, measure), puts it into a small recipe and holds it to every contract of its kind, in a few seconds
on a CPU. It need not be registered. Settings are those of a recipe; those left out have their defaults. Nothing is
fetched: the data are a few generated street scenes in a temporary folder, the networks are small and untrained.

What is broken is told as an AssertionError: the component, the contract's name, what was found and what to do. Every
contract is a function with the same arguments, so that one can be called alone::

    from udaseg.testing import learns_the_same_on_two_ranks
    learns_the_same_on_two_ranks(MyTerm, temperature=0.1)

and one that a component does not mean to keep is left out by its name, for all to see::

    check(MyTerm, leave_out=["learns_the_same_on_two_ranks"])  # compares the images of one process

``check_recipe`` does the like for a whole recipe. `udaseg.testing.steps` has what unit tests of the mathematics need: a
build context, a step, a teacher that says what it is told. Needs no pytest; any test runner will do.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from udaseg.testing import toy
from udaseg.testing.calls import draws_from_the_steps_numbers, stays_on_the_device
from udaseg.testing.case import Case, Contract, Factory, has_described_settings
from udaseg.testing.data import (
    draws_from_the_given_generator,
    draws_images_that_exist,
    follows_every_class_over_time,
    measures_every_class,
)
from udaseg.testing.networks import (
    evaluates_images_one_by_one,
    has_the_maps_it_declares,
    returns_branches_and_predictions,
    returns_logits_of_the_maps_it_reads,
    trains_every_parameter,
)
from udaseg.testing.parts import is_the_same_on_two_ranks, returns_what_it_says
from udaseg.testing.terms import (
    gradients_reach_what_they_should,
    learns_the_same_on_two_ranks,
    returns_a_scalar_loss,
    survives_a_batch_without_labels,
)
from udaseg.testing.training import (
    require_exact_resume,
    require_steps,
    resumes_exactly,
    trains,
    trains_at_two_resolutions,
    trains_in_bfloat16,
    trains_without_a_target,
)

CONTRACTS: tuple[Contract, ...] = (
    has_described_settings,
    has_the_maps_it_declares,
    returns_logits_of_the_maps_it_reads,
    returns_branches_and_predictions,
    returns_a_scalar_loss,
    returns_what_it_says,
    measures_every_class,
    follows_every_class_over_time,
    draws_images_that_exist,
    draws_from_the_given_generator,
    stays_on_the_device,
    draws_from_the_steps_numbers,
    gradients_reach_what_they_should,
    survives_a_batch_without_labels,
    is_the_same_on_two_ranks,
    learns_the_same_on_two_ranks,
    evaluates_images_one_by_one,
    trains_every_parameter,
    trains,
    trains_at_two_resolutions,
    trains_without_a_target,
    trains_in_bfloat16,
    resumes_exactly,
)
"""In the order of ``check``: the cheapest, and those that say most, first."""


def contracts(component: Factory) -> tuple[Contract, ...]:
    """Those of the component's kind; AssertionError for a class that is no component."""
    kind = Case(component, {}).kind
    return tuple(contract for contract in CONTRACTS if kind in contract.kinds)


def check(component: Factory, *, leave_out: Collection[str] = (), **settings: Any) -> None:
    """Hold a component to all contracts of its kind; AssertionError for the first that is broken.

    ``settings``: as in a recipe, of a term also its ``weight``. ``leave_out``: names of contracts it does not keep.
    """
    case = Case(component, settings)
    promised = {contract.__name__: contract for contract in contracts(component)}
    if unknown := set(leave_out) - promised.keys():
        raise AssertionError(f"leave_out: no contract {', '.join(sorted(unknown))}; there are {', '.join(promised)}")
    for name, contract in promised.items():
        if name not in leave_out:
            contract.hold(case)


def check_recipe(name: str, *overrides: str) -> None:
    """Train a recipe, shipped or a file, at toy size on generated scenes; AssertionError for what goes wrong.

    Three steps with finite losses, in which everything learns and nothing reads the device; two in bfloat16; an
    interrupted run that goes on exactly. The encoder is a small one unless ``overrides`` (``key=value``) name another.
    """
    with toy.living_at(toy.data_home()):
        base = toy.small(name)
        require_steps(toy.load(name, "train.iterations=3", *overrides, base=base))
        require_steps(toy.load(name, "train.iterations=2", "train.precision=bf16", *overrides, base=base), steps=2)
        require_exact_resume(toy.load(name, "train.iterations=4", *overrides, base=base))
