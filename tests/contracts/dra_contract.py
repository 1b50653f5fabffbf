"""What following DRA's kinds promises on any API server that has resource.k8s.io, real or simulated.

A test module inherits `DraContract` and offers a fixture `server` of one that serves the group.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from scheduler.cluster.dra import Devices
from scheduler.cluster.dra_objects import DeviceClass, ResourceClaim, ResourceSlice
from scheduler.cluster.port import Changed, ClusterEvent, Gone, Kind, Listed
from tests.contracts.cluster_contract import Server, changed, following, gone, make_namespace
from tests.controlplane import collection_path
from tests.dra import claim_manifest, claim_status, class_manifest, gpu, held, slice_manifest, whole

if TYPE_CHECKING:
    from collections.abc import Iterable

CLASSES = "/apis/resource.k8s.io/v1/deviceclasses"
SLICES = "/apis/resource.k8s.io/v1/resourceslices"


def counted(*told: Iterable[ClusterEvent]) -> Devices:
    """What all that was told comes to."""
    devices = Devices()
    for event in (each for events in told for each in events):
        if isinstance(event, Listed):
            devices.keep(event.kind, event.keys)
        elif isinstance(event.object, ResourceSlice | ResourceClaim | DeviceClass):
            devices.see(event.object, gone=isinstance(event, Gone))
    return devices


class DraContract:
    """Inherit, and offer the fixture `server`."""

    async def test_classes_are_followed_with_the_name_that_they_give(self, server: Server) -> None:
        resource = f"example.com/gpu-{uuid.uuid4().hex[:8]}"
        manifest = class_manifest(resource)
        name = manifest["metadata"]["name"] = f"class-{uuid.uuid4().hex[:8]}"
        async with server.cluster() as cluster, following(cluster, Kind.DEVICECLASS) as classes:
            await classes.listed()
            await server.world.call("POST", CLASSES, manifest)
            await classes.until(changed(name))
            assert counted(classes.events).is_named(resource)
            await server.world.call("DELETE", f"{CLASSES}/{name}")
            await classes.until(gone(name))
            assert not counted(classes.events).is_named(resource)

    async def test_slices_are_listed_and_followed_through_all_that_a_driver_does(
        self, server: Server
    ) -> None:
        node = f"node-{uuid.uuid4().hex[:8]}"
        manifest = slice_manifest(node, [gpu(index, node) for index in range(3)])
        name = manifest["metadata"]["name"]
        await server.world.call("POST", SLICES, manifest)
        async with server.cluster() as cluster, following(cluster, Kind.RESOURCESLICE) as slices:
            listed = await slices.listed()
            event = await slices.until(changed(name))
            assert isinstance(event, Changed)
            assert isinstance(event.object, ResourceSlice)
            assert event.object.metadata.uid in listed.keys
            assert whole(counted(slices.events), node) == 3
            pool = {"name": node, "generation": 2, "resourceSliceCount": 1}
            spec = {"pool": pool, "devices": [gpu(index, node) for index in range(2)]}
            await server.world.call("PATCH", f"{SLICES}/{name}", {"spec": spec})
            await slices.until(
                changed(name, lambda it: isinstance(it, ResourceSlice) and it.spec.pool.generation == 2)
            )
            assert whole(counted(slices.events), node) == 2
            await server.world.call("DELETE", f"{SLICES}/{name}")
            await slices.until(gone(name))
            assert whole(counted(slices.events), node) == 0
            assert Kind.RESOURCESLICE in cluster.synced
            assert not cluster.refused
            assert not cluster.absent

    async def test_claims_are_followed_from_wish_to_allocation_and_back(self, server: Server) -> None:
        space = await make_namespace(server)
        node = f"node-{uuid.uuid4().hex[:8]}"
        manifest = claim_manifest("wish", space)
        path = f"{collection_path(manifest)}/wish"
        await server.world.call("POST", SLICES, slice_manifest(node))
        await server.world.call("POST", collection_path(manifest), manifest)
        async with (
            server.cluster() as cluster,
            following(cluster, Kind.RESOURCESLICE) as slices,
            following(cluster, Kind.RESOURCECLAIM) as claims,
        ):
            await slices.listed()
            await claims.until(changed("wish"))
            assert held(counted(slices.events, claims.events), node) == 0
            status = claim_status(["gpu-0", "gpu-7"], node, ("uid-a",))
            await server.world.call("PATCH", f"{path}/status", {"status": status})
            await claims.until(
                changed("wish", lambda it: isinstance(it, ResourceClaim) and it.status.allocation is not None)
            )
            assert held(counted(slices.events, claims.events), node) == 2
            await server.world.call(
                "PATCH", f"{path}/status", {"status": {"allocation": None, "reservedFor": None}}
            )
            await server.world.call("DELETE", path)
            await claims.until(gone("wish"))
            assert held(counted(slices.events, claims.events), node) == 0
        await server.world.call("DELETE", f"{SLICES}/{node}-gpu.nvidia.com-0")
