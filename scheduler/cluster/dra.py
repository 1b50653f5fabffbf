"""GPUs by DRA: which devices each node's driver offers, and which of them claims hold. Pure; the store owns it.

What counts, as kube-scheduler's allocator has it:
1. Slices of the GPU driver that name a node; of each pool those of its newest generation, and only once all of them
   are there.
2. Devices of type `gpu` are the node's whole GPUs. Slices of a GPU (`mig`) are listed beside it, and are parts of it:
   a GPU of which a part is held is not whole any more.
3. A device is held by the claims that are allocated to it, whether their pods are bound or not, and once, however
   many pods share a claim. With admin access it is looked at, not held.
4. A pod that asks for an extended resource where no node has such an allocatable gets a claim made by kube-scheduler.
   That pod is counted by its request already, so the claim counts only what it holds beyond that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from math import inf
from typing import TypeVar

from scheduler.cluster.dra_objects import Device, DeviceFacts, ResourceClaim, ResourceSlice
from scheduler.cluster.objects import quantity
from scheduler.cluster.port import Kind

GPU_DRIVER = "gpu.nvidia.com"
# What kube-scheduler writes on the claims that it makes for extended resources. Source: k8s.io/api/resource/v1.
EXTENDED_ANNOTATION = "resource.kubernetes.io/extended-resource-claim"
GPU_TYPE, SLICE_TYPE = "gpu", "mig"
# Effects of a device's taint that keep claims off it.
REPELS = frozenset({"NoSchedule", "NoExecute"})

DeviceKey = tuple[str, str]
"""Pool and name: no two devices of a driver have both in common."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuDevice:
    """One device of a node: a GPU, or a part of one."""

    name: str
    pool: str
    whole: bool
    uuid: str = ""
    parent_uuid: str = ""
    """Of the GPU that it is a part of; of a whole one its own."""
    model: str = ""
    memory_bytes: float = 0.0
    tainted: bool = False
    """Whether claims are kept off it."""
    counters: frozenset[str] = frozenset()

    @property
    def key(self) -> DeviceKey:
        """By which claims name it."""
        return self.pool, self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDevices:
    """What DRA offers on one node."""

    gpus: tuple[GpuDevice, ...] = ()
    """Whole ones, by name."""
    parts: Mapping[DeviceKey, DeviceKey] = field(default_factory=dict)
    """Slices, with the whole GPU that each is a part of; those of a GPU that is not offered whole are left out."""

    @property
    def model(self) -> str:
        """Of the first GPU that tells; empty if none does."""
        return next((gpu.model for gpu in self.gpus if gpu.model), "")

    @property
    def models(self) -> frozenset[str]:
        """Of its GPUs, in small letters; empty where one does not tell."""
        models = {gpu.model.lower() for gpu in self.gpus}
        return frozenset(models) if all(models) else frozenset()

    @property
    def memory_bytes(self) -> float:
        """Of its smallest GPU; 0 where one does not tell."""
        return min((gpu.memory_bytes for gpu in self.gpus), default=0.0)


@dataclass(frozen=True, slots=True)
class _Slice:
    pool: str
    generation: int
    of: int
    """Of how many slices its pool consists at this generation."""
    devices: tuple[tuple[str, GpuDevice], ...]
    """With the node of each."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim that is allocated to devices of ours."""

    namespace: str
    name: str
    devices: tuple[DeviceKey, ...]
    pods: frozenset[str]
    """Uids of the pods it is reserved for."""
    extended_of: str = ""
    """The pod for whose extended resources kube-scheduler made it; empty for all others."""


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
        self._offered: dict[str, dict[str, list[GpuDevice]]] = {}
        """By node, what the newest generation of each pool offers there."""
        self._pool_nodes: dict[str, set[str]] = {}
        """By pool, the nodes on which it offers something."""
        self._node_of: dict[DeviceKey, str] = {}
        self._claims_of: dict[DeviceKey, set[str]] = {}
        self._extended: dict[str, set[str]] = {}
        """By pod, the claims that kube-scheduler made for it."""

    def see(self, thing: ResourceSlice | ResourceClaim, *, gone: bool) -> set[str]:
        """Take one event of a watch."""
        uid = thing.metadata.uid
        if isinstance(thing, ResourceSlice):
            return self.forget_slice(uid) if gone else self.see_slice(uid, thing)
        return self.forget_claim(uid) if gone else self.see_claim(uid, thing)

    def keep(self, kind: Kind, uids: AbstractSet[str]) -> set[str]:
        """A listing is complete: whatever of this kind it does not name is gone."""
        if kind is Kind.RESOURCESLICE:
            return {node for uid in self._slices.keys() - uids for node in self.forget_slice(uid)}
        return {node for uid in self.claims.keys() - uids for node in self.forget_claim(uid)}

    # --- slices --------------------------------------------------------------------------------------------------

    def see_slice(self, uid: str, seen: ResourceSlice) -> set[str]:
        """A slice is there, new or changed; other drivers' are none of ours."""
        if seen.spec.driver != GPU_DRIVER:
            return self.forget_slice(uid)
        pool = seen.spec.pool
        made = _Slice(pool.name, pool.generation, pool.resource_slice_count, tuple(_read(seen)))
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
        offered: dict[str, list[GpuDevice]] = {}
        if current and len(current) == current[0].of:
            names: set[str] = set()
            for node, device in (found for each in current for found in each.devices):
                # Named twice, it is one device all the same.
                if device.name not in names:
                    names.add(device.name)
                    offered.setdefault(node, []).append(device)
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
        gpus = tuple(sorted((each for each in found if each.whole), key=lambda gpu: (gpu.pool, gpu.name)))
        if not found:
            del self._offered[node]
            self.by_node.pop(node, None)
            return
        parts = {
            part.key: parent.key
            for part in found
            if not part.whole and (parent := _parent(part, gpus)) is not None
        }
        self.by_node[node] = NodeDevices(gpus=gpus, parts=parts)

    # --- claims --------------------------------------------------------------------------------------------------

    def see_claim(self, uid: str, seen: ResourceClaim) -> set[str]:
        """A claim is there, new or changed."""
        claim = _claim(seen)
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

    # --- questions -----------------------------------------------------------------------------------------------

    def units(self, node: str) -> int:
        """Whole GPUs that claims may have, or have: one with a taint that nobody holds is not to be had."""
        devices = self.by_node.get(node)
        if devices is None:
            return 0
        held = self._held(devices)
        return sum(not gpu.tainted or gpu.key in held for gpu in devices.gpus)

    def held(self, node: str, counted: Callable[[str], float] = lambda _: 0.0) -> float:
        """How many of the node's whole GPUs claims hold, beyond what is counted of their pods anyway.

        `counted` tells of a pod, by uid, how many whole GPUs of this node are counted as its own already.
        """
        devices = self.by_node.get(node)
        if devices is None:
            return 0.0
        beyond = 0.0
        of_pod: dict[str, int] = {}
        for holders in self._held(devices).values():
            # Shared by several claims, it is one GPU all the same.
            pod = max(self._requester(uid, whole=whole) for uid, whole in holders)
            if pod:
                of_pod[pod] = of_pod.get(pod, 0) + 1
            else:
                beyond += 1
        return beyond + sum(max(gpus - counted(pod), 0.0) for pod, gpus in of_pod.items())

    def left_to_requests(self, node: str) -> float:
        """Whole GPUs that are not held by claims of their own: pods that ask by resource have these, or may."""
        return self.units(node) - self.held(node, lambda _: inf)

    def holders(self, node: str) -> dict[str, list[Claim]]:
        """By uuid of a whole GPU, the claims that hold it or parts of it."""
        devices = self.by_node.get(node)
        if devices is None:
            return {}
        held = self._held(devices)
        return {
            gpu.uuid or gpu.name: [self.claims[uid] for uid in sorted({uid for uid, _ in held[gpu.key]})]
            for gpu in devices.gpus
            if gpu.key in held
        }

    def held_by(self, pod: str) -> list[str]:
        """What claims hold for a pod (uid), in words; a claim that is not allocated holds nothing."""
        return [
            f"claim {claim.namespace}/{claim.name} holds {name} of {self._node_of.get((pool, name), pool)}"
            for claim in self.claims.values()
            if pod in claim.pods
            for pool, name in claim.devices
        ]

    def _held(self, devices: NodeDevices) -> dict[DeviceKey, set[tuple[str, bool]]]:
        """Whole GPUs with the claims on them: (uid, whether on the whole of it)."""
        held: dict[DeviceKey, set[tuple[str, bool]]] = {}
        for gpu in devices.gpus:
            for uid in self._claims_of.get(gpu.key, ()):
                held.setdefault(gpu.key, set()).add((uid, True))
        for part, parent in devices.parts.items():
            for uid in self._claims_of.get(part, ()):
                held.setdefault(parent, set()).add((uid, False))
        return held

    def _requester(self, uid: str, *, whole: bool) -> str:
        """The pod whose request for whole GPUs a claim on one fulfils; empty if it is another claim."""
        return self.claims[uid].extended_of if whole else ""


def _read(seen: ResourceSlice) -> Iterator[tuple[str, GpuDevice]]:
    """The GPUs and slices of a slice, each with its node; of devices that every node reaches nothing is known."""
    for device in seen.spec.devices or ():
        facts = device.basic or device
        node = seen.spec.node_name or facts.node_name
        kind = _text(facts, "type")
        if not node or not device.name or kind not in (GPU_TYPE, SLICE_TYPE):
            continue
        yield node, _device(seen.spec.pool.name, device, facts, whole=kind == GPU_TYPE)


def _device(pool: str, device: Device, facts: DeviceFacts, *, whole: bool) -> GpuDevice:
    uuid = _text(facts, "uuid")
    memory = (facts.capacity or {}).get("memory") or (facts.capacity or {}).get(f"{GPU_DRIVER}/memory")
    return GpuDevice(
        name=device.name,
        pool=pool,
        whole=whole,
        uuid=uuid,
        parent_uuid=uuid if whole else _text(facts, "parentUUID"),
        model=_text(facts, "productName") or _text(facts, "model"),
        memory_bytes=max(quantity(memory.value), 0.0) if memory else 0.0,
        tainted=any(taint.effect in REPELS for taint in facts.taints or ()),
        counters=frozenset(use.counter_set for use in facts.consumes_counters or ()),
    )


def _text(facts: DeviceFacts, name: str) -> str:
    attributes = facts.attributes or {}
    found = attributes.get(name) or attributes.get(f"{GPU_DRIVER}/{name}")
    return (found.string if found is not None else None) or ""


def _parent(part: GpuDevice, gpus: tuple[GpuDevice, ...]) -> GpuDevice | None:
    """The GPU that a slice is a part of: the one it names, else the one that draws from the same counters."""
    for gpu in gpus:
        if part.parent_uuid and gpu.uuid == part.parent_uuid:
            return gpu
    for gpu in gpus:
        if gpu.pool == part.pool and gpu.counters & part.counters:
            return gpu
    return None


def _claim(seen: ResourceClaim) -> Claim | None:
    """What a claim holds of our devices; None if nothing."""
    allocation = seen.status.allocation
    results = (allocation.devices.results if allocation is not None else None) or ()
    devices = {
        (each.pool, each.device) for each in results if each.driver == GPU_DRIVER and not each.admin_access
    }
    if not devices:
        return None
    meta = seen.metadata
    pods = frozenset(each.uid for each in seen.status.reserved_for or () if each.resource == "pods")
    extended_of = ""
    if (meta.annotations or {}).get(EXTENDED_ANNOTATION) == "true":
        owners = [owner.uid for owner in meta.owner_references or () if owner.kind == "Pod"]
        extended_of = next(iter([*owners, *sorted(pods)]), "")
    return Claim(meta.namespace, meta.name, tuple(sorted(devices)), pods, extended_of)


_Key = TypeVar("_Key")


def _drop(index: dict[_Key, set[str]], key: _Key, uid: str) -> None:
    index[key].discard(uid)
    if not index[key]:
        del index[key]
