"""What really is, beside what would be had we placed the pods: the figures of both, from the same measurements. Pure.

Of each pod that was moved, its mean load and its mean watts above rest are taken off the node where it runs and put on
the node where it would; what is left on each node is the same in both worlds. So the two differ by placement alone,
and where pods stand as they do anyway, not at all. A node is compared only if it is known in both.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.snapshot import Snapshot
from scheduler.decision.moved import Floats, Moved, Rows

# A whole node of the common kind: what the largest single-node jobs ask for.
LARGE_POD_GPUS = 8

# Columns that need images, taints, and labels of all pods, of which only the first store is told.
AS_REALLY = (
    *("image_bytes", "compared", "node_affinity", "pod_affinity", "topology_spread"),
    "untolerated_taints",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One of the two."""

    load_spread_frac: float | None
    """Population standard deviation of the nodes' mean load per GPU, weighted by GPUs; None if no node is known."""
    stranded_gpus: float
    """Free GPUs on nodes that could take no pod of LARGE_POD_GPUS."""
    used_nodes: float
    power_in_use_w: float | None
    """Watts of nodes with a pod, of those that are known; None if none is."""
    waiting_pods: float
    """Pods without a node. This and the counts above have fractions in a mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worlds:
    """Both, and how much of the cluster they are about."""

    real: World
    ours: World
    nodes: int
    nodes_load_known: int
    nodes_in_use: int
    """In either world."""
    nodes_power_known: int
    """Of those."""


class Means:
    """Both worlds over time: of each figure the mean over the instants at which it was known."""

    def __init__(self) -> None:
        self._real: dict[str, list[float]] = {}
        self._ours: dict[str, list[float]] = {}

    def add(self, now: Worlds) -> None:
        """Take one instant."""
        for world, sums in ((now.real, self._real), (now.ours, self._ours)):
            for each in fields(World):
                value = getattr(world, each.name)
                # What is known in one world is in the other, too, but for watts where no node is in use.
                if value is not None:
                    total = sums.setdefault(each.name, [0.0, 0.0])
                    total[0] += value
                    total[1] += 1

    def worlds(self) -> tuple[World, World] | None:
        """The real one and ours; None before the first instant."""
        if not self._real:
            return None
        return _mean(self._real), _mean(self._ours)


def _mean(sums: dict[str, list[float]]) -> World:
    # Counts are known at every instant, and so never None.
    values: dict[str, Any] = {each.name: None for each in fields(World)}
    values |= {name: total / times for name, (total, times) in sums.items()}
    return World(**values)


def compare(
    real: Snapshot,
    ours: Snapshot,
    ours_of: Rows,
    moved: Moved,
    *,
    load_each: Floats,
    power_each_w: Floats,
    power_w: Floats,
    waiting_pods: tuple[int, int],
) -> Worlds:
    """Compare.

    Args:
        real: Where pods run.
        ours: Where they would; its measurements are not read.
        ours_of: The row in `ours` of each row of `real`; -1 if there is none.
        moved: The pods that stand elsewhere.
        load_each: What a bound GPU of each real row was busy at the last measurement; NaN is unknown.
        power_each_w: Likewise, its watts above rest.
        power_w: What each real row draws now; NaN is unknown.
        waiting_pods: In the real world, and in ours.
    """
    rows = np.flatnonzero(real.present & (ours_of >= 0) & (real.counted_gpus > 0))
    at = ours_of[rows]
    gpus = real.counted_gpus[rows].astype(np.float64)
    # 1. Load.
    load = np.where(measured(real), real.load_sum, np.nan).astype(np.float64)
    place = _Place(moved, rows, at, ours.rows)
    loads = place.worlds(moved.load, load_each, load)
    # Whatever is unknown is so in both worlds.
    load_known = ~np.isnan(loads[0])
    # 2. Watts, of nodes in use.
    in_use = (real.bound_gpus[rows] > 0, ours.bound_gpus[at] > 0)
    power = place.worlds(moved.power_w, power_each_w, power_w)
    power_known = ~np.isnan(power[0])
    # 3. Free GPUs.
    taking = ~real.cordoned[rows] & ~real.quarantined[rows]
    usable = np.minimum(real.gpu_count[rows], real.healthy_gpus[rows])
    worlds = [
        World(
            load_spread_frac=_spread(loads[world][load_known] / gpus[load_known], gpus[load_known]),
            stranded_gpus=_stranded(usable[taking] - bound[taking]),
            used_nodes=int(np.count_nonzero(in_use[world])),
            power_in_use_w=float(power[world][in_use[world] & power_known].sum())
            if (in_use[world] & power_known).any()
            else None,
            waiting_pods=waiting_pods[world],
        )
        for world, bound in enumerate((real.bound_gpus[rows], ours.bound_gpus[at]))
    ]
    either = in_use[0] | in_use[1]
    return Worlds(
        real=worlds[0],
        ours=worlds[1],
        nodes=len(rows),
        nodes_load_known=int(np.count_nonzero(load_known)),
        nodes_in_use=int(np.count_nonzero(either)),
        nodes_power_known=int(np.count_nonzero(either & power_known)),
    )


def carried(real: Snapshot, ours: Snapshot, ours_of: Rows) -> Snapshot:
    """Our snapshot with what only the real one can say for a pod: what it prefers counts as the world really is."""
    there = ours_of >= 0
    columns: dict[str, object] = {}
    for name in AS_REALLY:
        column = getattr(real, name)
        if column is not None:
            filled = np.zeros(ours.rows, column.dtype)
            filled[ours_of[there]] = column[: len(there)][there]
            columns[name] = filled
    return ours.replace(**columns) if columns else ours


def measured(snapshot: Snapshot) -> NDArray[np.bool_]:
    """Rows whose load is measured, every GPU of it, and holds no guess; shape (rows,)."""
    known: NDArray[np.bool_] = (
        snapshot.present
        & snapshot.fresh
        & (snapshot.counted_gpus > 0)
        & (snapshot.known_gpus >= snapshot.counted_gpus)
    )
    return known


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the moved pods come from and go to."""

    moved: Moved
    rows: Rows
    """The nodes that are told of, by their real rows."""
    at: Rows
    """The same by our rows."""
    ours_rows: int

    def worlds(self, means: Floats, each: Floats, now: Floats) -> tuple[Floats, Floats]:
        """What each node measures, with the pods' means where they run, and where they would.

        Args:
            means: Of each slot.
            each: What a bound GPU of each real row measures: the pods' part of `now`.
            now: What each real row measures.
        """
        moved = self.moved
        runs = moved.real >= 0
        current = np.full(len(means), np.nan)
        current[runs] = each[moved.real[runs]] * moved.gpus[runs]
        taken, unknown_taken = moved.sums(moved.real, current, len(now))
        back, unknown_back = moved.sums(moved.real, means, len(now))
        brought, unknown_brought = moved.sums(moved.ours, means, self.ours_rows)
        rest = np.maximum(now - taken, 0)[self.rows]
        rest[(unknown_taken | unknown_back)[self.rows] | unknown_brought[self.at]] = np.nan
        return rest + back[self.rows], rest + brought[self.at]


def _spread(load: Floats, gpus: Floats) -> float | None:
    if not len(load):
        return None
    mean = np.average(load, weights=gpus)
    return float(np.sqrt(np.average((load - mean) ** 2, weights=gpus)))


def _stranded(free: NDArray[np.float32]) -> float:
    return float(np.maximum(free, 0)[free < LARGE_POD_GPUS].sum())
