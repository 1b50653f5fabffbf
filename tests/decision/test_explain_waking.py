"""What a pod that waits is told of its waking, beside what would unblock it."""

from __future__ import annotations

import pytest

from scheduler.core.nouns import PoolSpec
from scheduler.decision.evaluation import Evaluation, Waking
from scheduler.decision.explain import IF_OFFERED, OBSERVED, SOON, evaluate
from tests.builders import make_decider, make_request, make_store, see_node

POOLS = (
    PoolSpec(name="ours", selector={"site": "dc"}),
    PoolSpec(name="seen", selector={"site": "lab"}, observe=True),
)
NEXT = Waking("soon", "It is the next.", before=0)


def told(*sites: str, waking: Waking | None = NEXT, held_on: str = "") -> Evaluation:
    """What a pod is told that fits on nodes of these sites."""
    store = make_store(POOLS)
    for site in sites:
        see_node(store, f"of-{site}", labels={"site": site})
    return evaluate(make_decider(store), make_request(), 0.0, 0.0, waking=waking, held_on=held_on)


@pytest.mark.parametrize("waking", [NEXT, Waking("off", "Nobody wakes it.", 7.0), None])
def test_what_the_replica_says_of_waking_is_told_as_it_is(waking: Waking | None) -> None:
    now = told("dc", waking=waking)
    assert now.waking == waking
    first = now.unblock[0]
    assert (first.kind, first.helps) == ("none", 1)
    assert "kubectl describe pod" in first.text
    assert "woken" not in first.text, "that is said once, by who knows"


def test_where_only_observed_nodes_fit_nobody_wakes_it() -> None:
    assert told("lab").waking == OBSERVED
    # Beside them is one where we act.
    assert told("dc", "lab").waking == NEXT


def test_where_nothing_fits_it_is_told_what_becomes_of_it_then() -> None:
    assert told(waking=SOON).waking == SOON
    # It was the next, and what it fitted has gone since.
    assert told().waking == SOON
    off = Waking("off", "Nobody wakes it.")
    assert told(waking=off).waking == off


def test_where_it_fits_and_was_not_found_to_it_is_woken_only_for_what_it_was_offered() -> None:
    assert told("dc", waking=SOON).waking == IF_OFFERED


def test_a_pod_that_is_bound_is_told_nothing() -> None:
    assert told("dc", held_on="of-dc").waking is None
