"""Slim structs of resource.k8s.io objects (DRA): only what counting GPUs needs; everything else is skipped unbuilt.

Read as v1, v1beta2 or v1beta1 serves them: the last has a device's fields one level down, under `basic`.
Source: k8s.io/api/resource/v1 of Kubernetes 1.34, and the attributes that gpu.nvidia.com publishes.
"""

from __future__ import annotations

from scheduler.cluster.objects import Partial, Slim


class Attribute(Slim, frozen=True):
    """One attribute; those that are numbers, versions or truths are none of ours."""

    string: str | None = None


class Capacity(Slim, frozen=True):
    """One capacity; a quantity."""

    value: str | int | float | None = None


class CounterUse(Slim, frozen=True):
    """From which set of counters a device draws: those of one GPU and of its slices draw from the same."""

    counter_set: str = ""


class DeviceTaint(Slim, frozen=True):
    """A taint of a device; `None` is an effect too, and keeps nobody off."""

    effect: str = ""


class DeviceFacts(Slim, frozen=True):
    """What is told of a device. Names of attributes may carry the driver's domain, or leave it out."""

    attributes: dict[str, Attribute] | None = None
    capacity: dict[str, Capacity] | None = None
    consumes_counters: list[CounterUse] | None = None
    taints: list[DeviceTaint] | None = None
    node_name: str = ""
    """Its node, where the slice leaves that to each device."""


class Device(DeviceFacts, frozen=True):
    """One device of a slice."""

    name: str = ""
    basic: DeviceFacts | None = None


class SlicePool(Slim, frozen=True):
    """Which pool a slice is a part of, and of how many slices that consists at this generation."""

    name: str = ""
    generation: int = 0
    resource_slice_count: int = 0


class SliceSpec(Slim, frozen=True):
    """spec of a ResourceSlice."""

    driver: str = ""
    node_name: str = ""
    pool: SlicePool = SlicePool()
    devices: list[Device] | None = None


class ResourceSlice(Partial, frozen=True):
    """Devices that a driver offers."""

    spec: SliceSpec = SliceSpec()


class ClaimedDevice(Slim, frozen=True):
    """One allocated device. With `admin_access` it is looked at, not held."""

    driver: str = ""
    pool: str = ""
    device: str = ""
    admin_access: bool | None = None


class ClaimedDevices(Slim, frozen=True):
    """status.allocation.devices."""

    results: list[ClaimedDevice] | None = None


class ClaimAllocation(Slim, frozen=True):
    """status.allocation."""

    devices: ClaimedDevices = ClaimedDevices()


class ClaimConsumer(Slim, frozen=True):
    """Who may use a claim; pods, as far as we know them."""

    resource: str = ""
    uid: str = ""


class ClaimStatus(Slim, frozen=True):
    """status of a ResourceClaim."""

    allocation: ClaimAllocation | None = None
    reserved_for: list[ClaimConsumer] | None = None


class ResourceClaim(Partial, frozen=True):
    """A wish for devices; once it is allocated it holds them, whether its pod is bound or not."""

    status: ClaimStatus = ClaimStatus()


class ClassSpec(Slim, frozen=True):
    """spec of a DeviceClass."""

    extended_resource_name: str | None = None
    """By which pods may ask for its devices as for a resource."""


class DeviceClass(Partial, frozen=True):
    """A sort of devices."""

    spec: ClassSpec = ClassSpec()
