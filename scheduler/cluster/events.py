"""Kubernetes Events that never delay a decision: a bounded queue, series for repetitions, a filter against spam."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scheduler.cluster.api_request import Target
from scheduler.cluster.lease_record import micro_time
from scheduler.cluster.transport import Transport
from scheduler.core.errors import ApiForbidden, ApiNotFound, ClusterError

if TYPE_CHECKING:
    from scheduler.cluster.port import EventNote

log = logging.getLogger(__name__)

CONTROLLER = "wattbalance.io/wattbalance"
# The API server refuses longer notes.
MOST_NOTE_CHARS = 1024
# The same event again within six minutes continues its series: client-go's own.
SERIES_S = 360.0
# Per object: this many at once, then one per five minutes: client-go's own.
SPAM_BURST = 25
SPAM_REFILL_S = 300.0
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

_SeriesKey = tuple[str, str, str, str, str, str, str, bool]


@dataclass(slots=True)
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
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def allows(self, key: tuple[str, str], now_mono_s: float) -> bool:
        tokens, then_mono_s = self._buckets.pop(key, (float(SPAM_BURST), now_mono_s))
        tokens = min(float(SPAM_BURST), tokens + (now_mono_s - then_mono_s) / SPAM_REFILL_S)
        allowed = tokens >= 1.0
        self._buckets[key] = (tokens - allowed, now_mono_s)
        if len(self._buckets) > MOST_REMEMBERED:
            self._buckets.popitem(last=False)
        return allowed


class EventWriter:
    """Queues notes and writes them one after another."""

    def __init__(self, transport: Transport, *, instance: str) -> None:
        """`instance` names this process in `reportingInstance`; a pod's name."""
        self._transport = transport
        self._clock = transport.clock
        self._counters = transport.counters
        self._instance = instance[:128] or "wattbalance"
        self.may_write: Callable[[], bool] = lambda: True
        """Asked before each write: what was queued while we led must not be written by a replica that lost it."""
        self._series: OrderedDict[_SeriesKey, _Series] = OrderedDict()
        self._queue: deque[_Series] = deque()
        self._wake = asyncio.Event()
        self._spam = _Spam()
        self._told_forbidden = False

    def note(self, note: EventNote) -> None:
        """Queue one event. Never waits; what cannot be kept is dropped and counted."""
        now_mono_s, now_unix_s = self._clock.mono_s(), self._clock.unix_s()
        if not self._spam.allows((note.uid, note.name), now_mono_s):
            self._counters.events_dropped["spam"] += 1
            return
        # Without the text: a figure that changes in it does not make another event.
        key = (
            note.kind,
            note.namespace,
            note.name,
            note.uid,
            note.reason,
            note.about,
            note.action,
            note.warning,
        )
        series = self._series.get(key)
        if series is not None and now_mono_s - series.last_mono_s < SERIES_S:
            series.count += 1
            series.last_unix_s, series.last_mono_s = now_unix_s, now_mono_s
            if series.queued:
                return
        else:
            series = _Series(note, 1, now_unix_s, now_unix_s, now_mono_s, queued=False)
        if len(self._queue) >= MOST_QUEUED:
            self._counters.events_dropped["full"] += 1
            return
        series.queued = True
        self._series[key] = series
        self._series.move_to_end(key)
        if len(self._series) > MOST_REMEMBERED:
            self._series.popitem(last=False)
        self._queue.append(series)
        self._wake.set()

    async def run(self) -> None:
        """Write what is queued, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                series = self._queue.popleft()
                series.queued = False
                if not self.may_write():
                    self._counters.events_dropped["not_leading"] += 1
                    continue
                try:
                    await self._write(series)
                    self._counters.events_written += 1
                except ClusterError as error:
                    # Not tried again: an event is a help for people, and the next one will come.
                    self._counters.events_dropped["failed"] += 1
                    if isinstance(error, ApiForbidden) and not self._told_forbidden:
                        self._told_forbidden = True
                        log.warning("events cannot be written: %s", error)

    async def _write(self, series: _Series) -> None:
        if series.name:
            try:
                await self._continue(series)
            except ApiNotFound:
                # Events live for an hour; the series begins anew.
                series.name = ""
            else:
                return
        await self._create(series)

    async def _continue(self, series: _Series) -> None:
        patch = {"series": {"count": series.count, "lastObservedTime": micro_time(series.last_unix_s)}}
        await self._transport.call(
            "patch", self._target(series, series.name), params={"fieldManager": "wattbalance"}, body=patch
        )

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
                "apiVersion": _API_VERSIONS.get(note.kind, "v1"),
                "kind": note.kind,
                "namespace": note.namespace,
                "name": note.name,
                "uid": note.uid,
            },
            "note": _cut(note.note),
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
    raw = text.encode()
    return text if len(raw) <= MOST_NOTE_CHARS else raw[: MOST_NOTE_CHARS - 3].decode(errors="ignore") + "…"
