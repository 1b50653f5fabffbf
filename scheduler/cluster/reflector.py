"""Follow one kind for ever: list in pages, then watch, and recover from whatever the server does.

What can happen, and what is done (all reproduced; a test plays each):
1. 410, as a status or as an ERROR event inside HTTP 200: list again, after a jittered pause.
2. 410 in the middle of a paged list: drop it, list again in pages, then once unpaged. The token that the answer
   offers would continue inconsistently.
3. Silence, a closed stream, another error: resume from the last resource version. Relisting would be expensive and
   is not needed. A watch that was silent may stand on a version from the future, though (etcd restored from a
   backup): the server then says nothing for ever, so a one-object list compares.
4. 403 or an API group that the server lacks: say it once, ask again slowly, leave the other kinds alone. Some groups
   are newer than clusters that are in use: that a server lacks one of those is no fault.
Not used: `resourceVersion=0`, which ignores the limit and may answer old state; WatchList, which is off in some
versions and ignored without an end mark in old ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from scheduler.cluster.api_request import Target
from scheduler.cluster.decode import Decoder, WatchLine
from scheduler.cluster.port import MAY_BE_ABSENT, Changed, ClusterEvent, Gone, Kind, Listed, Only
from scheduler.cluster.transport import GONE, Transport, status_of
from scheduler.core.errors import ApiForbidden, ApiGone, ApiNotFound, ApiUnavailable, ClusterError

if TYPE_CHECKING:
    from scheduler.cluster.objects import Node, Partial, Pod

log = logging.getLogger(__name__)

# etcd refuses objects over 1.5 MiB; a line is one object in JSON. More than this is not a watch.
MOST_LINE_BYTES = 16 * 2**20
# After so many failures without an event in between, the last resource version itself is suspected.
FAILURES_UNTIL_RELIST = 5
# How long the objects of all lists together may hold the loop at a time; as samples do. The count is for clocks that
# stand still.
TURN_S = 0.000_5
MOST_A_TURN = 64

# Newest first; 1.20 has CronJobs in v1beta1 only, and 1.32 and 1.33 have DRA in beta, if it is switched on.
_DRA = (("resource.k8s.io", "v1"), ("resource.k8s.io", "v1beta2"), ("resource.k8s.io", "v1beta1"))
VERSIONS: dict[Kind, tuple[tuple[str, str], ...]] = {
    Kind.NODE: (("", "v1"),),
    Kind.POD: (("", "v1"),),
    Kind.NAMESPACE: (("", "v1"),),
    Kind.JOB: (("batch", "v1"),),
    Kind.CRONJOB: (("batch", "v1"), ("batch", "v1beta1")),
    Kind.REPLICASET: (("apps", "v1"),),
    Kind.DEPLOYMENT: (("apps", "v1"),),
    Kind.STATEFULSET: (("apps", "v1"),),
    Kind.DAEMONSET: (("apps", "v1"),),
    Kind.CONFIGMAP: (("", "v1"),),
    Kind.RESOURCESLICE: _DRA,
    Kind.RESOURCECLAIM: _DRA,
    Kind.DEVICECLASS: _DRA,
}
# The only ConfigMap is the pause: whoever may not read it does not know whether anybody has said stop.
REQUIRED = frozenset({Kind.NODE, Kind.POD, Kind.CONFIGMAP})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Pauses; settable so that tests are quick."""

    first_s: float = 1.0
    most_s: float = 30.0
    """Pauses double from first to most while failures repeat: client-go's own."""
    refused_s: float = 60.0
    """Between attempts where a role or an API is missing: somebody has to change something first."""
    refused_required_s: float = 10.0
    watch_s: tuple[float, float] = (240.0, 480.0)
    """How long a watch is asked to last, chosen at random, or all kinds would restart together."""

    def pause_s(self, failures: int) -> float:
        """How long to wait after so many failures in a row, with jitter."""
        longest_s = min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 16))
        return longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret


@dataclass(slots=True)
class Health:
    """What readiness wants to know of all reflectors."""

    synced: set[Kind] = field(default_factory=set)
    """Kinds whose list was complete once; one whose access was taken away is removed."""
    refused: dict[Kind, str] = field(default_factory=dict)
    """Why a kind cannot be followed, for a person."""
    absent: set[Kind] = field(default_factory=set)
    """Kinds that the server does not have, and need not have."""
    failing: dict[Kind, str] = field(default_factory=dict)
    """What the last attempt at a kind ended with; gone once it works again. For a person."""
    reading: int = 0
    """How many reflectors are handing out a page: they share the loop's turns."""


class Reflector:
    """List and watch of one kind, or of one object of it."""

    def __init__(
        self,
        kind: Kind,
        transport: Transport,
        health: Health,
        *,
        pace: Pace | None = None,
        only: Only | None = None,
    ) -> None:
        self.kind = kind
        self._only = only
        # With it, rules that name the object allow to list and watch it.
        self._selected = {"fieldSelector": f"metadata.name={only.name}"} if only else {}
        self._transport = transport
        self._counters = transport.counters
        self._health = health
        self._pace = pace or Pace()
        self._decoder = Decoder(kind, self._counters)
        self._version = 0
        self._resource_version = ""
        self._failures = 0
        self._expired_lists = 0

    @property
    def target(self) -> Target:
        """The collection that is followed."""
        group, version = VERSIONS[self.kind][self._version]
        if self._only is None:
            return Target(group=group, version=version, resource=self.kind.value)
        return Target(
            group=group,
            version=version,
            resource=self.kind.value,
            namespace=self._only.namespace,
            without=f'resourceNames: ["{self._only.name}"] is enough',
        )

    async def events(self) -> AsyncGenerator[ClusterEvent, None]:
        """Every change, for ever."""
        listed = False
        while True:
            try:
                if not self._resource_version:
                    if listed:
                        self._counters.relists[self.kind] += 1
                    async with contextlib.aclosing(self._list()) as events:
                        async for event in events:
                            yield event
                    listed = True
                    self._health.synced.add(self.kind)
                    self._health.refused.pop(self.kind, None)
                    self._health.absent.discard(self.kind)
                async with contextlib.aclosing(self._watch()) as events:
                    async for event in events:
                        yield event
            except (ApiForbidden, ApiNotFound) as error:
                await self._refused(error)
            except ApiGone as error:
                log.info("%s: listing again: %s", self.kind, error)
                self._resource_version = ""
                await self._pause(error)
            except ClusterError as error:
                silent = isinstance(error.__cause__, TimeoutError)
                # Where nothing changes a watch may be silent by rights (kube-apiserver 1.20 sends no bookmark then).
                log.log(logging.DEBUG if silent else logging.INFO, "%s: %s", self.kind, error)
                await self._pause(error)
                if self._failures >= FAILURES_UNTIL_RELIST or (silent and await self._went_back()):
                    self._resource_version = ""

    async def _list(self) -> AsyncGenerator[ClusterEvent, None]:
        """One full list; sets the resource version when it is complete."""
        keys: set[str] = set()
        began_mono_s = self._transport.clock.mono_s()
        token = ""
        while True:
            # No resourceVersion: a consistent read. `resourceVersion=0` would ignore the limit.
            # A second paged attempt may expire just as well on a slow link: the third takes all at once.
            unpaged = self._expired_lists >= 2
            params = dict(self._selected)
            if not unpaged:
                params["limit"] = str(self._transport.limits.page_size)
            if token:
                params["continue"] = token
            try:
                body = await self._transport.call(
                    "list",
                    self.target,
                    params=params,
                    accept=self._decoder.list_accept,
                    timeout_s=self._transport.limits.page_timeout_s,
                )
            except ApiGone:
                self._expired_lists += bool(token)
                raise
            # Decoding starts in another turn than a page's last bytes came in.
            await asyncio.sleep(0)
            page = self._decoder.page(body)
            if not page.resource_version:
                # Some proxy's `{}`: taken for a list, it would empty the cluster.
                raise ApiUnavailable(f"list {self.target.path}: not a list: it has no resourceVersion")
            # Decoding them, and whoever takes the events, is 10 to 30 ms of work a page.
            clock, health = self._transport.clock, self._health
            health.reading += 1
            try:
                turn_mono_s, taken = clock.mono_s(), 0
                for item in page.items:
                    keys.add(self._decoder.key(item))
                    yield Changed(self.kind, item)
                    taken += 1
                    if taken >= MOST_A_TURN or clock.mono_s() - turn_mono_s > TURN_S / health.reading:
                        await asyncio.sleep(0)
                        turn_mono_s, taken = clock.mono_s(), 0
            finally:
                health.reading -= 1
            token = page.next_token
            if not token:
                break
            await asyncio.sleep(0)
        self._expired_lists = 0
        self._works()
        self._resource_version = page.resource_version
        yield Listed(self.kind, keys, began_mono_s)

    async def _watch(self) -> AsyncGenerator[ClusterEvent, None]:
        """One watch, until it ends. Returns where the server ended it in order."""
        lasts_s = random.uniform(*self._pace.watch_s)  # noqa: S311 - not a secret
        params = {
            **self._selected,
            "watch": "1",
            "resourceVersion": self._resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, int(lasts_s))),
        }
        began_mono_s = self._transport.clock.mono_s()
        told = False
        accept = self._decoder.watch_accept
        async with (
            self._transport.stream(self.target, params=params, accept=accept) as response,
            contextlib.aclosing(self._lines(response.content.iter_any())) as lines,
        ):
            async for line in lines:
                event = self._event(line)
                told = True
                self._works()
                if event is not None:
                    yield event
        self._counters.watch_restarts[self.kind] += 1
        if not told and self._transport.clock.mono_s() - began_mono_s < self._pace.first_s:
            # A server that ends watches at once must not be asked in a busy loop.
            raise ApiUnavailable(f"watch {self.target.path}: ended at once")

    async def _lines(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Split a stream; aiohttp's own lines end at 512 KiB. A half line at the end is dropped: it comes again."""
        parts: list[bytes] = []
        length = 0
        async for chunk in chunks:
            self._transport.heard()
            head, newline, rest = chunk.partition(b"\n")
            parts.append(head)
            length += len(head)
            if length > MOST_LINE_BYTES:
                raise ApiUnavailable(f"watch {self.target.path}: a line of over {MOST_LINE_BYTES} bytes")
            if not newline:
                continue
            yield b"".join(parts)
            *lines, tail = rest.split(b"\n")
            for line in lines:
                yield line
            parts, length = [tail], len(tail)

    def _event(self, line: bytes) -> ClusterEvent | None:
        if not line.strip():
            return None
        try:
            # The object's type depends on the event's, so it stays raw at first.
            event = _LINE.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ApiUnavailable(f"watch {self.target.path}: not a watch event: {error}") from error
        if event.type == "ERROR":
            status = status_of(event.object)
            text = f"watch {self.target.path}: {status.message or 'error without a message'}"
            raise (ApiGone if status.code == GONE else ApiUnavailable)(text, status=status.code)
        version = self._decoder.resource_version(event.object)
        if version:
            self._resource_version = version
        if event.type == "BOOKMARK":
            return None
        found: Node | Pod | Partial | None = self._decoder.one(event.object)
        if found is None or event.type not in {"ADDED", "MODIFIED", "DELETED"}:
            return None
        self._counters.watch_events[self.kind] += 1
        return (Gone if event.type == "DELETED" else Changed)(self.kind, found)

    async def _refused(self, error: ClusterError) -> None:
        versions = VERSIONS[self.kind]
        if isinstance(error, ApiNotFound) and self._version + 1 < len(versions):
            self._version += 1
            return
        self._version = 0
        health = self._health
        if isinstance(error, ApiNotFound) and self.kind in MAY_BE_ABSENT:
            if self.kind not in health.absent:
                log.info("the API server has no %s", self.kind)
            health.absent.add(self.kind)
            health.refused.pop(self.kind, None)
        else:
            if self.kind not in health.refused:
                log.warning("%s cannot be followed: %s", self.kind, error)
            health.refused[self.kind] = str(error)
            health.absent.discard(self.kind)
        # What we hold of it grows old unseen.
        health.synced.discard(self.kind)
        self._resource_version = ""
        pace = self._pace
        wait_s = pace.refused_required_s if self.kind in REQUIRED else pace.refused_s
        await asyncio.sleep(wait_s * random.uniform(1.0, 1.2))  # noqa: S311 - not a secret

    def _works(self) -> None:
        self._failures = 0
        self._health.failing.pop(self.kind, None)

    async def _pause(self, error: ClusterError) -> None:
        self._failures += 1
        self._health.failing[self.kind] = str(error)
        if self._resource_version:
            self._counters.watch_restarts[self.kind] += 1
        # A proxy's Retry-After may be a day, or a number without end: nobody would call us back.
        asked_s = min(error.retry_after_s or 0.0, self._pace.refused_s)
        await asyncio.sleep(max(self._pace.pause_s(self._failures), asked_s))

    async def _went_back(self) -> bool:
        """Whether the store is older than what we saw, as after a restored backup: its watch would stay silent."""
        try:
            body = await self._transport.call(
                "list",
                self.target,
                params={**self._selected, "limit": "1"},
                accept=self._decoder.list_accept,
            )
            now = self._decoder.page(body).resource_version
        except ClusterError:
            return False
        # Opaque by contract, yet decimal in every version; compared only where both are.
        return (
            now.isdecimal() and self._resource_version.isdecimal() and int(now) < int(self._resource_version)
        )


_LINE = msgspec.json.Decoder(WatchLine)
