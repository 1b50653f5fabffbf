"""Kubernetes Events that never delay a decision: bounded queues, series for repetitions, so many a second and no more.

What is new goes before counts of what was told already. What cannot be kept is dropped, and counted by reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from scheduler.cluster.api_request import Counters, Target
from scheduler.cluster.fair_queue import FairQueue
from scheduler.cluster.lease_record import micro_time
from scheduler.core.bucket import TokenBucket
from scheduler.core.clock import Clock
from scheduler.core.errors import ApiForbidden, ApiNotFound, ClusterError
from scheduler.core.log import kv

if TYPE_CHECKING:
    from scheduler.cluster.port import EventNote

log = logging.getLogger(__name__)

CONTROLLER = "wattbalance.io/wattbalance"
# The API server refuses longer notes.
MOST_NOTE_CHARS = 1024
# The same event again within six minutes continues its series: client-go's own.
SERIES_S = 360.0
# A series is written again so long after it went on: of 500 pods in a burst one patch says how many.
COUNTED_AFTER_S = 5.0
# Over all: so many at once, then so many a second, counts and repeated tries too. As many as pods are woken.
MOST_AT_ONCE = 50
MOST_PER_S = 10.0
# Per object: this many different ones at once, then one per five minutes: client-go's own.
SPAM_BURST = 25
SPAM_REFILL_S = 300.0
# Of what is new, and of counts: each as much as is written in less than two minutes.
MOST_QUEUED = 1000
# Objects and series remembered; the oldest are forgotten first.
MOST_REMEMBERED = 4096

_API_VERSIONS = {
    "Pod": "v1",
    "Node": "v1",
    "Namespace": "v1",
    "ConfigMap": "v1",
    "Lease": "coordination.k8s.io/v1",
    "Job": "batch/v1",
    "Deployment": "apps/v1",
    "StatefulSet": "apps/v1",
    "ReplicaSet": "apps/v1",
}

_SeriesKey = tuple[str, str, str, str, str, int, str, bool]


@dataclass(slots=True, eq=False)
class _Series:
    """One event and how often it was seen; `name` is empty until it stands in the API server."""

    note: EventNote
    count: int
    first_unix_s: float
    last_unix_s: float
    last_mono_s: float
    name: str = ""
    queued: bool = True


class _Spam:
    """One token bucket per object."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[tuple[str, str, str], TokenBucket] = OrderedDict()

    def allows(self, key: tuple[str, str, str], now_mono_s: float) -> bool:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(SPAM_BURST, 1.0 / SPAM_REFILL_S, now_mono_s)
        self._buckets.move_to_end(key)
        if len(self._buckets) > MOST_REMEMBERED:
            self._buckets.popitem(last=False)
        return bucket.take(now_mono_s)


class ApiServer(Protocol):
    """What of a transport is needed (transport.py)."""

    @property
    def clock(self) -> Clock:
        """For all times."""
        ...

    @property
    def counters(self) -> Counters:
        """Where to count."""
        ...

    async def call(
        self, verb: str, target: Target, *, params: Mapping[str, str] | None = None, body: object = None
    ) -> bytes:
        """Send one request. Raises ClusterError."""
        ...


class EventWriter:
    """Queues notes and writes them one after another."""

    def __init__(self, transport: ApiServer, *, instance: str) -> None:
        """`instance` names this process in `reportingInstance`; a pod's name."""
        self._transport = transport
        self._clock = transport.clock
        self._counters = transport.counters
        self._instance = instance[:128] or "wattbalance"
        self.may_write: Callable[[], bool] = lambda: True
        """Asked before each write: what was queued while we led must not be written by a replica that lost it."""
        self._series: OrderedDict[_SeriesKey, _Series] = OrderedDict()
        self._new: FairQueue[_Series] = FairQueue(MOST_QUEUED)
        self._again: deque[tuple[float, _Series]] = deque()
        """Series that went on, each with the instant from which on its count may be written; the soonest first."""
        self._bucket = TokenBucket(MOST_AT_ONCE, MOST_PER_S, self._clock.mono_s())
        self._wake = asyncio.Event()
        self._spam = _Spam()
        self._told_forbidden = False
        self._told_full = False

    @property
    def queued(self) -> int:
        """How many wait to be written."""
        return len(self._new) + len(self._again)

    def note(self, note: EventNote) -> None:
        """Queue one event. Never waits; what cannot be kept is dropped and counted."""
        now_mono_s, now_unix_s = self._clock.mono_s(), self._clock.unix_s()
        # Without the text: a figure that changes in it does not make another event. What it is about may be long.
        key = (
            note.kind,
            note.namespace,
            note.name,
            note.uid,
            note.reason,
            hash(note.about),
            note.action,
            note.warning,
        )
        series = self._series.get(key)
        if series is not None and now_mono_s - series.last_mono_s < SERIES_S:
            series.count += 1
            series.last_unix_s, series.last_mono_s = now_unix_s, now_mono_s
            self._go_on(series, now_mono_s)
        elif self._spam.allows((note.uid, note.namespace, note.name), now_mono_s):
            kept = replace(note, note=_cut(note.note), about="")
            series = self._series[key] = _Series(kept, 1, now_unix_s, now_unix_s, now_mono_s)
            self._begin(series)
        else:
            self._counters.events_dropped["spam"] += 1
            return
        self._series.move_to_end(key)
        if len(self._series) > MOST_REMEMBERED:
            self._series.popitem(last=False)

    def _begin(self, series: _Series) -> None:
        series.queued = True
        dropped = self._new.add(series.note.namespace, series)
        if dropped is not None:
            dropped.queued = False
            self._drop_full()
        self._wake.set()

    def _go_on(self, series: _Series, now_mono_s: float) -> None:
        if series.queued:
            # Written with the count that it has by then.
            return
        if len(self._again) >= MOST_QUEUED:
            self._drop_full()
            return
        series.queued = True
        self._again.append((now_mono_s + COUNTED_AFTER_S, series))
        self._wake.set()

    def _drop_full(self) -> None:
        self._counters.events_dropped["full"] += 1
        if not self._told_full:
            self._told_full = True
            log.warning("events are dropped: too many wait to be written", extra=kv(most=MOST_QUEUED))

    async def run(self) -> None:
        """Write what is queued, for ever."""
        try:
            while True:
                await self._write(await self._next())
        finally:
            if self.queued:
                log.info("events are not written any more", extra=kv(count=self.queued))

    async def _next(self) -> _Series:
        """Wait until something may be written; its token is taken."""
        while True:
            self._wake.clear()
            if not self.may_write():
                self._drop_all()
            wait_s = self._wait_s(now_mono_s := self._clock.mono_s())
            if wait_s is not None and wait_s <= 0.0 and self._bucket.take(now_mono_s):
                series = self._new.pop() if self._new else self._again.popleft()[1]
                series.queued = False
                return series
            # What is new may come before a count is due.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    def _wait_s(self, now_mono_s: float) -> float | None:
        """How long until something may be written; None if nothing waits."""
        if not self.queued:
            return None
        due_s = 0.0 if self._new else self._again[0][0] - now_mono_s
        return max(due_s, self._bucket.wait_s(now_mono_s))

    def _drop_all(self) -> None:
        while self.queued:
            series = self._new.pop() if self._new else self._again.popleft()[1]
            series.queued = False
            self._counters.events_dropped["not_leading"] += 1

    async def _write(self, series: _Series) -> None:
        try:
            if not series.name:
                await self._create(series)
            elif not await self._continue(series):
                # Events live for an hour; the series begins anew, which is another write.
                series.name, series.queued = "", True
                self._new.put_back(series.note.namespace, series)
                return
        except ClusterError as error:
            # Not tried again: an event is a help for people, and the next one will come.
            self._counters.events_dropped["failed"] += 1
            if isinstance(error, ApiForbidden) and not self._told_forbidden:
                self._told_forbidden = True
                log.warning("events cannot be written: %s", error)
        else:
            self._counters.events_written += 1
            if not self.queued:
                self._told_full = False

    async def _continue(self, series: _Series) -> bool:
        """Write how often it was seen; False if the event has gone."""
        patch = {"series": {"count": series.count, "lastObservedTime": micro_time(series.last_unix_s)}}
        target = self._target(series, series.name)
        try:
            await self._transport.call("patch", target, params={"fieldManager": "wattbalance"}, body=patch)
        except ApiNotFound:
            return False
        return True

    async def _create(self, series: _Series) -> None:
        note = series.note
        # Not generateName: `{pod}.` is refused as a prefix by some versions.
        name = f"{note.name[:220]}.{uuid.uuid4().hex[:16]}"
        body: dict[str, object] = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": _namespace(note)},
            "eventTime": micro_time(series.first_unix_s),
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance,
            "action": note.action,
            "reason": note.reason,
            "regarding": {
                "apiVersion": note.api_version or _API_VERSIONS.get(note.kind, "v1"),
                "kind": note.kind,
                "namespace": note.namespace,
                "name": note.name,
                "uid": note.uid,
            },
            "note": note.note,
            "type": "Warning" if note.warning else "Normal",
        }
        if series.count > 1:
            body["series"] = {"count": series.count, "lastObservedTime": micro_time(series.last_unix_s)}
        await self._transport.call("create", self._target(series, ""), body=body)
        series.name = name

    def _target(self, series: _Series, name: str) -> Target:
        return Target(group="events.k8s.io", resource="events", namespace=_namespace(series.note), name=name)


def _namespace(note: EventNote) -> str:
    # Of what has no namespace, such as nodes: 1.20 takes these only here, newer ones in `default` too (validation of
    # events.k8s.io/v1; by trial on 1.20.2). `kubectl describe` looks everywhere.
    return note.namespace or "kube-system"


def _cut(text: str) -> str:
    # The limit is in bytes in the API server's validation.
    raw = text.encode(errors="replace")
    if len(raw) <= MOST_NOTE_CHARS:
        return raw.decode()
    return raw[: MOST_NOTE_CHARS - 3].decode(errors="ignore") + "…"
