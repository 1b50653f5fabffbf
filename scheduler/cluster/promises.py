"""Reservations with their effect on columns: what is promised, and the load that comes with it.

Pure; the store owns the only instance. Promise 5.4 of docs/architecture.md is kept here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from scheduler.cluster.columns import Columns
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.reservations import Reservation, Reservations
from scheduler.cluster.shared_memory import SharedMemory
from scheduler.core.nouns import PodRequest, Units

PENDING_FLOOR = 1e-3
# Within this, a half-life of seconds fades by less than PENDING_FLOOR.
FADE_S = 0.005


class Promises:
    """GPUs and load of pods that are on their way to a node."""

    def __init__(
        self,
        columns: Columns,
        rows: Mapping[str, int],
        counters: Counter[str],
        reservations: Reservations,
        memory: SharedMemory,
        *,
        half_life_s: float,
    ) -> None:
        self.reservations = reservations
        self.memory = memory
        self._columns = columns
        self._rows = rows
        self._counters = counters
        self._half_life_s = half_life_s
        self.on_change: Callable[[str], None] = lambda _: None
        """Told of the pod (uid) whose promise was made or taken back."""
        self.nominated: dict[str, PodFacts] = {}
        """Pods without a node for which kube-scheduler has others make room, by uid."""
        self._faded_mono_s = -np.inf

    def use(self, *, half_life_s: float, now_mono_s: float) -> None:
        """Fade at another rate from here on; what is promised stays."""
        self._fade(now_mono_s)
        if half_life_s == self._half_life_s:
            return
        for held in self.reservations.made_before(np.inf):
            self.reservations.set_load(held.uid, self.pending_load_of(held), self._faded_mono_s)
        self._half_life_s = half_life_s

    def reserve(self, request: PodRequest, node: str, now_mono_s: float) -> bool:
        """See Store.reserve; the caller knows that the pod is not bound."""
        own = self.reservations.get(request.uid)
        # Of other memory than before it is another promise.
        same = own is not None and (own.node, own.memory_bytes) == (node, request.gpu_memory_bytes)
        if same and self.reservations.renew(request.uid, now_mono_s):
            return True
        if own is not None:
            self.drop(request.uid, now_mono_s)
        row = self._rows.get(node)
        columns = self._columns
        if row is None or not self._has_room(row, request.units):
            return False
        load = columns.gpus_of(request.units, row) * request.expected_load
        made = self.reservations.make(
            request.uid,
            node,
            request.units,
            load,
            now_mono_s,
            memory_bytes=request.gpu_memory_bytes,
            waits_for_volume=request.waits_for_volume,
        )
        if made.memory_bytes:
            self.memory.add_up_promised(node)
        for index, count in columns.indexed(request.units):
            columns.reserved_units[index, row] += count
        self.expect(row, load, now_mono_s)
        columns.fold_holdings(slice(row, row + 1))
        self.on_change(request.uid)
        return True

    def _has_room(self, row: int, units: Units) -> bool:
        columns = self._columns
        return all(
            name in columns.resources and columns.free_units[columns.resources[name], row] >= count
            for name, count in units
        )

    def drop(self, uid: str, now_mono_s: float, *, keep_load: bool = False) -> None:
        """Take a promise back, if there is one, and what is left of its load unless that is coming all the same."""
        held = self.reservations.release(uid)
        if held is not None:
            self._give_back(held, now_mono_s, keep_load=keep_load)

    def _give_back(self, held: Reservation, now_mono_s: float, *, keep_load: bool = False) -> None:
        row, columns = self._rows[held.node], self._columns
        for index, count in columns.indexed(held.units):
            left = float(columns.reserved_units[index, row]) - count
            columns.reserved_units[index, row] = max(left, 0)
        if held.memory_bytes:
            self.memory.add_up_promised(held.node)
        if not keep_load:
            self.expect(row, -held.load * self._faded(held, now_mono_s), now_mono_s)
        columns.fold_holdings(slice(row, row + 1))
        self.on_change(held.uid)

    def settle(self, uid: str, node: str, now_mono_s: float) -> bool:
        """A pod was bound: its promise is over. Returns whether this node had been promised to it."""
        own = self.reservations.get(uid)
        kept = own is not None and own.node == node
        self.drop(uid, now_mono_s, keep_load=kept)
        self.reservations.forget_pod(uid)
        return kept

    def evict(self, node: str, now_mono_s: float) -> None:
        """Take back the youngest promises of a node until the rest fits beside what is bound there."""
        row, columns = self._rows[node], self._columns
        if not self.reservations.any_on(node):
            return
        over = self._overdrawn(row)
        for held in reversed(self.reservations.on_node(node)):
            if not over:
                break
            if any(index in over for index, _ in columns.indexed(held.units)):
                self.drop(held.uid, now_mono_s)
                self._counters["reservations_evicted"] += 1
                over = self._overdrawn(row)

    def _overdrawn(self, row: int) -> set[int]:
        """Resources of a node of which more is promised than is left beside what is bound."""
        columns = self._columns
        room, _ = columns.free_beside(columns.bound_units[:, [row]], np.array([row]))
        over: list[int] = np.flatnonzero(columns.reserved_units[:, row] > room[:, 0]).tolist()
        return set(over)

    def drop_node(self, node: str) -> None:
        """A node is going, and what was promised there with it."""
        for held in self.reservations.on_node(node):
            self.reservations.release(held.uid)

    def expect(self, row: int, load: float, now_mono_s: float) -> None:
        """Load that is coming to a node and not in its measurement yet; negative for what has just ended."""
        self._fade(now_mono_s)
        self._columns.pending[row] += load

    def _fade(self, now_mono_s: float) -> None:
        """Let expected load fade into the measurement, up to this instant: whatever is added or taken off is of now."""
        since_s = now_mono_s - self._faded_mono_s
        if since_s < FADE_S:
            return
        self._faded_mono_s = now_mono_s
        pending = self._columns.pending
        pending *= np.float32(2.0 ** (-since_s / self._half_life_s))
        pending[np.abs(pending) < PENDING_FLOOR] = 0

    def nominate(self, facts: PodFacts) -> None:
        """Note where a pod was nominated, or that it is not any more."""
        if facts.nominated_node and not facts.node:
            self.nominated[facts.uid] = facts
        else:
            self.nominated.pop(facts.uid, None)

    def forget_pod(self, uid: str, now_mono_s: float) -> None:
        """A pod is gone, with all that was kept for it."""
        self.nominated.pop(uid, None)
        self.drop(uid, now_mono_s)
        self.reservations.forget_pod(uid)

    def pass_time(self, now_mono_s: float) -> None:
        """Expected load fades; promises run out."""
        self._fade(now_mono_s)
        for held in self.reservations.take_expired(now_mono_s):
            self._give_back(held, now_mono_s)
            self._counters["reservations_expired"] += 1

    def pending_load_of(self, held: Reservation) -> float:
        """Which part of a promise's expected load is still in `pending`."""
        return held.load * self._faded(held, self._faded_mono_s)

    def _faded(self, held: Reservation, now_mono_s: float) -> float:
        return float(2.0 ** (-max(now_mono_s - held.load_mono_s, 0) / self._half_life_s))
