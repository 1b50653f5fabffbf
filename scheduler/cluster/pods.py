"""What the store keeps of a pod, and how it is read from the Kubernetes object. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from sys import intern

from scheduler.cluster.annotation_size import annotations_bytes
from scheduler.cluster.annotations import ours
from scheduler.cluster.conditions import conditions_of
from scheduler.cluster.images import images_of
from scheduler.cluster.objects import (
    Meta,
    OwnerRef,
    Pod,
    PodSpec,
    asked_quantity,
    requested,
)
from scheduler.cluster.pod_status import is_refused, lacks_binder
from scheduler.cluster.preferences import preferences_of
from scheduler.cluster.shares import is_gpu_resource
from scheduler.core.nouns import GPU_RESOURCE, PREFIX, Units
from scheduler.core.preferences import Conditions, Preferences

# More than a cluster has of templates that prefer something.
TEMPLATES_KEPT = 4096
FINISHED = ("Succeeded", "Failed")
# Kubernetes calls it so once all containers are made and one at least was started.
RUNNING = "Running"
# What each DeviceClass is called as an extended resource, whatever it names itself. Source: k8s.io/api/resource/v1.
CLASS_PREFIX = "deviceclass.resource.kubernetes.io/"


@dataclass(frozen=True, slots=True)
class PodFacts:
    """A pod that asks for GPUs. `node` is empty until it is bound."""

    uid: str
    namespace: str
    name: str
    gpus: float
    """Units of nvidia.com/gpu."""
    shares: Units
    """Units of what is parts of GPUs."""
    node: str
    nominated_node: str
    priority: int
    scheduler_name: str
    priority_class: str
    meta: Meta
    """Slimmed to what intent needs: our annotations and the controller."""
    images: tuple[str, ...] = ()
    """Of its containers, by full names; kept while it waits."""
    preferences: Preferences | None = None
    conditions: Conditions | None = None
    """What its spec asks of nodes; None if nothing, and it tolerates no more than every pod."""
    refused: bool = False
    """Whether kube-scheduler wrote on it that it was not placed, and not for reasons of its own (pod_status.py)."""
    lacks_binder: bool = False
    """Whether that was since we do not bind."""
    running: bool = False
    """Whether a container of it has been started."""
    annotations_bytes: int | None = None
    """Of all its annotations, as Kubernetes limits it; kept while it waits, and None where nobody has counted."""

    @property
    def units(self) -> Units:
        """All that it asks for of GPUs, by resource."""
        return ((GPU_RESOURCE, self.gpus), *self.shares) if self.gpus else self.shares


def pod_facts(
    pod: Pod,
    before: PodFacts | None = None,
    also: AbstractSet[str] = frozenset(),
    *,
    with_status: bool = False,
) -> PodFacts | None:
    """Read a pod; None if it holds no GPU now and will not: none asked for, or finished.

    A terminating pod still holds its GPUs until it is gone or its containers have ended. `before` is what was read of
    it: once it was bound, nobody changes what it preferred. `also`: further resources that are GPUs. `with_status`:
    whether to read why it waits, too, and to count its annotations.
    """
    gpus = requested(pod.spec)
    shares = _shares(pod.spec, also)
    if (gpus <= 0 and not shares) or pod.status.phase in FINISHED:
        return None
    meta = pod.metadata
    refused = with_status and is_refused(pod)
    return PodFacts(
        uid=meta.uid,
        namespace=meta.namespace,
        name=meta.name,
        gpus=gpus,
        shares=shares,
        node=pod.spec.node_name,
        nominated_node=pod.status.nominated_node_name,
        priority=pod.spec.priority or 0,
        scheduler_name=pod.spec.scheduler_name,
        priority_class=pod.spec.priority_class_name,
        meta=_slimmed(meta),
        images=() if pod.spec.node_name else tuple(map(intern, images_of(pod.spec))),
        preferences=before.preferences
        if before is not None and before.node
        else _shared(preferences_of(pod)),
        conditions=_same(conditions_of(pod.spec)),
        refused=refused,
        lacks_binder=refused and lacks_binder(pod),
        running=pod.status.phase == RUNNING,
        annotations_bytes=annotations_bytes(meta.annotations or {})
        if with_status and not pod.spec.node_name
        else None,
    )


def asks_for_gpus(pod: Pod, also: AbstractSet[str] = frozenset()) -> bool:
    """Whether it asks by name for what we count of GPUs; `pod_facts` keeps such a pod, and no other.

    Other extended resources (network cards, FUSE, KVM) are none of our business, and neither are cpu and memory.
    """
    return any(is_gpu_resource(name, also) for name in _extended(pod.spec))


def asks_by_claims_only(pod: Pod, also: AbstractSet[str] = frozenset()) -> bool:
    """Whether claims alone say which devices it asks for: where these are, kube-scheduler finds out.

    For the name that a DeviceClass has as a resource, kube-scheduler makes the claim itself.
    """
    spec = pod.spec
    by_claim = bool(spec.resource_claims) or any(name.startswith(CLASS_PREFIX) for name in _extended(spec))
    return by_claim and not asks_for_gpus(pod, also)


def _extended(spec: PodSpec) -> Iterator[str]:
    """The extended resources that it asks for, some twice; they alone have a slash."""
    for part in (spec.containers, spec.init_containers):
        for container in part or ():
            if container.resources is not None:
                for amounts in (container.resources.limits, container.resources.requests):
                    for name, amount in (amounts or {}).items():
                        if "/" in name and asked_quantity(amount) > 0:
                            yield name


@lru_cache(maxsize=TEMPLATES_KEPT)
def _shared(preferences: Preferences | None) -> Preferences | None:
    """The same object for all pods of one template: 50,000 of their own would take 30 MiB."""
    return preferences


@lru_cache(maxsize=TEMPLATES_KEPT)
def _same(conditions: Conditions | None) -> Conditions | None:
    """Likewise."""
    return conditions


def _shares(spec: PodSpec, also: AbstractSet[str]) -> Units:
    names = {
        name
        for part in (spec.containers, spec.init_containers)
        for container in part or ()
        if container.resources is not None
        for amounts in (container.resources.limits, container.resources.requests)
        for name in amounts or ()
        if name != GPU_RESOURCE and is_gpu_resource(name, also)
    }
    asked = ((name, requested(spec, name)) for name in sorted(names))
    return tuple((name, units) for name, units in asked if units > 0)


def waits_for_volume(pod: Pod) -> bool:
    """Whether it uses a claim, of a volume or of a device: the scheduler may wait minutes until that is bound.

    An `ephemeral` volume has a claim too, made with the pod.
    """
    spec = pod.spec
    return bool(spec.resource_claims) or any(
        volume.persistent_volume_claim is not None or volume.ephemeral is not None
        for volume in spec.volumes or ()
    )


def _slimmed(meta: Meta) -> Meta:
    annotations = {PREFIX + key: text for key, text in ours(meta.annotations).items()}
    # The names of what owns 50,000 pods are few.
    owners = [
        OwnerRef(
            kind=intern(o.kind),
            uid=intern(o.uid),
            controller=o.controller,
            name=intern(o.name),
            api_version=intern(o.api_version),
        )
        for o in meta.owner_references or ()
    ]
    return Meta(
        name=meta.name,
        namespace=meta.namespace,
        uid=meta.uid,
        creation_timestamp=meta.creation_timestamp,
        deletion_timestamp=meta.deletion_timestamp,
        annotations=annotations or None,
        owner_references=owners or None,
    )
