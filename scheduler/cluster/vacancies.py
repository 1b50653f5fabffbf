"""What one request finds free: its own promise counts as free, and what is kept for nominated pods does not.

Pure; the store's own. What-ifs are told the same way: pods that are taken not to be there, or to be on their way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from scheduler.cluster.columns import Columns
from scheduler.cluster.nodes import NodeRecord
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.promises import Promises
from scheduler.cluster.snapshot import FloatColumn, Snapshot
from scheduler.core.nouns import PodRequest

# A default that is never written to.
NOBODY: Mapping[str, Collection[str]] = MappingProxyType({})


class Vacancies:
    """Makes a request's own snapshot out of the columns."""

    def __init__(self, columns: Columns, records: Mapping[str, NodeRecord], promises: Promises) -> None:
        self._columns = columns
        self._records = records
        self._promises = promises

    def snapshot_for(
        self, request: PodRequest, gone: Mapping[str, Collection[str]], beside: Iterable[PodFacts]
    ) -> Snapshot:
        """See Store.snapshot_for.

        Args:
            request: The pod that asks.
            gone: Nodes, with the pods (uids) that are taken not to be there.
            beside: Pods that are taken to be on their way.
        """
        columns, own = self._columns, self._promises.reservations.get(request.uid)
        coming = self._coming(request, beside)
        left = {name: frozenset(uids) for name, uids in gone.items() if name in self._records}
        if own is not None:
            left[own.node] = left.get(own.node, frozenset()) | {request.uid}
        several = request.gpu_memory_bytes and any(count > 1 for _, count in request.units)
        if not left and not coming and not several:
            return columns.snapshot
        bound, reserved = columns.bound_units, columns.reserved_units.copy()
        if gone:
            bound = bound.copy()
        for name, uids in left.items():
            self._take_off(bound, reserved, self._records[name], uids)
        for facts in coming:
            row = self._records[facts.nominated_node].row
            for index, count in columns.indexed(facts.units):
                reserved[index, row] += count
        free_units, free = columns.free_beside(bound + reserved, slice(None))
        pending = columns.pending
        if own is not None:
            pending = pending.copy()
            pending[self._records[own.node].row] -= self._promises.pending_load_of(own)
        return columns.snapshot.replace(
            free_units=free_units,
            free_gpus=free,
            bound_units=bound,
            bound_gpus=(bound * columns.unit_gpus).sum(0),
            reserved_units=reserved,
            pending_load=pending,
            unit_memory_bytes=self._promises.memory.column_for(request, left, coming),
        )

    def _coming(self, request: PodRequest, beside: Iterable[PodFacts]) -> list[PodFacts]:
        """Pods that hold what they are nominated for against this one, and that no promise counts there."""
        nominated = self._promises.nominated
        coming = [
            facts
            for facts in nominated.values()
            if facts.priority >= request.priority and self._counts(facts, request)
        ]
        coming += [facts for facts in beside if facts.uid not in nominated and self._counts(facts, request)]
        return coming

    def _counts(self, facts: PodFacts, request: PodRequest) -> bool:
        held = self._promises.reservations.get(facts.uid)
        node = facts.nominated_node
        return facts.uid != request.uid and node in self._records and (held is None or held.node != node)

    def _take_off(
        self, bound: FloatColumn, reserved: FloatColumn, record: NodeRecord, uids: Collection[str]
    ) -> None:
        """Take off what pods of a node hold, bound or promised."""
        row = record.row
        for uid in uids:
            facts, promise = record.pods.get(uid), self._promises.reservations.get(uid)
            if facts is not None:
                for index, count in self._columns.indexed(record.held(facts)):
                    # By other names than it offers, GPUs are held through claims, and counted by these.
                    bound[index, row] = max(float(bound[index, row]) - count, 0)
            elif promise is not None and promise.node == record.name:
                for index, count in self._columns.indexed(promise.units):
                    reserved[index, row] -= count
