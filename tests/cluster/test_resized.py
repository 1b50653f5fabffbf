"""GPUs that are divided anew, or called otherwise, while pods hold them: nobody holds less than the plugin gave."""

from __future__ import annotations

import pytest

from scheduler.cluster.port import Changed, EventNote, Gone, Kind
from scheduler.cluster.store import Store
from scheduler.core.clock import ManualClock
from scheduler.core.nouns import PodRequest
from scheduler.notices import Notices
from tests.builders import make_inventory, make_node, make_pod, make_request, make_store, see_pod

GPU, SHARED = "nvidia.com/gpu", "nvidia.com/gpu.shared"
SEVENTH = "nvidia.com/mig-1g.10gb"


def see_shares(store: Store, shares: dict[str, int], gpus: int | None = None, **labels: str) -> None:
    """The node, and its agent's inventory where there is an agent."""
    given = {f"nvidia.com/gpu.{key}": value for key, value in labels.items()}
    store.apply(Changed(Kind.NODE, make_node("n1", labels=given, shares=shares)), 0.0)
    if gpus is not None:
        store.see_inventory("n1", make_inventory("n1", gpus))


def holds(store: Store, resource: str = GPU) -> tuple[float, float, float]:
    """What is bound of a resource, what is left of it, and GPUs that are free."""
    row, snapshot = store.rows["n1"], store.snapshot
    bound = float(snapshot.units_of(resource, snapshot.bound_units)[row])
    return bound, float(snapshot.units_of(resource, snapshot.free_units)[row]), float(snapshot.free_gpus[row])


def asks(name: str, units: int = 1, resource: str = GPU) -> PodRequest:
    return make_request(name, 0, shares=((resource, units),))


def test_pods_with_whole_gpus_hold_all_replicas_of_them_once_these_are_shared() -> None:
    store = make_store()
    see_shares(store, {GPU: 4}, 4, count="4")
    see_pod(store, make_pod("whole", 3, node="n1"))
    see_shares(store, {GPU: 16}, 4, count="4", replicas="4")
    assert holds(store) == (12, 4, 1)
    assert store.snapshot.bound_gpus[store.rows["n1"]] == 3
    made = [store.reserve(asks(f"p{index}"), "n1", 1.0) for index in range(5)]
    assert made == [True] * 4 + [False]
    # Whoever comes now has a replica.
    see_pod(store, make_pod("p0", 1, node="n1"))
    assert holds(store) == (13, 0, 0)
    store.apply(Gone(Kind.POD, make_pod("whole", 3, node="n1")), 2.0)
    assert holds(store) == (1, 12, 3)
    assert not store.nodes["n1"].contradictions
    assert not store.nodes["n1"].came_to


def test_pods_that_were_bound_while_gpus_were_shared_keep_theirs_from_being_whole() -> None:
    store = make_store()
    see_shares(store, {GPU: 16}, 4, count="4", replicas="4")
    for index in range(3):
        see_pod(store, make_pod(f"quarter{index}", 1, node="n1"))
    see_shares(store, {GPU: 4}, 4, count="4", replicas="1")
    # On three GPUs, for all that anybody knows.
    assert holds(store) == (3, 1, 1)
    assert not store.nodes["n1"].outgrown, "kube-scheduler counts as many"
    see_pod(store, make_pod("whole", 1, node="n1"))
    see_shares(store, {GPU: 16}, 4, count="4", replicas="4")
    assert holds(store) == (3 + 4, 9, 9 / 4)
    see_shares(store, {GPU: 8}, 4, count="4", replicas="2")
    assert holds(store) == (3 + 2, 3, 3 / 2)


def test_replicas_that_are_divided_finer_are_as_many_as_they_were_rounded_up() -> None:
    store = make_store()
    see_shares(store, {GPU: 12}, 4, count="4", replicas="3")
    see_pod(store, make_pod("thirds", 2, node="n1"))
    see_shares(store, {GPU: 16}, 4, count="4", replicas="4")
    # 8/3 of them.
    assert holds(store) == (3, 13, 13 / 4)
    see_shares(store, {GPU: 24}, 4, count="4", replicas="6")
    assert holds(store)[:2] == (4, 20)


@pytest.mark.parametrize("restarts", [False, True])
def test_whatever_the_order_in_which_labels_and_allocatable_come(*, restarts: bool) -> None:
    for first in ({GPU: 16}, {GPU: 4}):
        for found in (0, 4):
            store = make_store()
            see_shares(store, {GPU: 4}, found, replicas="1")
            see_pod(store, make_pod("whole", 3, node="n1"))
            see_shares(store, first, found, replicas="1" if first[GPU] == 16 else "4")
            if restarts:
                see_shares(store, {GPU: 0}, found, replicas="4")
            see_shares(store, {GPU: 16}, found, replicas="4")
            assert holds(store) == (12, 4, 1)


def test_labels_that_are_gone_for_a_while_make_no_replica_a_whole_gpu() -> None:
    store = make_store()
    see_shares(store, {GPU: 16}, 4, count="4", replicas="4")
    see_pod(store, make_pod("before", 1, node="n1"))
    store.apply(Changed(Kind.NODE, make_node("n1", shares={GPU: 16})), 0.0)
    see_pod(store, make_pod("meanwhile", 1, node="n1"))
    see_shares(store, {GPU: 16}, 4, count="4", replicas="4")
    assert holds(store) == (2, 14, 3.5)
    assert not store.nodes["n1"].contradictions


def test_gpus_that_are_not_healthy_for_a_while_change_nothing_for_their_pods() -> None:
    store = make_store()
    for units in (16, 12, 16):
        see_shares(store, {GPU: units}, 4, count="4", replicas="4")
        see_pod(store, make_pod(f"at-{units}", 2, node="n1"))
    assert holds(store) == (4, 12, 3)
    assert set(store.nodes["n1"].came_to) == {"uid-at-12"}


def test_pods_by_a_name_that_the_plugin_has_left_hold_what_it_is_called_now() -> None:
    for name, seen_before in ((SHARED, True), (SHARED, False), ("example.com/part", True)):
        store = make_store(gpu_resources=frozenset({"example.com/part"}))
        if seen_before:
            see_shares(store, {GPU: 8}, 8)
        for index in range(3):
            see_pod(store, make_pod(f"p{index}", 2, node="n1"))
        see_shares(store, {GPU: 0, name: 32}, 8, replicas="4")
        assert store.snapshot.gpu_count[store.rows["n1"]] == 8
        assert holds(store, name) == (24, 8, 2)
        want = f"pods hold {GPU}, of which none is allocatable, and {name} is of the same GPUs"
        assert store.nodes["n1"].contradictions == (want,)
        made = [store.reserve(asks(f"r{index}", 4, name), "n1", 1.0) for index in range(3)]
        assert made == [True, True, False]
        for index in range(3):
            store.apply(Gone(Kind.POD, make_pod(f"p{index}", 2, node="n1")), 2.0)
        assert holds(store, name) == (0, 24, 6)
        assert not store.nodes["n1"].contradictions


def test_replicas_keep_their_gpu_from_being_whole_under_another_name() -> None:
    store = make_store()
    see_shares(store, {SHARED: 16}, 4, replicas="4")
    for index in range(3):
        see_pod(store, make_pod(f"p{index}", shares={SHARED: 1}, node="n1"))
    see_shares(store, {GPU: 4, SHARED: 0}, 4, replicas="1")
    assert holds(store) == (3, 1, 1)


@pytest.mark.parametrize(("lost", "kept"), [(SHARED, GPU), (SEVENTH, GPU), (GPU, SEVENTH)])
def test_gpus_that_are_not_healthy_are_not_those_beside_them(lost: str, kept: str) -> None:
    store, both = make_store(), {lost: 4, kept: 4}
    see_shares(store, both, replicas="4" if lost == SHARED else "1")
    see_pod(store, make_pod("a", shares={lost: 2}, node="n1"))
    see_shares(store, {**both, lost: 0}, replicas="4" if lost == SHARED else "1")
    assert holds(store, kept)[:2] == (0, 4)
    see_shares(store, both, replicas="4" if lost == SHARED else "1")
    assert holds(store, lost)[:2] == (2, 2)


def test_slices_that_a_node_does_not_offer_are_no_part_of_what_it_offers() -> None:
    store = make_store()
    see_shares(store, {GPU: 4}, 4)
    see_pod(store, make_pod("slice", shares={SEVENTH: 3}, node="n1"))
    assert holds(store) == (0, 4, 4)
    assert not store.nodes["n1"].contradictions


def test_what_was_renamed_is_sought_under_its_own_name_first() -> None:
    own = "example.com/part"
    store = make_store(gpu_resources=frozenset({own}))
    see_shares(store, {own: 6, SHARED: 4}, 4, replicas="2")
    see_pod(store, make_pod("whole", 1, node="n1"))
    assert (holds(store, SHARED)[0], holds(store, own)[0]) == (2, 0)


def test_who_explains_or_preempts_counts_free_what_is_held() -> None:
    store = make_store()
    see_shares(store, {GPU: 4}, 4, count="4")
    see_pod(store, make_pod("whole", 3, node="n1"))
    see_shares(store, {GPU: 16}, 4, count="4", replicas="4")
    row = store.rows["n1"]
    own = store.snapshot_for(asks("whole", 3), held_on="n1")
    assert (own.free_units[0, row], own.free_gpus[row]) == (16, 4)
    without = store.snapshot_for(asks("new"), gone={"n1": ("uid-whole",)})
    assert without.free_units[0, row] == 16


def test_pods_from_before_are_told_once_on_their_node_and_nobody_calls_it_the_labels_fault() -> None:
    store, written = make_store(), list[EventNote]()
    notices = Notices(written.append, lambda: True, ManualClock())
    store.on_contradictions = notices.contradictions
    see_shares(store, {GPU: 4}, 4, count="4")
    for index in range(3):
        see_pod(store, make_pod(f"whole{index}", 1, node="n1"))
    see_shares(store, {GPU: 16}, 4, count="4", replicas="4")
    [note] = written
    assert (note.kind, note.reason, note.warning) == ("Node", "PodsContradictAllocatable", True)
    want = (
        f"Here pods hold {GPU} from when a unit was a whole GPU; now it is 1/4 of a GPU. wattbalance counts"
    )
    assert note.note.startswith(want)
    assert len(note.note) <= 1024
    # With each that ends nothing is new.
    store.apply(Gone(Kind.POD, make_pod("whole0", 1, node="n1")), 2.0)
    see_shares(store, {GPU: 16}, 4, count="4", replicas="4")
    assert len(written) == 1
    assert len(store.nodes["n1"].contradictions) == 1
