"""What really is, beside what would be had we placed the pods: the figures of both, from the same measurements. Pure.

The real one is what is measured at that instant. Ours is the same measurement, with the load and the watts above rest
of each pod that was moved taken off the node where it runs and put on the node where it would: so the two differ by
placement alone, and where pods stand as they do anyway, not at all.

Load and watts are about the nodes that are measured, the same in both worlds. A pod of which nothing is measured, or
that would stand on a node that is not, is not taken along, and keeps its node in use: what is missing is no saving.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.snapshot import Snapshot
from scheduler.decision.cycle import Mask
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
    gpu_nodes: float
    """Nodes with GPUs."""
    load_nodes: float
    """Those whose load is measured: the spread is over these."""
    stranded_gpus: float
    """Free GPUs on nodes that could take no pod of LARGE_POD_GPUS."""
    used_nodes: float
    power_in_use_w: float | None
    """Watts of nodes with a pod, of those that are measured; None if none is, 0 if no node has a pod."""
    power_nodes: float
    """Nodes with a pod whose watts are measured."""
    held_gpus: float
    """GPUs at work: those of pods that have a node. Fewer with us are less work, of pods that wait."""
    waiting_pods: float
    """Pods without a node. This and the counts above have fractions in a mean."""


FIGURES = tuple(each.name for each in fields(World))
LOAD, POWER = "load_spread_frac", "power_in_use_w"


@dataclass(frozen=True, slots=True, kw_only=True)
class Worlds:
    """Both, and how much of the cluster they are about."""

    real: World
    ours: World
    nodes_in_use: int
    """In either world."""
    nodes_power_known: int
    """Of those."""
    unmeasured: int
    """Pods that were moved, and whose load or watts are not known."""
    to_unmeasured: int
    """Pods that were moved to a node whose load or watts are not known."""
    moved_load: Floats
    """What was moved: load of each slot of Moved at that instant; NaN is unknown."""
    moved_power_w: Floats
    """Likewise, watts above rest."""
    load_taken: Mask
    """Slots whose load is taken along to where they would stand; the others count where they run."""
    power_taken: Mask
    """Likewise, watts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What each real row measures at one instant, and what of it a bound GPU does; (rows,), NaN is unknown."""

    load: Floats
    load_each: Floats
    power_w: Floats
    power_each_w: Floats
    """Above rest."""


def read(real: Snapshot, power_w: Floats, rest_w: Floats) -> Reading:
    """Read an instant.

    Args:
        real: Where pods run.
        power_w: What each row draws.
        rest_w: What all GPUs of each row draw at rest.
    """
    known, bound = measured(real), np.where(real.bound_gpus > 0, real.bound_gpus, np.nan)
    load = np.where(known, real.load_sum, np.nan).astype(np.float64)
    return Reading(
        load=load,
        load_each=np.minimum(load / bound, 1),
        power_w=power_w,
        power_each_w=np.maximum(power_w - rest_w, 0) / bound,
    )


class Means:
    """Both worlds over time: of each figure the average over the time for which it was known, the same in both."""

    def __init__(self) -> None:
        self.span_s = 0.0
        """How long it is the average of."""
        self._known_s: dict[str, float] = dict.fromkeys(FIGURES, 0.0)
        self._sums: dict[str, list[float]] = {name: [0.0, 0.0] for name in FIGURES}

    def add(self, now: Worlds, span_s: float) -> None:
        """Take one instant, which stands for so long."""
        self.span_s += span_s
        for name in FIGURES:
            pair = getattr(now.real, name), getattr(now.ours, name)
            if None in pair:
                continue
            self._known_s[name] += span_s
            for index, value in enumerate(pair):
                self._sums[name][index] += value * span_s

    def known_frac(self, name: str) -> float:
        """For how much of the time a figure was known."""
        return self._known_s[name] / self.span_s if self.span_s else 0.0

    def worlds(self) -> tuple[World, World] | None:
        """The real one and ours; None before there is a span of time."""
        return (self._world(0), self._world(1)) if self.span_s else None

    def _world(self, index: int) -> World:
        # Counts are known at every instant, and so never None.
        known = {name: known_s for name, known_s in self._known_s.items() if known_s}
        values: dict[str, Any] = dict.fromkeys(FIGURES)
        return World(**values | {name: self._sums[name][index] / each_s for name, each_s in known.items()})


def compare(
    real: Snapshot, ours: Snapshot, ours_of: Rows, moved: Moved, now: Reading, waiting_pods: tuple[int, int]
) -> Worlds:
    """Compare.

    Args:
        real: Where pods run.
        ours: Where they would; its measurements are not read.
        ours_of: The row in `ours` of each row of `real`; -1 if there is none.
        moved: The pods that stand elsewhere.
        now: What the real rows measure.
        waiting_pods: In the real world, and in ours.
    """
    rows = np.flatnonzero((ours_of >= 0) & (real.counted_gpus > 0))
    at = ours_of[rows]
    gpus = real.counted_gpus[rows].astype(np.float64)
    place = _Place(moved, rows, at, ours.rows)
    # 1. Load. Whatever is unknown is so in both worlds.
    moved_load = moved.shares(now.load_each)
    load_taken, loads = place.worlds(moved_load, now.load)
    load_known = ~np.isnan(loads[0])
    # 2. Watts, of nodes in use. What claims hold is none of our store's, and stands where it really is.
    by_claims = real.gpu_count[rows] - ours.gpu_count[at]
    bound_gpus = (real.bound_gpus[rows], ours.bound_gpus[at] + by_claims)
    in_use = (bound_gpus[0] > 0, bound_gpus[1] > 0)
    moved_power_w = moved.shares(now.power_each_w)
    power_taken, power_w = place.worlds(moved_power_w, now.power_w)
    power_known = ~np.isnan(power_w[0])
    # Who is not taken along keeps the node where it runs from looking idle with us.
    drawing = (in_use[0], in_use[1] | place.kept(power_taken, real.rows))
    # 3. Free GPUs.
    taking = ~real.cordoned[rows] & ~real.quarantined[rows]
    usable = np.minimum(real.gpu_count[rows], real.healthy_gpus[rows])
    # 4. Work: a pod's is the same wherever it stands, of however many parts its GPU there is.
    _, held_gpus = place.worlds(moved.gpus, real.bound_gpus.astype(np.float64))
    worlds = [
        World(
            load_spread_frac=_spread(loads[world][load_known] / gpus[load_known], gpus[load_known]),
            gpu_nodes=len(rows),
            load_nodes=int(np.count_nonzero(load_known)),
            stranded_gpus=_stranded(usable[taking] - bound[taking]),
            used_nodes=int(np.count_nonzero(in_use[world])),
            power_in_use_w=_power_w(power_w[world][drawing[world]]),
            power_nodes=int(np.count_nonzero(in_use[world] & power_known)),
            held_gpus=float(held_gpus[world].sum()),
            waiting_pods=waiting_pods[world],
        )
        for world, bound in enumerate(bound_gpus)
    ]
    either = in_use[0] | in_use[1]
    return Worlds(
        real=worlds[0],
        ours=worlds[1],
        nodes_in_use=int(np.count_nonzero(either)),
        nodes_power_known=int(np.count_nonzero(either & power_known)),
        unmeasured=int(np.count_nonzero((moved.gpus > 0) & np.isnan(moved_load + moved_power_w))),
        to_unmeasured=int(np.count_nonzero(place.goes & ~place.reaches(now.load + now.power_w))),
        moved_load=moved_load,
        moved_power_w=moved_power_w,
        load_taken=load_taken,
        power_taken=power_taken,
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


def measured(snapshot: Snapshot) -> Mask:
    """Rows whose load is measured, every GPU of it, and holds no guess; shape (rows,)."""
    known: Mask = (snapshot.counted_gpus > 0) & (snapshot.known_gpus >= snapshot.counted_gpus)
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

    @property
    def goes(self) -> Mask:
        """Slots of pods that would stand on a node; shape (slots,), as all masks here but for kept."""
        goes: Mask = self.moved.ours >= 0
        return goes

    def reaches(self, now: Floats) -> Mask:
        """Slots that would be on a node that is measured, or on none."""
        # The last one is nowhere: -1.
        known = np.zeros(self.ours_rows + 1, bool)
        known[self.at] = ~np.isnan(now[self.rows])
        known[-1] = True
        return known[self.moved.ours]

    def worlds(self, values: Floats, now: Floats) -> tuple[Mask, tuple[Floats, Floats]]:
        """Slots that are taken along; what each node measures, and the same with these where they would be.

        Args:
            values: What each slot does of it.
            now: What each real row measures.
        """
        moved = self.moved
        along = ~np.isnan(values) & self.reaches(now)
        values = np.where(along, values, 0)
        taken = moved.sums(moved.real, values, len(now))
        brought = moved.sums(moved.ours, values, self.ours_rows)
        really = now[self.rows]
        return along, (really, np.maximum(really - taken[self.rows], 0) + brought[self.at])

    def kept(self, along: Mask, real_rows: int) -> Mask:
        """Nodes on which pods run that are not taken along; shape (nodes,)."""
        moved = self.moved
        return moved.sums(moved.real, np.where(along, 0, moved.gpus), real_rows)[self.rows] > 0


def _spread(load: Floats, gpus: Floats) -> float | None:
    if not len(load):
        return None
    mean = np.average(load, weights=gpus)
    return float(np.sqrt(np.average((load - mean) ** 2, weights=gpus)))


def _power_w(power_w: Floats) -> float | None:
    """Of these nodes, as far as it is known."""
    known = power_w[~np.isnan(power_w)]
    return float(known.sum()) if len(known) or not len(power_w) else None


def _stranded(free: NDArray[np.float32]) -> float:
    return float(np.maximum(free, 0)[free < LARGE_POD_GPUS].sum())
