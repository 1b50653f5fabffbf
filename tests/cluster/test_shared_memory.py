"""Memory that units share, as one request finds it: what others have asked for, what it has itself, what would end."""

from __future__ import annotations

import numpy as np
import pytest

from scheduler.cluster.intent import IntentSettings
from scheduler.cluster.objects import Meta, Partial
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.port import Changed, Gone, Kind
from scheduler.cluster.shared_memory import MOST_COMING
from scheduler.cluster.store import Store
from scheduler.core.nouns import PodRequest, Workload
from scheduler.telemetry.sample import GpuInventory, Inventory
from tests.builders import (
    GIB,
    SHARED_RESOURCE,
    lose_pod,
    make_node,
    make_pod,
    make_request,
    make_sharing_pod,
    make_store,
    measure_memory,
    see_node,
    see_pod,
    see_sharing_node,
)

NOW = 2.0
LONG_AGO = -60.0
"""Who ran then has its memory by the first sample."""
GPU = "nvidia.com/gpu"


def ask(gib: int = 1, name: str = "new", *, units: int = 1, priority: int = 0) -> PodRequest:
    return make_request(
        name, 0, shares=((SHARED_RESOURCE, units),), gpu_memory_bytes=gib * GIB, priority=priority
    )


def free_gib(
    store: Store,
    request: PodRequest | None = None,
    node: str = "n1",
    *,
    held_on: str = "",
    gone: dict[str, list[str]] | None = None,
    beside: tuple[PodFacts, ...] = (),
) -> float:
    """What a unit of the node has of memory for this request; -1 if that is not known."""
    snapshot = store.snapshot_for(request or ask(), held_on=held_on, gone=gone or {}, beside=beside)
    index = snapshot.resources[SHARED_RESOURCE]
    memory_bytes = float(snapshot.unit_memory_bytes[index, store.rows[node]])
    # A full one has a byte, so that it is known.
    return round(memory_bytes / GIB, 6) if memory_bytes else -1


def world(*used_gib: float, replicas: int = 4, whole: int = 0) -> Store:
    """One node, of whose GPUs so much is used."""
    store = make_store()
    see_sharing_node(store, gpus=len(used_gib) - whole, replicas=replicas, whole=whole)
    measure_memory(store, *used_gib)
    return store


# --- what is given away ---------------------------------------------------------------------------------------------


def test_gpus_that_are_whole_have_none_of_what_is_asked_of_shared_ones() -> None:
    # Two GPUs are shared, of five: the even share is that of two.
    store = world(0, 0, 0, 0, 0, whole=3)
    for index in range(4):
        see_pod(store, make_sharing_pod(f"p{index}", 30, node="n1"), NOW)
    assert free_gib(store) == 80 - 60


def test_a_gpu_that_broke_may_have_been_one_that_is_shared() -> None:
    store = world(0, 0, 0, 0, whole=2)
    for index in range(3):
        see_pod(store, make_sharing_pod(f"p{index}", 20, node="n1"), NOW)
    assert free_gib(store) == 80 - 30
    measure_memory(store, 0, 0, 0, 0, state=["lost", "ok", "ok", "ok"])
    assert free_gib(store) == 80 - 60
    # More are broken than are shared: one is left, or the node would be known not to be sound at all.
    measure_memory(store, 0, 0, 0, 0, state=["lost", "lost", "lost", "ok"])
    assert free_gib(store) == 80 - 60


def test_shared_gpus_that_nobody_found_hold_nothing_either() -> None:
    store = make_store()
    see_sharing_node(store, gpus=3)
    see_sharing_node(store, gpus=2)
    store.apply(
        Changed(Kind.NODE, make_node("n1", labels={f"{GPU}.replicas": "4"}, shares={SHARED_RESOURCE: 12})),
        NOW,
    )
    measure_memory(store, 0, 0)
    for index in range(3):
        see_pod(store, make_sharing_pod(f"p{index}", 20, node="n1"), NOW)
    # Allocatable has three GPUs' worth, and two were found.
    assert free_gib(store) == 80 - 30


@pytest.mark.parametrize(
    ("gpus", "units", "want_gib"), [(1, 2, 35), (2, 2, 70), (2, 3, 35), (2, 4, 35), (3, 7, 70 / 3)]
)
def test_units_of_one_pod_that_lie_on_one_gpu_share_what_is_free_of_it(
    gpus: int, units: int, want_gib: float
) -> None:
    store = world(*[10.0] * gpus, replicas=8)
    assert free_gib(store, ask(units=units)) == pytest.approx(want_gib)


def test_only_units_that_share_a_gpu_have_to_share_what_is_free() -> None:
    store = world(0, 0, 0, 10, whole=3)
    asks = make_request("new", 3, shares=((SHARED_RESOURCE, 1),), gpu_memory_bytes=GIB)
    assert free_gib(store, asks) == 70
    asks = make_request("new", 1, shares=((SHARED_RESOURCE, 2),), gpu_memory_bytes=GIB)
    assert free_gib(store, asks) == 35
    assert store.snapshot_for(asks).unit_memory_bytes[0, store.rows["n1"]] == 80 * GIB


def test_memory_of_whole_gpus_and_of_slices_is_not_divided_by_how_many_a_pod_takes() -> None:
    store = world(10)
    see_node(store, "whole", labels={"nvidia.com/gpu.memory": "81920"})
    store.forget_inventory("whole")
    request = make_request("new", 4, gpu_memory_bytes=GIB)
    snapshot = store.snapshot_for(request)
    assert snapshot.unit_memory_bytes[0, store.rows["whole"]] == 80 * GIB


def test_what_was_asked_of_whole_gpus_counts_once_they_are_shared() -> None:
    store = make_store()
    store.apply(Changed(Kind.NODE, make_node("n1", 2)), NOW)
    found = [GpuInventory(uuid=f"n1-{i}", model="H100", memory_total_bytes=80 * GIB) for i in range(2)]
    store.see_inventory("n1", Inventory(v=1, node="n1", gpus=found))
    request = make_request("promised", 1, gpu_memory_bytes=30 * GIB)
    assert store.reserve(request, "n1", NOW)
    said = {"wattbalance.io/gpu-memory": "20Gi"}
    see_pod(store, make_pod("bound", node="n1", annotations=said), NOW)
    store.apply(Changed(Kind.NODE, make_node("n1", 4, {f"{GPU}.replicas": "4"})), NOW)
    measure_memory(store, 0, 0)
    newcomer = make_request("new", 1, gpu_memory_bytes=GIB)
    assert store.snapshot_for(newcomer).unit_memory_bytes[0, store.rows["n1"]] == 30 * GIB
    store.release("uid-promised", NOW)
    assert store.snapshot_for(newcomer).unit_memory_bytes[0, store.rows["n1"]] == 60 * GIB


def test_a_bound_pod_has_what_it_was_let_in_by_whatever_its_namespace_says_since() -> None:
    store = world(0)
    said = {"wattbalance.io/gpu-memory": "20Gi"}
    store.apply(Changed(Kind.NAMESPACE, Partial(metadata=Meta(name="team-a", annotations=said))), NOW)
    see_pod(store, make_sharing_pod("before", node="n1"), NOW)
    store.apply(Changed(Kind.NAMESPACE, Partial(metadata=Meta(name="team-a"))), NOW)
    see_pod(store, make_sharing_pod("after", node="n1"), NOW)
    assert free_gib(store) == 60
    see_pod(store, make_sharing_pod("before", 30, node="n1"), NOW)
    assert free_gib(store) == 50, "its own word is another matter"


@pytest.mark.parametrize(
    ("gpus", "units", "replicas", "want_gpus"), [(3, 7, 2, 3), (3, 6, 2, 3), (7, 287, 41, 7)]
)
def test_gpus_that_are_shared_are_counted_whole(gpus: int, units: int, replicas: int, want_gpus: int) -> None:
    store = make_store()
    see_sharing_node(store, gpus=gpus)
    # Of three GPUs one has lost a replica; and 287 times the 41st part is less than 7 in 32 bits.
    labels, shares = {f"{GPU}.replicas": str(replicas)}, {SHARED_RESOURCE: units}
    store.apply(Changed(Kind.NODE, make_node("n1", labels=labels, shares=shares)), NOW)
    measure_memory(store, *[0] * gpus)
    for index in range(6 * want_gpus):
        see_pod(store, make_sharing_pod(f"p{index}", 10, node="n1"), NOW)
    assert free_gib(store) == 20


def test_what_is_free_is_unknown_where_no_gpu_is_sound_or_nobody_tells_how_much_there_is() -> None:
    store = world(0, 0)
    measure_memory(store, 0, 0, state=["lost", "hung"])
    assert free_gib(store) == -1
    see_sharing_node(store, "n2", memory_gib=0)
    measure_memory(store, 10, node="n2")
    assert free_gib(store, node="n2") == -1


def test_a_row_that_nobody_uses_is_as_it_was_in_the_beginning() -> None:
    store = make_store()
    see_node(store, "n0")
    row = store._columns._free_rows[-1]
    want = _of_row(store, row)
    see_sharing_node(store, gpus=2, labels={"wattbalance.io/quarantine": "xid"})
    assert store.rows["n1"] == row
    measure_memory(store, 10, 20)
    see_pod(store, make_sharing_pod("bound", 30, node="n1"), NOW)
    assert store.reserve(ask(10, "promised"), "n1", NOW)
    store.apply(Gone(Kind.NODE, make_node("n1")), NOW)
    now = _of_row(store, row)
    for name, before in want.items():
        # A resource that was new since has a column of its own.
        here = now[name][: len(before)]
        assert np.array_equal(here, before, equal_nan=before.dtype.kind == "f"), name


def _of_row(store: Store, row: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    """What all columns say of one row; but for its last name's hash, which nobody asks for."""
    columns = store._columns
    return {
        name: np.atleast_1d(each[row] if len(each) == columns.rows else each[:, row]).copy()
        for name, each in vars(columns).items()
        if isinstance(each, np.ndarray) and name != "name_hash"
    }


# --- pods that are on their way -------------------------------------------------------------------------------------


def test_a_nominated_pod_keeps_the_memory_that_it_asks_for() -> None:
    store = world(10)
    see_pod(store, make_sharing_pod("nominated", 50, nominated="n1", priority=5), NOW)
    assert free_gib(store, ask(priority=5)) == 20
    assert free_gib(store, ask(priority=6)) == 70, "against those of higher priority it keeps nothing"
    assert free_gib(store, ask(name="nominated", priority=5)) == 70, "nor against itself"
    # A promise of ours counts it already, there; elsewhere it is somebody else's opinion.
    see_sharing_node(store, "n2")
    measure_memory(store, 0, node="n2")
    assert store.reserve(ask(50, "nominated", priority=5), "n1", NOW)
    assert free_gib(store, ask(priority=5)) == 20
    assert store.reserve(ask(50, "nominated", priority=5), "n2", NOW)
    assert [free_gib(store, ask(priority=5), node) for node in ("n1", "n2")] == [20, 30]
    see_pod(store, make_sharing_pod("nominated", 50, node="n2", nominated="n1", priority=5), NOW)
    assert [free_gib(store, ask(priority=5), node) for node in ("n1", "n2")] == [70, 30]


def test_several_nominated_pods_count_together_and_beside_what_is_there() -> None:
    store = world(0, 0)
    see_sharing_node(store, "n2")
    measure_memory(store, 5, node="n2")
    see_pod(store, make_sharing_pod("bound", 30, node="n1"), NOW)
    assert store.reserve(ask(10, "promised"), "n1", NOW)
    for index in range(3):
        see_pod(store, make_sharing_pod(f"nominated-{index}", 20, nominated="n1"), NOW)
    see_pod(store, make_sharing_pod("far", 70, nominated="n2"), NOW)
    see_pod(store, make_sharing_pod("lost", 70, nominated="nowhere"), NOW)
    assert free_gib(store) == 80 - (30 + 10 + 3 * 20) / 2
    assert free_gib(store, node="n2") == 5
    see_pod(store, make_sharing_pod("large", 60, nominated="n1"), NOW)
    assert free_gib(store) == 80 - 80
    assert free_gib(store, make_request("none", 0, shares=((SHARED_RESOURCE, 1),))) == 80 - 30, (
        "asked for by nobody"
    )


def test_beside_nominated_pods_the_largest_that_is_there_counts_still() -> None:
    store = world(0, 0)
    see_pod(store, make_sharing_pod("bound", 60, node="n1"), NOW)
    see_pod(store, make_sharing_pod("nominated", 10, nominated="n1"), NOW)
    assert free_gib(store) == 20


def test_pods_on_their_way_by_our_own_doing_keep_theirs_too() -> None:
    store = world(0)
    see_pod(store, make_sharing_pod("woken", 50, nominated="n1"), NOW)
    facts = store.pods["uid-woken"]
    see_pod(store, make_sharing_pod("woken", 50), NOW)
    assert free_gib(store) == 80
    high = ask(priority=9)
    assert free_gib(store, high, beside=(facts,)) == 30, "whatever its priority"
    assert free_gib(store, ask(name="woken"), beside=(facts,)) == 80
    see_pod(store, make_sharing_pod("woken", 50, nominated="n1"), NOW)
    assert free_gib(store, beside=(facts,)) == 30, "counted once"
    assert free_gib(store, high, beside=(facts,)) == 80, "kube-scheduler's own word goes before"
    assert store.reserve(ask(50, "woken"), "n1", NOW)
    assert free_gib(store, beside=(facts,)) == 30


def test_what_a_nominated_pod_asks_for_is_read_again_when_somebody_says_something_else() -> None:
    store = world(0)
    see_pod(store, make_sharing_pod("own", 50, nominated="n1"), NOW)
    assert free_gib(store) == 30
    see_pod(store, make_sharing_pod("own", 20, nominated="n1"), NOW)
    assert free_gib(store) == 60
    see_pod(store, make_sharing_pod("own", nominated="n1"), NOW)
    assert free_gib(store) == 80
    said = {"wattbalance.io/gpu-memory": "40Gi"}
    namespace = Partial(metadata=Meta(name="team-a", annotations=said))
    store.apply(Changed(Kind.NAMESPACE, namespace), NOW)
    assert free_gib(store) == 40
    store.intents.settings = IntentSettings(default_workload=Workload.TRAINING)
    store.apply(Changed(Kind.NAMESPACE, Partial(metadata=Meta(name="team-a"))), NOW)
    assert free_gib(store) == 80
    store.intents.settings = IntentSettings(defaults={"gpu-memory": "10Gi"})
    assert free_gib(store) == 70


def test_of_pods_on_their_way_no_more_is_kept_than_a_cluster_has() -> None:
    store = world(0)
    memory = store._promises.memory
    for index in range(MOST_COMING + 2):
        see_pod(store, make_sharing_pod(f"p{index}", 1, nominated="n1"), NOW)
        assert memory._coming_bytes(store.pods[f"uid-p{index}"]) == GIB
    assert len(memory._coming) == 2


# --- what is a pod's own --------------------------------------------------------------------------------------------


def test_what_was_promised_to_a_pod_is_its_own_though_others_were_let_in_since() -> None:
    store = world(0, 0)
    assert store.reserve(ask(70, "large"), "n1", NOW)
    for index in range(6):
        assert free_gib(store, ask(name=f"small-{index}")) >= 10
        assert store.reserve(ask(10, f"small-{index}"), "n1", NOW)
    # The others take 60 of 160: with its own that is 130 on two.
    assert free_gib(store, ask(70, "large")) == 70
    assert free_gib(store, ask(71, "large")) == 70
    assert free_gib(store, ask(70, "newcomer")) == 10


def test_what_is_only_promised_to_a_pod_is_not_measured_as_its_own() -> None:
    store = world(30)
    assert store.reserve(ask(40, "own"), "n1", NOW)
    assert free_gib(store, ask(40, "own")) == 50


def test_a_promise_of_other_memory_than_before_is_another_promise() -> None:
    store = world(0)
    for gib in (50, 50, 20, 60):
        assert store.reserve(ask(gib, "own"), "n1", NOW)
        assert free_gib(store) == 80 - gib
        assert free_gib(store, ask(name="own")) == 80
    assert store.snapshot.reserved_units.sum() == 1
    assert store.snapshot.pending_load[store.rows["n1"]] == pytest.approx(0.9 / 4)


def test_a_bound_pod_would_come_back_to_the_gpu_that_it_is_on() -> None:
    store = world(60, 50)
    own = make_sharing_pod("own", 40, node="n1", phase="Running")
    see_pod(store, own, LONG_AGO)
    measure_memory(store, 60, 50)
    assert free_gib(store) == 20
    # On whichever it is: there is 40 less without it.
    assert free_gib(store, ask(40, "own"), held_on="n1") == 60
    see_pod(store, make_sharing_pod("other", 70, node="n1"), NOW)
    assert free_gib(store, ask(40, "own"), held_on="n1") == 10, "what the other asked for counts"


def test_a_bound_pod_that_has_not_taken_its_part_yet_frees_no_more_than_there_is() -> None:
    store = world(10)
    see_pod(store, make_sharing_pod("own", 40, node="n1"), NOW)
    assert free_gib(store, ask(40, "own"), held_on="n1") == 80
    measure_memory(store, None)
    assert free_gib(store, ask(40, "own"), held_on="n1") == -1, "unknown stays unknown"


def test_a_bound_pod_of_several_units_frees_what_each_has_taken() -> None:
    store = world(70, replicas=8)
    see_pod(store, make_sharing_pod("own", 30, units=2, node="n1"), NOW)
    assert free_gib(store, ask(30, "own", units=2), held_on="n1") == (80 - (70 - 60)) / 2
    see_pod(store, make_sharing_pod("other", 10, node="n1"), NOW)
    assert free_gib(store, ask(30, "own", units=2), held_on="n1") == 35


def test_a_bound_pod_frees_as_much_of_a_gpu_as_its_units_have_to_have_there() -> None:
    store = world(70, 60, replicas=8)
    see_pod(store, make_sharing_pod("own", 20, units=3, node="n1"), NOW)
    # Two of the three are on one: of 70 there, 40 are its own.
    assert free_gib(store, ask(20, "own", units=3), held_on="n1") == (80 - 30) / 2


# --- what would end -------------------------------------------------------------------------------------------------


def test_what_victims_asked_for_is_free_of_one_gpu() -> None:
    store = world(75)
    for name, gib in (("a", 40), ("b", 30), ("none", None)):
        see_pod(store, make_sharing_pod(name, gib, node="n1", phase="Running"), LONG_AGO)
    assert free_gib(store) == 5
    # 40 of the 75 are a's, and no more than 30 is asked for by who stays.
    assert free_gib(store, gone={"n1": ["uid-a"]}) == 45
    assert free_gib(store, gone={"n1": ["uid-a", "uid-a"]}) == 45, "each once"
    assert free_gib(store, gone={"n1": ["uid-a", "uid-b"]}) == 75
    assert free_gib(store, gone={"n1": ["uid-none"]}) == 5, "who knows what it has taken"
    assert free_gib(store, gone={"n1": ["uid-nobody"], "nowhere": ["uid-a"]}) == 5
    assert free_gib(store) == 5, "the books are as before"


def test_of_several_gpus_victims_may_have_been_on_the_emptier_ones() -> None:
    store = world(60, 50)
    for name in ("a", "b"):
        see_pod(store, make_sharing_pod(name, 50, node="n1", phase="Running"), LONG_AGO)
    assert free_gib(store, gone={"n1": ["uid-a"]}) == 20, "the other has 60 still, if it was on the second"
    assert free_gib(store, gone={"n1": ["uid-a", "uid-b"]}) == 70, "10 are left of both together"


def test_victims_may_have_been_on_a_gpu_that_broke() -> None:
    store = world(60, 50)
    measure_memory(store, 60, None, state=["ok", "lost"])
    see_pod(store, make_sharing_pod("a", 50, node="n1", phase="Running"), LONG_AGO)
    assert free_gib(store, gone={"n1": ["uid-a"]}) == 20
    see_pod(store, make_sharing_pod("b", 60, node="n1", phase="Running"), LONG_AGO)
    # Of 60, and 80 that may be on the broken one, 110 are theirs.
    assert free_gib(store, gone={"n1": ["uid-a", "uid-b"]}) == 50


def test_a_victim_that_is_only_promised_its_place_has_taken_nothing() -> None:
    store = world(10)
    assert store.reserve(ask(60, "assumed"), "n1", NOW)
    see_sharing_node(store, "n2")
    measure_memory(store, 10, node="n2")
    assert free_gib(store) == 10
    assert free_gib(store, gone={"n1": ["uid-assumed"]}) == 70
    assert free_gib(store, gone={"n2": ["uid-assumed"]}) == 10, "it is not there"
    shared = store.snapshot.resources[SHARED_RESOURCE]
    elsewhere = store.snapshot_for(ask(), gone={"n2": ["uid-assumed"]})
    assert elsewhere.free_units[shared, store.rows["n2"]] == 4
    snapshot = store.snapshot_for(ask(), gone={"n1": ["uid-assumed"]})
    assert snapshot.reserved_units.sum() == 0
    assert snapshot.free_units[snapshot.resources[SHARED_RESOURCE], store.rows["n1"]] == 4


def test_units_of_victims_are_free() -> None:
    store = make_store()
    see_node(store, "n1", 4)
    for name, gpus in (("a", 3), ("b", 1)):
        see_pod(store, make_pod(name, gpus, node="n1"), NOW)
    snapshot = store.snapshot_for(make_request(), gone={"n1": ["uid-a"]})
    row = store.rows["n1"]
    told = (snapshot.free_gpus, snapshot.bound_gpus, snapshot.free_units[0], snapshot.bound_units[0])
    assert [float(each[row]) for each in told] == [3, 1, 3, 1]
    assert float(store.snapshot.bound_units[0, row]) == 4, "the books are as before"
    # Nor does it matter there what anybody has of memory.
    wants = make_request(gpu_memory_bytes=GIB)
    snapshot = store.snapshot_for(wants, gone={"n1": ["uid-a"]})
    assert float(snapshot.free_units[0, row]) == 3
    lose_pod(store, make_pod("a", 3, node="n1"), NOW)
    assert float(store.snapshot.free_gpus[row]) == 3
