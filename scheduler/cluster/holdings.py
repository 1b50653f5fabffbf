"""Which pods hold what of which nodes. Pure; the store owns the only instance."""

from __future__ import annotations

from collections.abc import Callable

from scheduler.cluster.columns import Columns
from scheduler.cluster.dra import Devices
from scheduler.cluster.neighbours import Neighbours
from scheduler.cluster.nodes import NodeRecord
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.promises import Promises
from scheduler.cluster.resized import told
from scheduler.telemetry.sample import MOST_GPUS


class Holdings:
    """Pods that ask for GPUs, with their effect on columns."""

    def __init__(
        self,
        columns: Columns,
        records: dict[str, NodeRecord],
        promises: Promises,
        expected_load: Callable[[PodFacts], float],
        neighbours: Neighbours,
        devices: Devices,
    ) -> None:
        self.pods: dict[str, PodFacts] = {}
        self.waiting: dict[str, PodFacts] = {}
        """Those without a node."""
        self._columns = columns
        self._records = records
        self._promises = promises
        self._expected_load = expected_load
        self._neighbours = neighbours
        self._devices = devices
        self._orphans: dict[str, dict[str, PodFacts]] = {}
        """By nodes that are not there."""

    def adopt(self, record: NodeRecord) -> None:
        """A node has come; its pods may have been told of before."""
        for facts in self._orphans.pop(record.name, {}).values():
            self._hold(record, facts)

    def orphan(self, record: NodeRecord) -> None:
        """A node has gone: its pods are in the API until garbage collection; it may come back under its name."""
        if record.pods:
            self._orphans[record.name] = record.pods
        for facts in record.pods.values():
            self._neighbours.remove(facts.meta, record.row)

    def see(self, facts: PodFacts, now_mono_s: float, *, synced: bool) -> bool:
        """A pod as it is now. `synced`: all pods have been listed, so what is new is new. Returns if it was bound."""
        before = self.pods.get(facts.uid)
        if before is not None and before.node and before.node != facts.node:
            # No API server moves a pod; a uid that comes twice must not hold GPUs on two nodes.
            self.forget(facts.uid, now_mono_s)
            before = None
        self.pods[facts.uid] = facts
        self._promises.nominate(facts)
        self._promises.memory.see_pod(facts, now_mono_s)
        if not facts.node:
            self.waiting[facts.uid] = facts
            return False
        if before is not None and before.node == facts.node:
            self._replace_facts(before, facts)
            return False
        self.waiting.pop(facts.uid, None)
        self._bound(facts, now_mono_s, is_news=before is not None or synced)
        return True

    def forget(self, uid: str, now_mono_s: float) -> None:
        """A pod is gone, or has ended."""
        facts = self.pods.pop(uid, None)
        self.waiting.pop(uid, None)
        self._promises.forget_pod(uid, now_mono_s)
        self._promises.memory.forget_pod(uid)
        if facts is None or not facts.node:
            return
        record = self._records.get(facts.node)
        if record is not None and record.pods.pop(uid, None) is not None:
            self._neighbours.remove(facts.meta, record.row)
            if self._columns.fresh[record.row]:
                # The mirror image of a binding: what ended is still in the measurement for some half-lives.
                self._promises.expect(record.row, -self._load_of(facts, record), now_mono_s)
            record.came_to.pop(uid, None)
            self.add_up(record)
        elif facts.node in self._orphans:
            self._orphans[facts.node].pop(uid, None)
            if not self._orphans[facts.node]:
                del self._orphans[facts.node]

    def add_up(self, record: NodeRecord) -> None:
        """Sum what the pods of a node hold of it.

        Anew, over one node's few pods: one absurd amount, taken off again, would leave rounding behind.
        """
        columns, row = self._columns, record.row
        self._promises.memory.add_up_bound(record)
        self._promises.memory.add_up_promised(record.name)
        totals = [0.0] * len(columns.resources)
        outgrown: set[str] = set()
        for facts in record.pods.values():
            units = record.held(facts)
            for index, count in columns.indexed(units):
                totals[index] += count
            if units is not facts.units:
                outgrown.update(told(facts, record.came_to, record.offers))
        record.outgrown = tuple(sorted(outgrown))
        columns.bound_units[:, row] = totals
        if record.by_claims:
            # By other names than it offers, GPUs are held through claims, and counted by these.
            columns.bound_units[:, row] *= columns.units[:, row] > 0
            held = self._devices.held(record.name, lambda uid, name: self._counted(uid, name, record))
            for index, count in columns.indexed(tuple(held.items())):
                columns.bound_units[index, row] += count
        columns.fold_holdings(slice(row, row + 1))

    def _counted(self, uid: str, resource: str, record: NodeRecord) -> float:
        """How many units of a node are counted as a pod's own: bound there, or promised."""
        facts, promise = record.pods.get(uid), self._promises.reservations.get(uid)
        if facts is not None:
            units = facts.units
        else:
            units = promise.units if promise is not None and promise.node == record.name else ()
        return dict(units).get(resource, 0.0)

    def _replace_facts(self, before: PodFacts, facts: PodFacts) -> None:
        record = self._records.get(facts.node)
        held = record.pods if record else self._orphans.setdefault(facts.node, {})
        held[facts.uid] = facts
        if record is not None and before.meta.owner_references != facts.meta.owner_references:
            # Somebody has adopted it.
            self._neighbours.remove(before.meta, record.row)
            self._neighbours.add(facts.meta, record.row)
        if record is None:
            return
        said_more = before.meta.annotations != facts.meta.annotations
        if said_more:
            # Perhaps of memory.
            record.memory_bytes.pop(facts.uid, None)
        says_more = said_more or before.running != facts.running
        if before.units != facts.units or (says_more and record.shared):
            self.add_up(record)

    def _bound(self, facts: PodFacts, now_mono_s: float, *, is_news: bool) -> None:
        """A binding is a fact: it takes the pod's own reservation, else evicts the youngest of that node."""
        promised = self._promises.settle(facts.uid, facts.node, now_mono_s)
        record = self._records.get(facts.node)
        if record is None:
            self._orphans.setdefault(facts.node, {})[facts.uid] = facts
            return
        self._hold(record, facts)
        if not promised and is_news:
            # Placed past us, or on another node than ours: its load is coming there all the same.
            self._promises.expect(record.row, self._load_of(facts, record), now_mono_s)
        self._promises.evict(record.name, now_mono_s)

    def _hold(self, record: NodeRecord, facts: PodFacts) -> None:
        record.pods[facts.uid] = facts
        self._neighbours.add(facts.meta, record.row)
        self.add_up(record)

    def _load_of(self, facts: PodFacts, record: NodeRecord) -> float:
        """What a pod is expected to keep busy of a node, in GPUs: no more than there are, whatever it asks for."""
        columns, row = self._columns, record.row
        there = float(columns.gpu_count[row]) or MOST_GPUS
        return min(columns.gpus_of(record.held(facts), row), there) * self._expected_load(facts)
