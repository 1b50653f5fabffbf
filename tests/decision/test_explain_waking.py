"""What a pod that waits and fits is told: who wakes it, if anybody does."""

from __future__ import annotations

import pytest

from scheduler.core.nouns import PoolSpec
from scheduler.decision.evaluation import Hindrance
from scheduler.decision.explain import Waking, evaluate
from tests.builders import make_decider, make_request, make_store, see_node

POOLS = (
    PoolSpec(name="ours", selector={"site": "dc"}),
    PoolSpec(name="seen", selector={"site": "lab"}, observe=True),
)
NOT_WOKEN = [each for each in Waking if each is not Waking.SOON]


def told(*sites: str, waking: Waking = Waking.SOON) -> Hindrance:
    """What a pod is told that fits on nodes of these sites."""
    store = make_store(POOLS)
    for site in sites:
        see_node(store, f"of-{site}", labels={"site": site})
    first = evaluate(make_decider(store), make_request(), 0.0, 0.0, waking=waking).unblock[0]
    assert (first.kind, first.helps) == ("none", len(sites))
    return first


def test_where_we_act_it_is_woken() -> None:
    assert "woken within seconds" in told("dc").text
    assert "kubectl describe pod" in told("dc").text


@pytest.mark.parametrize("waking", NOT_WOKEN)
def test_where_nobody_wakes_it_nothing_else_is_said(waking: Waking) -> None:
    text = told("dc", waking=waking).text
    assert waking.value in text
    assert "woken within" not in text


def test_where_only_observed_nodes_fit_nobody_wakes_it() -> None:
    assert Waking.OBSERVED.value in told("lab").text
    # Beside them is one where we act.
    assert Waking.SOON.value in told("dc", "lab").text
