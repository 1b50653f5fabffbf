"""When a pod is tried again: kube-scheduler's active, backoff and unschedulable queues, and what moves pods.

Rules are chosen by version: on 1.20 an event moves every pod, whatever refused it; on 1.32 each filter that refused a
pod is asked whether the event could help, and a pod refused by an extender is moved by any event. Pure: told the time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count

from scheduler.simulate.apiserver_rules import JsonObject
from scheduler.simulate.fit import AFFINITY, CORDONED, INSUFFICIENT, OTHER_NODE, TAINTED, PodNeeds

EXTENDER = "extender"


class Rules(StrEnum):
    """Whose requeueing is played."""

    V1_20 = "1.20"
    V1_32 = "1.32"


class Cause(StrEnum):
    """What happened in the cluster."""

    NODE_ADDED = "node-added"
    NODE_CHANGED = "node-changed"
    NODE_ANNOTATED = "node-annotated"
    POD_FREED = "pod-freed"
    POD_ASSIGNED_CHANGED = "assigned-pod-changed"
    POD_ASSIGNED_ADDED = "assigned-pod-added"


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One event that may help a waiting pod. `fits` asks whether a pod fits the node that it is about."""

    cause: Cause
    fits: Callable[[PodNeeds], bool] | None = None


@dataclass(slots=True, kw_only=True)
class Waiting:
    """A pod that has no node yet."""

    key: str
    pod: JsonObject
    raw: bytes
    """As extenders are sent it."""
    priority: int
    since_mono_s: float
    attempts: int = 0
    refused_by: frozenset[str] = frozenset()
    """Reasons of the last attempt; empty after an error."""
    failed_mono_s: float = 0.0
    due_mono_s: float = 0.0
    missed: list[Happening] = field(default_factory=list)
    """What happened while it was being tried."""
    nudged: bool = False
    """It was itself changed while it was being tried."""


class Queue:
    """All waiting pods, each in one of: active, backoff, unschedulable, in flight.

    Args:
        rules: whose behaviour.
        initial_backoff_s: after the first failure; doubles with each.
        max_backoff_s: kube-scheduler's default is 10; ours ships 3.
    """

    def __init__(self, rules: Rules, *, initial_backoff_s: float = 1.0, max_backoff_s: float = 10.0) -> None:
        self._rules = rules
        self._initial_backoff_s = initial_backoff_s
        self._max_backoff_s = max_backoff_s
        # 1.20 empties its unschedulable queue after a minute, later versions after five.
        self._flush_s = 60.0 if rules is Rules.V1_20 else 300.0
        self._order = count()
        self._active: list[tuple[int, float, int, str]] = []
        self._backoff: list[tuple[float, int, str]] = []
        self.waiting: dict[str, Waiting] = {}
        self.active: set[str] = set()
        self.backoff: set[str] = set()
        self.unschedulable: set[str] = set()
        self.in_flight: set[str] = set()

    def add(self, entry: Waiting) -> None:
        """A new pod."""
        self.waiting[entry.key] = entry
        self._activate(entry)

    def remove(self, key: str) -> None:
        """The pod is gone, or bound."""
        self.waiting.pop(key, None)
        for where in (self.active, self.backoff, self.unschedulable, self.in_flight):
            where.discard(key)

    def pop(self, now_mono_s: float) -> Waiting | None:
        """The next pod to try, by priority, then by age in the queue."""
        self._move_due(now_mono_s)
        while self._active:
            _, _, _, key = heapq.heappop(self._active)
            if key in self.active:
                self.active.discard(key)
                self.in_flight.add(key)
                entry = self.waiting[key]
                entry.attempts += 1
                entry.missed.clear()
                entry.nudged = False
                return entry
        return None

    def next_due_mono_s(self) -> float | None:
        """When something will become active by itself."""
        while self._backoff and self._backoff[0][2] not in self.backoff:
            heapq.heappop(self._backoff)
        times = [self.waiting[key].failed_mono_s + self._flush_s for key in self.unschedulable]
        if self._backoff:
            times.append(self._backoff[0][0])
        return min(times, default=None)

    def untried_since_mono_s(self) -> list[float]:
        """Since when each pod waits that was never tried."""
        entries = (self.waiting[key] for key in self.active)
        return [entry.since_mono_s for entry in entries if entry.attempts == 0]

    def fail(self, entry: Waiting, refused_by: frozenset[str], now_mono_s: float) -> None:
        """The attempt did not place the pod; no reasons mean an error, not a refusal."""
        if entry.key not in self.waiting:
            return
        entry.refused_by, entry.failed_mono_s = refused_by, now_mono_s
        self.in_flight.discard(entry.key)
        nudged = entry.nudged and (self._rules is Rules.V1_20 or EXTENDER in refused_by)
        helped = nudged or any(self._helps(happening, entry) for happening in entry.missed)
        error = not refused_by and self._rules is Rules.V1_32
        if helped or error:
            self._back_off(entry, now_mono_s)
        else:
            self.unschedulable.add(entry.key)

    def happened(self, happening: Happening, now_mono_s: float) -> None:
        """Move the pods that an event may help."""
        for key in self.in_flight:
            self.waiting[key].missed.append(happening)
        for key in [key for key in self.unschedulable if self._helps(happening, self.waiting[key])]:
            self._back_off(self.waiting[key], now_mono_s)

    def changed(
        self, key: str, pod: JsonObject, raw: bytes, now_mono_s: float, *, beyond_status: bool
    ) -> None:
        """A waiting pod itself was updated."""
        entry = self.waiting[key]
        before, entry.pod, entry.raw = entry.pod, pod, raw
        if key in self.in_flight:
            entry.nudged |= beyond_status
        if key not in self.unschedulable:
            return
        if self._rules is Rules.V1_20:
            helps = beyond_status
        else:
            tolerations = pod["spec"].get("tolerations") != before["spec"].get("tolerations")
            # Even its own status: a new refusal text in the condition moves it once more.
            helps = EXTENDER in entry.refused_by or (
                tolerations and bool({TAINTED, CORDONED} & entry.refused_by)
            )
        if helps and self._rules is Rules.V1_20:
            # It goes past its backoff there.
            self.unschedulable.discard(key)
            self._activate(entry)
        elif helps:
            self._back_off(entry, now_mono_s)

    def _helps(self, happening: Happening, entry: Waiting) -> bool:
        # An assigned pod's arrival moves only pods with pod affinity, which this stand-in does not play.
        if happening.cause is Cause.POD_ASSIGNED_ADDED:
            return self._rules is Rules.V1_32 and not entry.refused_by
        if self._rules is Rules.V1_20:
            # There its change does no more, and a node's annotation nothing.
            return happening.cause not in (Cause.NODE_ANNOTATED, Cause.POD_ASSIGNED_CHANGED)
        if not entry.refused_by:
            return True
        if EXTENDER in entry.refused_by:
            return True
        if happening.cause in (Cause.NODE_ADDED, Cause.NODE_CHANGED):
            # Each filter that refused is asked, and one that says yes suffices.
            node_filters = {CORDONED, OTHER_NODE, TAINTED, AFFINITY}
            asks = node_filters & entry.refused_by or any(
                r.startswith(INSUFFICIENT) for r in entry.refused_by
            )
            return bool(asks) and happening.fits is not None and happening.fits(PodNeeds.of(entry.pod))
        if happening.cause is Cause.POD_FREED:
            # Whatever it held: the filter of resources asks only that the pod had a node.
            return any(reason.startswith(INSUFFICIENT) for reason in entry.refused_by)
        return False

    def _back_off(self, entry: Waiting, now_mono_s: float) -> None:
        wait_s = min(self._initial_backoff_s * 2 ** (max(entry.attempts, 1) - 1), self._max_backoff_s)
        entry.due_mono_s = entry.failed_mono_s + wait_s
        self.unschedulable.discard(entry.key)
        if entry.due_mono_s <= now_mono_s:
            self._activate(entry)
            return
        self.backoff.add(entry.key)
        heapq.heappush(self._backoff, (entry.due_mono_s, next(self._order), entry.key))

    def _activate(self, entry: Waiting) -> None:
        self.active.add(entry.key)
        heapq.heappush(self._active, (-entry.priority, entry.since_mono_s, next(self._order), entry.key))

    def _move_due(self, now_mono_s: float) -> None:
        while self._backoff and self._backoff[0][0] <= now_mono_s:
            _, _, key = heapq.heappop(self._backoff)
            if key in self.backoff:
                self.backoff.discard(key)
                self._activate(self.waiting[key])
        for key in list(self.unschedulable):
            if self.waiting[key].failed_mono_s + self._flush_s <= now_mono_s:
                self.unschedulable.discard(key)
                self._activate(self.waiting[key])
