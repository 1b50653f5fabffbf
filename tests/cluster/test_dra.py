"""Which GPUs DRA offers on a node and which of them claims hold: counted once, whatever comes in whatever order."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from scheduler.cluster.dra import Devices
from scheduler.cluster.dra_devices import EXTENDED_ANNOTATION
from scheduler.cluster.dra_objects import DeviceClass, ResourceClaim, ResourceSlice
from scheduler.cluster.port import Kind
from scheduler.cluster.shares import Offer
from scheduler.core.nouns import GPU_RESOURCE
from tests.dra import (
    GIB,
    claim_manifest,
    claim_status,
    class_manifest,
    gpu,
    held,
    make_claim,
    make_class,
    make_slice,
    mig,
    slice_manifest,
    whole,
)

MIG = "nvidia.com/mig-1g.10gb"


def seen(*things: ResourceSlice | ResourceClaim | DeviceClass) -> Devices:
    devices = Devices()
    for thing in things:
        devices.see(thing, gone=False)
    return devices


def test_a_node_offers_the_gpus_of_its_slices_with_their_model_memory_and_uuids() -> None:
    devices = seen(make_slice())
    found = devices.by_node["n1"]
    assert whole(devices, "n1") == 8
    assert [each.uuid for each in found.gpus] == [f"n1-{index}" for index in range(8)]
    assert found.models == {"nvidia h100 80gb hbm3"}
    assert found.memory_bytes == 80 * GIB
    assert whole(devices, "n2") == 0


def test_attributes_may_carry_the_domain_of_the_driver() -> None:
    device = gpu(0)
    device["attributes"] = {f"gpu.nvidia.com/{name}": value for name, value in device["attributes"].items()}
    device["capacity"] = {"gpu.nvidia.com/memory": {"value": "80Gi"}}
    assert seen(make_slice(devices=[device])).by_node == seen(make_slice(devices=[gpu(0)])).by_node


def test_devices_of_v1beta1_are_read_one_level_down() -> None:
    raw = slice_manifest(devices=[gpu(0)])
    (device,) = raw["spec"]["devices"]
    raw["spec"]["devices"] = [{"name": device.pop("name"), "basic": device}]
    raw["metadata"]["uid"] = "old"
    assert seen(msgspec.convert(raw, ResourceSlice)).by_node == seen(make_slice(devices=[gpu(0)])).by_node


def test_other_drivers_and_devices_that_are_no_gpus_are_none_of_ours() -> None:
    network = {"name": "nic-0", "attributes": {"type": {"string": "nic"}}}
    nameless = gpu(0)
    del nameless["name"]
    offered = make_slice("n2", [network, {"name": "bare"}, nameless])
    devices = seen(make_slice(driver="net.example.com"), offered)
    assert not devices.by_node


def test_a_device_names_its_node_where_the_slice_does_not() -> None:
    raw = slice_manifest(devices=[gpu(0, nodeName="n1"), gpu(1, nodeName="n2"), gpu(2)])
    raw["metadata"]["uid"] = "fabric"
    del raw["spec"]["nodeName"]
    devices = seen(msgspec.convert(raw, ResourceSlice))
    assert (whole(devices, "n1"), whole(devices, "n2")) == (1, 1)
    assert devices.by_node.keys() == {"n1", "n2"}, "of the third no node is known"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_pool_counts_once_all_slices_of_its_newest_generation_are_there(order: tuple[int, ...]) -> None:
    slices = [
        make_slice(devices=[gpu(0)], part=0, of=1, generation=1),
        make_slice(devices=[gpu(0), gpu(1)], part=1, of=2, generation=2),
        make_slice(devices=[gpu(2), gpu(3)], part=2, of=2, generation=2),
    ]
    devices = Devices()
    for count, index in enumerate(order, 1):
        devices.see_slice(f"s{index}", slices[index])
        if count < 3:
            want_units = 1 if order[:count] == (0,) else 4 if 0 not in order[:count] and count == 2 else 0
            assert whole(devices, "n1") == want_units
            assert devices.incomplete == (set() if want_units else {"n1"})
    assert whole(devices, "n1") == 4
    assert not devices.incomplete
    assert devices.forget_slice("s1") == {"n1"}
    assert whole(devices, "n1") == 0, "one slice of two is not the pool"


def test_a_device_that_is_named_twice_is_one() -> None:
    devices = seen(
        make_slice(devices=[gpu(0), gpu(0)], part=0, of=2), make_slice(devices=[gpu(0)], part=1, of=2)
    )
    assert whole(devices, "n1") == 1


def test_a_listing_forgets_what_it_does_not_name() -> None:
    devices = seen(make_slice(), make_slice("n2"), make_claim(devices=["gpu-0"]))
    assert devices.keep(Kind.RESOURCESLICE, {"n1-gpu.nvidia.com-0"}) == {"n2"}
    assert devices.keep(Kind.RESOURCECLAIM, set()) == {"n1"}
    assert (whole(devices, "n1"), held(devices, "n1"), whole(devices, "n2")) == (8, 0, 0)


def test_what_changes_nothing_concerns_no_node() -> None:
    devices = seen(make_slice(), make_claim(devices=["gpu-0"], pods=("uid-a",)))
    assert devices.see_slice("n1-gpu.nvidia.com-0", make_slice()) == set()
    assert devices.see_claim("c1", make_claim(devices=["gpu-0"], pods=("uid-a",))) == set()
    assert devices.see_claim("c2", make_claim("c2")) == set(), "not allocated"
    assert devices.forget_claim("who") == devices.forget_slice("who") == set()


def test_a_claim_holds_its_devices_whether_its_pod_is_bound_or_not() -> None:
    devices = seen(make_claim(devices=["gpu-0", "gpu-3"]), make_slice())
    assert held(devices, "n1") == 2
    assert devices.see_claim("c1", make_claim()) == {"n1"}, "deallocated"
    assert held(devices, "n1") == 0


def test_a_claim_that_pods_share_counts_once_and_so_does_a_gpu_that_claims_share() -> None:
    devices = seen(
        make_slice(),
        make_claim(devices=["gpu-0"], pods=("uid-a", "uid-b")),
        make_claim("c2", devices=["gpu-0"], pods=("uid-c",)),
    )
    assert held(devices, "n1") == 1
    assert [claim.name for claim in devices.holders("n1")["n1-0"]] == ["c1", "c2"]


def test_admin_access_holds_nothing() -> None:
    assert held(seen(make_slice(), make_claim(devices=["gpu-0"], admin=True))) == 0


@pytest.mark.parametrize("by_counters", [False, True])
def test_slices_of_a_gpu_are_no_gpus_beside_it_and_a_held_one_divides_it(by_counters: bool) -> None:
    parts = [mig(0, place, by_counters=by_counters) for place in range(7)]
    devices = seen(make_slice(devices=[gpu(0, parted=True), *parts, gpu(1, parted=True)]))
    assert devices.offers("n1") == {GPU_RESOURCE: Offer(2)}
    devices.see_claim("c1", make_claim(devices=["gpu-0-mig-1g10gb-0"]))
    devices.see_claim("c2", make_claim("c2", devices=["gpu-0-mig-1g10gb-1"]))
    seventh = Offer(7, gpus=1 / 7, memory_bytes=10 * GIB)
    assert devices.offers("n1") == {GPU_RESOURCE: Offer(1), MIG: seventh}
    assert devices.held("n1") == {MIG: 2}
    devices.see_claim("c3", make_claim("c3", devices=["gpu-1"]))
    assert devices.held("n1") == {MIG: 2, GPU_RESOURCE: 1}
    assert [claim.name for claim in devices.holders("n1")["n1-0"]] == ["c1", "c2"]
    devices.forget_claim("c1")
    devices.forget_claim("c2")
    assert devices.offers("n1") == {GPU_RESOURCE: Offer(2)}


def test_what_is_left_of_a_divided_gpu_comes_in_parts_like_the_smallest() -> None:
    large = mig(0, 9)
    large["name"], large["attributes"]["profile"] = "gpu-0-mig-3g40gb-0", {"string": "3g.40gb"}
    large["capacity"] = {"memory": {"value": "40Gi"}}
    devices = seen(
        make_slice(devices=[gpu(0, parted=True), mig(0, 0), large]),
        make_claim(devices=["gpu-0-mig-1g10gb-0", "gpu-0-mig-3g40gb-0"]),
    )
    found = devices.offers("n1")
    assert {name: offer.units for name, offer in found.items()} == {
        GPU_RESOURCE: 0,
        MIG: 4,
        "nvidia.com/mig-3g.40gb": 1,
    }
    assert sum(offer.units * offer.gpus for offer in found.values()) == pytest.approx(1)


@pytest.mark.parametrize("profile", ["", "0g.5gb", "x", "99g.9gb"])
def test_a_slice_of_which_nobody_can_say_how_large_it_is_counts_as_its_gpu(profile: str) -> None:
    part = mig(0, 0)
    part["attributes"]["profile"] = {"string": profile}
    devices = seen(make_slice(devices=[gpu(0, parted=True), part]), make_claim(devices=[part["name"]]))
    name = f"nvidia.com/mig-{profile}"
    assert {each: (offer.units, offer.gpus) for each, offer in devices.offers("n1").items()} == {
        GPU_RESOURCE: (0, 1),
        name: (1, 1),
    }


def test_a_slice_is_called_as_the_device_plugin_calls_it() -> None:
    assert parts_of("1g.10gb+me").offers("n1").keys() == {GPU_RESOURCE, f"{MIG}.me"}


def test_a_slice_is_as_much_of_its_gpu_as_the_model_goes_into() -> None:
    part = mig(0, 0)
    part["attributes"] |= {"profile": {"string": "1g.6gb"}, "productName": {"string": "NVIDIA A30"}}
    devices = seen(make_slice(devices=[gpu(0, parted=True), part]), make_claim(devices=[part["name"]]))
    offer = devices.offers("n1")["nvidia.com/mig-1g.6gb"]
    assert (offer.units, offer.gpus) == (4, 1 / 4)


def test_a_slice_that_tells_no_memory_has_what_its_name_says() -> None:
    part = mig(0, 0)
    del part["capacity"]
    devices = seen(make_slice(devices=[gpu(0, parted=True), part]), make_claim(devices=[part["name"]]))
    assert devices.offers("n1")[MIG].memory_bytes == pytest.approx(8.9e9)


def test_slices_without_their_gpu_are_no_whole_gpus() -> None:
    devices = seen(make_slice(devices=[mig(0, 0), gpu(1)]), make_claim(devices=["gpu-0-mig-1g10gb-0"]))
    assert (whole(devices, "n1"), held(devices, "n1")) == (1, 0)


def test_a_tainted_gpu_is_not_to_be_had_unless_it_is_held() -> None:
    broken = gpu(0, taints=[{"key": "gpu.nvidia.com/xid", "effect": "NoSchedule"}])
    told = gpu(1, taints=[{"key": "example.com/note", "effect": "None"}])
    drained = gpu(3, taints=[{"key": "example.com/drain", "effect": "NoExecute"}])
    devices = seen(make_slice(devices=[broken, told, gpu(2), drained]))
    assert whole(devices, "n1") == 2
    devices.see_claim("c1", make_claim(devices=["gpu-0"]))
    assert (whole(devices, "n1"), held(devices, "n1")) == (3, 1), "what is free stays the same"


def test_the_claim_made_for_extended_resources_counts_only_what_its_pod_does_not() -> None:
    claim = make_claim(devices=["gpu-0", "gpu-1"], pods=("uid-a",), extended_of="uid-a")
    devices = seen(make_slice(), claim)
    assert held(devices, "n1") == 2, "its pod is counted nowhere yet"
    assert held(devices, "n1", {"uid-a": 2.0}.__getitem__) == 0
    assert held(devices, "n1", {"uid-a": 1.0}.__getitem__) == 1
    assert devices.nodes_of_pod("uid-a") == {"n1"}
    assert devices.nodes_of_pod("uid-b") == set()
    devices.see_claim("c2", make_claim("c2", devices=["gpu-2"], pods=("uid-a",)))
    assert held(devices, "n1", {"uid-a": 2.0}.__getitem__) == 1, "a claim of its own counts beside"
    devices.forget_claim("c1")
    assert devices.nodes_of_pod("uid-a") == set()


def test_a_slice_of_a_gpu_claimed_for_a_pod_is_not_covered_by_its_whole_gpus() -> None:
    claim = make_claim(devices=["gpu-0", "gpu-1-mig-1g10gb-0"], extended_of="uid-a")
    offered = [gpu(0, parted=True), gpu(1, parted=True), mig(1, 0)]
    devices = seen(make_slice(devices=offered), claim)
    assert devices.held("n1") == {GPU_RESOURCE: 1, MIG: 1}
    own = {GPU_RESOURCE: 1.0}
    assert devices.held("n1", lambda _, name: own.get(name, 0.0)) == {GPU_RESOURCE: 0, MIG: 1}
    assert devices.left_to_requests("n1") == {GPU_RESOURCE: 1, MIG: 7}


def test_a_slice_that_changes_pool_or_driver_leaves_nothing_behind() -> None:
    devices = seen(make_slice())
    moved = make_slice("n2")
    assert devices.see_slice("n1-gpu.nvidia.com-0", moved) == {"n1", "n2"}
    assert (whole(devices, "n1"), whole(devices, "n2")) == (0, 8)
    assert devices.see_slice("n1-gpu.nvidia.com-0", make_slice("n2", driver="other")) == {"n2"}
    assert not devices.by_node


def test_a_pool_with_more_slices_than_it_says_is_not_known() -> None:
    """As kube-scheduler's allocator has it: neither may be the one that is out of date."""
    devices = seen(*(make_slice(devices=[gpu(index)], part=index, of=2) for index in range(3)))
    assert not devices.by_node
    assert devices.incomplete == {"n1"}


def test_a_claim_that_moves_concerns_the_node_that_it_left_too() -> None:
    devices = seen(make_slice(), make_slice("n2"), make_claim(devices=["gpu-0"]))
    assert devices.see_claim("c1", make_claim(devices=["gpu-1"], node="n2")) == {"n1", "n2"}
    assert (held(devices, "n1"), held(devices, "n2")) == (0, 1)


def test_gpus_of_several_pools_come_in_the_order_of_their_pools() -> None:
    def pool(name: str, device: int) -> ResourceSlice:
        raw = slice_manifest(devices=[gpu(device)])
        raw["metadata"]["uid"] = raw["spec"]["pool"]["name"] = name
        return msgspec.convert(raw, ResourceSlice)

    devices = seen(pool("b", 0), pool("a", 1))
    assert [each.key for each in devices.by_node["n1"].gpus] == [("a", "gpu-1"), ("b", "gpu-0")]


def test_of_slices_alone_nothing_is_offered() -> None:
    devices = seen(make_slice(devices=[mig(0, 0)]))
    assert devices.offers("n1") == {}


def test_a_gpu_that_is_held_whole_and_in_parts_is_held_in_parts() -> None:
    devices = seen(
        make_slice(devices=[gpu(0, parted=True), mig(0, 0)]),
        make_claim(devices=["gpu-0"]),
        make_claim("c2", devices=["gpu-0-mig-1g10gb-0"]),
    )
    assert devices.held("n1") == {MIG: 1}
    assert devices.offers("n1")[GPU_RESOURCE] == Offer(0)


def parts_of(*profiles: str) -> Devices:
    """A GPU with one part of each profile, all of them held."""
    parts = []
    for place, profile in enumerate(profiles):
        part = mig(0, place)
        part["attributes"]["profile"] = {"string": profile}
        parts.append(part)
    names = [part["name"] for part in parts]
    return seen(make_slice(devices=[gpu(0, parted=True), *parts]), make_claim(devices=names))


def test_what_is_left_of_a_gpu_is_not_lost_to_rounding() -> None:
    # 1 - 1/7 - 5/7 is a hair less than 1/7.
    offered = parts_of("1g.10gb", "5g.60gb").offers("n1")
    assert {name: offer.units for name, offer in offered.items()} == {
        GPU_RESOURCE: 0,
        MIG: 2,
        "nvidia.com/mig-5g.60gb": 1,
    }


def test_parts_that_add_up_to_more_than_their_gpu_are_there_all_the_same() -> None:
    devices = parts_of("x", "x")
    assert devices.offers("n1")["nvidia.com/mig-x"].units == 2
    assert devices.held("n1")["nvidia.com/mig-x"] == 2


def test_a_gpu_that_another_claim_shares_with_one_made_for_a_pod_is_counted_by_that_pod() -> None:
    devices = seen(
        make_slice(), make_claim(devices=["gpu-0"], extended_of="uid-a"), make_claim("c2", devices=["gpu-0"])
    )
    assert held(devices, "n1", {"uid-a": 1.0}.__getitem__) == 0


def test_a_slice_that_names_no_gpu_is_not_of_one_without_a_uuid() -> None:
    bare = gpu(0)
    del bare["attributes"]["uuid"]
    devices = seen(
        make_slice(devices=[bare, gpu(1, parted=True), mig(1, 0, by_counters=True)]),
        make_claim(devices=["gpu-1-mig-1g10gb-0"]),
    )
    assert list(devices.holders("n1")) == ["n1-1"]
    assert devices.by_node["n1"].parts[0][1] == ("n1", "gpu-1")


def test_counters_of_another_pool_are_others_though_they_are_called_the_same() -> None:
    def pool(name: str, *devices: dict[str, object]) -> ResourceSlice:
        raw = slice_manifest(devices=list(devices))
        raw["metadata"]["uid"] = raw["spec"]["pool"]["name"] = name
        return msgspec.convert(raw, ResourceSlice)

    part = mig(0, 0, by_counters=True)
    devices = seen(pool("a", gpu(0, parted=True)), pool("b", gpu(0, parted=True), part))
    assert devices.by_node["n1"].parts[0][1] == ("b", "gpu-0")
    assert seen(pool("a", gpu(0, parted=True)), pool("b", part)).by_node["n1"].parts == ()


def test_devices_of_other_drivers_hold_nothing_of_ours_though_they_are_called_the_same() -> None:
    raw = claim_manifest()
    raw["metadata"]["uid"] = "c1"
    raw["status"] = claim_status(["gpu-0", "gpu-1"])
    raw["status"]["allocation"]["devices"]["results"][0]["driver"] = "fpga.example.com"
    devices = seen(make_slice(), msgspec.convert(raw, ResourceClaim))
    assert held(devices) == 1
    assert list(devices.holders("n1")) == ["n1-1"]


def test_whoever_uses_a_claim_and_is_no_pod_is_not_taken_for_one() -> None:
    raw = claim_manifest()
    raw["metadata"]["uid"] = "c1"
    raw["status"] = claim_status(["gpu-0"], pods=("uid-a", "uid-b"))
    raw["status"]["reservedFor"][1]["resource"] = "jobs"
    devices = seen(make_slice(), msgspec.convert(raw, ResourceClaim))
    assert devices.held_by("uid-a") == ["claim team-a/c1 holds gpu-0 of n1"]
    assert devices.held_by("uid-b") == []


def test_an_annotation_that_says_otherwise_makes_no_claim_one_for_extended_resources() -> None:
    raw = claim_manifest(extended_of="uid-a")
    raw["metadata"]["uid"] = "c1"
    raw["metadata"]["annotations"] = {EXTENDED_ANNOTATION: "false"}
    raw["status"] = claim_status(["gpu-0"])
    devices = seen(make_slice(), msgspec.convert(raw, ResourceClaim))
    assert held(devices, "n1", {"uid-a": 1.0}.__getitem__) == 1


@pytest.mark.parametrize("owners", [[{"kind": "Job", "uid": "uid-j"}, {"kind": "Pod", "uid": "uid-a"}], []])
def test_a_claim_for_extended_resources_is_its_owning_pods_or_else_that_of_who_may_use_it(
    owners: list[dict[str, str]],
) -> None:
    raw = claim_manifest(extended_of="uid-a")
    raw["metadata"] |= {"uid": "c1", "ownerReferences": owners}
    raw["status"] = claim_status(["gpu-0"], pods=("uid-a",))
    devices = seen(make_slice(), msgspec.convert(raw, ResourceClaim))
    assert devices.nodes_of_pod("uid-a") == {"n1"}
    assert held(devices, "n1", {"uid-a": 1.0}.__getitem__) == 0


def test_gpus_of_which_one_tells_no_model_are_of_no_model_for_sure_and_the_smallest_memory_counts() -> None:
    silent = gpu(0)
    del silent["attributes"]["productName"]
    found = seen(make_slice(devices=[silent, gpu(1)])).by_node["n1"]
    assert (found.model, found.models) == ("NVIDIA H100 80GB HBM3", frozenset())
    small = gpu(0, capacity={"memory": {"value": "40Gi"}})
    found = seen(make_slice(devices=[gpu(1), small, gpu(2)])).by_node["n1"]
    assert found.models == {"nvidia h100 80gb hbm3"}
    assert found.memory_bytes == 40 * GIB
    broken = gpu(0, capacity={"memory": {"value": "-40Gi"}})
    assert seen(make_slice(devices=[broken])).by_node["n1"].memory_bytes == 0
    older = gpu(0)
    older["attributes"]["model"] = older["attributes"].pop("productName")
    assert seen(make_slice(devices=[older])).by_node["n1"].model == "NVIDIA H100 80GB HBM3"


def test_a_gpu_without_a_uuid_is_held_by_its_name() -> None:
    bare = gpu(0)
    del bare["attributes"]["uuid"]
    devices = seen(make_slice(devices=[bare, gpu(1)]), make_claim(devices=["gpu-0"]))
    assert [(name, claim.name) for name, claims in devices.holders("n1").items() for claim in claims] == [
        ("gpu-0", "c1")
    ]


def test_claims_on_one_gpu_are_told_in_an_order_that_stands_still() -> None:
    names = [f"c{number}" for number in range(9)]
    devices = seen(make_slice(), *(make_claim(name, devices=["gpu-0"]) for name in reversed(names)))
    assert [claim.name for claim in devices.holders("n1")["n1-0"]] == names


def test_a_listing_of_classes_forgets_the_names_of_those_that_it_lacks() -> None:
    devices = Devices()
    devices.see(make_class("example.com/gpu"), gone=False)
    devices.keep(Kind.DEVICECLASS, {make_class().metadata.uid})
    assert devices.is_named("example.com/gpu")
    devices.keep(Kind.DEVICECLASS, set())
    assert not devices.is_named("example.com/gpu")
    raw = class_manifest()
    del raw["spec"]["extendedResourceName"]
    devices.see(msgspec.convert(raw, DeviceClass), gone=False)
    assert not devices.is_named(GPU_RESOURCE)


def test_what_is_gone_leaves_nothing_behind() -> None:
    empty = {name: len(each) for name, each in vars(Devices()).items()}
    parted = [gpu(0, parted=True), mig(0, 0)]
    things = (
        make_slice(devices=parted),
        make_slice("n2"),
        make_claim(devices=["gpu-0-mig-1g10gb-0"], pods=("uid-a",), extended_of="uid-a"),
        make_claim("c2", devices=["gpu-0"], node="n2"),
        make_claim("c3", devices=["gpu-0"], node="n2"),
        make_class(),
    )
    for gone in (things, things[::-1]):
        devices = seen(*things)
        # A GPU less, which a claim goes on to name.
        devices.see(make_slice("n2", devices=[gpu(1)]), gone=False)
        assert devices.nodes_of_pod("uid-a") == {"n1"}
        for thing in gone:
            devices.see(thing, gone=True)
        assert {name: len(each) for name, each in vars(devices).items()} == empty
