"""The store: what it counts, forgets and never believes."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cluster import measurements
from scheduler.cluster.objects import Meta, OwnerRef, Partial, Pod
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.cluster.reservations import CHOICES_WITHOUT_BINDING
from scheduler.cluster.store import Store
from scheduler.core.nouns import PoolSpec, Workload
from tests.builders import (
    free_of,
    lose_pod,
    make_inventory,
    make_node,
    make_pod,
    make_request,
    make_sample,
    make_store,
    see_node,
    see_pod,
)


def load_of(store: Store, node: str = "n1") -> float:
    return float(store.snapshot.load_sum[store.rows[node]])


def test_a_bound_pod_takes_gpus_and_gives_them_back_when_it_is_gone() -> None:
    store = make_store()
    see_node(store)
    pod = make_pod(gpus=3, node="n1")
    see_pod(store, pod)
    assert free_of(store) == 5
    lose_pod(store, pod)
    assert free_of(store) == 8


def test_a_finished_pod_holds_nothing_but_a_terminating_one_does() -> None:
    store = make_store()
    see_node(store)
    terminating = msgspec.json.decode(msgspec.json.encode(make_pod(gpus=2, node="n1")))
    terminating["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    see_pod(store, msgspec.convert(terminating, Pod))
    assert free_of(store) == 6
    see_pod(store, make_pod(gpus=2, node="n1", phase="Succeeded"))
    assert free_of(store) == 8


def test_pods_listed_before_their_node_are_counted_when_it_appears() -> None:
    store = make_store()
    see_pod(store, make_pod(gpus=3, node="n1"))
    see_node(store)
    assert free_of(store) == 5


def test_of_nodes_that_are_not_there_nothing_is_kept_once_their_pods_are_gone() -> None:
    store = make_store()
    pod = make_pod(node="never")
    see_pod(store, pod)
    lose_pod(store, pod)
    # The only look inside: what is not seen from outside is memory that a long life would fill.
    assert store._holdings._orphans == {}


def test_a_node_that_comes_back_under_its_name_still_holds_its_pods() -> None:
    store = make_store()
    see_node(store)
    see_pod(store, make_pod(gpus=3, node="n1"))
    store.apply(Gone(Kind.NODE, make_node()), 0.0)
    assert "n1" not in store.rows
    see_node(store)
    assert free_of(store) == 5


def test_a_relist_drops_what_was_deleted_during_a_watch_gap() -> None:
    store = make_store()
    see_node(store)
    see_node(store, "n2")
    see_pod(store, make_pod("a", gpus=3, node="n1"))
    see_pod(store, make_pod("b", gpus=1, node="n1"))
    store.apply(Listed(Kind.POD, frozenset({"uid-b"})), 0.0)
    store.apply(Listed(Kind.NODE, frozenset({"n1"})), 0.0)
    assert free_of(store) == 7
    assert set(store.rows) == {"n1"}


def test_a_row_that_is_used_again_starts_clean() -> None:
    store = make_store()
    see_node(store)
    see_pod(store, make_pod(gpus=3, node="n1"))
    store.see_samples([("n1", make_sample(util=[0.9] * 8), 1.0)])
    row = store.rows["n1"]
    store.apply(Gone(Kind.NODE, make_node()), 1.0)
    store.apply(Changed(Kind.NODE, make_node("other", gpus=4)), 1.0)
    assert store.rows["other"] == row
    assert free_of(store, "other") == 4
    assert load_of(store, "other") == pytest.approx(4 * 0.5), "all unknown and free: neutral"


def test_utilisation_decays_towards_new_samples_with_the_half_life() -> None:
    store = make_store(half_life_s=5.0)
    see_node(store, gpus=1)
    store.see_samples([("n1", make_sample(util=[0.0]), 0.0)])
    store.see_samples([("n1", make_sample(util=[1.0]), 5.0)])
    assert load_of(store) == pytest.approx(0.5)


def test_an_unknown_gpu_counts_full_when_allocated_and_neutral_when_free() -> None:
    store = make_store(neutral_load=0.5)
    see_node(store, gpus=2)
    assert load_of(store) == pytest.approx(1.0)
    see_pod(store, make_pod(gpus=1, node="n1"))
    assert load_of(store) == pytest.approx(1.5)


def test_a_gpu_counts_as_one_at_the_most_however_busy_it_was_and_is_taken_to_be() -> None:
    store = make_store()
    see_node(store, gpus=1)
    store.see_samples([("n1", make_sample("n1", [1.0]), 0.0)])
    see_pod(store, make_pod(gpus=1, node="n1"))
    store.see_status("n1", online=False)
    assert load_of(store) == 1.0


def test_a_node_silent_beyond_the_limit_becomes_unknown_and_recovers() -> None:
    store = make_store(stale_s=10.0)
    see_node(store, gpus=2)
    store.see_samples([("n1", make_sample(util=[0.0, 0.0]), 100.0)])
    store.tick(100.0)
    assert load_of(store) == 0
    store.tick(110.5)
    assert not store.snapshot.fresh[store.rows["n1"]]
    assert load_of(store) == pytest.approx(1.0)
    store.see_samples([("n1", make_sample(util=[0.0, 0.0]), 111.0)])
    assert load_of(store) == pytest.approx(0.0, abs=0.01)


def test_an_offline_status_makes_readings_unknown_at_once() -> None:
    store = make_store()
    see_node(store, gpus=2)
    store.see_samples([("n1", make_sample(util=[0.0, 0.0]), 1.0)])
    store.see_status("n1", online=False)
    assert load_of(store) == pytest.approx(1.0)
    assert store.node_power_w(store.rows["n1"]) is None


def test_a_lost_gpu_is_not_free_and_counts_as_fully_loaded() -> None:
    store = make_store()
    see_node(store, gpus=2)
    store.see_samples([("n1", make_sample(util=[0.3, None], state=["ok", "lost"]), 1.0)])
    row = store.rows["n1"]
    assert store.snapshot.healthy_gpus[row] == 1
    assert free_of(store) == 1
    assert load_of(store) == pytest.approx(1.3)


def test_each_gpu_is_told_by_its_agents_own_word() -> None:
    store = make_store()
    see_node(store, gpus=5)
    util: list[float | None] = [0.5, None, None, 0.5, None]
    state = ["ok", "lost", "hung", "hung", "unknown"]
    store.see_samples([("n1", make_sample(util=util, state=state), 1.0)])
    told = store.gpu_readings("n1")
    assert [word for word, _, _ in told] == state
    assert [util_frac for _, util_frac, _ in told] == [0.5, None, None, None, None]
    assert store.snapshot.healthy_gpus[store.rows["n1"]] == 2


def test_power_with_a_hole_in_it_is_unknown_not_smaller() -> None:
    store = make_store()
    see_node(store, gpus=2)
    sample = make_sample(util=[0.5, 0.5])
    store.see_samples([("n1", sample, 1.0)])
    assert store.node_power_w(store.rows["n1"]) == pytest.approx(200)
    sample.power_w[1] = None
    store.see_samples([("n1", sample, 2.0)])
    assert store.node_power_w(store.rows["n1"]) is None


def test_a_node_with_more_gpus_than_seen_before_widens_the_columns() -> None:
    store = make_store()
    see_node(store, "small", gpus=2)
    store.see_samples([("small", make_sample("small", util=[0.25, 0.25]), 1.0)])
    see_node(store, "big", gpus=16)
    store.see_samples([("big", make_sample("big", util=[1.0] * 16), 1.0)])
    assert load_of(store, "big") == pytest.approx(16)
    assert load_of(store, "small") == pytest.approx(0.5)


def test_an_inventory_that_comes_before_its_node_is_kept() -> None:
    store = make_store()
    store.see_inventory("n1", make_inventory(gpus=2))
    store.apply(Changed(Kind.NODE, make_node(gpus=2)), 0.0)
    store.see_samples([("n1", make_sample(util=[0.1, 0.1]), 1.0)])
    assert load_of(store) == pytest.approx(0.2)


def test_a_node_that_is_deleted_and_created_again_is_read_though_its_agent_says_nothing_new() -> None:
    store = make_store()
    see_node(store, gpus=2)
    store.see_samples([("n1", make_sample(util=[0.9, 0.9]), 1.0)])
    store.apply(Gone(Kind.NODE, make_node()), 2.0)
    store.apply(Changed(Kind.NODE, make_node(gpus=2)), 3.0)
    assert load_of(store) == pytest.approx(1.0), "what was read before it went is forgotten"
    store.see_samples([("n1", make_sample(util=[0.1, 0.1], seq=2), 4.0)])
    assert load_of(store) == pytest.approx(0.2)
    assert not store.counters["samples_without_inventory"]


def test_a_relist_that_misses_a_node_keeps_its_inventory_for_its_return() -> None:
    store = make_store()
    see_node(store, gpus=2)
    store.apply(Listed(Kind.NODE, frozenset()), 0.0)
    store.apply(Changed(Kind.NODE, make_node(gpus=2)), 1.0)
    store.see_samples([("n1", make_sample(util=[0.1, 0.1]), 2.0)])
    assert load_of(store) == pytest.approx(0.2)


def test_inventories_of_nodes_that_are_not_there_are_bounded_and_the_oldest_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measurements, "MOST_EARLY_INVENTORIES", 2)
    store = make_store()
    # `gone` was a node; `a` has told twice, so that it is younger than `gone`.
    store.see_inventory("a", make_inventory("a", 2))
    see_node(store, "gone", gpus=2)
    store.apply(Gone(Kind.NODE, make_node("gone")), 0.0)
    store.see_inventory("a", make_inventory("a", 2))
    store.see_inventory("b", make_inventory("b", 2))
    assert store.counters["inventories_forgotten"] == 1
    for name in ("a", "b", "gone"):
        store.apply(Changed(Kind.NODE, make_node(name, gpus=2)), 1.0)
    assert {name for name, record in store.nodes.items() if record.inventory} == {"a", "b"}


def test_samples_of_unknown_nodes_or_of_another_shape_are_dropped_and_counted() -> None:
    store = make_store()
    see_node(store, gpus=2)
    store.see_samples([("n1", make_sample(util=[0.1] * 3), 1.0), ("ghost", make_sample("ghost"), 1.0)])
    assert store.counters["samples_without_inventory"] == 1
    assert store.counters["samples_unknown_node"] == 1
    assert load_of(store) == pytest.approx(1.0)


def test_pending_load_fades_with_the_half_life() -> None:
    store = make_store(half_life_s=5.0)
    see_node(store)
    store.tick(0.0)
    assert store.reserve(make_request(gpus=2, expected_load=0.9), "n1", 0.0)
    row = store.rows["n1"]
    assert store.snapshot.pending_load[row] == pytest.approx(1.8)
    store.tick(5.0)
    assert store.snapshot.pending_load[row] == pytest.approx(0.9)
    store.release("uid-p1", 5.0)
    assert store.snapshot.pending_load[row] == pytest.approx(0.0, abs=1e-5)


def test_a_promise_that_is_taken_back_between_two_ticks_leaves_no_load_behind() -> None:
    store = make_store(half_life_s=5.0)
    see_node(store)
    store.tick(0.0)
    assert store.reserve(make_request(gpus=2, expected_load=0.9), "n1", 0.0)
    store.release("uid-p1", 5.0)
    assert store.snapshot.pending_load[store.rows["n1"]] == pytest.approx(0.0, abs=1e-5)


def test_load_that_is_expected_between_two_ticks_has_not_faded_by_the_next() -> None:
    store = make_store(half_life_s=5.0)
    see_node(store)
    store.tick(0.0)
    see_pod(store, make_pod("old", gpus=1), 0.0)
    see_pod(store, make_pod("old", gpus=1, node="n1"), 5.0)
    store.tick(5.0)
    assert store.snapshot.pending_load[store.rows["n1"]] == pytest.approx(0.9)


def test_a_pod_bound_past_us_adds_pending_load_but_the_first_listing_does_not() -> None:
    store = make_store()
    see_node(store)
    see_pod(store, make_pod("old", gpus=1, node="n1"))
    assert store.snapshot.pending_load[store.rows["n1"]] == 0
    store.apply(Listed(Kind.POD, frozenset({"uid-old"})), 0.0)
    see_pod(store, make_pod("new", gpus=2, node="n1"))
    assert store.snapshot.pending_load[store.rows["n1"]] == pytest.approx(1.8)


def test_a_pod_that_was_seen_waiting_and_is_bound_is_news_before_all_pods_are_listed() -> None:
    store = make_store()
    see_node(store)
    see_pod(store, make_pod(gpus=2))
    see_pod(store, make_pod(gpus=2, node="n1"))
    assert store.snapshot.pending_load[store.rows["n1"]] == pytest.approx(1.8)


def test_what_ends_on_a_node_that_nobody_reads_takes_no_load_along() -> None:
    for is_read, want_load in ((True, -1.8), (False, 0.0)):
        store = make_store()
        see_node(store)
        if is_read:
            store.see_samples([("n1", make_sample("n1", [0.5] * 8), 0.0)])
        pod = make_pod(gpus=2, node="n1")
        see_pod(store, pod)
        lose_pod(store, pod)
        assert store.snapshot.pending_load[store.rows["n1"]] == pytest.approx(want_load)


def test_a_uid_holds_gpus_in_one_place_and_as_many_as_it_was_last_told_of() -> None:
    store = make_store()
    see_node(store, "n1")
    see_node(store, "n2")
    for gpus, node in ((1, "n1"), (1, "n2"), (3, "n2")):
        see_pod(store, make_pod(gpus=gpus, node=node))
    assert (free_of(store, "n1"), free_of(store, "n2")) == (8, 5)


def test_a_binding_takes_the_pods_own_reservation() -> None:
    store = make_store()
    see_node(store)
    see_pod(store, make_pod(gpus=2))
    assert store.reserve(make_request(gpus=2), "n1", 0.0)
    assert free_of(store) == 6
    see_pod(store, make_pod(gpus=2, node="n1"), 1.0)
    assert free_of(store) == 6
    assert len(store.reservations) == 0


def test_the_load_of_a_kept_promise_is_still_coming_and_that_of_a_broken_one_is_not() -> None:
    for node, want_load in (("n1", 1.8), ("n2", 0.0)):
        store = make_store()
        see_node(store, "n1")
        see_node(store, "n2")
        see_pod(store, make_pod(gpus=2))
        assert store.reserve(make_request(gpus=2), "n1", 0.0)
        see_pod(store, make_pod(gpus=2, node=node))
        assert store.snapshot.pending_load[store.rows["n1"]] == pytest.approx(want_load)


def test_a_promise_goes_with_the_pod_to_another_node() -> None:
    store = make_store()
    see_node(store, "n1")
    see_node(store, "n2")
    for node in ("n1", "n2"):
        assert store.reserve(make_request(gpus=2), node, 0.0)
    assert (free_of(store, "n1"), free_of(store, "n2")) == (8, 6)


def test_to_its_own_pod_a_promises_load_is_not_there_however_much_of_it_has_faded() -> None:
    store = make_store()
    see_node(store)
    assert store.reserve(make_request(gpus=2), "n1", 0.0)
    store.tick(5.0)
    assert store.snapshot_for(make_request(gpus=2)).pending_load[store.rows["n1"]] == pytest.approx(
        0, abs=1e-6
    )


def test_a_promise_on_gpus_that_broke_makes_room_for_what_is_bound() -> None:
    store = make_store()
    see_node(store)
    assert store.reserve(make_request(gpus=4), "n1", 0.0)
    store.see_samples([("n1", make_sample("n1", [0.0] * 8, ["lost"] * 4 + ["ok"] * 4), 1.0)])
    see_pod(store, make_pod("foreign", gpus=1, node="n1"), 2.0)
    assert store.reservations.get("uid-p1") is None


def test_a_pod_that_is_deleted_takes_its_nomination_and_its_history_along() -> None:
    store = make_store()
    see_node(store)
    vip = make_pod("vip", gpus=3, nominated="n1", priority=10)
    see_pod(store, vip)
    for _ in range(CHOICES_WITHOUT_BINDING):
        store.reservations.note_choice("uid-vip", "n1", 0.0)
    assert store.reservations.last_choices("uid-vip", 1.0) == ["n1"]
    lose_pod(store, vip)
    assert store.snapshot_for(make_request("low")).free_gpus[store.rows["n1"]] == 8
    assert store.reservations.last_choices("uid-vip", 1.0) == []


def test_a_foreign_binding_evicts_the_youngest_reservations_until_the_sum_fits() -> None:
    store = make_store()
    see_node(store, gpus=4)
    assert store.reserve(make_request("old", gpus=2), "n1", 0.0)
    assert store.reserve(make_request("young", gpus=2), "n1", 1.0)
    see_pod(store, make_pod("foreign", gpus=1, node="n1"), 2.0)
    assert store.reservations.get("uid-young") is None
    assert store.reservations.get("uid-old") is not None
    assert store.counters["reservations_evicted"] == 1
    assert free_of(store) == 1


def test_a_reservation_runs_out_and_its_gpus_are_free_again() -> None:
    store = make_store(reservation_s=30.0)
    see_node(store)
    assert store.reserve(make_request(gpus=2), "n1", 0.0)
    store.tick(29.0)
    assert free_of(store) == 6
    store.tick(30.0)
    assert free_of(store) == 8


def test_a_pod_that_waits_for_a_volume_keeps_its_reservation_longer_than_volume_binding_waits() -> None:
    store = make_store(reservation_s=30.0)
    see_node(store)
    assert store.reserve(make_request(gpus=2, waits_for_volume=True), "n1", 0.0)
    store.tick(609.0)
    assert free_of(store) == 6


def test_nothing_is_promised_beyond_what_is_free() -> None:
    store = make_store()
    see_node(store, gpus=2)
    assert store.reserve(make_request("a", gpus=2), "n1", 0.0)
    assert not store.reserve(make_request("b", gpus=1), "n1", 0.0)
    assert not store.reserve(make_request("c", gpus=1), "nowhere", 0.0)


def test_a_nominated_pod_holds_its_gpus_against_equal_and_lower_priority_only() -> None:
    store = make_store()
    see_node(store, gpus=4)
    see_pod(store, make_pod("vip", gpus=3, nominated="n1", priority=10))
    row = store.rows["n1"]
    assert store.snapshot_for(make_request("low", priority=10)).free_gpus[row] == 1
    assert store.snapshot_for(make_request("high", priority=11)).free_gpus[row] == 4
    assert store.snapshot_for(make_request("vip", priority=10)).free_gpus[row] == 4


def test_pools_go_by_selector_in_order_and_the_rest_is_default() -> None:
    store = make_store(
        (PoolSpec(name="dc", selector={"site": "dc"}), PoolSpec(name="aws", selector={"site": "aws"}))
    )
    see_node(store, "a", labels={"site": "aws"})
    see_node(store, "b", labels={"site": "elsewhere"})
    assert store.nodes["a"].pool == "aws"
    assert store.nodes["b"].pool == "default"
    assert store.snapshot.pool_sizes == (0, 1, 1)
    see_node(store, "b", labels={"site": "dc"})
    assert store.snapshot.pool_sizes == (1, 1, 0)


def test_what_is_relative_to_the_largest_node_falls_when_that_leaves() -> None:
    store = make_store(capabilities={"H100": 2.0})
    see_node(store, "small", gpus=4)
    store.see_inventory("small", make_inventory("small", 4, model="T4"))
    see_node(store, "large", gpus=16)
    assert (store.snapshot.gpu_count_max, store.snapshot.capability_max) == (16, 2)
    store.apply(Gone(Kind.NODE, make_node("large")), 0.0)
    assert (store.snapshot.gpu_count_max, store.snapshot.capability_max) == (4, 1)


def test_workload_comes_from_the_pod_then_its_owners_then_its_namespace() -> None:
    store = make_store()
    ours = {"wattbalance.io/workload": "inference"}
    replica_set = Meta(
        name="rs", uid="rs", owner_references=[OwnerRef(kind="Deployment", uid="deploy", controller=True)]
    )
    store.apply(Changed(Kind.REPLICASET, Partial(replica_set)), 0.0)
    store.apply(Changed(Kind.DEPLOYMENT, Partial(Meta(uid="deploy", annotations={**ours}))), 0.0)
    store.apply(Changed(Kind.NAMESPACE, Partial(Meta(name="team-a", annotations=ours))), 0.0)
    owned = make_pod(owner=OwnerRef(kind="ReplicaSet", uid="rs", controller=True))
    assert store.intents.workload(owned.metadata, "") is Workload.INFERENCE
    own = make_pod(annotations={"wattbalance.io/workload": "training"})
    assert store.intents.workload(own.metadata, "") is Workload.TRAINING
    assert store.intents.workload(make_pod().metadata, "") is Workload.INFERENCE


def test_a_bad_workload_is_counted_and_inferred_instead() -> None:
    store = make_store()
    pod = make_pod(
        annotations={"wattbalance.io/workload": "tranning"},
        owner=OwnerRef(kind="Job", uid="j", controller=True),
    )
    assert store.intents.workload(pod.metadata, "") is Workload.TRAINING
    assert store.intents.errors["workload"] == 1


def test_owners_that_a_list_of_their_kind_does_not_name_are_forgotten() -> None:
    store = make_store()
    ours = {"wattbalance.io/workload": "inference"}
    for kind, uid in ((Kind.JOB, "kept"), (Kind.JOB, "gone"), (Kind.DEPLOYMENT, "other-kind")):
        store.apply(Changed(kind, Partial(Meta(uid=uid, annotations=ours))), 0.0)
    store.apply(Listed(Kind.JOB, {"kept"}, 0.0), 0.0)
    assert set(store.intents.owners) == {"kept", "other-kind"}
    orphan = make_pod(owner=OwnerRef(kind="Job", uid="gone", controller=True))
    assert store.intents.workload(orphan.metadata, "") is Workload.TRAINING, (
        "by its kind, no longer inherited"
    )


def test_an_owner_chain_with_a_cycle_ends() -> None:
    store = make_store()
    for uid, parent in (("a", "b"), ("b", "a")):
        meta = Meta(uid=uid, owner_references=[OwnerRef(kind="Job", uid=parent, controller=True)])
        store.apply(Changed(Kind.JOB, Partial(meta)), 0.0)
    pod = make_pod(owner=OwnerRef(kind="Job", uid="a", controller=True))
    assert store.intents.workload(pod.metadata, "") is Workload.TRAINING


@given(
    util=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    bound=st.integers(0, 8),
    hide=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_forgetting_a_reading_never_lowers_the_load(util: list[float], bound: int, hide: list[bool]) -> None:
    loads = []
    for hidden in (False, True):
        store = make_store()
        see_node(store, gpus=len(util))
        see_pod(store, make_pod(gpus=min(bound, len(util)), node="n1"))
        store.see_samples([("n1", make_sample(util=list(util)), 1.0)])
        if hidden:
            seen = [None if h else u for u, h in zip(util, hide, strict=False)]
            store.see_samples([("n1", make_sample(util=seen), 1.0)])
        loads.append(load_of(store))
    assert np.isfinite(loads).all()
    assert loads[1] >= loads[0] - 1e-6
