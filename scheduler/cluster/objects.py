"""Slim structs of Kubernetes objects: only the fields that we read; everything else is skipped unbuilt.

Why not the client's models: 5,000 nodes and 50,000 pods decode in 1.6 s instead of 60 s (docs/adr/0005).
Every field has a default, since bookmarks are nearly empty and servers omit what is zero.
Trap: Kubernetes writes `podIP`, `hostIP`, `providerID`; each such name is spelled out where it is read.
"""

from __future__ import annotations

from scheduler.cluster import slim
from scheduler.cluster.preference_objects import Affinity, SpreadConstraint, Taint, TolerationEntry
from scheduler.core.nouns import GPU_RESOURCE

Amounts = dict[str, str | int | float]
"""Quantities by resource: strings, but JSON numbers are legal too."""


Slim = slim.Slim


class OwnerRef(Slim, frozen=True):
    """One entry of metadata.ownerReferences."""

    kind: str = ""
    uid: str = ""
    controller: bool | None = None
    name: str = ""
    api_version: str = ""


class Meta(Slim, frozen=True):
    """ObjectMeta, as far as we read it. Timestamps are RFC 3339; one of deletion means that it has begun."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerRef] | None = None


class Resources(Slim, frozen=True):
    """Container resources."""

    requests: Amounts | None = None
    limits: Amounts | None = None


class Container(Slim, frozen=True):
    """One container; `restart_policy: Always` on an init container makes it a sidecar."""

    image: str = ""
    resources: Resources | None = None
    restart_policy: str | None = None


class Present(Slim, frozen=True):
    """Anything of which we only read that it is there."""


class Volume(Slim, frozen=True):
    """One volume; only those with a claim matter to us: named, or made for the pod (`ephemeral`)."""

    persistent_volume_claim: Present | None = None
    ephemeral: Present | None = None


class PodSpec(Slim, frozen=True):
    """spec of a pod."""

    node_name: str = ""
    scheduler_name: str = ""
    priority: int | None = None
    priority_class_name: str = ""
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None
    affinity: Affinity | None = None
    node_selector: dict[str, str] | None = None
    tolerations: list[TolerationEntry] | None = None
    topology_spread_constraints: list[SpreadConstraint] | None = None
    volumes: list[Volume] | None = None
    overhead: Amounts | None = None
    resource_claims: list[Present] | None = None


class PodCondition(Slim, frozen=True):
    """One condition of a pod; we read the one that says why it was not placed."""

    type: str | None = None
    status: str | None = None
    reason: str | None = None
    message: str | None = None


class PodStatus(Slim, frozen=True):
    """status of a pod."""

    phase: str = ""
    nominated_node_name: str = ""
    conditions: list[PodCondition] | None = None


class Pod(Slim, frozen=True):
    """A pod."""

    metadata: Meta = Meta()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class NodeSpec(Slim, frozen=True):
    """spec of a node."""

    unschedulable: bool | None = None
    taints: list[Taint] | None = None


class NodeImage(Slim, frozen=True):
    """One image that a node has; `names` are its tags and its digest."""

    names: list[str] | None = None
    size_bytes: int = 0


class NodeStatus(Slim, frozen=True):
    """status of a node."""

    allocatable: Amounts | None = None
    images: list[NodeImage] | None = None


class Node(Slim, frozen=True):
    """A node."""

    metadata: Meta = Meta()
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class Partial(Slim, frozen=True):
    """PartialObjectMetadata: what we read of owners and namespaces."""

    metadata: Meta = Meta()


class ConfigMap(Partial, frozen=True):
    """A ConfigMap: the one that pauses us."""

    data: dict[str, str] | None = None


class LeaseSpec(Slim, frozen=True, omit_defaults=True):
    """spec of a coordination.k8s.io/v1 Lease; times have exactly six digits of seconds."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Status(Slim, frozen=True):
    """A metav1.Status, as errors and watch ERROR events carry it."""

    message: str = ""
    reason: str = ""
    code: int = 0


def quantity(value: str | float | None) -> float:
    """Read a Kubernetes quantity ("2", "500m", "16Gi") as a float.

    What cannot be read counts as 0, and so does what no node has as much of, for of that nothing is to be had. What a
    pod asks for is `asked_quantity`.

    Source: apimachinery's resource.Quantity, decimal and binary suffixes.
    """
    number = _number(value)
    # Compared before it is made a float: an int may be too large for one. NaN fails the comparison.
    return float(number) if abs(number) < _MOST else 0.0


def asked_quantity(value: str | float | None) -> float:
    """Read what a pod asks for, likewise; more than any node has stays more than that, and no less than nothing."""
    number = _number(value)
    # NaN fails this comparison too.
    return float(min(number, MOST_ASKED)) if number > 0 else 0.0


def _number(value: str | float | None) -> float:
    if value is None:
        return 0.0
    if isinstance(value, int | float):
        return value
    digits, factor = value, 1.0
    for suffix, means in _SUFFIXES:
        if value.endswith(suffix):
            digits, factor = value[: -len(suffix)], means
            break
    try:
        return float(digits) * factor
    except ValueError:
        return 0.0


# No node has that many of anything that we read; and sums of it still fit into 32-bit floats.
_MOST = 1e18
# Above it, so that it fits nowhere: one more than Kubernetes' largest quantity, which no float has. As a whole number
# it fits into 64 bits, and 32-bit floats have it exactly.
MOST_ASKED = 2.0**63


_SUFFIXES: tuple[tuple[str, float], ...] = (
    ("Ki", 2.0**10),
    ("Mi", 2.0**20),
    ("Gi", 2.0**30),
    ("Ti", 2.0**40),
    ("Pi", 2.0**50),
    ("Ei", 2.0**60),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
)


def requested(spec: PodSpec, resource: str = GPU_RESOURCE) -> float:
    """How much of a resource the pod holds while it runs, as kube-scheduler counts it.

    Regular containers and sidecars (init containers that restart always) add up; a plain init container runs
    beside the sidecars started before it and before the regular ones, so the larger of both sums counts.
    An absurd amount is `MOST_ASKED`: a pod that fits nowhere, and not one that asks for nothing.
    Source: component-helpers resource.PodRequests, Kubernetes 1.29.
    """
    running = sum(_asked(container, resource) for container in spec.containers or ())
    sidecars = 0.0
    peak = 0.0
    for container in spec.init_containers or ():
        asked = _asked(container, resource)
        if container.restart_policy == "Always":
            sidecars += asked
            peak = max(peak, sidecars)
        else:
            peak = max(peak, sidecars + asked)
    total = max(running + sidecars, peak) + asked_quantity((spec.overhead or {}).get(resource))
    return min(total, MOST_ASKED)


def _asked(container: Container, resource: str) -> float:
    resources = container.resources
    if resources is None:
        return 0.0
    # A limit without a request is the request: the API server fills it in, but bare pods may lack it.
    amount = (resources.requests or {}).get(resource, (resources.limits or {}).get(resource))
    return asked_quantity(amount)
