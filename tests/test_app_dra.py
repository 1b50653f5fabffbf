"""The daemon on an API server with DRA: GPUs that no allocatable counts are placed, each once, beside claims."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests.contracts.cluster_contract import eventually
from tests.dra import claim_manifest, claim_status, class_manifest, slice_manifest
from tests.test_app import Replica, World, cluster

SPACE = "team-a"
NODES = ("n1", "n2")


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Two nodes of eight GPUs by DRA, on a server of 1.34."""
    async with cluster(tmp_path, monkeypatch, minor=34) as made:
        made.api.create("namespaces", {"metadata": {"name": SPACE}})
        made.api.create("deviceclasses", class_manifest())
        for node in NODES:
            made.api.create("nodes", {"metadata": {"name": node}, "status": {"allocatable": {"cpu": "96"}}})
            made.api.create("resourceslices", slice_manifest(node))
        yield made


class Scheduler:
    """kube-scheduler with `DRAExtendedResource`, as far as claims go: it finds devices, writes the claim, binds."""

    def __init__(self, world: World, replica: Replica) -> None:
        self.world, self.replica = world, replica
        self.placed: dict[str, tuple[str, list[str]]] = {}
        self.full_by_our_count: list[str] = []
        self._made = 0

    def free(self, node: str) -> list[str]:
        """Devices of a node that no claim is allocated to."""
        held = {
            (result["pool"], result["device"])
            for claim in self.world.api.list("resourceclaims")
            for result in ((claim["status"].get("allocation") or {}).get("devices") or {}).get("results", [])
        }
        offered = self.world.api.get("resourceslices", f"{node}-gpu.nvidia.com-0")["spec"]["devices"]
        return [each["name"] for each in offered if (node, each["name"]) not in held]

    def add_pod(self, name: str, gpus: int) -> None:
        """A pod that says `nvidia.com/gpu`, as before DRA."""
        limits = {"nvidia.com/gpu": str(gpus)}
        containers = [{"name": "main", "image": "i", "resources": {"limits": limits}}]
        self.world.add_pod(name, namespace=SPACE, containers=containers)

    async def place(self, name: str, gpus: int) -> str:
        """One pod's cycle; returns its node, or nothing if no node has devices for it."""
        api = self.world.api
        pod = api.get("pods", name, SPACE)
        offered = [node for node in NODES if len(self.free(node)) >= gpus]
        if not offered:
            return ""
        answer = await self.replica.filter(pod, *offered)
        (node,) = cast("list[str]", answer["NodeNames"])
        assert node in offered
        uid = pod["metadata"]["uid"]
        record = self.replica.daemon.decider.log.of_pod(uid)
        assert record is not None
        if record.result != "placed":
            self.full_by_our_count.append(name)
        devices = self.free(node)[:gpus]
        await self.claim(name, uid, node, devices)
        # The claim is written before the pod is bound, and seen so.
        await eventually(lambda: uid in self.pods_of_claims())
        api.bind(name, SPACE, node)
        self.placed[name] = (node, devices)
        return node

    async def claim(self, name: str, uid: str, node: str, devices: list[str]) -> None:
        """Make the claim for a pod's extended resources, allocate it, and tell the pod."""
        self._made += 1
        claim = f"{name}-extended-resources-{self._made}"
        self.world.api.create("resourceclaims", claim_manifest(claim, SPACE, extended_of=uid))
        await asyncio.sleep(0)
        status = claim_status(devices, node, (uid,))
        self.world.api.patch("resourceclaims", claim, SPACE, {"status": status}, status=True)
        told = {"extendedResourceClaimStatus": {"resourceClaimName": claim}}
        self.world.api.patch("pods", name, SPACE, {"status": told}, status=True)

    def pods_of_claims(self) -> set[str]:
        """Pods whose claims the daemon has seen allocated."""
        return {claim.extended_of for claim in self.replica.daemon.store.devices.claims.values()}

    def books(self) -> dict[str, tuple[float, float, float]]:
        """By node: bound, promised, free."""
        store = self.replica.daemon.store
        snapshot = store.snapshot
        columns = (snapshot.bound_gpus, snapshot.reserved_gpus, snapshot.free_gpus)
        return {
            node: (float(columns[0][row]), float(columns[1][row]), float(columns[2][row]))
            for node, row in store.rows.items()
        }


async def test_pods_that_say_nvidia_gpu_fill_nodes_that_offer_gpus_by_dra_alone(world: World) -> None:
    async with world.replica() as replica:
        await replica.knows(*NODES)
        scheduler = Scheduler(world, replica)
        assert scheduler.books() == dict.fromkeys(NODES, (0, 0, 8))
        sizes = [4, 3, 4, 2, 1, 2]
        for number, gpus in enumerate(sizes):
            scheduler.add_pod(f"p{number}", gpus)
            assert await scheduler.place(f"p{number}", gpus)
        assert not scheduler.full_by_our_count, "each was decided by a true count, in the midst of the others"
        taken = [(node, device) for node, devices in scheduler.placed.values() for device in devices]
        assert len(taken) == len(set(taken)) == sum(sizes) == 16
        await eventually(lambda: scheduler.books() == dict.fromkeys(NODES, (8, 0, 0)))
        scheduler.add_pod("late", 1)
        assert not await scheduler.place("late", 1)
        for name in scheduler.placed:
            world.api.delete("pods", name, SPACE, grace_s=0)
        for claim in world.api.list("resourceclaims"):
            world.api.delete("resourceclaims", claim["metadata"]["name"], SPACE)
        await eventually(lambda: scheduler.books() == dict.fromkeys(NODES, (0, 0, 8)))


async def test_what_explicit_claims_hold_is_not_promised_to_others(world: World) -> None:
    async with world.replica() as replica:
        await replica.knows(*NODES)
        scheduler = Scheduler(world, replica)
        world.api.create("resourceclaims", claim_manifest("shared", SPACE))
        status = claim_status([f"gpu-{index}" for index in range(6)], "n1", ("uid-x", "uid-y"))
        world.api.patch("resourceclaims", "shared", SPACE, {"status": status}, status=True)
        await eventually(lambda: scheduler.books()["n1"] == (6, 0, 2))
        scheduler.add_pod("p", 3)
        pod = world.api.get("pods", "p", SPACE)
        # Whatever kube-scheduler's own count offers.
        assert (await replica.filter(pod, *NODES))["NodeNames"] == ["n2"]
        assert scheduler.books()["n2"] == (0, 3, 5)
        async with replica.session.get("/api/v1/nodes") as answer:
            told: dict[str, Any] = {each["name"]: each for each in (await answer.json())["items"]}["n1"]
        assert [gpu["claims"] for gpu in told["devices"]] == [[f"{SPACE}/shared"]] * 6 + [[]] * 2
        whole = told["resources"]["nvidia.com/gpu"]
        assert [whole[name] for name in ("units", "bound", "free")] == [8, 6, 2]


async def test_a_pod_that_asks_by_claims_alone_gets_all_back_is_counted_and_explained(world: World) -> None:
    claims = [{"name": "gpu", "resourceClaimName": "c1"}]
    world.add_pod("p", namespace=SPACE, containers=[{"name": "main", "image": "i"}], resourceClaims=claims)
    async with world.replica() as replica:
        await replica.knows(*NODES)
        answer = await replica.filter(world.api.get("pods", "p", SPACE), *NODES)
        assert answer["NodeNames"] == list(NODES)
        await eventually(lambda: len(replica.daemon.store.claimers) == 1)
        async with replica.session.get(f"/api/v1/explain/{SPACE}/p") as told:
            (note,) = (await told.json())["notes"]
        assert "resource claims alone" in note
        async with replica.session.get("/metrics") as page:
            text = await page.text()
    want = 'wattbalance_decisions_total{profile="batch",result="by_claim",verb="filter"} 1.0'
    assert want in text


async def test_gpus_of_both_plugin_and_dra_count_by_allocatable_and_are_told_of(world: World) -> None:
    world.add_node("n3")
    world.api.create("resourceslices", slice_manifest("n3"))
    async with world.replica() as replica:
        await replica.knows("n3")
        await replica.leads()
        await eventually(lambda: bool(replica.daemon.store.nodes["n3"].contradictions))
        snapshot, row = replica.daemon.store.snapshot, replica.daemon.store.rows["n3"]
        assert snapshot.gpu_count[row] == 8
        async with replica.session.get("/metrics") as page:
            assert "wattbalance_contradicting_nodes 1.0" in await page.text()

        def told() -> list[str]:
            events = world.api.list("events")
            return [each["note"] for each in events if each["regarding"]["name"] == "n3"]

        await eventually(lambda: bool(told()))
        (note,) = told()
        assert "8 GPUs are offered by DRA, and allocatable has nvidia.com/gpu, which counts" in note


async def test_gpus_that_several_nodes_reach_are_told_and_pods_go_where_kube_scheduler_offers(
    world: World,
) -> None:
    world.api.create("nodes", {"metadata": {"name": "bare"}, "status": {"allocatable": {"cpu": "96"}}})
    fabric = slice_manifest("fabric")
    del fabric["spec"]["nodeName"]
    world.api.create("resourceslices", fabric | {"spec": fabric["spec"] | {"allNodes": True}})
    async with world.replica() as replica:
        await replica.knows("bare")
        async with replica.session.get("/readyz") as page:
            assert (page.status, "devices_uncounted" in (await page.json())["degraded"]) == (200, True)
        async with replica.session.get("/metrics") as page:
            text = await page.text()
        assert "wattbalance_uncounted_devices 8.0" in text
        assert 'wattbalance_degraded{reason="devices_uncounted"} 1.0' in text
        world.add_pod("p", namespace=SPACE)
        answer = await replica.filter(world.api.get("pods", "p", SPACE), "bare")
        assert answer["NodeNames"] == ["bare"]
        async with replica.session.get(f"/api/v1/explain/{SPACE}/p") as page:
            notes = (await page.json())["notes"]
        assert [note for note in notes if note.startswith("8 GPUs by DRA, or slices of them, count nowhere")]


async def test_a_role_without_the_kinds_is_named_and_stops_nothing(world: World) -> None:
    world.add_node("n3")
    world.api.faults.forbidden |= {("list", "resourceslices"), ("list", "resourceclaims")}
    async with world.replica() as replica:
        await replica.knows("n3")
        async with replica.session.get("/readyz") as answer:
            told = await answer.json()
        assert {"cannot_list_resourceslices", "cannot_list_resourceclaims"} <= set(told["degraded"])
        world.add_pod("p", namespace=SPACE)
        answer_ = await replica.filter(world.api.get("pods", "p", SPACE), "n3")
        assert answer_["NodeNames"] == ["n3"]


async def test_the_world_as_it_would_be_has_the_gpus_by_dra_too(world: World) -> None:
    async with world.replica(mode="observe") as replica:
        await replica.knows(*NODES)
        await eventually(lambda: replica.daemon.observing.shadow is not None)

        def counted() -> list[float]:
            shadow = replica.daemon.observing.shadow
            assert shadow is not None
            store = shadow.store
            return [float(store.snapshot.gpu_count[store.rows[node]]) for node in NODES]

        await eventually(lambda: counted() == [8, 8])
        world.api.create("resourceclaims", claim_manifest("own", SPACE))
        status = claim_status(["gpu-0", "gpu-1"], "n1", ("uid-x",))
        world.api.patch("resourceclaims", "own", SPACE, {"status": status}, status=True)
        # Who asks by claims alone is where it is in both worlds.
        await eventually(lambda: counted() == [6, 8])
        scheduler = Scheduler(world, replica)
        scheduler.add_pod("p", 6)
        pod = world.api.get("pods", "p", SPACE)
        assert (await replica.filter(pod, *NODES))["NodeNames"] == list(NODES)
        await scheduler.claim("p", pod["metadata"]["uid"], "n2", [f"gpu-{index}" for index in range(6)])
        world.api.bind("p", SPACE, "n2")
        await eventually(lambda: scheduler.books() == {"n1": (2, 0, 6), "n2": (6, 0, 2)})
        assert counted() == [6, 8], "its claim is counted by its request"


async def test_gpus_of_a_pool_that_is_being_written_do_not_count_and_are_told(world: World) -> None:
    async def page(replica: Replica) -> str:
        async with replica.session.get("/metrics") as answer:
            return await answer.text()

    async with world.replica() as replica:
        await replica.knows(*NODES)
        scheduler = Scheduler(world, replica)
        assert "wattbalance_incomplete_device_pools 0.0" in await page(replica)
        halves = [slice_manifest("n1", part=part, of=2, generation=2) for part in (0, 1)]
        for half, devices in zip(halves, (slice(0, 4), slice(4, 8)), strict=True):
            half["spec"]["devices"] = half["spec"]["devices"][devices]
        world.api.patch("resourceslices", halves[0]["metadata"]["name"], "", {"spec": halves[0]["spec"]})
        await eventually(lambda: scheduler.books()["n1"] == (0, 0, 0))
        assert "wattbalance_incomplete_device_pools 1.0" in await page(replica)
        world.api.create("resourceslices", halves[1])
        await eventually(lambda: scheduler.books()["n1"] == (0, 0, 8))
        assert "wattbalance_incomplete_device_pools 0.0" in await page(replica)
