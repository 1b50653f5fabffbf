"""What the daemon needs of a cluster. One adapter: kubernetes.py; the simulated API server stands behind it too."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from scheduler.cluster.objects import Node, Partial, Pod


class Kind(StrEnum):
    """The kinds that are watched. The value is the word used in metrics and logs."""

    NODE = "nodes"
    POD = "pods"
    NAMESPACE = "namespaces"
    JOB = "jobs"
    CRONJOB = "cronjobs"
    REPLICASET = "replicasets"
    DEPLOYMENT = "deployments"
    STATEFULSET = "statefulsets"
    DAEMONSET = "daemonsets"
    CONFIGMAP = "configmaps"
    """One of them only: the one that pauses us."""
    RESOURCESLICE = "resourceslices"
    RESOURCECLAIM = "resourceclaims"
    DEVICECLASS = "deviceclasses"


MAY_BE_ABSENT = frozenset({Kind.RESOURCESLICE, Kind.RESOURCECLAIM, Kind.DEVICECLASS})
"""Kinds of DRA, which servers have in v1 from 1.34 on: without them GPUs are counted as ever."""


@dataclass(frozen=True, slots=True)
class Only:
    """One object, followed instead of all of its kind: a role may then name it."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Listed:
    """A full listing of one kind is complete: what was not seen since its beginning is gone.

    A reflector sends `Changed` for every object of the list first, then one `Listed` with all keys. Key: uid for
    pods and owners, name for nodes and namespaces.
    """

    kind: Kind
    keys: AbstractSet[str]
    began_mono_s: float = -math.inf
    """When the list was asked for: what was known of before, and is not in it, is gone."""


@dataclass(frozen=True, slots=True)
class Changed:
    """An object was added or modified."""

    kind: Kind
    object: Node | Pod | Partial


@dataclass(frozen=True, slots=True)
class Gone:
    """An object was deleted. Carries its last state."""

    kind: Kind
    object: Node | Pod | Partial


ClusterEvent = Changed | Gone | Listed


@dataclass(frozen=True, slots=True, kw_only=True)
class EventNote:
    """One Kubernetes Event to write (events.k8s.io/v1)."""

    kind: str
    """Kind of the regarding object, e.g. `Pod`."""
    namespace: str
    name: str
    uid: str
    reason: str
    """CamelCase, closed set."""
    note: str
    about: str = ""
    """Tells apart what is not the same event again, though its reason is; figures in `note` do not."""
    warning: bool = False
    action: str = "Scheduling"
    api_version: str = ""
    """Of the regarding object; empty: the usual one of its kind."""


class ClusterPort(Protocol):
    """Watch, bind, patch, annotate, note. Every call has a time limit and raises only ClusterError."""

    def watch(self, kind: Kind, only: Only | None = None) -> AsyncIterator[ClusterEvent]:
        """List, then follow, for ever; recovers from 410, silence and restarts by itself."""
        ...

    async def get_pod(self, namespace: str, name: str) -> Pod:
        """Read one pod from the API server itself (never a cache). Raises ApiNotFound."""
        ...

    async def bind(
        self,
        namespace: str,
        name: str,
        uid: str,
        node: str,
        annotations: dict[str, str],
        *,
        may_send: Callable[[], bool] = lambda: True,
    ) -> None:
        """Post a Binding with annotations on it. `may_send` is asked at the last moment: do we still lead?

        Raises ApiConflict (bound already, perhaps by us), ApiNotFound, ApiRejected (also where it may not be sent),
        or ApiUnavailable: the outcome is then unknown, and the pod must be read.
        """
        ...

    async def annotate_pod(
        self, namespace: str, name: str, uid: str, annotations: dict[str, str | None]
    ) -> None:
        """Merge-patch annotations; None removes one. `uid` pins the pod (ApiConflict if it is another)."""
        ...

    async def label_pod(self, namespace: str, name: str, labels: dict[str, str | None]) -> None:
        """Merge-patch labels; None removes one."""
        ...

    def note(self, event: EventNote) -> None:
        """Queue an Event; bounded, never awaited by a decision, repeated ones become a series."""
        ...
