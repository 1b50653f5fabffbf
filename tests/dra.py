"""Kubernetes' own manifests of DRA, as gpu.nvidia.com's driver and kube-scheduler write them, and as we decode them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from scheduler.cluster.dra import Devices
from scheduler.cluster.dra_devices import EXTENDED_ANNOTATION, GPU_DRIVER
from scheduler.cluster.dra_objects import DeviceClass, ResourceClaim, ResourceSlice
from scheduler.core.nouns import GPU_RESOURCE

Json = dict[str, Any]
GIB = 2**30
GROUP = "resource.k8s.io"
API = f"{GROUP}/v1"


def gpu(index: int, node: str = "n1", *, parted: bool = False, **extra: Any) -> Json:
    """A whole GPU. `parted`: slices of it are offered beside it."""
    counters = (
        {"consumesCounters": [{"counterSet": f"gpu-{index}", "counters": {"memory": {"value": "80Gi"}}}]}
        if parted
        else {}
    )
    return {
        "name": f"gpu-{index}",
        "attributes": {
            "type": {"string": "gpu"},
            "uuid": {"string": f"{node}-{index}"},
            "productName": {"string": "NVIDIA H100 80GB HBM3"},
            "index": {"int": index},
            "driverVersion": {"version": "580.65.6"},
        },
        "capacity": {"memory": {"value": "80Gi"}},
        **counters,
        **extra,
    }


def mig(
    index: int, place: int, node: str = "n1", *, by_counters: bool = False, profile: str = "1g.10gb"
) -> Json:
    """A seventh of a GPU, which names its parent or draws from the same counters."""
    attributes: Json = {"type": {"string": "mig"}, "profile": {"string": profile}}
    if not by_counters:
        attributes["parentUUID"] = {"string": f"{node}-{index}"}
    return {
        "name": f"gpu-{index}-mig-1g10gb-{place}",
        "attributes": attributes,
        "capacity": {"memory": {"value": "10Gi"}},
        "consumesCounters": [{"counterSet": f"gpu-{index}", "counters": {"memory": {"value": "10Gi"}}}],
    }


def cut(index: int, place: int, node: str = "n1", *, profile: str = "1g.10gb", **extra: Any) -> Json:
    """A slice of a GPU that was cut before the driver began: the GPU itself is not listed, and nothing drawn upon."""
    device = mig(index, place, node, profile=profile)
    del device["consumesCounters"]
    device["attributes"]["productName"] = {"string": "NVIDIA H100 80GB HBM3"}
    return device | {"name": f"gpu-{index}-mig-{profile}-{place}"} | extra


def slice_manifest(
    node: str = "n1",
    devices: list[Json] | None = None,
    *,
    part: int = 0,
    of: int = 1,
    generation: int = 1,
    driver: str = GPU_DRIVER,
) -> Json:
    """One of a node's slices; its pool is called as the node."""
    devices = [gpu(index, node) for index in range(8)] if devices is None else devices
    return {
        "apiVersion": API,
        "kind": "ResourceSlice",
        "metadata": {"name": f"{node}-{driver}-{part}"},
        "spec": {
            "driver": driver,
            "nodeName": node,
            "pool": {"name": node, "generation": generation, "resourceSliceCount": of},
            "devices": devices,
        },
    }


def claim_status(
    devices: list[str], node: str = "n1", pods: tuple[str, ...] = (), *, admin: bool = False
) -> Json:
    """What an allocation is: devices of a node's pool, and pods (by uid) that may use them."""
    results = [
        {"request": "gpus", "driver": GPU_DRIVER, "pool": node, "device": name}
        | ({"adminAccess": True} if admin else {})
        for name in devices
    ]
    return {
        "allocation": {"devices": {"results": results}},
        "reservedFor": [{"resource": "pods", "name": uid.removeprefix("uid-"), "uid": uid} for uid in pods],
    }


def claim_manifest(name: str = "c1", namespace: str = "team-a", *, extended_of: str = "") -> Json:
    """A claim before it is allocated. `extended_of`: made by kube-scheduler for this pod (uid)."""
    metadata: Json = {"name": name, "namespace": namespace}
    if extended_of:
        pod = extended_of.removeprefix("uid-")
        owner = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": extended_of, "controller": True}
        metadata |= {"annotations": {EXTENDED_ANNOTATION: "true"}, "ownerReferences": [owner]}
    exactly = {"deviceClassName": GPU_DRIVER, "allocationMode": "ExactCount", "count": 1}
    return {
        "apiVersion": API,
        "kind": "ResourceClaim",
        "metadata": metadata,
        "spec": {"devices": {"requests": [{"name": "gpus", "exactly": exactly}]}},
    }


def class_manifest(extended_resource: str = "nvidia.com/gpu") -> Json:
    """The driver's class of whole GPUs."""
    cel = f"device.driver == '{GPU_DRIVER}' && device.attributes['{GPU_DRIVER}'].type == 'gpu'"
    return {
        "apiVersion": API,
        "kind": "DeviceClass",
        "metadata": {"name": GPU_DRIVER},
        "spec": {"selectors": [{"cel": {"expression": cel}}], "extendedResourceName": extended_resource},
    }


def make_class(extended_resource: str = "nvidia.com/gpu") -> DeviceClass:
    """The class, decoded; its uid is its name."""
    raw = class_manifest(extended_resource)
    raw["metadata"]["uid"] = raw["metadata"]["name"]
    return msgspec.convert(raw, DeviceClass)


def make_slice(
    node: str = "n1",
    devices: list[Json] | None = None,
    *,
    part: int = 0,
    of: int = 1,
    generation: int = 1,
    driver: str = GPU_DRIVER,
) -> ResourceSlice:
    """The same, decoded; its uid is its name."""
    raw = slice_manifest(node, devices, part=part, of=of, generation=generation, driver=driver)
    raw["metadata"]["uid"] = raw["metadata"]["name"]
    return msgspec.convert(raw, ResourceSlice)


def make_claim(
    name: str = "c1",
    devices: list[str] | None = None,
    node: str = "n1",
    pods: tuple[str, ...] = (),
    *,
    extended_of: str = "",
    admin: bool = False,
) -> ResourceClaim:
    """A claim, decoded; its uid is its name. Without devices it is not allocated."""
    raw = claim_manifest(name, extended_of=extended_of)
    raw["metadata"]["uid"] = name
    if devices is not None:
        raw["status"] = claim_status(devices, node, pods, admin=admin)
    return msgspec.convert(raw, ResourceClaim)


def whole(devices: Devices, node: str = "n1") -> float:
    """How many whole GPUs a node offers."""
    offer = devices.offers(node).get(GPU_RESOURCE)
    return offer.units if offer is not None else 0.0


def held(devices: Devices, node: str = "n1", counted: Callable[[str], float] = lambda _: 0.0) -> float:
    """How many of them claims hold, beyond what is counted of pods."""
    found = devices.held(node, lambda pod, resource: counted(pod) if resource == GPU_RESOURCE else 0.0)
    return found.get(GPU_RESOURCE, 0.0)
