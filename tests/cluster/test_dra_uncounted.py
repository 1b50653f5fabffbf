"""GPUs by DRA that are offered otherwise than whole and on one node: cut before, yet to be cut, reached by several."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from scheduler.cluster.dra import Devices
from scheduler.cluster.dra_objects import ResourceClaim, ResourceSlice
from scheduler.cluster.port import Changed, Kind
from scheduler.cluster.shares import Offer
from scheduler.core.nouns import GPU_RESOURCE
from tests.builders import make_decider, make_node, make_request, make_store
from tests.dra import GIB, cut, gpu, make_claim, make_slice, mig, slice_manifest, whole

MIG = "nvidia.com/mig-1g.10gb"


def seen(*things: ResourceSlice | ResourceClaim) -> Devices:
    devices = Devices()
    for thing in things:
        devices.see(thing, gone=False)
    return devices


# --- slices that were cut before --------------------------------------------------------------------------------------

THREE = "nvidia.com/mig-3g.40gb"


def cut_node() -> ResourceSlice:
    """One whole GPU, and one in three slices."""
    three = cut(1, 4, profile="3g.40gb")
    three["capacity"] = {"memory": {"value": "40448Mi"}}
    return make_slice(devices=[gpu(0), cut(1, 0), cut(1, 2), three])


def test_slices_of_a_gpu_that_was_cut_before_are_units_of_their_profile() -> None:
    devices = seen(cut_node())
    want = {
        GPU_RESOURCE: Offer(1.0),
        MIG: Offer(2.0, 1 / 7, 10 * GIB),
        THREE: Offer(1.0, 3 / 7, 40448 * 2.0**20),
    }
    assert devices.offers("n1") == want
    assert devices.uncounted == 0
    assert devices.by_node["n1"].models == {"nvidia h100 80gb hbm3"}
    assert devices.held("n1") == {}


def test_claims_hold_the_slices_that_they_are_allocated() -> None:
    devices = seen(
        cut_node(), make_claim("a", ["gpu-1-mig-1g.10gb-0"]), make_claim("b", ["gpu-1-mig-3g.40gb-4"])
    )
    assert devices.held("n1") == {MIG: 1, THREE: 1}
    assert devices.left_to_requests("n1") == {GPU_RESOURCE: 1, MIG: 1, THREE: 0}
    assert {uuid: [claim.name for claim in told] for uuid, told in devices.holders("n1").items()} == {
        "n1-1": ["a", "b"]
    }
    made = make_claim("c", ["gpu-1-mig-1g.10gb-2"], extended_of="uid-p")
    devices.see(made, gone=False)
    assert devices.held("n1", lambda _pod, _resource: 1.0) == {MIG: 1, THREE: 1}
    assert devices.held("n1") == {MIG: 2, THREE: 1}
    for name in "abc":
        devices.see(make_claim(name, ["gpu-0"]), gone=True)
    assert devices.held("n1") == {}


def test_a_slice_with_a_taint_is_not_to_be_had_but_by_who_has_it() -> None:
    taints = [{"key": "sick", "effect": "NoSchedule"}]
    devices = seen(make_slice(devices=[cut(1, 0, taints=taints), cut(1, 2)]))
    assert devices.offers("n1")[MIG].units == 1
    devices.see(make_claim("a", ["gpu-1-mig-1g.10gb-0"]), gone=False)
    assert devices.offers("n1")[MIG].units == 2
    assert devices.held("n1") == {MIG: 1}


def test_slices_that_are_yet_to_be_cut_or_of_no_known_profile_count_nowhere_and_are_told() -> None:
    devices = seen(
        make_slice(devices=[mig(0, 0), mig(0, 1), cut(1, 0, profile="odd"), cut(1, 2, profile="")])
    )
    assert devices.offers("n1") == {}
    assert devices.uncounted == 4
    devices.see(make_slice(devices=[mig(0, 0), mig(0, 1), gpu(0, parted=True)], generation=2), gone=False)
    assert devices.offers("n1") == {GPU_RESOURCE: Offer(1.0)}
    assert devices.uncounted == 0


# --- devices of several nodes -----------------------------------------------------------------------------------------


def of_several(
    spec: dict[str, object] | None = None, uid: str = "fabric", generation: int = 1, of: int = 1
) -> ResourceSlice:
    """GPUs that no node has alone."""
    raw = slice_manifest("fabric", [gpu(0), gpu(1), mig(2, 0)], generation=generation, of=of)
    raw["metadata"]["uid"] = uid
    del raw["spec"]["nodeName"]
    raw["spec"] |= {"allNodes": True} if spec is None else spec
    return msgspec.convert(raw, ResourceSlice)


@pytest.mark.parametrize(
    "spec",
    [
        {"allNodes": True},
        {"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}},
        {"perDeviceNodeSelection": True},
    ],
)
def test_gpus_that_several_nodes_reach_count_on_none_and_are_told(spec: dict[str, object]) -> None:
    devices = seen(make_slice(), of_several(spec))
    assert devices.by_node.keys() == {"n1"}
    assert whole(devices, "n1") == 8
    assert devices.uncounted == 3
    # A claim that holds one holds nothing that is counted.
    devices.see(make_claim("far", ["gpu-0"], node="fabric"), gone=False)
    assert devices.held("n1") == {}
    devices.see(of_several(spec), gone=True)
    assert devices.uncounted == 0


def test_of_a_pool_that_several_nodes_reach_the_newest_generation_is_told_once_it_is_complete() -> None:
    devices = seen(of_several(), of_several(None, "newer", 2, 2))
    assert (devices.uncounted, devices.incomplete) == (0, {"fabric"})
    devices.see(of_several(None, "newest", 2, 2), gone=False)
    assert (devices.uncounted, devices.incomplete) == (3, set()), "named twice, it is one"
    devices.keep(Kind.RESOURCESLICE, {"uid-none"})
    assert devices.uncounted == 0


def test_a_device_may_name_its_node_beside_others_that_do_not() -> None:
    raw = slice_manifest("fabric", [gpu(0, nodeName="n1"), gpu(1, allNodes=True)])
    del raw["spec"]["nodeName"]
    devices = seen(msgspec.convert(raw, ResourceSlice))
    assert (whole(devices, "n1"), devices.uncounted) == (1, 1)


# --- what pods get of all this ----------------------------------------------------------------------------------------


def test_slices_that_were_cut_before_are_placed_promised_and_filled_like_others() -> None:
    store = make_store()
    store.apply(Changed(Kind.NODE, make_node("n1", 0)), 0.0)
    store.apply(Changed(Kind.RESOURCESLICE, cut_node()), 0.0)
    row = store.rows["n1"]
    assert store.nodes["n1"].counted_by == "resourceslices"
    assert store.snapshot.gpu_count[row] == pytest.approx(1 + 5 / 7)
    store.apply(Changed(Kind.RESOURCECLAIM, make_claim("a", ["gpu-1-mig-1g.10gb-0"])), 0.0)
    made = [store.reserve(make_request(f"p{i}", 0, shares=((MIG, 1),)), "n1", 1.0) for i in range(2)]
    assert made == [True, False]
    # Told by allocatable too, they count once.
    store.apply(Changed(Kind.NODE, make_node("n1", shares={MIG: 3})), 0.0)
    assert store.snapshot.gpu_count[row] == pytest.approx(3 / 7)
    [told] = store.nodes["n1"].contradictions
    assert told == f"1 GPU and 3 slices are offered by DRA, and allocatable has {MIG}, which counts"


def test_where_gpus_count_nowhere_a_pod_goes_where_kube_scheduler_offers_and_is_promised_nothing() -> None:
    store = make_store()
    for name in ("n1", "n2"):
        store.apply(Changed(Kind.NODE, make_node(name, 0)), 0.0)
    store.apply(Changed(Kind.RESOURCESLICE, of_several()), 0.0)
    outcome = make_decider(store).place(make_request("p1"), np.array([store.rows["n2"]], np.intp), 1.0, 0.0)
    assert (outcome.record.chosen, outcome.reserved) == ("n2", False)
    # Where others are counted, these come first.
    store.apply(Changed(Kind.RESOURCESLICE, make_slice("n1")), 0.0)
    rows = np.array([store.rows["n1"], store.rows["n2"]], np.intp)
    outcome = make_decider(store).place(make_request("p2"), rows, 1.0, 0.0)
    assert (outcome.record.chosen, outcome.reserved) == ("n1", True)
