"""A cluster that remembers Bindings and fails when told: as much of ClusterPort as the extender's verbs use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from scheduler.cluster.objects import Pod
from scheduler.cluster.port import ClusterEvent, EventNote, Kind, Only
from scheduler.core.errors import ApiConflict, ApiNotFound, ApiRejected, ClusterError
from tests.builders import make_pod


@dataclass
class FakeCluster:
    """Holds pods by name. `bind_fails` and `reads_fail` are raised, one a call, before anything else is done."""

    pods: dict[str, Pod] = field(default_factory=dict)
    bind_fails: list[ClusterError] = field(default_factory=list)
    bound_all_the_same: bool = False
    """A Binding that fails is carried out nevertheless: its answer was lost."""
    reads_fail: list[ClusterError] = field(default_factory=list)
    bindings: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    reads: int = 0
    frozen: bool = False
    """Connected and silent: nothing is ever answered."""

    def add(self, pod: Pod) -> None:
        """Put a pod into the cluster."""
        self.pods[pod.metadata.name] = pod

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
        """As the API server does: 404 for a stranger, 409 for another uid or a second Binding."""
        if self.frozen:
            await asyncio.Event().wait()
        if not may_send():
            raise ApiRejected("not sent")
        failure = self.bind_fails.pop(0) if self.bind_fails else None
        if failure is None or self.bound_all_the_same:
            self._bind(name, uid, node, annotations)
        if failure is not None:
            raise failure

    def _bind(self, name: str, uid: str, node: str, annotations: dict[str, str]) -> None:
        pod = self.pods.get(name)
        if pod is None:
            raise ApiNotFound(f"pods {name!r} not found", status=404)
        if (uid and pod.metadata.uid != uid) or pod.spec.node_name:
            raise ApiConflict(f"pod {name} is already assigned to a node", status=409)
        self.pods[name] = make_pod(name, uid=pod.metadata.uid, node=node)
        self.bindings.append((name, node, annotations))

    async def get_pod(self, namespace: str, name: str) -> Pod:
        """Read one."""
        self.reads += 1
        if self.frozen:
            await asyncio.Event().wait()
        if self.reads_fail:
            raise self.reads_fail.pop(0)
        if name not in self.pods:
            raise ApiNotFound(f"pods {name!r} not found", status=404)
        return self.pods[name]

    def watch(self, kind: Kind, only: Only | None = None) -> AsyncIterator[ClusterEvent]:
        """No verb watches."""
        raise NotImplementedError

    async def annotate_pod(
        self, namespace: str, name: str, uid: str, annotations: dict[str, str | None]
    ) -> None:
        """No verb writes to a pod but by a Binding."""
        raise NotImplementedError

    async def label_pod(self, namespace: str, name: str, labels: dict[str, str | None]) -> None:
        """Likewise."""
        raise NotImplementedError

    def note(self, event: EventNote) -> None:
        """Likewise."""
        raise NotImplementedError
