"""A node that the selectors of two pools take: it gets nothing, counts in neither, and people are told which two."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cluster.nodes import NodeRecord
from scheduler.cluster.port import Changed, EventNote, Gone, Kind
from scheduler.cluster.store import Store
from scheduler.core.clock import ManualClock
from scheduler.core.nouns import PoolSpec, Reason
from scheduler.decision.explain import evaluate
from scheduler.notices import IN_TWO_POOLS, SAME_AGAIN_S, Notices
from tests.builders import (
    all_rows,
    make_decider,
    make_node,
    make_pod,
    make_request,
    make_store,
    see_node,
    see_pod,
)

NOW = 100.0
OWN = PoolSpec(name="own", selector={"site": "dc"}, spill_after_s=300.0)
RENTED = PoolSpec(name="rented", selector={"paid": "hourly"})
POOLS = (OWN, RENTED)
BOTH = {"site": "dc", "paid": "hourly"}


def told_by(store: Store) -> list[tuple[str, tuple[str, ...]]]:
    """What the store tells of nodes from now on."""
    told: list[tuple[str, tuple[str, ...]]] = []

    def note(record: NodeRecord) -> None:
        told.append((record.name, record.in_pools))

    store.on_contradictions = note
    return told


def test_it_gets_nothing_and_the_reason_is_its_own() -> None:
    store = make_store(POOLS)
    see_node(store, "both", labels=BOTH)
    decider = make_decider(store)
    outcome = decider.place(make_request(), all_rows(store), NOW, 0.0)
    assert outcome.result == "no_fit"
    assert outcome.record.reasons == {Reason.IN_TWO_POOLS.text: 1}
    see_node(store, "both", labels={"site": "dc"})
    assert decider.place(make_request(), all_rows(store), NOW, 0.0).record.chosen == "both"


def test_it_holds_nobody_back_from_later_pools() -> None:
    """`own` has `spill.after`, and its only node can take nothing: to wait for it would be in vain."""
    store = make_store(POOLS)
    see_node(store, "both", labels=BOTH)
    see_node(store, "rented-1", labels={"paid": "hourly"})
    assert store.snapshot.pool_sizes == (0, 1, 0)
    decider = make_decider(store)
    outcome = decider.place(make_request(waited_s=1.0), all_rows(store), NOW, 0.0)
    assert (outcome.record.chosen, outcome.record.reasons) == ("rented-1", {Reason.IN_TWO_POOLS.text: 1})


def test_a_pod_that_names_one_of_them_does_not_get_it_either() -> None:
    store = make_store(POOLS)
    see_node(store, "both", labels=BOTH)
    outcome = make_decider(store).place(make_request(pools=(1,)), all_rows(store), NOW, 0.0)
    assert outcome.record.reasons == {Reason.IN_TWO_POOLS.text: 1}


def test_what_runs_there_stays() -> None:
    store = make_store(POOLS)
    see_node(store, "both", labels={"site": "dc"})
    see_pod(store, make_pod("runs", gpus=3, node="both"))
    see_node(store, "both", labels=BOTH)
    assert store.snapshot.bound_gpus[store.rows["both"]] == 3


def test_explain_says_which_two_and_that_it_would_help() -> None:
    store = make_store(POOLS)
    see_node(store, "both", labels=BOTH)
    told = evaluate(make_decider(store), make_request(), NOW, 0.0)
    assert [(each.reason, each.examples) for each in told.ruled_out] == [("node in two pools", ("both",))]
    [hindrance] = told.unblock
    assert (hindrance.kind, hindrance.helps, hindrance.nodes) == ("two_pools", 1, ("both",))
    assert "both: own and rented" in hindrance.text


def test_explain_counts_it_for_a_pod_that_either_pool_would_take() -> None:
    """Its labels may be changed so that it stays in the pool that the pod asks for, be it the first or not."""
    store = make_store(POOLS)
    see_node(store, "both", labels=BOTH)
    for pools, want_helps in (((0,), 1), ((1,), 1), ((0, 1), 1), ((2,), 0)):
        told = evaluate(make_decider(store), make_request(pools=pools), NOW, 0.0)
        [hindrance] = [each for each in told.unblock if each.kind == "two_pools"]
        assert hindrance.helps == want_helps, pools
        assert ("that alone would not" in hindrance.text) == (not want_helps)


def test_explain_counts_each_node_by_its_own_pools() -> None:
    third = PoolSpec(name="third", selector={"tier": "3"})
    store = make_store((*POOLS, third))
    see_node(store, "n1", labels=BOTH)
    see_node(store, "n2", labels={**BOTH, "tier": "3"})
    for pools, want_nodes in (((1,), {"n1", "n2"}), ((2,), {"n2"})):
        [hindrance] = [
            each
            for each in evaluate(make_decider(store), make_request(pools=pools), NOW, 0.0).unblock
            if each.kind == "two_pools"
        ]
        assert set(hindrance.nodes) == want_nodes
        assert hindrance.helps == len(want_nodes)


def test_a_template_that_two_pools_take_is_no_better_than_a_node() -> None:
    store = make_store(POOLS)
    see_node(store, "rented-1", labels={"paid": "hourly"})
    decider = make_decider(store)
    rows = np.array([store.snapshot.rows], np.intp)
    judgement = decider.judge(make_request(waited_s=999.0), rows, NOW, [make_node("template", labels=BOTH)])
    assert judgement.codes[rows].tolist() == [Reason.IN_TWO_POOLS]


def test_the_store_tells_when_it_begins_and_when_it_ends() -> None:
    store = make_store(POOLS)
    told = told_by(store)
    see_node(store, "n0", labels=BOTH)
    assert told.pop() == ("n0", ("own", "rented")), "a node that comes so is told of, too"
    store.apply(Gone(Kind.NODE, make_node("n0")), NOW)
    see_node(store, "n1", labels={"site": "dc"})
    assert told == []
    see_node(store, "n1", labels=BOTH)
    see_node(store, "n1", labels=BOTH)
    assert told == [("n1", ("own", "rented"))]
    assert store.snapshot.in_two_pools is not None
    see_node(store, "n1", labels={"paid": "hourly"})
    assert told[1:] == [("n1", ())]
    assert store.snapshot.in_two_pools is None


def test_other_selectors_put_nodes_in_two_pools_and_out_of_them() -> None:
    store = make_store((OWN,))
    see_node(store, "n1", labels=BOTH)
    told = told_by(store)
    settings = store.settings
    for pools, want in ((POOLS, ("own", "rented")), ((RENTED,), ())):
        changed = type(settings)(pools=pools, expected_loads=settings.expected_loads)
        store.use(changed, store.intents.settings, NOW)
        assert told[-1] == ("n1", want)
        assert store.nodes["n1"].pool == pools[0].name


def test_a_row_that_another_node_takes_is_in_one_pool() -> None:
    store = make_store(POOLS)
    see_node(store, "both", labels=BOTH)
    store.apply(Gone(Kind.NODE, make_node("both")), NOW)
    assert store.snapshot.pool_sizes == (0, 0, 0)
    see_node(store, "plain", labels={"site": "dc"})
    assert store.snapshot.in_two_pools is None
    assert store.snapshot.pool_sizes == (1, 0, 0)


def test_an_event_on_the_node_names_both_once() -> None:
    store = make_store(POOLS)
    clock, written = ManualClock(), list[EventNote]()
    notices = Notices(written.append, lambda: True, clock)
    store.on_contradictions = notices.in_two_pools
    for _ in range(3):
        see_node(store, "n1", labels=BOTH)
        see_node(store, "n1", labels={"site": "dc"})
    [note] = written
    assert (note.kind, note.name, note.reason, note.warning) == ("Node", "n1", IN_TWO_POOLS, True)
    assert "own and rented" in note.note
    clock.advance(SAME_AGAIN_S)
    see_node(store, "n1", labels=BOTH)
    assert len(written) == 2


def test_a_standby_writes_nothing() -> None:
    written = list[EventNote]()
    store = make_store(POOLS)
    see_node(store, "n1", labels=BOTH)
    Notices(written.append, lambda: False, ManualClock()).in_two_pools(store.nodes["n1"])
    assert written == []


labels = st.fixed_dictionaries(
    {}, optional={"site": st.sampled_from(["dc", "x"]), "paid": st.sampled_from(["hourly", "x"])}
)


@given(told=st.lists(st.tuples(st.sampled_from("abc"), st.none() | labels), max_size=25))
def test_sizes_and_columns_are_what_the_labels_say(told: list[tuple[str, dict[str, str] | None]]) -> None:
    store, now = make_store(POOLS), dict[str, dict[str, str]]()
    for name, each in told:
        if each is None:
            now.pop(name, None)
            store.apply(Gone(Kind.NODE, make_node(name)), NOW)
        else:
            now[name] = each
            store.apply(Changed(Kind.NODE, make_node(name, labels=each)), NOW)
    want_sizes, want_both = [0, 0, 0], set()
    for name, each in now.items():
        taken = [index for index, pool in enumerate(POOLS) if pool.selector.items() <= each.items()]
        if len(taken) > 1:
            want_both.add(name)
        else:
            want_sizes[taken[0] if taken else 2] += 1
    both = store.snapshot.in_two_pools
    assert store.snapshot.pool_sizes == tuple(want_sizes)
    assert {name for name, row in store.rows.items() if both is not None and both[row]} == want_both
    assert (both is None) == (not want_both)
