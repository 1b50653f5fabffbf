"""What agents tell of GPUs, written into columns and read back. Pure; the store owns the only instance."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Sequence

import numpy as np
from msgspec import UNSET

from scheduler.cluster.columns import STATE_HUNG, STATE_LOST, STATE_OK, STATE_UNKNOWN, Columns
from scheduler.cluster.nodes import NodeRecord, Nodes
from scheduler.cluster.shared_memory import SharedMemory
from scheduler.telemetry.sample import Inventory, Sample

STATES = {"ok": STATE_OK, "unknown": STATE_UNKNOWN, "lost": STATE_LOST, "hung": STATE_HUNG}
BROKEN_WORDS = {STATE_LOST: "lost", STATE_HUNG: "hung"}
# Inventories of nodes that Kubernetes has not told of yet, or no longer tells of. A full cluster and some.
MOST_EARLY_INVENTORIES = 10_000


class Measurements:
    """Inventories and readings of the nodes that there are."""

    def __init__(
        self,
        columns: Columns,
        nodes: Nodes,
        counters: Counter[str],
        memory: SharedMemory,
        *,
        half_life_s: float,
        stale_s: float,
    ) -> None:
        self._columns = columns
        self._nodes = nodes
        self._counters = counters
        self._memory = memory
        self._half_life_s = half_life_s
        self._stale_s = stale_s
        self._early_inventories: OrderedDict[str, Inventory] = OrderedDict()
        """The one told longest ago comes first."""

    def use(self, *, half_life_s: float, stale_s: float, now_mono_s: float) -> None:
        """Take other limits: how old a reading may be is judged anew for all nodes, and all are folded again."""
        self._half_life_s = half_life_s
        self._stale_s = stale_s
        columns = self._columns
        columns.fresh[:] = columns.told
        self.age(now_mono_s)
        columns.fold_readings(np.arange(columns.rows))

    def see_inventory(self, node: str, inventory: Inventory) -> None:
        """An agent says what its node has. Other GPUs than before: their readings start anew."""
        record = self._nodes.records.get(node)
        if record is None:
            self._keep_early(node, inventory)
            return
        columns = self._columns
        columns.ensure_width(len(inventory.gpus))
        row = record.row
        before = [g.uuid for g in record.inventory.gpus] if record.inventory else []
        if before != [g.uuid for g in inventory.gpus]:
            self._start_anew(row, len(inventory.gpus))
        record.inventory = inventory
        if inventory.gpus:
            record.model = inventory.gpus[0].model
        self._nodes.renew(record)

    def forget_inventory(self, node: str) -> None:
        """Somebody cleared what an agent had said: what the node has is as unknown as if there had been none."""
        self._early_inventories.pop(node, None)
        record = self._nodes.records.get(node)
        if record is None or record.inventory is None:
            return
        self._start_anew(record.row, 0)
        record.inventory = None
        self._nodes.renew(record)

    def _start_anew(self, row: int, gpus: int) -> None:
        columns = self._columns
        columns.forget_readings(row)
        columns.util[row] = columns.memory_used_bytes[row] = np.nan
        columns.state[row] = STATE_OK
        columns.slot[row] = False
        columns.slot[row, :gpus] = True

    def _keep_early(self, node: str, inventory: Inventory) -> None:
        early = self._early_inventories
        early[node] = inventory
        early.move_to_end(node)
        if len(early) > MOST_EARLY_INVENTORIES:
            early.popitem(last=False)
            self._counters["inventories_forgotten"] += 1

    def node_gone(self, record: NodeRecord) -> None:
        """A node has gone, its agent may run on: that sends its inventory on connecting only, so it is kept."""
        if record.inventory is not None:
            self._keep_early(record.name, record.inventory)

    def see_node(self, name: str) -> None:
        """A node has appeared; its agent may have come up first."""
        early = self._early_inventories.pop(name, None)
        if early is not None:
            self.see_inventory(name, early)

    def see_samples(self, batch: Sequence[tuple[str, Sample, float]]) -> None:
        """Write samples (node, sample, instant of receipt), at most one a node, in one go."""
        rows: list[int] = []
        counts: list[int] = []
        util: list[float | None] = []
        power_w: list[float | None] = []
        state: list[int] = []
        received: list[float] = []
        records = self._nodes.records
        for node, sample, mono_s in batch:
            record = records.get(node)
            if record is None or record.inventory is None or len(record.inventory.gpus) != len(sample.state):
                self._counters["samples_unknown_node" if record is None else "samples_without_inventory"] += 1
                continue
            rows.append(record.row)
            counts.append(len(sample.state))
            util += sample.util_frac
            power_w += sample.power_w
            state += [STATES.get(s, STATE_UNKNOWN) for s in sample.state]
            received.append(mono_s)
            record.agent = sample.agent
            if record.shared:
                told = sample.mem_used_bytes
                self._columns.memory_used_bytes[record.row, : len(sample.state)] = (
                    math.nan if told is UNSET else [math.nan if used is None else used for used in told]
                )
        if rows:
            self._columns.write_readings(
                np.array(rows, np.intp),
                np.array(counts, np.intp),
                util=np.array(util, np.float32),
                power_w=np.array(power_w, np.float32),
                state=np.array(state, np.uint8),
                received_mono_s=np.array(received, np.float64),
                half_life_s=self._half_life_s,
            )
            self._memory.settle()

    def forget(self, node: str) -> None:
        """A node's readings are unknown from now on."""
        row = self._nodes.rows.get(node)
        if row is not None:
            self._columns.forget_readings(row)
            self._columns.fold_readings(np.array([row]))

    def age(self, now_mono_s: float) -> None:
        """Readings grow older, and are unknown beyond the limit."""
        columns = self._columns
        np.subtract(now_mono_s, columns.received_mono_s, out=columns.age_s, casting="unsafe")
        stale = np.flatnonzero(columns.fresh & (columns.age_s > self._stale_s))
        if len(stale):
            columns.fresh[stale] = False
            columns.fold_readings(stale)

    def node_power_w(self, row: int) -> float | None:
        """Measured watts of all GPUs of a node; None where any of them is unknown."""
        power_w = float(self._columns.node_power_w[row])
        return None if np.isnan(power_w) else power_w

    def gpu_readings(self, name: str) -> list[tuple[str, float | None, float | None]]:
        """Per GPU of a node, in the inventory's order: state, decayed utilisation, watts; None is unknown.

        The state is `lost` or `hung` as the agent last said, else `ok` where the utilisation is known, else `unknown`.
        """
        record = self._nodes.records[name]
        columns, row = self._columns, record.row
        readings: list[tuple[str, float | None, float | None]] = []
        for index in range(len(record.inventory.gpus) if record.inventory else 0):
            known = bool(columns.known[row, index] and columns.fresh[row])
            power_w = float(columns.power_w[row, index])
            state = BROKEN_WORDS.get(int(columns.state[row, index]), "ok" if known else "unknown")
            util_frac = float(columns.util[row, index]) if state == "ok" else None
            readings.append(
                (state, util_frac, None if np.isnan(power_w) or not columns.fresh[row] else power_w)
            )
        return readings

    def received_mono_s(self, row: int) -> float:
        """Instant of the node's last sample; -inf if none."""
        return float(self._columns.received_mono_s[row])
