"""From annotations to intents, inherited pod -> owners -> namespace -> configuration.

Pure. Knows owners and namespaces by the events that the store passes on. An owner that is gone or may not be read
ends the chain; a cycle ends it too. What of all their words counts is told by hearing.py.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice

from scheduler.cluster.annotations import TABLE, ours
from scheduler.cluster.hearing import Hearing, Speaker
from scheduler.cluster.intent import CONFIGURATION, POD, Fault, Intent, IntentSettings
from scheduler.cluster.limits import Limits, limits_of
from scheduler.cluster.objects import Meta, OwnerRef, Partial
from scheduler.cluster.port import Kind
from scheduler.core.nouns import Controller, Workload

# Pod -> ReplicaSet -> Deployment is two; JobSet and operators add one or two.
LONGEST_CHAIN = 6
# Pods whose bad values are remembered: more than a cluster has. Only such as nobody tells the end of (asked about, and
# never seen by the watch) could fill it.
MOST_PODS = 65_536
# Namespaces whose limits are kept: more than a cluster has.
MOST_NAMESPACES = 10_000
# Bad values of one pod that are told apart; who tries more is not counted further.
MOST_VALUES = 16
# What is said of pods, and what is wrong with it, is kept of so many that say something else each; no long texts.
MOST_SAID = 4096
LONGEST_KEPT_CHARS = 1024
# Changes of owners and namespaces that are told apart: more than come between two looks, but for lists.
MOST_CHANGES = 1024
# Among them: a change of somebody of whom no more is known than that he is gone.
ANYBODY = ""
# Before the name of a namespace, which is no uid.
NAMESPACE = "namespace "

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
    name: str
    annotations: dict[str, str]
    parent: OwnerRef | None

    @property
    def parent_uid(self) -> str:
        """Empty if nothing controls it."""
        return self.parent.uid if self.parent is not None else ""

    @property
    def parent_kind(self) -> str:
        """Empty if nothing controls it."""
        return self.parent.kind if self.parent is not None else ""

    @property
    def where(self) -> str:
        """As people call it: `job train-7`."""
        return f"{self.kind.value.removesuffix('s')} {self.name}"


def controller_of(meta: Meta) -> OwnerRef | None:
    """The owner that controls this object, else the first one."""
    owners = meta.owner_references or ()
    for owner in owners:
        if owner.controller:
            return owner
    return owners[0] if owners else None


class Intents:
    """Answers what a pod's annotations mean, with inheritance and inference."""

    def __init__(self, settings: IntentSettings | None = None) -> None:
        self.settings = settings or IntentSettings()
        self.owners: dict[str, Owner] = {}
        self.namespaces: dict[str, dict[str, str]] = {}
        self.errors: Counter[str] = Counter()
        """Bad annotations by key, `unknown` for keys that nobody knows; once for a pod and value."""
        self.generation = 0
        """How often owners or namespaces came to say something else than before."""
        self._changes: deque[str] = deque(maxlen=MOST_CHANGES)
        """Who did, the newest last."""
        self._counted: dict[str, tuple[int, ...]] = {}
        """Pod uid -> hashes of its bad values, which may be long themselves."""
        self._plain: dict[Kind, set[int]] = {}
        """Hashes of uids of owners that say nothing and have no owner: they are there, and no more is known of them."""
        self._replica_sets: dict[str, tuple[str, ...]] = {}
        """Deployment -> its ReplicaSets, the old ones too: pods of all of them are replicas of one thing."""
        self._faults: dict[Hashable, tuple[Fault, ...]] = {}
        """By what is said of a pod, and by which owners where that names them."""
        self._limits: dict[str, Limits] = {}
        """By namespace, as far as it was asked about."""
        self._limited_by = self.settings
        """Whose limits these are, and whose faults."""

    def see_owner(self, kind: Kind, owner: Partial) -> None:
        """An owner was added or changed."""
        meta = owner.metadata
        controller = controller_of(meta)
        annotations = ours(meta.annotations)
        if not annotations and controller is None:
            # Nothing to inherit through it: 10,000 plain owners then cost half a megabyte.
            if not self.is_plain(kind, meta.uid):
                self.forget_owner(meta.uid)
                self._plain.setdefault(kind, set()).add(hash(meta.uid))
                # From now on it speaks for them, by saying nothing.
                if meta.uid in self._replica_sets:
                    self._note_change(meta.uid)
            return
        self._plain.get(kind, set()).discard(hash(meta.uid))
        parent_uid = controller.uid if controller is not None else ""
        before = self.owners.get(meta.uid)
        if before is not None and before.parent_uid != parent_uid:
            self.forget_owner(meta.uid)
        now = Owner(kind, meta.name, annotations, controller)
        if before != now:
            self._note_change(meta.uid)
        self.owners[meta.uid] = now
        beside = self._replica_sets.get(parent_uid, ())
        if kind is Kind.REPLICASET and parent_uid and meta.uid not in beside:
            self._replica_sets[parent_uid] = (*beside, meta.uid)

    def forget_owner(self, uid: str) -> None:
        """An owner is gone."""
        for plain in self._plain.values():
            plain.discard(hash(uid))
        owner = self.owners.pop(uid, None)
        # Of a Deployment that is gone its ReplicaSets speak, whether it said something or not.
        if owner is not None or uid in self._replica_sets:
            self._note_change(uid)
        if owner is None or owner.parent_uid not in self._replica_sets:
            return
        left = tuple(each for each in self._replica_sets[owner.parent_uid] if each != uid)
        if left:
            self._replica_sets[owner.parent_uid] = left
        else:
            del self._replica_sets[owner.parent_uid]

    def keep_owners(self, kind: Kind, uids: AbstractSet[str]) -> None:
        """A full list of this kind: owners of it that the list does not name are gone."""
        gone = [uid for uid, owner in self.owners.items() if owner.kind is kind and uid not in uids]
        for uid in gone:
            self.forget_owner(uid)
        if kind in self._plain:
            before = len(self._plain[kind])
            self._plain[kind] &= set(map(hash, uids))
            if len(self._plain[kind]) < before:
                self._note_change(ANYBODY)

    def is_plain(self, kind: Kind, uid: str) -> bool:
        """Whether such an owner is there, says nothing, and has no owner itself."""
        return hash(uid) in self._plain.get(kind, ())

    def see_namespace(self, namespace: Partial) -> None:
        """A namespace was added or changed."""
        annotations = ours(namespace.metadata.annotations)
        if self.namespaces.get(namespace.metadata.name, {}) != annotations:
            self._note_change(NAMESPACE + namespace.metadata.name)
        if annotations:
            self.namespaces[namespace.metadata.name] = annotations
        else:
            self.namespaces.pop(namespace.metadata.name, None)

    def forget_namespace(self, name: str) -> None:
        """A namespace is gone."""
        if self.namespaces.pop(name, None) is not None:
            self._note_change(NAMESPACE + name)

    def _note_change(self, who: str) -> None:
        self.generation += 1
        self._changes.append(who)

    def changed_since(self, generation: int) -> AbstractSet[str] | None:
        """Who came to say something else since then, as `voices` calls them; None: it may be anybody."""
        count = self.generation - generation
        changed = set(islice(reversed(self._changes), count))
        return None if count > len(self._changes) or ANYBODY in changed else changed

    def voices(self, meta: Meta) -> tuple[str, ...]:
        """Whose words count for a pod beside its own: its owners', up to one that is not known, and its namespace's."""
        controller = controller_of(meta)
        uids = (controller.uid if controller else "", *(owner.parent_uid for owner in self._chain(meta)))
        return (*filter(None, uids), NAMESPACE + meta.namespace)

    def resolve(self, meta: Meta, priority_class: str) -> Intent:
        """What is wanted of a pod. Faults are counted, each once for a pod."""
        chain = self._chain(meta)
        limits = self._limits_of(meta.namespace)
        hearing = Hearing(self.settings, limits)
        hearing.hear(self._speakers(meta, chain))
        workload = hearing.words.get("workload")
        if workload is not None:
            found, by = Workload(workload.value), workload.where
        else:
            found, by = limits.workload(*self._inferred(meta, priority_class, chain))
        hearing.settle(found)
        faults = hearing.faults
        siblings_of = self._siblings_of(meta)
        for fault in faults:
            self._count(meta.uid, fault)
        return Intent(
            workload=found,
            workload_by=by,
            words=hearing.words,
            faults=tuple(faults),
            siblings_of=siblings_of,
            controller=controller_of(meta),
        )

    def faults(self, meta: Meta, priority_class: str) -> tuple[Fault, ...]:
        """What is wrong with what is said of a pod, told and counted as by `resolve`; cheap where many say the same."""
        chain = self._chain(meta)
        controller = controller_of(meta)
        own, shared = meta.annotations or {}, self.namespaces.get(meta.namespace, {})
        said = (
            (meta.namespace, priority_class, controller.kind if controller else ""),
            tuple(own.items()),
            tuple(shared.items()),
            *(
                (owner.parent_kind, *(() if self._is_spoken_for(owner) else owner.annotations.items()))
                for owner in chain
            ),
        )
        self._use_settings()
        owners = tuple(owner.where for owner in chain)
        faults = self._faults.get(said)
        if faults is None:
            faults = self._faults.get((said, owners))
        if faults is not None:
            for fault in faults:
                self._count(meta.uid, fault)
            return faults
        faults = self.resolve(meta, priority_class).faults
        texts = (
            *own.values(),
            *shared.values(),
            *(text for owner in chain for text in owner.annotations.values()),
        )
        if all(len(text) <= LONGEST_KEPT_CHARS for text in texts):
            told = " ".join(f"{fault.where} {fault.message}" for fault in faults)
            self._faults[(said, owners) if any(owner in told for owner in owners) else said] = faults
        return faults

    def _siblings_of(self, meta: Meta) -> tuple[str, ...]:
        """Its own controller, and where that is a Deployment's ReplicaSet, the others of that Deployment."""
        controller = controller_of(meta)
        if controller is None or not controller.uid:
            return ()
        owner = self.owners.get(controller.uid)
        beside = self._replica_sets.get(owner.parent_uid, ()) if owner is not None else ()
        return (controller.uid, *(uid for uid in beside if uid != controller.uid))

    def topmost(self, controller: Controller | None) -> Controller | None:
        """Who controls a pod in the end, as far as it is known: of a ReplicaSet its Deployment."""
        seen: set[str] = set()
        while controller is not None and len(seen) < LONGEST_CHAIN:
            seen.add(controller.uid)
            owner = self.owners.get(controller.uid)
            if owner is None or owner.parent is None or owner.parent.uid in seen:
                break
            controller = owner.parent
        return controller

    def naming(self, pools: AbstractSet[str], pods: Iterable[Meta]) -> tuple[int, int]:
        """How many of these pods, and how many namespaces, ask for one of these pools; a pod also by its owners."""
        said_by_pods = (
            next((said["pools"] for _, said in self._speakers(pod, self._chain(pod)) if "pools" in said), "")
            for pod in pods
        )
        said_by_namespaces = (said.get("pools", "") for said in self.namespaces.values())
        of_pods, of_namespaces = (
            sum(not pools.isdisjoint(map(str.strip, text.split(","))) for text in texts)
            for texts in (said_by_pods, said_by_namespaces)
        )
        return of_pods, of_namespaces

    def workload(self, meta: Meta, priority_class: str) -> Workload:
        """The pod's class of work."""
        return self.resolve(meta, priority_class).workload

    def forget_pod(self, uid: str) -> None:
        """A pod is gone."""
        self._counted.pop(uid, None)

    def _speakers(self, meta: Meta, chain: list[Owner]) -> list[Speaker]:
        """Who may say something of a pod, the nearest first; only those who do, and not the configuration."""
        speakers: list[Speaker] = []
        if own := ours(meta.annotations):
            speakers.append((POD, own))
        speakers += [
            (owner.where, owner.annotations)
            for owner in chain
            if owner.annotations and not self._is_spoken_for(owner)
        ]
        if shared := self.namespaces.get(meta.namespace):
            speakers.append((f"namespace {meta.namespace}", shared))
        return speakers

    def _is_spoken_for(self, owner: Owner) -> bool:
        """Whether its annotations are copies: of a Deployment's ReplicaSet, where we know what the Deployment says.

        The deployment controller writes each of a Deployment's annotations on its ReplicaSets, and takes none away:
        what was removed from the Deployment would count for ever.
        """
        if owner.kind is not Kind.REPLICASET or owner.parent_kind != "Deployment":
            return False
        return owner.parent_uid in self.owners or self.is_plain(Kind.DEPLOYMENT, owner.parent_uid)

    def _use_settings(self) -> None:
        """Forget what other settings had led to, or more than is kept."""
        otherwise = self._limited_by is not self.settings
        self._limited_by = self.settings
        if otherwise or len(self._limits) > MOST_NAMESPACES:
            self._limits.clear()
        if otherwise or len(self._faults) >= MOST_SAID:
            self._faults.clear()

    def _limits_of(self, namespace: str) -> Limits:
        self._use_settings()
        found = self._limits.get(namespace)
        if found is None:
            found = limits_of(namespace, self.settings.rules, self.settings.pools)
            self._limits[namespace] = found
        return found

    def _inferred(self, meta: Meta, priority_class: str, chain: list[Owner]) -> tuple[Workload, str]:
        """By priority class, else by owner's kind, else the default."""
        by_class = self.settings.priority_classes.get(priority_class)
        if by_class is not None:
            return by_class, f"priority class {priority_class}"
        controller = controller_of(meta)
        kind = controller.kind if controller else ""
        # The topmost kind that we know decides: a ReplicaSet is a Deployment's, a CronJob's Job is a CronJob's.
        for owner in chain:
            kind = owner.parent_kind if owner.parent_kind in WORKLOAD_BY_OWNER else kind
        found = WORKLOAD_BY_OWNER.get(kind)
        if found is not None:
            return found, f"owner's kind {kind}"
        return self.settings.default_workload, CONFIGURATION

    def _count(self, uid: str, fault: Fault) -> None:
        """Count a fault once for its pod."""
        # Not by what is said of it: that depends on what is said beside it, and on the configuration.
        counted, this = self._counted.get(uid, ()), hash((fault.key, fault.text))
        if this in counted or len(counted) >= MOST_VALUES:
            return
        self.errors[fault.key if fault.key in TABLE else "unknown"] += 1
        self._counted[uid] = (*counted, this)
        if len(self._counted) > MOST_PODS:
            # The one that was bad first.
            del self._counted[next(iter(self._counted))]

    def _chain(self, meta: Meta) -> list[Owner]:
        controller = controller_of(meta)
        uid = controller.uid if controller else ""
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
