"""The Kubernetes adapter of ClusterPort: reads, binds, patches, and keeps watch on whether the server still answers.

The wire is our own over aiohttp (transport.py), lists and watches are in reflector.py, logging in is in
credentials.py, the election in lease.py, events in events.py.
"""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import msgspec

from scheduler.cluster.api_request import Counters, Limits, Target
from scheduler.cluster.decode import Decoder
from scheduler.cluster.events import EventWriter
from scheduler.cluster.lease import Elector
from scheduler.cluster.lease_record import LeaseTimes
from scheduler.cluster.objects import Pod
from scheduler.cluster.port import ClusterEvent, EventNote, Kind, Only
from scheduler.cluster.reflector import Health, Pace, Reflector
from scheduler.cluster.server_clock import ServerClock
from scheduler.cluster.transport import Transport
from scheduler.core.errors import (
    ApiConflict,
    ApiForbidden,
    ApiNotFound,
    ApiRejected,
    ApiUnavailable,
    ClusterError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from scheduler.cluster.access import Credentials
    from scheduler.core.clock import Clock

log = logging.getLogger(__name__)

FIELD_MANAGER = "wattbalance"
# A silent server must be noticed within `cluster.stale` (60 s), long before a watch's own 90 s are over.
PROBE_EVERY_S = 15.0
# From this minor version on the API server compares the uid in a Binding; 1.23 did, 1.25 lost it again.
UID_IN_BINDING_SINCE = (1, 27)


class _Version(msgspec.Struct, frozen=True):
    major: str = ""
    minor: str = ""


class KubernetesCluster:
    """ClusterPort over HTTP. Use as `async with`, and run `run()` beside it."""

    def __init__(
        self,
        credentials: Credentials,
        clock: Clock,
        *,
        instance: str = "wattbalance",
        limits: Limits | None = None,
        pace: Pace | None = None,
        probe_every_s: float = PROBE_EVERY_S,
    ) -> None:
        """`instance` names this process in events; a pod's name. The rest is settable for tests."""
        self.transport = Transport(credentials, clock, limits=limits)
        self.health = Health()
        self._pace = pace or Pace()
        self.probe_every_s = probe_every_s
        """How often a quiet API server is asked for a sign of life."""
        self.events = EventWriter(self.transport, instance=instance)
        self._pods = Decoder(Kind.POD, self.counters)
        self._version: tuple[int, int] | None = None

    async def __aenter__(self) -> Self:
        """Open the connections. Raises ConfigError if the credentials cannot be read."""
        await self.transport.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them."""
        await self.transport.close()

    @property
    def counters(self) -> Counters:
        """Plain counts for metrics."""
        return self.transport.counters

    @property
    def last_contact_mono_s(self) -> float | None:
        """When the server last answered a call or a probe, or sent a byte of a watch; None = never."""
        return self.transport.last_contact_mono_s

    @property
    def server_clock(self) -> ServerClock:
        """By which the server dates what is created."""
        return self.transport.server_clock

    @property
    def synced(self) -> set[Kind]:
        """Kinds whose list has been complete."""
        return self.health.synced

    @property
    def refused(self) -> dict[Kind, str]:
        """Kinds that cannot be followed, and why."""
        return self.health.refused

    @property
    def absent(self) -> set[Kind]:
        """Kinds that the server does not have, and need not have."""
        return self.health.absent

    @property
    def failing(self) -> dict[Kind, str]:
        """Kinds whose last attempt failed, and how; it is repeated."""
        return self.health.failing

    @property
    def forbidden(self) -> list[str]:
        """What our role did not allow when it was last tried, each with the rule to add; for a person."""
        return sorted(self.transport.forbidden.values())

    async def run(self) -> None:
        """Write events and probe the server, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.events.run(), name="cluster.events")
            group.create_task(self._probe(), name="cluster.probe")

    def elector(
        self, *, namespace: str, identity: str, name: str = "wattbalance", times: LeaseTimes | None = None
    ) -> Elector:
        """The elector for a Lease, over its own session."""
        return Elector(self.transport, namespace=namespace, name=name, identity=identity, times=times)

    def watch(self, kind: Kind, only: Only | None = None) -> AsyncIterator[ClusterEvent]:
        """List, then follow, for ever; recovers from 410, silence and restarts by itself."""
        return Reflector(kind, self.transport, self.health, pace=self._pace, only=only).events()

    async def get_pod(self, namespace: str, name: str) -> Pod:
        """Read one pod from the API server itself. Raises ApiNotFound."""
        body = await self.transport.call("get", _pod(namespace, name))
        pod = self._pods.one(body)
        if not isinstance(pod, Pod):
            raise ApiUnavailable(f"get pod {namespace}/{name}: the answer is not a pod")
        return pod

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
        """Post a Binding; its annotations are merged onto the pod in the same write.

        The API server accepts a node that does not exist: the caller must know it. A second Binding is a conflict
        even to the same node: the caller reads the pod then.

        Raises:
            ApiConflict: bound already, perhaps by us; or the name belongs to another pod by now.
            ApiNotFound: the pod is gone.
            ApiForbidden, ApiRejected: not done, and trying again cannot help; or `may_send` said no.
            ApiUnavailable: the outcome is unknown, and the pod must be read.
        """
        if await self._server_version() < UID_IN_BINDING_SINCE:
            # It would ignore our uid and bind a pod that was created anew under the same name.
            pod = await self.get_pod(namespace, name)
            if pod.metadata.uid != uid:
                raise ApiConflict(f"pod {namespace}/{name} has uid {pod.metadata.uid}, not {uid}")
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": uid, "annotations": annotations},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        if not may_send():
            # Reading the pod may have taken longer than we lead.
            raise ApiRejected(f"the Binding of pod {namespace}/{name} was not sent: we may not act any more")
        await self.transport.call(
            "create", _pod(namespace, name, "binding"), params={"fieldManager": FIELD_MANAGER}, body=body
        )

    async def annotate_pod(
        self, namespace: str, name: str, uid: str, annotations: dict[str, str | None]
    ) -> None:
        """Merge-patch annotations; None removes one. `uid` pins the pod (ApiConflict if it is another)."""
        await self._patch(_pod(namespace, name), {"metadata": {"uid": uid, "annotations": annotations}})

    async def label_pod(self, namespace: str, name: str, labels: dict[str, str | None]) -> None:
        """Merge-patch labels of a pod of our own namespace; None removes one."""
        await self._patch(replace(_pod(namespace, name), ours=True), {"metadata": {"labels": labels}})

    def note(self, event: EventNote) -> None:
        """Queue an Event; bounded, never awaited by a decision, repeated ones become a series."""
        self.events.note(event)

    async def has_api(self, group: str, version: str) -> bool:
        """Whether the server serves an API group in a version. Raises ClusterError if that cannot be learnt."""
        target = Target(resource="apis", raw_path=f"/apis/{group}/{version}")
        try:
            await self.transport.call("get", target)
        except ApiNotFound:
            return False
        return True

    async def _patch(self, target: Target, patch: object) -> None:
        # Not server-side apply: it conflicts with every other manager and creates what is gone.
        await self.transport.call("patch", target, params={"fieldManager": FIELD_MANAGER}, body=patch)

    async def _server_version(self) -> tuple[int, int]:
        if self._version is None:
            try:
                body = await self.transport.call("get", Target(resource="version", raw_path="/version"))
                said = msgspec.json.decode(body, type=_Version)
            except (ApiForbidden, ApiNotFound, msgspec.DecodeError):
                said = _Version()
            # Providers add to the minor version: `27+`. What cannot be read counts as old: one request more.
            numbers = [
                int(found[0]) if (found := re.findall(r"\d+", part)) else 0
                for part in (said.major, said.minor)
            ]
            self._version = (numbers[0], numbers[1])
        return self._version

    async def _probe(self) -> None:
        """Ask for a sign of life where nothing else has brought one; an idle watch is silent for minutes."""
        while True:
            every_s = self.probe_every_s
            heard = self.transport.last_contact_mono_s
            if heard is None or self.transport.clock.mono_s() - heard >= every_s / 2:
                try:
                    await self.transport.call(
                        "get", Target(resource="readyz", raw_path="/readyz"), timeout_s=every_s
                    )
                except ClusterError as error:
                    log.debug("probe: %s", error)
            await asyncio.sleep(every_s / 2)


def _pod(namespace: str, name: str, subresource: str = "") -> Target:
    return Target(resource="pods", namespace=namespace, name=name, subresource=subresource)
