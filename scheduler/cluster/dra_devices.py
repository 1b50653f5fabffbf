"""What DRA's objects say of GPUs: devices of a slice, and what a claim holds. Pure.

Devices of type `gpu` are whole GPUs. Slices of a GPU (`mig`) that are listed beside it are parts of it, to be cut from
it; those of a GPU that is not listed itself have been cut before. Others are none of ours. Source: the attributes that
gpu.nvidia.com publishes, with the gate DynamicMIG and without.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from scheduler.cluster.dra_objects import Device, DeviceFacts, ResourceClaim, ResourceSlice
from scheduler.cluster.objects import quantity
from scheduler.cluster.shares import MIG_PREFIX, Offer, named_memory_bytes, offers
from scheduler.core.models import folded
from scheduler.core.nouns import GPU_RESOURCE

GPU_DRIVER = "gpu.nvidia.com"
# What kube-scheduler writes on the claims that it makes for extended resources. Source: k8s.io/api/resource/v1.
EXTENDED_ANNOTATION = "resource.kubernetes.io/extended-resource-claim"
GPU_TYPE, SLICE_TYPE = "gpu", "mig"
# Effects of a device's taint that keep claims off it.
REPELS = frozenset({"NoSchedule", "NoExecute"})

_WHOLE = Offer(1.0)

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
    """Of the GPU that it is a part of; empty for a whole one."""
    model: str = ""
    memory_bytes: float = 0.0
    tainted: bool = False
    """Whether claims are kept off it."""
    counters: frozenset[str] = frozenset()
    offer: Offer = _WHOLE
    """One unit of what it is."""
    resource: str = GPU_RESOURCE
    """By which name pods may ask for such a one: a part's as the device plugin calls it."""

    @property
    def key(self) -> DeviceKey:
        """By which claims name it."""
        return self.pool, self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDevices:
    """What DRA offers on one node."""

    gpus: tuple[GpuDevice, ...] = ()
    """Whole ones, by name."""
    parts: tuple[tuple[GpuDevice, DeviceKey], ...] = ()
    """Slices, with the whole GPU that each is a part of."""
    cut: tuple[GpuDevice, ...] = ()
    """Slices of GPUs that are not offered whole."""
    uncounted: int = 0
    """Such slices that may yet be cut, instead of each other, or of a profile that nobody has heard of."""

    @property
    def model(self) -> str:
        """Of the first GPU that tells; empty if none does."""
        return next((gpu.model for gpu in (*self.gpus, *self.cut) if gpu.model), "")

    @property
    def models(self) -> frozenset[str]:
        """Of its GPUs, as they compare; empty where one does not tell."""
        models = {folded(gpu.model) for gpu in (*self.gpus, *self.cut)}
        return frozenset(models) if all(models) else frozenset()

    @property
    def memory_bytes(self) -> float:
        """Of its smallest GPU that is whole; 0 where one does not tell."""
        return min((gpu.memory_bytes for gpu in self.gpus), default=0.0)


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


def devices_of(seen: ResourceSlice) -> Iterator[tuple[str, GpuDevice]]:
    """The GPUs and slices of a slice, each with its node; empty for those that several nodes reach."""
    for device in seen.spec.devices or ():
        facts = device.basic or device
        node = seen.spec.node_name or facts.node_name
        kind = _text(facts, "type")
        if not device.name or kind not in (GPU_TYPE, SLICE_TYPE):
            continue
        yield node, _device(seen.spec.pool.name, device, facts, whole=kind == GPU_TYPE)


def _device(pool: str, device: Device, facts: DeviceFacts, *, whole: bool) -> GpuDevice:
    uuid = _text(facts, "uuid")
    model = _text(facts, "productName") or _text(facts, "model")
    resource = GPU_RESOURCE if whole else MIG_PREFIX + _text(facts, "profile").replace("+", ".")
    memory = (facts.capacity or {}).get("memory") or (facts.capacity or {}).get(f"{GPU_DRIVER}/memory")
    memory_bytes = max(quantity(memory.value), 0.0) if memory else 0.0
    # Of which slice of its GPU it is, its name tells; without one it counts as the whole of it.
    offer = _WHOLE if whole else offers({resource: 1}, {}, model=model)[0][resource]
    if memory_bytes:
        offer = replace(offer, memory_bytes=memory_bytes)
    return GpuDevice(
        name=device.name,
        pool=pool,
        whole=whole,
        uuid=uuid,
        parent_uuid=_text(facts, "parentUUID"),
        model=model,
        memory_bytes=memory_bytes,
        tainted=any(taint.effect in REPELS for taint in facts.taints or ()),
        counters=frozenset(use.counter_set for use in facts.consumes_counters or ()),
        offer=offer,
        resource=resource,
    )


def _text(facts: DeviceFacts, name: str) -> str:
    attributes = facts.attributes or {}
    found = attributes.get(name) or attributes.get(f"{GPU_DRIVER}/{name}")
    return (found.string if found is not None else None) or ""


def parent_of(part: GpuDevice, gpus: tuple[GpuDevice, ...]) -> GpuDevice | None:
    """The GPU that a slice is a part of: the one it names, else the one that draws from the same counters."""
    for gpu in gpus:
        if part.parent_uuid and gpu.uuid == part.parent_uuid:
            return gpu
    for gpu in gpus:
        if gpu.pool == part.pool and gpu.counters & part.counters:
            return gpu
    return None


def node_devices(found: list[GpuDevice]) -> NodeDevices:
    """Sort what is offered on one node."""
    gpus = tuple(sorted((each for each in found if each.whole), key=lambda gpu: (gpu.pool, gpu.name)))
    parts, cut, uncounted = [], [], 0
    for device in found:
        if device.whole:
            continue
        parent = parent_of(device, gpus)
        if parent is not None:
            parts.append((device, parent.key))
        elif named_memory_bytes(device.resource)[0] and not device.counters:
            cut.append(device)
        else:
            uncounted += 1
    return NodeDevices(gpus=gpus, parts=tuple(parts), cut=tuple(cut), uncounted=uncounted)


def claim_of(seen: ResourceClaim) -> Claim | None:
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
