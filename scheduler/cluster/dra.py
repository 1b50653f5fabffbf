"""GPUs by DRA: which devices each node's driver offers, and which of them claims hold. Pure; the store owns it.

What counts, as kube-scheduler's allocator has it:
1. Slices of the GPU driver that name a node; of each pool those of its newest generation, and only once all of them
   are there.
2. A device is held by the claims that are allocated to it, whether their pods are bound or not, and once, however
   many pods share a claim. With admin access it is looked at, not held.
3. A GPU of which a part is held is not whole any more: it is offered in parts like those that are held.
4. A slice of a GPU that is not offered itself was cut before, and is one unit of its profile; one that draws on
   counters is yet to be cut, instead of others, and counts nowhere.
5. A device that several nodes reach (`nodeSelector`, `allNodes`) counts on none of them: there is no telling whose it
   is before a claim has it. Which of these nodes a pod gets is kube-scheduler's choice; how many they are is told.
6. A pod that asks for an extended resource where no node has such an allocatable gets a claim made by kube-scheduler.
   That pod is counted by its request already, so the claim counts only what it holds beyond that.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from math import floor, inf
from typing import TypeVar

from scheduler.cluster.dra_devices import (
    GPU_DRIVER,
    Claim,
    DeviceKey,
    GpuDevice,
    NodeDevices,
    claim_of,
    devices_of,
    node_devices,
)
from scheduler.cluster.dra_objects import DeviceClass, ResourceClaim, ResourceSlice
from scheduler.cluster.port import Kind
from scheduler.cluster.shares import Offer
from scheduler.core.nouns import GPU_RESOURCE


@dataclass(frozen=True, slots=True)
class _Slice:
    pool: str
    generation: int
    of: int
    """Of how many slices its pool consists at this generation."""
    devices: tuple[tuple[str, GpuDevice], ...]
    """With the node of each."""


class Devices:
    """Slices and claims, taken in any order. What changes is told as the names of the nodes that are concerned."""

    def __init__(self) -> None:
        self.incomplete: set[str] = set()
        """Pools some of whose slices are still to come."""
        self.by_node: dict[str, NodeDevices] = {}
        self.claims: dict[str, Claim] = {}
        """By uid."""
        self._slices: dict[str, _Slice] = {}
        self._pools: dict[str, dict[str, _Slice]] = {}
        self._of_no_node: dict[str, int] = {}
        """By pool, how many GPUs and slices several nodes reach."""
        self._offered: dict[str, dict[str, list[GpuDevice]]] = {}
        """By node, what the newest generation of each pool offers there."""
        self._pool_nodes: dict[str, set[str]] = {}
        """By pool, the nodes on which it offers something."""
        self._node_of: dict[DeviceKey, str] = {}
        self._claims_of: dict[DeviceKey, set[str]] = {}
        self._names: dict[str, str] = {}
        """Extended resources by which pods may ask for devices, by uid of their class."""
        self._extended: dict[str, set[str]] = {}
        """By pod, the claims that kube-scheduler made for it."""

    def see(self, thing: ResourceSlice | ResourceClaim | DeviceClass, *, gone: bool) -> set[str]:
        """Take one event of a watch."""
        uid = thing.metadata.uid
        if isinstance(thing, DeviceClass):
            self._names.pop(uid, None)
            if thing.spec.extended_resource_name and not gone:
                self._names[uid] = thing.spec.extended_resource_name
            return set()
        if isinstance(thing, ResourceSlice):
            return self.forget_slice(uid) if gone else self.see_slice(uid, thing)
        return self.forget_claim(uid) if gone else self.see_claim(uid, thing)

    def keep(self, kind: Kind, uids: AbstractSet[str]) -> set[str]:
        """A listing is complete: whatever of this kind it does not name is gone."""
        if kind is Kind.DEVICECLASS:
            self._names = {uid: name for uid, name in self._names.items() if uid in uids}
            return set()
        if kind is Kind.RESOURCESLICE:
            return {node for uid in self._slices.keys() - uids for node in self.forget_slice(uid)}
        return {node for uid in self.claims.keys() - uids for node in self.forget_claim(uid)}

    @property
    def uncounted(self) -> int:
        """GPUs and slices of them that count nowhere."""
        return sum(self._of_no_node.values()) + sum(each.uncounted for each in self.by_node.values())

    # --- slices --------------------------------------------------------------------------------------------------

    def see_slice(self, uid: str, seen: ResourceSlice) -> set[str]:
        """A slice is there, new or changed; other drivers' are none of ours."""
        if seen.spec.driver != GPU_DRIVER:
            return self.forget_slice(uid)
        pool = seen.spec.pool
        made = _Slice(pool.name, pool.generation, pool.resource_slice_count, tuple(devices_of(seen)))
        before = self._slices.get(uid)
        if made == before:
            return set()
        changed = self.forget_slice(uid) if before is not None and before.pool != pool.name else set()
        self._slices[uid] = made
        self._pools.setdefault(pool.name, {})[uid] = made
        return changed | self._renew_pool(pool.name)

    def forget_slice(self, uid: str) -> set[str]:
        """A slice is gone."""
        before = self._slices.pop(uid, None)
        if before is None:
            return set()
        rest = self._pools[before.pool]
        del rest[uid]
        changed = self._renew_pool(before.pool)
        if not rest:
            del self._pools[before.pool]
        return changed

    def _renew_pool(self, pool: str) -> set[str]:
        slices = self._pools[pool].values()
        newest = max((each.generation for each in slices), default=0)
        current = [each for each in slices if each.generation == newest]
        self.incomplete.discard(pool)
        self._of_no_node.pop(pool, None)
        offered: dict[str, list[GpuDevice]] = {}
        if current and len(current) == current[0].of:
            names: set[str] = set()
            for node, device in (found for each in current for found in each.devices):
                # Named twice, it is one device all the same.
                if device.name not in names:
                    names.add(device.name)
                    offered.setdefault(node, []).append(device)
            if stray := offered.pop("", ()):
                self._of_no_node[pool] = len(stray)
        elif current:
            self.incomplete.add(pool)
        changed = self._pool_nodes.pop(pool, set()) | offered.keys()
        for node in changed:
            for device in self._offered.get(node, {}).pop(pool, ()):
                self._node_of.pop(device.key, None)
        if offered:
            self._pool_nodes[pool] = set(offered)
        for node, devices in offered.items():
            self._offered.setdefault(node, {})[pool] = devices
            for device in devices:
                self._node_of[device.key] = node
        for node in changed:
            self._renew_node(node)
        return changed

    def _renew_node(self, node: str) -> None:
        found = [device for devices in self._offered[node].values() for device in devices]
        if not found:
            del self._offered[node]
            self.by_node.pop(node, None)
            return
        self.by_node[node] = node_devices(found)

    # --- claims --------------------------------------------------------------------------------------------------

    def see_claim(self, uid: str, seen: ResourceClaim) -> set[str]:
        """A claim is there, new or changed."""
        claim = claim_of(seen)
        before = self.claims.get(uid)
        if claim == before:
            return set()
        changed = self.forget_claim(uid)
        if claim is None:
            return changed
        self.claims[uid] = claim
        for key in claim.devices:
            self._claims_of.setdefault(key, set()).add(uid)
        if claim.extended_of:
            self._extended.setdefault(claim.extended_of, set()).add(uid)
        return changed | self._nodes_of(claim)

    def forget_claim(self, uid: str) -> set[str]:
        """A claim is gone, or holds nothing any more."""
        claim = self.claims.pop(uid, None)
        if claim is None:
            return set()
        for key in claim.devices:
            _drop(self._claims_of, key, uid)
        if claim.extended_of:
            _drop(self._extended, claim.extended_of, uid)
        return self._nodes_of(claim)

    def _nodes_of(self, claim: Claim) -> set[str]:
        return {self._node_of[key] for key in claim.devices if key in self._node_of}

    def nodes_of_pod(self, uid: str) -> set[str]:
        """Nodes with devices that kube-scheduler has claimed for this pod's extended resources."""
        return {node for claim in self._extended.get(uid, ()) for node in self._nodes_of(self.claims[claim])}

    def is_named(self, resource: str) -> bool:
        """Whether kube-scheduler finds devices for pods that ask for this resource: some DeviceClass has its name."""
        return resource in self._names.values()

    # --- questions -----------------------------------------------------------------------------------------------

    def offers(self, node: str) -> dict[str, Offer]:
        """What pods may have there, or have, by resource.

        What has a taint and nobody who holds it is not to be had. A GPU that is held in parts is offered in these; what
        is left of it, in parts like the smallest.
        """
        devices = self.by_node.get(node)
        if devices is None or not (devices.gpus or devices.cut):
            return {}
        parts = self._parts_held(devices)
        whole = [gpu for gpu in devices.gpus if gpu.key not in parts and self._is_to_be_had(gpu)]
        found = {GPU_RESOURCE: Offer(float(len(whole)))} if devices.gpus else {}
        for part in filter(self._is_to_be_had, devices.cut):
            before = found.get(part.resource)
            found[part.resource] = replace(part.offer, units=(before.units if before else 0.0) + 1.0)
        for held in parts.values():
            offered = [part.offer for part in held]
            left = 1.0 - sum(each.gpus for each in offered)
            smallest = min(range(len(held)), key=lambda index: offered[index].gpus)
            # A hair more than it takes, for sums of sevenths.
            more = max(floor(left / offered[smallest].gpus + 1e-6), 0)
            for index, part in enumerate(held):
                before = found.get(part.resource)
                units = (before.units if before else 0.0) + 1.0 + (more if index == smallest else 0)
                found[part.resource] = replace(offered[index], units=units)
        return found

    def _is_to_be_had(self, device: GpuDevice) -> bool:
        return not device.tainted or device.key in self._claims_of

    def held(
        self, node: str, counted: Callable[[str, str], float] = lambda _pod, _resource: 0.0
    ) -> dict[str, float]:
        """What claims hold of what the node offers, by resource, beyond what is counted of their pods anyway.

        `counted` tells of a pod, by uid, how many units of a resource are counted as its own on this node already.
        """
        devices = self.by_node.get(node)
        if devices is None:
            return {}
        parts = self._parts_held(devices)
        alone = (*(gpu for gpu in devices.gpus if gpu.key not in parts), *devices.cut)
        whole = [device for device in alone if device.key in self._claims_of]
        made_for: dict[tuple[str, str], int] = {}
        for device in (*whole, *(part for held in parts.values() for part in held)):
            # Shared by several claims, it is one device all the same.
            pod = max(self.claims[uid].extended_of for uid in self._claims_of[device.key])
            made_for[pod, device.resource] = made_for.get((pod, device.resource), 0) + 1
        found: dict[str, float] = {}
        for (pod, resource), count in made_for.items():
            beyond = max(count - counted(pod, resource), 0.0) if pod else count
            found[resource] = found.get(resource, 0.0) + beyond
        return found

    def left_to_requests(self, node: str) -> dict[str, float]:
        """What is not held by claims of their own, by resource: pods that ask by resource have it, or may."""
        held = self.held(node, lambda _pod, _resource: inf)
        return {name: offer.units - held.get(name, 0.0) for name, offer in self.offers(node).items()}

    def holders(self, node: str) -> dict[str, list[Claim]]:
        """By uuid of a GPU, the claims that hold it or parts of it."""
        devices = self.by_node.get(node)
        if devices is None:
            return {}
        held: dict[DeviceKey, set[str]] = {
            gpu.key: set(self._claims_of[gpu.key]) for gpu in devices.gpus if gpu.key in self._claims_of
        }
        for parent, parts in self._parts_held(devices).items():
            for part in parts:
                held.setdefault(parent, set()).update(self._claims_of[part.key])
        by_uuid = {gpu.uuid or gpu.name: held[gpu.key] for gpu in devices.gpus if gpu.key in held}
        for part in devices.cut:
            if part.key in self._claims_of:
                by_uuid.setdefault(part.parent_uuid or part.name, set()).update(self._claims_of[part.key])
        return {uuid: [self.claims[uid] for uid in sorted(uids)] for uuid, uids in by_uuid.items()}

    def held_by(self, pod: str) -> list[str]:
        """What claims hold for a pod (uid), in words; a claim that is not allocated holds nothing."""
        return [
            f"claim {claim.namespace}/{claim.name} holds {name} of {self._node_of.get((pool, name), pool)}"
            for claim in self.claims.values()
            if pod in claim.pods
            for pool, name in claim.devices
        ]

    def _parts_held(self, devices: NodeDevices) -> dict[DeviceKey, list[GpuDevice]]:
        """GPUs of which parts are held, with these."""
        found: dict[DeviceKey, list[GpuDevice]] = {}
        for part, parent in devices.parts:
            if part.key in self._claims_of:
                found.setdefault(parent, []).append(part)
        return found


_Key = TypeVar("_Key")


def _drop(index: dict[_Key, set[str]], key: _Key, uid: str) -> None:
    index[key].discard(uid)
    if not index[key]:
        del index[key]
