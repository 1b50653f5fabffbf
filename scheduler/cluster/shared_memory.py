"""What pods have asked of memory that units share, and what is left of it for one more. Pure; the store's own.

What is measured and what is asked for are two accounts of the same, and neither has all: a pod that asked for nothing
has taken some, and one that has just come has not taken its part yet. Until it can be taken to have it, what it asked
for counts on top of what is measured (`memory_free.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from math import inf

import numpy as np

from scheduler.cluster.columns import Columns, Rows
from scheduler.cluster.intent import IntentSettings
from scheduler.cluster.intents import Intents
from scheduler.cluster.memory_free import Bytes, free_bytes, together
from scheduler.cluster.nodes import NodeRecord, Nodes
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.reservations import Reservations
from scheduler.cluster.snapshot import FloatColumn
from scheduler.core.nouns import PodRequest, Units

# Pods on their way to shared GPUs of which we keep what they ask for; of more it is read again.
MOST_COMING = 4096
# How long after a pod was seen to run a sample has its memory in it: a guess that we admit. Frameworks take theirs once
# a model is loaded, within seconds to a minute. Too short gives memory away twice, and containers crash; too long lets
# pods wait that would fit, but never longer than this.
SETTLES_S = 60.0


class SharedMemory:
    """Keeps the columns of what was asked for, and answers what one request finds free."""

    def __init__(
        self,
        columns: Columns,
        nodes: Nodes,
        reservations: Reservations,
        intents: Intents,
    ) -> None:
        self._columns = columns
        self._records = nodes.records
        self._names = nodes.names
        self._reservations = reservations
        self._intents = intents
        self._coming: dict[str, tuple[PodFacts, float]] = {}
        """What pods on their way ask for, by uid."""
        self._coming_by: tuple[int, IntentSettings | None] = (0, None)
        """By whose words."""
        self._runs_since_mono_s: dict[str, float] = {}
        """When pods were first seen to run, by uid."""

    def see_pod(self, facts: PodFacts, now_mono_s: float) -> None:
        """Note since when a pod runs. Before all were listed, too: nobody knows how long it had."""
        if facts.running and facts.node:
            self._runs_since_mono_s.setdefault(facts.uid, now_mono_s)

    def forget_pod(self, uid: str) -> None:
        """It is gone."""
        self._runs_since_mono_s.pop(uid, None)

    def settle(self) -> None:
        """Samples have come: pods of which they have the memory by now are counted in these alone."""
        columns = self._columns
        rows = np.flatnonzero(columns.memory_settles_mono_s <= columns.received_mono_s)
        for row in rows.tolist():
            self.add_up_bound(self._records[self._names[row] or ""])
        if len(rows):
            columns.fold_holdings(rows)

    def add_up_bound(self, record: NodeRecord) -> None:
        """Sum what pods of a node have asked for. The caller folds."""
        if record.shared:
            before, record.memory_bytes = record.memory_bytes, {}
            for uid, facts in record.pods.items():
                # It was let in by what it asked for then, whatever its owner or namespace says since.
                record.memory_bytes[uid] = before[uid] if uid in before else self._wanted_bytes(facts)
        columns, row = self._columns, record.row
        columns.memory_bound_bytes[:, row] = self._sum(record, _bound(record, record.pods))
        received_mono_s = float(columns.received_mono_s[row])
        settles_mono_s = {
            uid: self._runs_since_mono_s.get(uid, inf) + SETTLES_S
            for uid, each_bytes in record.memory_bytes.items()
            if each_bytes and record.shared
        }
        settling = {uid: at for uid, at in settles_mono_s.items() if at > received_mono_s}
        record.untaken = frozenset(settling)
        columns.memory_untaken_bytes[:, row] = self._sum(record, _bound(record, record.untaken))
        columns.memory_settles_mono_s[row] = min(settling.values(), default=inf)

    def add_up_promised(self, node: str) -> None:
        """Sum what was promised there. The caller folds."""
        record = self._records[node]
        self._columns.memory_reserved_bytes[:, record.row] = self._sum(record, self._promised(record))

    def _sum(self, record: NodeRecord, asks: Iterable[tuple[Units, float]]) -> tuple[float, float]:
        return self._columns.memory_asked_bytes(asks, record.row) if record.shared else (0.0, 0.0)

    def column_for(
        self, request: PodRequest, gone: Mapping[str, Collection[str]], coming: Iterable[PodFacts]
    ) -> Bytes:
        """What units have of memory for this request, as `Snapshot.unit_memory_bytes` says.

        Args:
            request: The pod that asks.
            gone: Nodes with pods (uids) that are taken not to be there, bound or promised. The request's own among
                them would come back to the GPUs that it is on.
            coming: Pods that are taken to be on their way to the node that they are nominated for.
        """
        columns = self._columns
        memory_bytes = columns.unit_memory_bytes
        if not request.gpu_memory_bytes:
            return memory_bytes
        by_node: dict[str, list[PodFacts]] = {name: [] for name in gone}
        for facts in coming:
            by_node.setdefault(facts.nominated_node, []).append(facts)
        records = [self._records[name] for name in by_node if self._records[name].shared]
        if records:
            rows = np.array([record.row for record in records])
            free = self._free_bytes(request, rows, records, gone, by_node)
            memory_bytes = memory_bytes.copy()
            memory_bytes[:, rows] = np.where(columns.unit_shared[:, rows], free, memory_bytes[:, rows])
        if any(count > 1 for _, count in request.units):
            # Each of its units is to have as much, and several of them may lie on one GPU.
            on_one = self._on_one_gpu(request, slice(None))
            memory_bytes = np.where(columns.unit_shared, memory_bytes / on_one, memory_bytes)
        return memory_bytes

    def _free_bytes(
        self,
        request: PodRequest,
        rows: Rows,
        records: list[NodeRecord],
        gone: Mapping[str, Collection[str]],
        coming: Mapping[str, list[PodFacts]],
    ) -> Bytes:
        """What the fullest GPU of these nodes has free for this request, shape (nodes,)."""
        columns, each_bytes = self._columns, request.gpu_memory_bytes
        asked, untaken = np.zeros((2, 2, len(records)))
        ended, is_own, is_held = (np.zeros(len(records)) for _ in range(3))
        for at, record in enumerate(records):
            uids = gone.get(record.name, ())
            asked[:, at], untaken[:, at] = self._asked_bytes(record, uids, coming[record.name])
            # What a pod has taken that asked for none cannot be told from what others have: none of it counts as
            # free before it is measured to be. Nor does what a pod has not surely taken, since it may not be there.
            taken = [uid for uid in uids if uid in record.pods and uid not in record.untaken]
            asks = [(record.pods[uid].units, record.memory_bytes[uid]) for uid in taken]
            ended[at], _ = columns.memory_asked_bytes(asks, record.row)
            is_own[at] = request.uid in uids
            is_held[at] = request.uid in uids and request.uid in record.pods
        on_one = self._on_one_gpu(request, rows)
        # A pod that has its place comes back to it: others were let in beside it by what is left on other GPUs.
        elsewhere = columns.sharing_gpus(rows) * on_one - columns.shared_units(request.units, rows)
        asked[0] -= is_own * elsewhere * each_bytes
        untaken[0] -= is_own * elsewhere * each_bytes
        # Where it runs, all that is measured is of those that were let in as it was: nothing comes on top.
        untaken *= 1 - is_held
        own_bytes = is_held * on_one * each_bytes
        return free_bytes(columns, rows, asked, untaken, ended_bytes=ended, own_bytes=own_bytes)

    def _on_one_gpu(self, request: PodRequest, rows: Rows | slice) -> FloatColumn:
        """How many of its units have to lie on one GPU, if they lie as evenly as can be; 1 at least."""
        columns = self._columns
        each = columns.shared_units(request.units, rows) / columns.sharing_gpus(rows)
        on_one: FloatColumn = np.maximum(np.ceil(each), 1)
        return on_one

    def _asked_bytes(
        self, record: NodeRecord, gone: Collection[str], coming: Iterable[PodFacts]
    ) -> tuple[Bytes, Bytes]:
        """What is asked of a node by all but those that are taken to be gone, with those that are coming.

        Returns:
            All of it, and what of it may not be measured yet.
        """
        columns, row = self._columns, record.row
        asks = [*self._promised(record, gone)]
        asks += [(facts.units, self._coming_bytes(facts)) for facts in coming]
        on_way = np.array(columns.memory_asked_bytes(asks, row))
        bound, untaken = columns.memory_bound_bytes[:, row], columns.memory_untaken_bytes[:, row]
        if any(uid in record.pods for uid in gone):
            left = record.pods.keys() - set(gone)
            bound = np.array(columns.memory_asked_bytes(_bound(record, left), row))
            untaken = np.array(columns.memory_asked_bytes(_bound(record, left & record.untaken), row))
        return together(on_way, bound), together(on_way, untaken)

    def _promised(self, record: NodeRecord, gone: Collection[str] = ()) -> Iterator[tuple[Units, float]]:
        for held in self._reservations.on_node(record.name):
            if held.uid not in gone:
                yield held.units, held.memory_bytes

    def _coming_bytes(self, facts: PodFacts) -> float:
        """What each unit of a pod without a node is to have; read again whenever anybody may say something else."""
        said_by = (self._intents.generation, self._intents.settings)
        if self._coming_by[0] != said_by[0] or self._coming_by[1] is not said_by[1]:
            self._coming_by = said_by
            self._coming.clear()
        kept = self._coming.get(facts.uid)
        if kept is None or kept[0] is not facts:
            if len(self._coming) >= MOST_COMING:
                self._coming.clear()
            kept = self._coming[facts.uid] = (facts, self._wanted_bytes(facts))
        return kept[1]

    def _wanted_bytes(self, facts: PodFacts) -> float:
        return self._intents.resolve(facts.meta, facts.priority_class).value("gpu-memory") or 0.0


def _bound(record: NodeRecord, uids: Iterable[str]) -> Iterator[tuple[Units, float]]:
    return ((record.pods[uid].units, record.memory_bytes[uid]) for uid in uids)
