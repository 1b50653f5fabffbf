"""The store's arrays: per-GPU facts of shape (rows, gpus), folded into node-level columns of shape (rows,).

Rows are reused through a free list. Only the store and its parts write here. All arithmetic that turns per-GPU facts,
known and unknown, into what policies may read is in `fold_*`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.memory_free import fold_shared_memory
from scheduler.cluster.snapshot import ROUNDING, FloatColumn, Snapshot, lost_units
from scheduler.core.nouns import GPU_RESOURCE, Units

Rows = NDArray[np.intp]
GROWTH = 64
# Sets of models told apart: a cluster has a dozen. Beyond that somebody invents them, and they are unknown.
MOST_MODEL_SETS = 4096
# Resources that are GPUs or parts of them: a cluster has a handful, MIG has two dozen profiles.
MOST_RESOURCES = 64
STATE_OK, STATE_UNKNOWN, STATE_LOST, STATE_HUNG = 0, 1, 2, 3
# Both of these are broken to all arithmetic; the words differ for people.
FIRST_BROKEN_STATE = STATE_LOST


class Columns:
    """Arrays in place, growing by doubling; `snapshot` is a set of read-only views that is renewed on growth."""

    def __init__(self, *, neutral_load: float, stale_s: float, pools: int) -> None:
        self.neutral_load = neutral_load
        self.stale_s = stale_s
        self.rows = 0
        self.width = 8
        self._free_rows: list[int] = []
        self.pool_sizes = [0] * pools
        self.model_sets: dict[frozenset[str], int] = {frozenset(): 0}
        """Sets of models that nodes have, with their index."""
        self.resources: dict[str, int] = {GPU_RESOURCE: 0}
        """Resources that are GPUs or parts of them, with their row in the columns of units."""
        self._allocate(0)

    def _allocate(self, rows: int) -> None:
        f4, f8 = np.float32, np.float64
        self.rows = rows
        # Per GPU.
        self.util = np.full((rows, self.width), np.nan, f4)
        self.power_w = np.full((rows, self.width), np.nan, f4)
        self.slot = np.zeros((rows, self.width), bool)
        self.known = np.zeros((rows, self.width), bool)
        self.state = np.zeros((rows, self.width), np.uint8)
        self.memory_used_bytes = np.full((rows, self.width), np.nan, f8)
        """Kept only of nodes with units that share a GPU's memory."""
        # Per resource and node.
        kinds = len(self.resources)
        self.units = np.zeros((kinds, rows), f4)
        self.unit_gpus = np.ones((kinds, rows), f4)
        self.unit_memory_bytes = np.zeros((kinds, rows), f8)
        self.unit_shared = np.zeros((kinds, rows), bool)
        self.bound_units = np.zeros((kinds, rows), f4)
        self.reserved_units = np.zeros((kinds, rows), f4)
        self.free_units = np.zeros((kinds, rows), f4)
        # Per node, written by events.
        self.present = np.zeros(rows, bool)
        self.gpu_count = np.zeros(rows, f4)
        self.counted_gpus = np.zeros(rows, f4)
        self.bound = np.zeros(rows, f4)
        self.reserved = np.zeros(rows, f4)
        self.received_mono_s = np.full(rows, -np.inf, f8)
        # From a sample until it is forgotten: what it told counts while it is young enough.
        self.told = np.zeros(rows, bool)
        self.pool = np.zeros(rows, np.uint8)
        self.in_two_pools = np.zeros(rows, bool)
        self.quarantined = np.zeros(rows, bool)
        self.cordoned = np.zeros(rows, bool)
        self.capability = np.ones(rows, f4)
        self.models = np.zeros(rows, np.int16)
        self.gpu_memory_bytes = np.zeros(rows, f8)
        self.shared = np.zeros(rows, bool)
        self._allocate_asks(rows)
        self.name_hash = np.zeros(rows, np.uint32)
        # Per node, folded.
        self.healthy = np.full(rows, np.inf, f4)
        self.free = np.zeros(rows, f4)
        self.strays = np.zeros(rows, bool)
        """Where pods hold units of which none is allocatable any more."""
        self.load_sum = np.zeros(rows, f4)
        self.pending = np.zeros(rows, f4)
        self.known_gpus = np.zeros(rows, f4)
        self.fresh = np.zeros(rows, bool)
        self.age_s = np.full(rows, np.inf, f4)
        self.node_power_w = np.full(rows, np.nan, f4)
        self._unknown_floor = np.zeros(rows, f4)
        self._unknown_count = np.zeros(rows, f4)
        self._known_sum = np.zeros(rows, f4)
        self._broken_count = np.zeros(rows, f4)
        self.renew_snapshot()

    def _allocate_asks(self, rows: int) -> None:
        # What pods of the node have asked of memory that units share: in all, and the most for one unit.
        self.memory_bound_bytes = np.zeros((2, rows), np.float64)
        self.memory_reserved_bytes = np.zeros((2, rows), np.float64)
        # As much of what is bound as may not be measured yet, and from when on a sample has more of it.
        self.memory_untaken_bytes = np.zeros((2, rows), np.float64)
        self.memory_settles_mono_s = np.full(rows, np.inf, np.float64)

    def renew_snapshot(self) -> None:
        """Make the read-only views anew: after growth, or when a scalar that they carry has changed."""

        def view(column: NDArray[np.generic]) -> NDArray[np.generic]:
            readonly = column.view()
            readonly.flags.writeable = False
            return readonly

        self.snapshot = Snapshot(
            present=view(self.present),  # type: ignore[arg-type]  # view() keeps the dtype; generics cannot say so
            gpu_count=view(self.gpu_count),  # type: ignore[arg-type]  # likewise, to the end of this call
            counted_gpus=view(self.counted_gpus),  # type: ignore[arg-type]
            healthy_gpus=view(self.healthy),  # type: ignore[arg-type]
            free_gpus=view(self.free),  # type: ignore[arg-type]
            bound_gpus=view(self.bound),  # type: ignore[arg-type]
            reserved_gpus=view(self.reserved),  # type: ignore[arg-type]
            load_sum=view(self.load_sum),  # type: ignore[arg-type]
            pending_load=view(self.pending),  # type: ignore[arg-type]
            known_gpus=view(self.known_gpus),  # type: ignore[arg-type]
            fresh=view(self.fresh),  # type: ignore[arg-type]
            reading_age_s=view(self.age_s),  # type: ignore[arg-type]
            pool=view(self.pool),  # type: ignore[arg-type]
            in_two_pools=view(self.in_two_pools) if self.in_two_pools.any() else None,  # type: ignore[arg-type]
            quarantined=view(self.quarantined),  # type: ignore[arg-type]
            cordoned=view(self.cordoned),  # type: ignore[arg-type]
            capability=view(self.capability),  # type: ignore[arg-type]
            models=view(self.models),  # type: ignore[arg-type]
            units=view(self.units),  # type: ignore[arg-type]
            unit_gpus=view(self.unit_gpus),  # type: ignore[arg-type]
            unit_memory_bytes=view(self.unit_memory_bytes),  # type: ignore[arg-type]
            bound_units=view(self.bound_units),  # type: ignore[arg-type]
            reserved_units=view(self.reserved_units),  # type: ignore[arg-type]
            free_units=view(self.free_units),  # type: ignore[arg-type]
            name_hash=view(self.name_hash),  # type: ignore[arg-type]
            # Rows without a node hold 1 and 0.
            capability_max=float(self.capability.max(initial=1)),
            gpu_count_max=float(self.gpu_count.max(initial=1)),
            pool_sizes=tuple(self.pool_sizes),
            stale_s=self.stale_s,
            model_sets=tuple(self.model_sets),
            # A name that comes later has a column that this snapshot lacks.
            resources=self.resources.copy(),
        )

    def model_index(self, models: frozenset[str]) -> int:
        """The index of a set of models; a new one is kept."""
        if len(self.model_sets) >= MOST_MODEL_SETS:
            return self.model_sets.get(models, 0)
        return self.model_sets.setdefault(models, len(self.model_sets))

    def resource_index(self, name: str) -> int | None:
        """The row of a resource in the columns of units; a new one is kept. None if there are too many."""
        if name not in self.resources:
            if len(self.resources) >= MOST_RESOURCES:
                return None
            self.resources[name] = len(self.resources)
            self._grow(self.width, self.rows)
        return self.resources[name]

    def indexed(self, units: Units) -> list[tuple[int, float]]:
        """Resources by their rows; without those that no node has."""
        return [(self.resources[name], count) for name, count in units if name in self.resources]

    def gpus_of(self, units: Units, row: int) -> float:
        """How much of a node's GPUs these units are."""
        return float(sum(self.unit_gpus[index, row] * count for index, count in self.indexed(units)))

    def memory_asked_bytes(self, asks: Iterable[tuple[Units, float]], row: int) -> tuple[float, float]:
        """What is asked of memory that units share on this node: in all, and the most for one unit.

        Args:
            asks: By pod, its units, and what each of them is to have.
            row: The node's.
        """
        whole_bytes = most_bytes = 0.0
        for units, each_bytes in asks:
            count = sum(count for index, count in self.indexed(units) if self.unit_shared[index, row])
            if count:
                whole_bytes += each_bytes * count
                most_bytes = max(most_bytes, each_bytes)
        return whole_bytes, most_bytes

    def take_row(self) -> int:
        """A row nobody uses, reset."""
        if not self._free_rows:
            self._grow(self.width, self.rows + max(GROWTH, self.rows // 8))
        return self._free_rows.pop()

    def free_row(self, row: int) -> None:
        """Give a row back, with neutral values in it."""
        self.present[row] = False
        self.forget_readings(row)
        self.received_mono_s[row] = -np.inf
        self.age_s[row] = np.inf
        self.slot[row] = False
        self.units[:, row] = self.bound_units[:, row] = self.reserved_units[:, row] = 0
        self.unit_gpus[:, row] = 1
        self.unit_memory_bytes[:, row] = 0
        self.unit_shared[:, row] = self.shared[row] = False
        self.memory_bound_bytes[:, row] = self.memory_reserved_bytes[:, row] = 0
        self.memory_untaken_bytes[:, row], self.memory_settles_mono_s[row] = 0, np.inf
        self.gpu_count[row] = self.counted_gpus[row] = self.pending[row] = 0
        self.quarantined[row] = self.cordoned[row] = self.in_two_pools[row] = False
        self.capability[row] = 1
        self.pool[row] = 0
        self.models[row] = self.gpu_memory_bytes[row] = 0
        self.util[row] = self.memory_used_bytes[row] = np.nan
        self.state[row] = STATE_OK
        self.fold_readings(np.array([row]))
        self._free_rows.append(row)

    def forget_readings(self, row: int) -> None:
        """All readings of a node become unknown at once (offline, new hardware).

        Their age goes on: how long nothing has come is what people ask of a node that is offline, and by how much its
        last utilisation has decayed when its agent comes back.
        """
        self.known[row] = False
        self.power_w[row] = np.nan
        self.told[row] = self.fresh[row] = False

    def ensure_width(self, gpus: int) -> None:
        """Make room for nodes with this many GPUs."""
        if gpus > self.width:
            self._grow(gpus, self.rows)

    def _grow(self, width: int, rows: int) -> None:
        old = {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        old_rows = self.rows
        self.width = width
        self._allocate(rows)
        for name, values in old.items():
            target = getattr(self, name)
            target[tuple(slice(length) for length in values.shape)] = values
        self._free_rows.extend(range(rows - 1, old_rows - 1, -1))

    def fold_readings(self, rows: Rows | slice) -> None:
        """Fold per-GPU readings of some rows into their load, health and power. One row is fastest as a slice.

        A known GPU counts its decayed utilisation. An unknown one that is free counts the neutral load or its last
        value, whichever is higher; one that is allocated counts as fully loaded. Which of several GPUs are
        allocated only the device plugin knows: as many of the unknown ones as the node has bound GPUs are taken
        to be. A lost or hung GPU counts as fully loaded and is not free: policies divide by all GPUs of the node, so
        that one without a load would make its node look idler than before it broke. So does a GPU that Kubernetes
        counts and the inventory lacks: it fell off the bus before its agent came up. So neither forgetting a reading
        nor the loss of a GPU ever lowers the load.
        """
        slot, util = self.slot[rows], self.util[rows]
        broken = slot & (self.state[rows] >= FIRST_BROKEN_STATE)
        known = slot & ~broken & self.known[rows] & self.fresh[rows, None]
        unknown = slot & ~broken & ~known
        slots = slot.sum(1)
        last = np.where(np.isnan(util), 0, util)
        floor = np.where(unknown, np.maximum(last, self.neutral_load), 0).sum(1)
        blind = np.where(
            slots > 0, 0, self.gpu_count[rows]
        )  # no inventory: all that Kubernetes counts is unknown
        self._known_sum[rows] = np.where(known, last, 0).sum(1)
        self._unknown_count[rows] = unknown.sum(1) + blind
        self._unknown_floor[rows] = floor + blind * self.neutral_load
        missing = np.where(slots > 0, np.maximum(self.gpu_count[rows] - slots, 0), 0)
        found_broken = broken.sum(1)
        self._broken_count[rows] = found_broken + missing
        self.known_gpus[rows] = known.sum(1)
        self.healthy[rows] = np.where(slots > 0, slots - found_broken, np.inf)
        power_w = self.power_w[rows]
        measured = slot & self.fresh[rows, None] & ~np.isnan(power_w)
        total_w = np.where(measured, power_w, 0).sum(1)
        # A sum with a hole in it is not the node's power: it would look like a saving.
        self.node_power_w[rows] = np.where((slots > 0) & (measured.sum(1) == slots), total_w, np.nan)
        self.fold_holdings(rows)

    def fold_holdings(self, rows: Rows | slice) -> None:
        """Fold what is bound and reserved into free units and GPUs, and into how many unknown GPUs count as busy."""
        bound, reserved = self.bound_units[:, rows], self.reserved_units[:, rows]
        each = self.unit_gpus[:, rows]
        self.bound[rows] = (bound * each).sum(0)
        self.reserved[rows] = (reserved * each).sum(0)
        unknown = self._unknown_count[rows]
        busy = np.minimum(unknown, self.bound[rows])
        floor = np.minimum(self._unknown_floor[rows] + busy * (1 - self.neutral_load), unknown)
        self.load_sum[rows] = self._known_sum[rows] + floor + self._broken_count[rows]
        self.strays[rows] = ((bound > 0) & (self.units[:, rows] == 0)).any(0)
        self.free_units[:, rows], self.free[rows] = self.free_beside(bound + reserved, rows)
        if np.count_nonzero(self.shared[rows]):
            some = np.arange(self.rows)[rows]
            fold_shared_memory(self, some[self.shared[some]])

    def free_beside(self, held_units: FloatColumn, rows: Rows | slice) -> tuple[FloatColumn, FloatColumn]:
        """What is free of some nodes: units of each resource (resources, nodes), and GPUs in all (nodes,).

        A broken GPU may have been any of the node's: where these are divided in several ways, each way lacks it.
        """
        each = self.unit_gpus[:, rows]
        left = self.units[:, rows] - held_units
        lost = self.gpu_count[rows] - self.healthy[rows]
        if np.count_nonzero(lost > ROUNDING):
            left -= lost_units(each, lost)
        free = np.maximum(left, 0)
        gpus = (free * each).sum(0)
        if np.count_nonzero(self.strays[rows]):
            # The plugin calls its GPUs otherwise by now. Their pods are still there, and kube-scheduler, which counts
            # by name, does not see that: what it offers stays, and looks no emptier than it is.
            stray = np.where(self.units[:, rows] == 0, held_units, 0)
            gpus = np.maximum(gpus - (stray * each).sum(0), 0)
        return free, gpus

    def sound(self, rows: Rows | slice) -> NDArray[np.bool_]:
        """Which GPUs of some nodes are there and not broken, shape (nodes, gpus)."""
        sound: NDArray[np.bool_] = self.slot[rows] & (self.state[rows] < FIRST_BROKEN_STATE)
        return sound

    def sharing_gpus(self, rows: Rows | slice) -> FloatColumn:
        """How many GPUs of each node units share, as far as these are sound; 1 at least.

        A broken GPU may have been any of the node's.
        """
        gpus = (self.units[:, rows] * self.unit_gpus[:, rows] * self.unit_shared[:, rows]).sum(0)
        lost = np.maximum(self.gpu_count[rows] - self.healthy[rows], 0)
        sharing: FloatColumn = np.maximum(np.floor(gpus - lost + ROUNDING), 1)
        return sharing

    def shared_units(self, units: Units, rows: Rows | slice) -> FloatColumn:
        """How many of these units share a GPU with others, on each node."""
        counts = np.zeros(self.rows, np.float32)[rows]
        for index, count in self.indexed(units):
            counts += self.unit_shared[index, rows] * np.float32(count)
        return counts

    def write_readings(
        self,
        rows: Rows,
        counts: Rows,
        *,
        util: FlatColumn,
        power_w: FlatColumn,
        state: NDArray[np.uint8],
        received_mono_s: NDArray[np.float64],
        half_life_s: float,
    ) -> None:
        """Write one sample per row: utilisation decays towards the new value by the time since the last one.

        `util`, `power_w` and `state` are flat: the GPUs of rows[0], then of rows[1], …; NaN is unknown.
        """
        r = np.repeat(rows, counts)
        ends = np.cumsum(counts)
        g = np.arange(len(r)) - np.repeat(ends - counts, counts)
        since_s = received_mono_s - self.received_mono_s[rows]
        keep = np.repeat(np.exp2(-np.maximum(since_s, 0) / half_life_s), counts)
        old = self.util[r, g]
        # A GPU in a state that its agent does not know, or says with a word of later days, is not read.
        known = ~np.isnan(util) & (state != STATE_UNKNOWN)
        mixed = np.where(np.isnan(old), util, keep * old + (1 - keep) * util)
        self.util[r, g] = np.where(known, mixed, old)
        self.known[r, g] = known
        self.power_w[r, g] = power_w
        self.state[r, g] = state
        self.received_mono_s[rows] = received_mono_s
        self.age_s[rows] = 0
        self.told[rows] = self.fresh[rows] = True
        self.fold_readings(rows)


FlatColumn = NDArray[np.float32]
