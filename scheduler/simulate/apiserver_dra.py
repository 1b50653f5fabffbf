"""What a real API server demands of resource.k8s.io objects (DRA), as far as drivers and schedulers may get it wrong.

Pure. Source: pkg/apis/resource/validation of Kubernetes 1.34; no server of that age was at hand to compare with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

JsonObject = dict[str, Any]

SLICES = "resourceslices"
CLAIMS = "resourceclaims"
CLASSES = "deviceclasses"
GROUP = "resource.k8s.io"
# In v1; before it the group was served in beta, and off.
SINCE = 34
_WHERE = ("nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection")
_MOST_DEVICES = 128


def complaint(plural: str, new: JsonObject, old: JsonObject | None) -> str:
    """What is wrong with an object, made or changed from `old`; empty if nothing."""
    if plural == SLICES:
        found = _of_slice(new.get("spec") or {}, (old or {}).get("spec"))
    elif plural == CLAIMS:
        found = _of_claim(new, old)
    else:
        return ""
    return next(found, "")


def _of_slice(spec: JsonObject, old: JsonObject | None) -> Iterator[str]:
    pool = spec.get("pool") or {}
    for field, value in (("driver", spec.get("driver")), ("pool.name", pool.get("name"))):
        if not value:
            yield f"spec.{field}: Required value"
    if int(pool.get("resourceSliceCount") or 0) <= 0:
        yield "spec.pool.resourceSliceCount: must be greater than zero"
    if sum(bool(spec.get(field)) for field in _WHERE) != 1:
        yield f"spec: exactly one of {', '.join(_WHERE)} is required"
    devices = spec.get("devices") or []
    if len(devices) > _MOST_DEVICES:
        yield f"spec.devices: Too many: must have at most {_MOST_DEVICES} items"
    names = [device.get("name") for device in devices]
    if len(set(names)) != len(names):
        yield "spec.devices: Duplicate value"
    if old is not None:
        for field in ("driver", "nodeName"):
            if spec.get(field) != old.get(field):
                yield f"spec.{field}: Invalid value: field is immutable"
        if pool.get("name") != old["pool"].get("name"):
            yield "spec.pool.name: Invalid value: field is immutable"


def _of_claim(new: JsonObject, old: JsonObject | None) -> Iterator[str]:
    status = new.get("status") or {}
    if old is not None and new.get("spec") != old.get("spec"):
        yield "spec: Invalid value: field is immutable"
    if status.get("reservedFor") and not status.get("allocation"):
        yield "status.reservedFor: Forbidden: may not be specified when `allocated` is not set"
    users = [each.get("uid") for each in status.get("reservedFor") or ()]
    if len(set(users)) != len(users):
        yield "status.reservedFor: Duplicate value"
    before = ((old or {}).get("status") or {}).get("allocation")
    if before and status.get("allocation") and before != status["allocation"]:
        yield "status.allocation: Invalid value: field is immutable"
