"""GPUs of nodes with DRA in the store's books: by allocatable or by slices, by pods or by claims, never both."""

from __future__ import annotations

import pytest

from scheduler.cluster.nodes import NodeRecord
from scheduler.cluster.objects import Container, Meta, Node, NodeStatus, Pod, PodSpec
from scheduler.cluster.objects import Resources as ContainerResources
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.cluster.store import Store
from scheduler.core.nouns import GPU_RESOURCE
from tests.builders import make_inventory, make_node, make_pod, make_request, make_store
from tests.dra import GIB, gpu, make_claim, make_slice, mig

MIG = "nvidia.com/mig-1g.10gb"
BARE = Node(metadata=Meta(name="n1"), status=NodeStatus(allocatable={"cpu": "96"}))


def tell(store: Store, *things: object, now_mono_s: float = 0.0) -> Store:
    """Add or change things."""
    for thing in things:
        store.apply(Changed(Kind.POD, thing), now_mono_s)  # type: ignore[arg-type]  # what it is tells
    return store


def books(store: Store) -> tuple[float, float, float, float]:
    """Of n1: GPUs in all, bound, promised, free."""
    snapshot, row = store.snapshot, store.rows["n1"]
    return (
        float(snapshot.gpu_count[row]),
        float(snapshot.bound_gpus[row]),
        float(snapshot.reserved_gpus[row]),
        float(snapshot.free_gpus[row]),
    )


def test_a_node_without_allocatable_counts_by_its_slices() -> None:
    store = tell(make_store(capabilities={"*H100*": 2.0}), BARE, make_slice())
    assert books(store) == (8, 0, 0, 8)
    record, row = store.nodes["n1"], store.rows["n1"]
    assert record.by_claims
    assert record.contradictions == ()
    assert record.model == "NVIDIA H100 80GB HBM3"
    snapshot = store.snapshot
    assert snapshot.model_sets[snapshot.models[row]] == {"nvidia h100 80gb hbm3"}
    assert snapshot.unit_memory_bytes[snapshot.resources[GPU_RESOURCE], row] == 80 * GIB
    assert snapshot.capability[row] == 2
    assert books(tell(make_store(), make_slice(), BARE)) == (8, 0, 0, 8), "the slices came first"


def test_a_plugin_that_was_taken_out_leaves_a_zero_which_counts_as_nothing() -> None:
    store = tell(make_store(), make_node(gpus=0), make_slice())
    assert books(store) == (8, 0, 0, 8)


def test_slices_that_go_take_the_gpus_with_them_and_labels_tell_again() -> None:
    labels = {"nvidia.com/gpu.product": "NVIDIA-H100"}
    node = Node(metadata=Meta(name="n1", labels=labels), status=BARE.status)
    store = tell(make_store(), node, make_slice())
    store.apply(Gone(Kind.RESOURCESLICE, make_slice()), 0.0)
    assert books(store) == (0, 0, 0, 0)
    assert store.nodes["n1"].model == "NVIDIA-H100"


def test_pods_with_extended_resources_are_placed_on_what_slices_offer() -> None:
    store = tell(make_store(), BARE, make_slice())
    assert store.reserve(make_request("a", 6), "n1", 0.0)
    assert not store.reserve(make_request("b", 3), "n1", 0.0)
    tell(store, make_pod("a", 6, node="n1"))
    assert books(store) == (8, 6, 0, 2)


def test_the_claim_made_for_a_pod_is_counted_once_at_every_step() -> None:
    store = tell(make_store(), BARE, make_slice())
    held = make_claim(devices=["gpu-0", "gpu-1"], pods=("uid-a",), extended_of="uid-a")
    assert store.reserve(make_request("a", 2), "n1", 0.0)
    assert books(store) == (8, 0, 2, 6)
    tell(store, held)
    assert books(store) == (8, 0, 2, 6), "promised and claimed"
    tell(store, make_pod("a", 2, node="n1"))
    assert books(store) == (8, 2, 0, 6), "bound and claimed"
    store.apply(Gone(Kind.POD, make_pod("a", 2, node="n1")), 0.0)
    assert books(store) == (8, 2, 0, 6), "the claim holds until it is gone too"
    store.apply(Gone(Kind.RESOURCECLAIM, held), 0.0)
    assert books(store) == (8, 0, 0, 8)


def test_a_promise_that_runs_out_leaves_what_its_claim_holds() -> None:
    store = tell(make_store(), BARE, make_slice())
    assert store.reserve(make_request("a", 2), "n1", 0.0)
    tell(store, make_claim(devices=["gpu-0", "gpu-1"], extended_of="uid-a"))
    store.tick(1000.0)
    assert books(store) == (8, 2, 0, 6)


def test_a_claim_holds_before_its_pod_is_bound_and_evicts_younger_promises_that_no_longer_fit() -> None:
    store = tell(make_store(), BARE, make_slice())
    assert store.reserve(make_request("old", 5), "n1", 0.0)
    assert store.reserve(make_request("young", 3), "n1", 1.0)
    tell(store, make_claim(devices=["gpu-0"], pods=("uid-x", "uid-y")), now_mono_s=2.0)
    assert books(store) == (8, 1, 5, 2)
    assert store.reservations.get("uid-young") is None


def test_a_held_slice_is_a_share_and_takes_its_gpu_from_pods_that_want_whole_ones() -> None:
    offered = [gpu(0, parted=True), mig(0, 0), mig(0, 1), gpu(1, parted=True)]
    store = tell(make_store(), BARE, make_slice(devices=offered))
    tell(store, make_claim(devices=["gpu-0-mig-1g10gb-0"]), make_claim("c2", devices=["gpu-0-mig-1g10gb-1"]))
    assert books(store) == pytest.approx((2, 2 / 7, 0, 2 - 2 / 7))
    assert not store.reserve(make_request("a", 2), "n1", 0.0)
    assert store.reserve(make_request("b", 1), "n1", 0.0)
    assert not store.reserve(make_request("c", 1), "n1", 0.0)


def test_a_slice_asked_for_by_name_is_counted_once_at_every_step() -> None:
    asks = Container(resources=ContainerResources(limits={MIG: "1"}))

    def pod(name: str) -> Pod:
        return Pod(
            metadata=Meta(name=name, uid=f"uid-{name}"), spec=PodSpec(node_name="n1", containers=[asks])
        )

    offered = [gpu(0, parted=True), *(mig(0, place) for place in range(7)), gpu(1)]
    store = tell(make_store(), BARE, make_slice(devices=offered))
    tell(store, make_claim(devices=["gpu-0-mig-1g10gb-0"], extended_of="uid-a"))
    assert books(store) == pytest.approx((2, 1 / 7, 0, 2 - 1 / 7))
    tell(store, pod("a"))
    assert books(store) == pytest.approx((2, 1 / 7, 0, 2 - 1 / 7))
    assert store.reserve(make_request("b", 0, shares=((MIG, 1),)), "n1", 0.0)
    tell(store, make_claim("c2", devices=["gpu-0-mig-1g10gb-1"], extended_of="uid-b"))
    assert books(store) == pytest.approx((2, 1 / 7, 1 / 7, 2 - 2 / 7))
    tell(store, pod("b"))
    assert books(store) == pytest.approx((2, 2 / 7, 0, 2 - 2 / 7))


@pytest.mark.parametrize("slices_first", [False, True])
def test_what_both_plugin_and_dra_offer_counts_by_allocatable_and_is_told(slices_first: bool) -> None:
    told: list[NodeRecord] = []
    store = make_store()
    store.on_contradictions = told.append
    things = [make_slice(), make_node()] if slices_first else [make_node(), make_slice()]
    tell(store, *things, make_claim(devices=["gpu-0"]), make_pod("a", 2, node="n1"))
    assert books(store) == (8, 2, 0, 6)
    want = ("8 GPUs are offered by DRA, and allocatable has nvidia.com/gpu, which counts",)
    assert [record.contradictions for record in told] == [want]
    assert told[0].name == "n1"
    store.apply(Listed(Kind.RESOURCESLICE, frozenset()), 0.0)
    assert store.nodes["n1"].contradictions == ()


def test_a_plugin_that_takes_over_counts_what_claims_held_no_more_and_back() -> None:
    store = tell(make_store(), BARE, make_slice(), make_claim(devices=["gpu-0", "gpu-1"]))
    assert books(store) == (8, 2, 0, 6)
    tell(store, make_node(gpus=4))
    assert books(store) == (4, 0, 0, 4)
    tell(store, BARE)
    assert books(store) == (8, 2, 0, 6)


def test_gpus_are_joined_to_telemetry_by_uuid() -> None:
    store = tell(make_store(), BARE, make_slice(), make_claim(devices=["gpu-3"]))
    store.see_inventory("n1", make_inventory())
    assert not store.nodes["n1"].contradictions
    assert [claim.name for claim in store.devices.holders("n1")["n1-3"]] == ["c1"]
    assert store.nodes["n1"].model == "H100", "an agent's word goes first"
    store.see_inventory("n1", make_inventory(gpus=6))
    assert books(store) == (8, 1, 0, 5), "those that the agent does not find count as broken"


def test_listings_forget_slices_and_claims_that_went_in_a_gap() -> None:
    store = tell(make_store(), BARE, make_slice(), make_claim(devices=["gpu-3"]))
    store.apply(Listed(Kind.RESOURCECLAIM, frozenset()), 0.0)
    assert books(store) == (8, 0, 0, 8)
    assert {Kind.RESOURCECLAIM} <= store.synced
    store.apply(Listed(Kind.RESOURCESLICE, frozenset()), 0.0)
    assert books(store) == (0, 0, 0, 0)


def test_a_node_that_comes_back_has_its_slices_and_claims_at_once() -> None:
    store = tell(make_store(), BARE, make_slice(), make_claim(devices=["gpu-3"]))
    store.apply(Gone(Kind.NODE, BARE), 0.0)
    tell(store, BARE)
    assert books(store) == (8, 1, 0, 7)
