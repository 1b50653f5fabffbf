"""Nodes whose GPUs are divided, as the store counts them: to the last unit, with broken GPUs, while plugins restart."""

from __future__ import annotations

import pytest

from scheduler.cluster.columns import MOST_RESOURCES
from scheduler.cluster.port import Changed, Gone, Kind
from scheduler.cluster.store import Store
from scheduler.core.nouns import Workload
from tests.builders import (
    make_inventory,
    make_node,
    make_pod,
    make_request,
    make_sample,
    make_store,
    see_pod,
)
from tests.dra import gpu, make_slice

GPU, SHARED = "nvidia.com/gpu", "nvidia.com/gpu.shared"
SEVENTH, THREE = "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"


def see_shares(
    store: Store, shares: dict[str, int], gpus: int | None = None, name: str = "n1", **labels: str
) -> None:
    """A node, and its agent's inventory where there is an agent."""
    given = {f"nvidia.com/gpu.{key}": value for key, value in labels.items()}
    store.apply(Changed(Kind.NODE, make_node(name, labels=given, shares=shares)), 0.0)
    if gpus is not None:
        store.see_inventory(name, make_inventory(name, gpus))


def lose(store: Store, gpus: int, lost: int) -> None:
    states = ["lost"] * lost + ["ok"] * (gpus - lost)
    store.see_samples([("n1", make_sample("n1", [0.0] * gpus, states), 1.0)])


def free_of(store: Store, resource: str) -> float:
    snapshot = store.snapshot
    return float(snapshot.units_of(resource, snapshot.free_units)[store.rows["n1"]])


@pytest.mark.parametrize(
    ("resource", "units", "gpus", "labels"),
    [
        # 42 times a seventh is more than 6 in 32 bits.
        (SEVENTH, 42, 6, {}),
        (SEVENTH, 56, 8, {}),
        (THREE, 16, 8, {}),
        *(
            (SHARED, each * gpus, gpus, {"replicas": f"{each}"})
            for each in (3, 6, 10, 48)
            for gpus in (1, 7, 8)
        ),
    ],
)
def test_a_node_is_filled_to_the_last_unit_and_never_beyond(
    resource: str, units: int, gpus: int, labels: dict[str, str]
) -> None:
    store = make_store()
    see_shares(store, {resource: units}, gpus, **labels)
    made = [store.reserve(make_request(f"p{i}", 0, shares=((resource, 1),)), "n1", 1.0) for i in range(units)]
    assert all(made)
    assert not store.reserve(make_request("more", 0, shares=((resource, 1),)), "n1", 1.0)
    assert store.snapshot.free_gpus[store.rows["n1"]] == 0


@pytest.mark.parametrize(
    ("shares", "labels", "gpus", "lost", "want_free"),
    [
        ({SHARED: 8}, {"replicas": "4"}, 2, 1, {SHARED: 4}),
        ({GPU: 8}, {"replicas": "4", "count": "2"}, 2, 2, {GPU: 0}),
        ({SHARED: 21}, {"replicas": "3"}, 7, 2, {SHARED: 15}),
        # Of whichever kind the broken one was: each lacks it.
        ({GPU: 2, SHARED: 8}, {"replicas": "4"}, 4, 1, {GPU: 1, SHARED: 4}),
        ({GPU: 1, SEVENTH: 7}, {}, 2, 1, {GPU: 0, SEVENTH: 0}),
        # Two of these fit on a GPU, and one seventh is beside them.
        ({THREE: 8, SEVENTH: 4}, {}, 4, 1, {THREE: 6, SEVENTH: 0}),
        # Three sevenths of each GPU are no part of any slice.
        ({THREE: 6}, {}, 3, 1, {THREE: 4}),
        # The plugin has noticed: these are of the GPUs that are left.
        ({SHARED: 4}, {"replicas": "4"}, 2, 1, {SHARED: 4}),
    ],
)
def test_a_broken_gpu_takes_as_much_as_was_on_it(
    shares: dict[str, int], labels: dict[str, str], gpus: int, lost: int, want_free: dict[str, int]
) -> None:
    store = make_store()
    see_shares(store, shares, gpus, **labels)
    lose(store, gpus, lost)
    assert {name: free_of(store, name) for name in want_free} == want_free


def test_what_pods_hold_stays_as_large_while_the_plugin_restarts() -> None:
    store = make_store()
    for shares in ({SHARED: 8, SEVENTH: 7}, {SHARED: 0, SEVENTH: 0}):
        see_shares(store, shares, 3, replicas="4")
        for index in range(4):
            see_pod(store, make_pod(f"s{index}", shares={SHARED: 1}, node="n1"))
            see_pod(store, make_pod(f"m{index}", shares={SEVENTH: 1}, node="n1"))
        assert store.snapshot.bound_gpus[store.rows["n1"]] == pytest.approx(1 + 4 / 7)
        assert store.snapshot.load_sum[store.rows["n1"]] <= 3
    assert store.snapshot.gpu_count[store.rows["n1"]] == 0
    assert not store.reserve(make_request("late", 0, shares=((SHARED, 1),)), "n1", 1.0)


def test_a_pod_that_asks_for_several_kinds_gets_all_or_nothing() -> None:
    store = make_store()
    see_shares(store, {GPU: 2, SEVENTH: 1})
    both = ((SEVENTH, 1),)
    assert store.reserve(make_request("first", 1, shares=both), "n1", 1.0)
    assert not store.reserve(make_request("second", 1, shares=both), "n1", 1.0)
    assert (free_of(store, GPU), free_of(store, SEVENTH)) == (1, 0)
    assert store.reserve(make_request("third", 1), "n1", 1.0)


def test_a_resource_that_no_node_has_is_never_promised() -> None:
    store = make_store()
    see_shares(store, {GPU: 2})
    assert not store.reserve(make_request("p1", 1, shares=((THREE, 1),)), "n1", 1.0)
    assert not len(store.reservations)


def test_a_row_that_is_used_again_knows_nothing_of_how_gpus_were_divided_before() -> None:
    store = make_store()
    see_shares(store, {GPU: 8}, 2, replicas="4")
    store.apply(Gone(Kind.NODE, make_node()), 1.0)
    # Its device plugin is not up yet, and a pod is bound there already.
    store.apply(Changed(Kind.NODE, make_node("n2", shares={})), 2.0)
    see_pod(store, make_pod(gpus=2, node="n2"))
    assert float(store.snapshot.bound_gpus[store.rows["n2"]]) == 2


def test_resources_that_somebody_invents_are_counted_in_bounds() -> None:
    store = make_store()
    for index in range(MOST_RESOURCES + 3):
        see_shares(store, {f"nvidia.com/mig-1g.{index + 1}gb": 7}, 1)
    assert len(store.snapshot.resources) <= MOST_RESOURCES
    assert len(store.snapshot.units) <= MOST_RESOURCES


def test_gpus_by_a_name_of_ones_own_are_placed_promised_and_filled_like_others() -> None:
    own = "example.com/a100"
    store = make_store(gpu_resources=frozenset({own}))
    see_shares(store, {own: 8, GPU: 1}, 3, replicas="4", count="3")
    snapshot, row = store.snapshot, store.rows["n1"]
    assert (snapshot.gpu_count[row], snapshot.counted_gpus[row]) == (3, 3)
    assert not store.nodes["n1"].contradictions
    pod = make_pod("a", shares={own: 6})
    request = store.request(pod, 0.0, dict.fromkeys(Workload, ("p", 0.9)))
    assert dict(request.units) == {own: 6}
    assert store.reserve(request, "n1", 1.0)
    assert not store.reserve(make_request("b", 0, shares=((own, 3),)), "n1", 1.0)
    see_pod(store, make_pod("a", shares={own: 6}, node="n1"), 2.0)
    see_pod(store, make_pod("c", shares={own + ".shared": 1}, node="n1"), 2.0)
    assert store.snapshot.bound_gpus[row] == 1.75, "what has another name by now is of the same GPUs"
    assert (free_of(store, own), free_of(store, GPU)) == (1, 1)
    assert store.with_strangers(store.snapshot, [make_node("new", shares={own: 4})]).gpu_count[-1] == 4
    stranger = make_store()
    see_shares(stranger, {own: 8}, 2)
    assert stranger.snapshot.gpu_count[stranger.rows["n1"]] == 0, "nobody said so"


def test_an_absurd_amount_that_is_given_back_leaves_nothing_behind() -> None:
    store = make_store()
    see_shares(store, {GPU: 2**25})
    # One more than 32 bits can say exactly.
    assert store.reserve(make_request("absurd", 2**24 + 1), "n1", 1.0)
    store.release("uid-absurd", 1.0)
    assert store.snapshot.reserved_units.sum() == 0
    assert free_of(store, GPU) == 2**25


def test_only_the_youngest_of_those_that_lack_something_are_evicted() -> None:
    store = make_store()
    see_shares(store, {GPU: 2, SEVENTH: 2})
    asks: list[tuple[int, tuple[tuple[str, float], ...]]] = [(1, ()), (1, ()), (0, ((SEVENTH, 1),))]
    for index, (gpus, shares) in enumerate(asks):
        assert store.reserve(make_request(f"p{index}", gpus, shares=shares), "n1", 1.0 + index)
    see_pod(store, make_pod("past-us", 1, node="n1"), 5.0)
    assert [held.uid for held in store.reservations.on_node("n1")] == ["uid-p0", "uid-p2"]


def test_labels_of_slices_contradict_nothing_where_dra_offers_the_gpus() -> None:
    store = make_store()
    labels = {f"{SEVENTH}.count": "7"}
    store.apply(Changed(Kind.NODE, make_node("n1", labels=labels, shares={})), 0.0)
    assert store.nodes["n1"].contradictions
    store.apply(Changed(Kind.RESOURCESLICE, make_slice("n1", devices=[gpu(0), gpu(1)])), 0.0)
    assert not store.nodes["n1"].contradictions
    assert free_of(store, GPU) == 2


def test_the_contradictions_of_a_node_are_told_when_they_come_and_when_they_go() -> None:
    store = make_store()
    told: list[tuple[str, ...]] = []
    store.on_contradictions = lambda record: told.append(record.contradictions)
    for units in (8, 8, 32):
        see_shares(store, {GPU: units}, replicas="4", count="8")
    assert [len(each) for each in told] == [1, 0]
    assert "label nvidia.com/gpu.replicas is 4" in told[0][0]
