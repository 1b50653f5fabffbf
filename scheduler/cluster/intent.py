"""What people want of a pod: annotations under our prefix, inherited pod -> owners -> namespace -> default.

Pure. Knows owners and namespaces by the events that the store passes on. An owner that is gone or may not be read
ends the chain; a cycle ends it too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from scheduler.cluster.objects import Meta, OwnerRef, Partial
from scheduler.cluster.port import Kind
from scheduler.core.nouns import PREFIX, Workload

# Pod -> ReplicaSet -> Deployment is two; JobSet and operators add one or two.
LONGEST_CHAIN = 6
# Pods whose bad values are remembered: more than a cluster has. Only such as nobody tells the end of (asked about, and
# never seen by the watch) could fill it.
MOST_PODS = 65_536
# Bad values of one pod that are told apart; who tries more is not counted further.
MOST_VALUES = 16

# Who owns a pod says what it does: services answer (inference), jobs learn (training), scheduled ones crunch (batch).
WORKLOAD_BY_OWNER: dict[str, Workload] = {
    "Job": Workload.TRAINING,
    "JobSet": Workload.TRAINING,
    "PyTorchJob": Workload.TRAINING,
    "MPIJob": Workload.TRAINING,
    "CronJob": Workload.BATCH,
    "Deployment": Workload.INFERENCE,
    "ReplicaSet": Workload.INFERENCE,
    "StatefulSet": Workload.INFERENCE,
    "DaemonSet": Workload.INFERENCE,
}


@dataclass(frozen=True, slots=True)
class Owner:
    """What we keep of an owner: its own annotations of ours, and its own controller."""

    kind: Kind
    annotations: dict[str, str]
    parent_uid: str
    parent_kind: str


def our_annotations(meta: Meta) -> dict[str, str]:
    """Annotations under our prefix, without the prefix."""
    start = len(PREFIX)
    return {k[start:]: v for k, v in (meta.annotations or {}).items() if k.startswith(PREFIX)}


def controller_of(meta: Meta) -> OwnerRef | None:
    """The owner that controls this object, else the first one."""
    owners = meta.owner_references or ()
    for owner in owners:
        if owner.controller:
            return owner
    return owners[0] if owners else None


class Intents:
    """Answers what a pod's annotations mean, with inheritance and inference."""

    def __init__(
        self, default_workload: Workload = Workload.BATCH, priority_classes: dict[str, Workload] | None = None
    ) -> None:
        self.default_workload = default_workload
        self.priority_classes = priority_classes or {}
        self.owners: dict[str, Owner] = {}
        self.namespaces: dict[str, dict[str, str]] = {}
        self.errors: Counter[str] = Counter()
        """Bad annotation values by key; once for a pod, however often it is asked about."""
        self._counted: dict[str, tuple[int, ...]] = {}
        """Pod uid -> hashes of its bad values, which may be long themselves."""

    def see_owner(self, kind: Kind, owner: Partial) -> None:
        """An owner was added or changed."""
        controller = controller_of(owner.metadata)
        annotations = our_annotations(owner.metadata)
        if not annotations and controller is None:
            # Nothing to inherit through it: 10,000 plain owners then cost nothing.
            self.owners.pop(owner.metadata.uid, None)
            return
        parent_uid, parent_kind = (controller.uid, controller.kind) if controller else ("", "")
        self.owners[owner.metadata.uid] = Owner(kind, annotations, parent_uid, parent_kind)

    def forget_owner(self, uid: str) -> None:
        """An owner is gone."""
        self.owners.pop(uid, None)

    def keep_owners(self, kind: Kind, uids: AbstractSet[str]) -> None:
        """A full list of this kind: owners of it that the list does not name are gone."""
        gone = [uid for uid, owner in self.owners.items() if owner.kind is kind and uid not in uids]
        for uid in gone:
            del self.owners[uid]

    def see_namespace(self, namespace: Partial) -> None:
        """A namespace was added or changed."""
        self.namespaces[namespace.metadata.name] = our_annotations(namespace.metadata)

    def forget_namespace(self, name: str) -> None:
        """A namespace is gone."""
        self.namespaces.pop(name, None)

    def lookup(self, key: str, meta: Meta) -> str | None:
        """The nearest value of one annotation: pod, owners upwards, namespace."""
        value = (meta.annotations or {}).get(PREFIX + key)
        if value is not None:
            return value
        controller = controller_of(meta)
        for owner in self._chain(controller.uid if controller else ""):
            if key in owner.annotations:
                return owner.annotations[key]
        return self.namespaces.get(meta.namespace, {}).get(key)

    def workload(self, meta: Meta, priority_class: str) -> Workload:
        """The pod's class of work: annotated, else by priority class, else by owner's kind, else the default."""
        value = self.lookup("workload", meta)
        if value is not None:
            try:
                return Workload(value.strip().lower())
            except ValueError:
                self._count_bad(meta.uid, "workload", value)
        if priority_class in self.priority_classes:
            return self.priority_classes[priority_class]
        controller = controller_of(meta)
        kind = controller.kind if controller else ""
        # The topmost kind that we know decides: a ReplicaSet is a Deployment's, a CronJob's Job is a CronJob's.
        found = WORKLOAD_BY_OWNER.get(kind)
        for owner in self._chain(controller.uid if controller else ""):
            found = WORKLOAD_BY_OWNER.get(owner.parent_kind, found)
        return found or self.default_workload

    def forget_pod(self, uid: str) -> None:
        """A pod is gone."""
        self._counted.pop(uid, None)

    def _count_bad(self, uid: str, key: str, value: str) -> None:
        counted, this = self._counted.get(uid, ()), hash((key, value))
        if this in counted or len(counted) >= MOST_VALUES:
            return
        self.errors[key] += 1
        self._counted[uid] = (*counted, this)
        if len(self._counted) > MOST_PODS:
            # The one that was bad first.
            del self._counted[next(iter(self._counted))]

    def _chain(self, uid: str) -> list[Owner]:
        chain: list[Owner] = []
        seen: set[str] = set()
        while uid and uid not in seen and len(chain) < LONGEST_CHAIN:
            seen.add(uid)
            owner = self.owners.get(uid)
            if owner is None:
                break
            chain.append(owner)
            uid = owner.parent_uid
        return chain
