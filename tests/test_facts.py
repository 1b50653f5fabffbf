"""What is told of nodes: measurements, and nothing that only looks like one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from scheduler.cluster.port import Changed, Gone, Kind
from scheduler.cluster.store import Store
from scheduler.facts import Facts, Replica, nodes_skewed
from scheduler.report.views import NodeView
from tests.builders import make_node, make_sample, make_store, see_node


def view(store: Store, name: str = "n1") -> NodeView:
    # Of a replica, a node's view asks the store alone.
    found = Facts(cast("Replica", SimpleNamespace(store=store))).node(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("util", "state", "want_load_frac", "want_counts"),
    [
        pytest.param([0.5, 0.1, 0.0, 0.2], ["ok"] * 4, 0.2, (4, 0, 0), id="all known"),
        pytest.param([0.5, 0.1, None, 0.2], ["ok"] * 4, None, (3, 1, 0), id="one unknown"),
        pytest.param([None] * 4, ["unknown"] * 4, None, (0, 4, 0), id="all unknown"),
        pytest.param([0.5, 0.1, None, None], ["ok", "ok", "lost", "hung"], 0.3, (2, 0, 2), id="two broken"),
        pytest.param([0.5, None, None, 0.1], ["ok", "ok", "lost", "hung"], None, (1, 1, 2), id="of each"),
        pytest.param([None] * 4, ["hung"] * 4, None, (0, 0, 4), id="all broken"),
    ],
)
def test_load_is_a_measurement_or_null(
    util: list[float | None], state: list[str], want_load_frac: float | None, want_counts: tuple[int, ...]
) -> None:
    store = make_store()
    see_node(store, gpus=4)
    store.see_samples([("n1", make_sample(util=util, state=state), 1.0)])
    store.tick(1.0)
    told = view(store)
    assert told.load_frac == pytest.approx(want_load_frac)
    assert [told.known_gpus, told.unknown_gpus, told.broken_gpus] == list(want_counts)
    if state[-1] == "hung":
        assert told.devices[-1].state == "hung"


def test_a_node_that_is_stale_or_has_no_agent_is_all_unknown() -> None:
    store = make_store(stale_s=10.0)
    see_node(store, gpus=4)
    store.apply(Changed(Kind.NODE, make_node("bare", gpus=3)), 0.0)
    store.see_samples([("n1", make_sample(util=[0.5] * 4), 1.0)])
    store.tick(20.0)
    for name, want_unknown in (("n1", 4), ("bare", 3)):
        told = view(store, name)
        assert told.load_frac is None
        assert (told.known_gpus, told.unknown_gpus) == (0, want_unknown)


def test_clocks_count_of_nodes_that_are_there_and_heard() -> None:
    store = make_store(stale_s=10.0)
    for name in ("heard", "silent", "gone"):
        see_node(store, name, gpus=1)
    store.see_samples([("silent", make_sample("silent", util=[0.5]), 1.0)])
    store.see_samples([(name, make_sample(name, util=[0.5]), 19.0) for name in ("heard", "gone")])
    store.apply(Gone(Kind.NODE, make_node("gone")), 19.0)
    store.tick(20.0)
    assert nodes_skewed(store, dict.fromkeys(("heard", "silent", "gone", "never heard of"), 60.0)) == 1
