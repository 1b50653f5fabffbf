"""What a real API server demands of objects and fills in; checked against kube-apiserver 1.20.2.

Pure: every function takes plain JSON objects. Refusals are `ClusterError`s that carry their HTTP status.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from scheduler.core.errors import ApiConflict, ApiNotFound, ApiRejected, ClusterError
from scheduler.simulate import apiserver_dra as dra

# Objects are free-form JSON: their schema belongs to Kubernetes and this server looks at a handful of fields.
JsonObject = dict[str, Any]

PODS = "pods"
NODES = "nodes"
NAMESPACES = "namespaces"
LEASES = "leases"
EVENTS = "events"
CONFIGMAPS = "configmaps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One served resource. `since` is the minor version of 1.x that first serves it in this group version."""

    plural: str
    kind: str
    group: str = ""
    namespaced: bool = True
    status: bool = True
    since: int = 0

    @property
    def group_version(self) -> str:
        """`v1` or `apps/v1`."""
        return f"{self.group}/v1" if self.group else "v1"

    @property
    def qualified(self) -> str:
        """The name that error messages use: `pods`, `leases.coordination.k8s.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


RESOURCES: tuple[Resource, ...] = (
    Resource(plural=NODES, kind="Node", namespaced=False),
    Resource(plural=PODS, kind="Pod"),
    Resource(plural=NAMESPACES, kind="Namespace", namespaced=False),
    Resource(plural="jobs", kind="Job", group="batch"),
    Resource(plural="cronjobs", kind="CronJob", group="batch", since=21),
    Resource(plural="replicasets", kind="ReplicaSet", group="apps"),
    Resource(plural="deployments", kind="Deployment", group="apps"),
    Resource(plural="statefulsets", kind="StatefulSet", group="apps"),
    Resource(plural="daemonsets", kind="DaemonSet", group="apps"),
    Resource(plural=CONFIGMAPS, kind="ConfigMap", status=False),
    Resource(plural=LEASES, kind="Lease", group="coordination.k8s.io", status=False),
    Resource(plural=EVENTS, kind="Event", group="events.k8s.io", status=False),
    Resource(
        plural=dra.SLICES,
        kind="ResourceSlice",
        group=dra.GROUP,
        namespaced=False,
        status=False,
        since=dra.SINCE,
    ),
    Resource(plural=dra.CLAIMS, kind="ResourceClaim", group=dra.GROUP, since=dra.SINCE),
    Resource(
        plural=dra.CLASSES,
        kind="DeviceClass",
        group=dra.GROUP,
        namespaced=False,
        status=False,
        since=dra.SINCE,
    ),
)

# apimachinery's TotalAnnotationSizeLimitB: names and values of all annotations together.
ANNOTATIONS_MAX_BYTES = 262_144
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_NAME = re.compile(r"([A-Za-z0-9.\-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")
_MICRO_TIMES = {LEASES: ("acquireTime", "renewTime"), EVENTS: ("eventTime",)}
_EVENT_NEEDS = ("action", "reason", "reportingController", "reportingInstance")
_EVENT_NOTE_MAX_BYTES = 1024
_DATA_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_DATA_MAX_BYTES = 1024 * 1024
# What an update may change in a pod's spec; gates may only go, and open the node selector while they stand.
_POD_SPEC_OPEN = (
    "activeDeadlineSeconds",
    "terminationGracePeriodSeconds",
    "tolerations",
    "schedulingGates",
)
# Jobs and the apps group lose a status sent with a create; a node keeps it.
_STATUS_KEPT_AT_CREATE = (NODES, LEASES, EVENTS, CONFIGMAPS, dra.SLICES, dra.CLASSES)


def invalid(resource: Resource, name: str, why: str) -> ApiRejected:
    """422."""
    return ApiRejected(f'{resource.kind} "{name}" is invalid: {why}', status=422)


def not_found(resource: Resource, name: str) -> ApiNotFound:
    """404 for an object."""
    return ApiNotFound(f'{resource.qualified} "{name}" not found', status=404)


def conflict(what: str, name: str, why: str) -> ApiConflict:
    """409 for a lost race."""
    return ApiConflict(f'Operation cannot be fulfilled on {what} "{name}": {why}', status=409)


STALE = "the object has been modified; please apply your changes to the latest version and try again"


def rfc3339(unix_s: float) -> str:
    """Whole seconds, as metadata carries them."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def merge_patch(target: Any, patch: Any) -> Any:  # noqa: ANN401 - RFC 7386 is defined over any JSON value
    """Apply a JSON merge patch; returns a new value and changes neither argument. Source: RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def check_names(resource: Resource, meta: JsonObject) -> None:
    """Refuse names, labels and annotations that no API server takes. Raises ApiRejected."""
    name = str(meta.get("name", ""))
    if not _SUBDOMAIN.fullmatch(name) or len(name) > 253:
        raise invalid(
            resource, name, f'metadata.name: Invalid value: "{name}": a lowercase RFC 1123 subdomain'
        )
    prefix = meta.get("generateName")
    # A generated name is checked with a letter in place of the trailing dash, so a trailing dot is refused.
    if prefix and not _SUBDOMAIN.fullmatch(prefix[:-1] + "a" if prefix.endswith("-") else prefix):
        raise invalid(resource, name, f'metadata.generateName: Invalid value: "{prefix}"')
    annotations = meta.get("annotations") or {}
    for field, pairs in (("labels", meta.get("labels") or {}), ("annotations", annotations)):
        for key, value in pairs.items():
            if not isinstance(value, str):
                raise ApiRejected(f"{resource.kind} metadata.{field}.{key}: expected a string", status=400)
            if not _LABEL_NAME.fullmatch(key):
                raise invalid(
                    resource, name, f'metadata.{field}: Invalid value: "{key}": name part must consist of'
                )
            if field == "labels" and not _LABEL_VALUE.fullmatch(value):
                raise invalid(
                    resource, name, f'metadata.labels: Invalid value: "{value}": a valid label must be'
                )
    size = sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items())
    if size > ANNOTATIONS_MAX_BYTES:
        raise invalid(
            resource, name, f"metadata.annotations: Too long: must have at most {ANNOTATIONS_MAX_BYTES} bytes"
        )


def check_times(resource: Resource, obj: JsonObject) -> None:
    """Refuse micro-times without six digits of seconds, before anything else. Raises ApiRejected (400)."""
    holder = obj.get("spec") or {} if resource.plural == LEASES else obj
    times = [(name, holder.get(name)) for name in _MICRO_TIMES.get(resource.plural, ())]
    if resource.plural == EVENTS:
        times.append(("series.lastObservedTime", (obj.get("series") or {}).get("lastObservedTime")))
    for name, value in times:
        if value is not None and not (isinstance(value, str) and _MICRO_TIME.fullmatch(value)):
            raise ApiRejected(
                f'{resource.kind} in version "v1" cannot be handled as a {resource.kind}: {name}: parsing time '
                f'"{value}" as "2006-01-02T15:04:05.000000Z07:00": cannot parse',
                status=400,
            )


def check_data(resource: Resource, obj: JsonObject) -> None:
    """Refuse ConfigMaps whose data are no texts, of odd keys, or over a mebibyte. Raises ApiRejected."""
    name, data = obj["metadata"]["name"], obj.get("data") or {}
    for key, value in data.items():
        if not isinstance(value, str):
            raise ApiRejected(f"ConfigMap.data.{key}: expected a string", status=400)
        if not _DATA_KEY.fullmatch(key):
            raise invalid(
                resource, name, f'data[{key}]: Invalid value: "{key}": a valid config key must consist of'
            )
    if sum(len(value.encode()) for value in data.values()) > _DATA_MAX_BYTES:
        raise invalid(resource, name, f"data: Too long: must have at most {_DATA_MAX_BYTES} bytes")


def check_event(resource: Resource, obj: JsonObject) -> None:
    """Refuse incomplete events.k8s.io/v1 Events. Raises ApiRejected (422)."""
    name = obj["metadata"]["name"]
    for needed in (*_EVENT_NEEDS, "eventTime"):
        if not obj.get(needed):
            raise invalid(resource, name, f"{needed}: Required value")
    if len(str(obj.get("note", "")).encode()) > _EVENT_NOTE_MAX_BYTES:
        raise invalid(resource, name, f"message: can have at most {_EVENT_NOTE_MAX_BYTES} characters")
    if obj.get("type") not in ("Normal", "Warning"):
        raise invalid(resource, name, f"type: has invalid value: {obj.get('type')}")
    about = (obj.get("regarding") or {}).get("namespace") or "kube-system"
    if about != obj["metadata"].get("namespace"):
        raise invalid(resource, name, f'involvedObject.namespace: Invalid value: "{about}": does not match')


def prepare_create(resource: Resource, obj: JsonObject, minor: int) -> None:
    """Default and strip a new object in place, and check it. Raises ApiRejected."""
    meta = obj["metadata"]
    if meta.get("resourceVersion"):
        # A real server answers 500 to this one.
        raise ClusterError("resourceVersion should not be set on objects to be created", status=500)
    check_times(resource, obj)
    check_names(resource, meta)
    _drop_unknown(resource, obj, minor)
    if resource.plural == PODS:
        _default_pod(obj)
    elif resource.plural == NAMESPACES:
        obj["status"] = {"phase": "Active"}
    elif resource.plural == EVENTS:
        check_event(resource, obj)
    elif resource.plural == CONFIGMAPS:
        check_data(resource, obj)
    elif resource.plural not in _STATUS_KEPT_AT_CREATE:
        obj["status"] = {}
    if why := dra.complaint(resource.plural, obj, None):
        raise invalid(resource, meta["name"], why)


def prepare_update(resource: Resource, old: JsonObject, new: JsonObject, minor: int, *, status: bool) -> None:
    """Put back in place what an update may not touch, and check the rest. Raises ApiRejected or ApiConflict."""
    # A copy: after a merge patch, both may hold the very same metadata.
    before, after = old["metadata"], dict(new.get("metadata") or {})
    new["metadata"] = after
    name = before["name"]
    if after.get("resourceVersion", before["resourceVersion"]) != before["resourceVersion"]:
        raise conflict(resource.qualified, name, STALE)
    for fixed in ("name", "namespace", "uid"):
        if after.get(fixed, before.get(fixed)) != before.get(fixed):
            raise invalid(
                resource, name, f'metadata.{fixed}: Invalid value: "{after[fixed]}": field is immutable'
            )
    for fixed in ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "resourceVersion"):
        after.pop(fixed, None)
        if fixed in before:
            after[fixed] = before[fixed]
    check_times(resource, new)
    check_names(resource, after)
    _drop_unknown(resource, new, minor)
    if status:
        new["spec"] = old.get("spec", {})
    elif resource.status:
        new["status"] = old.get("status", {})
    if resource.plural == CONFIGMAPS:
        check_data(resource, new)
    if why := dra.complaint(resource.plural, new, old):
        raise invalid(resource, name, why)
    if resource.plural == PODS and not status:
        _check_pod_spec(resource, name, old["spec"], new.get("spec") or {})


def _check_pod_spec(resource: Resource, name: str, old: JsonObject, new: JsonObject) -> None:
    opened = (*_POD_SPEC_OPEN, "nodeSelector", "affinity") if old.get("schedulingGates") else _POD_SPEC_OPEN

    def closed(spec: JsonObject) -> JsonObject:
        kept = {key: value for key, value in spec.items() if key not in opened}
        for containers in ("containers", "initContainers"):
            if containers in kept:
                kept[containers] = [{**container, "image": ""} for container in kept[containers]]
        return kept

    added_only = all(
        toleration in (new.get("tolerations") or []) for toleration in old.get("tolerations") or []
    )
    gates_only_go = all(
        gate in (old.get("schedulingGates") or []) for gate in new.get("schedulingGates") or []
    )
    if closed(old) != closed(new) or not added_only or not gates_only_go:
        raise invalid(
            resource,
            name,
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`, "
            "`spec.initContainers[*].image`, `spec.activeDeadlineSeconds` or `spec.tolerations`",
        )


def _drop_unknown(resource: Resource, obj: JsonObject, minor: int) -> None:
    """An older server drops fields that it does not know, without a word."""
    spec = obj.get("spec") or {}
    if resource.plural == PODS and minor < 26:
        spec.pop("schedulingGates", None)
    if resource.plural == "jobs" and minor < 21:
        spec.pop("suspend", None)


def _default_pod(obj: JsonObject) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("restartPolicy", "Always")
    for container in (*spec.get("containers", ()), *spec.get("initContainers", ())):
        resources = container.get("resources") or {}
        if resources.get("limits"):
            # A limit without a request is the request.
            resources["requests"] = {**resources["limits"], **(resources.get("requests") or {})}
    obj["status"] = {"phase": "Pending"}
    if spec.get("schedulingGates"):
        gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
        obj["status"]["conditions"] = [gated]


def bound(resource: Resource, pod: JsonObject, binding: JsonObject, minor: int, now: str) -> JsonObject:
    """The pod after a Binding: node set, annotations merged in, labels not; the node need not exist.

    Raises:
        ApiConflict: it is bound already (even to the same node), going, gated, or of another uid.
        ClusterError: status 500, the Binding names no node.
    """
    target, meta = binding.get("target") or {}, binding.get("metadata") or {}
    name = pod["metadata"]["name"]
    if target.get("kind", "Node") not in ("", "Node"):
        raise ClusterError(f'target.kind: Unsupported value: "{target["kind"]}"', status=500)
    if not target.get("name"):
        raise ClusterError("target.name: Required value", status=500)
    uid = meta.get("uid")
    # 1.20 ignores the uid: a pod made anew under the same name is bound.
    if uid and minor >= 23 and uid != pod["metadata"]["uid"]:
        why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {pod['metadata']['uid']}"
        raise conflict("pods/binding", name, why)
    if pod["metadata"].get("deletionTimestamp"):
        raise conflict("pods/binding", name, f"pod {name} is being deleted, cannot be assigned to a host")
    if pod["spec"].get("nodeName"):
        why = f'pod {name} is already assigned to node "{pod["spec"]["nodeName"]}"'
        raise conflict("pods/binding", name, why)
    if pod["spec"].get("schedulingGates"):
        raise conflict("pods/binding", name, f"pod {name} has non-empty .spec.schedulingGates")
    new = copy.deepcopy(pod)
    new["spec"]["nodeName"] = target["name"]
    merged = {**(pod["metadata"].get("annotations") or {}), **(meta.get("annotations") or {})}
    if merged:
        new["metadata"]["annotations"] = merged
    check_names(resource, new["metadata"])
    kept = [c for c in new["status"].get("conditions") or () if c.get("type") != "PodScheduled"]
    scheduled = {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": now}
    new["status"]["conditions"] = [*kept, scheduled]
    return new


def grace_s(resource: Resource, obj: JsonObject, asked_s: int | None) -> int:
    """How long a deleted object stays: only a bound pod that may still run waits for its kubelet."""
    if resource.plural != PODS or not obj["spec"].get("nodeName"):
        return 0
    if obj["status"].get("phase") in ("Succeeded", "Failed"):
        return 0
    default_s: int = obj["spec"].get("terminationGracePeriodSeconds", 30)
    return default_s if asked_s is None else asked_s
