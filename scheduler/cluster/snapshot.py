"""A read-only, columnar look at all nodes: what policies and the cycle see.

The store owns the arrays and writes them in place; a snapshot is a set of read-only views of them, valid within one
synchronous turn. `copy()` and `take()` give independent ones for what-ifs and records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.core.nouns import PodRequest

FloatColumn = NDArray[np.float32]
BoolColumn = NDArray[np.bool_]
AnyColumn = NDArray[Any]

# Slices are sevenths: sums of them round. No part of a GPU is as small.
ROUNDING = np.float32(1e-3)


def lost_units(unit_gpus: FloatColumn, lost_gpus: FloatColumn) -> FloatColumn:
    """How many units of each resource the broken GPUs of nodes may be, shape (resources, nodes).

    Args:
        unit_gpus: How much of a GPU one unit is, likewise.
        lost_gpus: How many GPUs are broken, shape (nodes,); below 0 where nobody tells.
    """
    # No part of a unit is free; and no more of them are lost than fit on the GPUs that are.
    fewest = np.minimum(
        np.ceil(lost_gpus / unit_gpus - ROUNDING),
        np.ceil(lost_gpus - ROUNDING) * np.floor(1 / unit_gpus + ROUNDING),
    )
    lost: FloatColumn = np.where(lost_gpus > ROUNDING, fewest, 0)
    return lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Node-level columns of shape (rows,), where nothing else is said.

    A row without a node has `present` False and neutral values.

    Unknown never reaches a column as NaN: the store's fold has already counted an unknown GPU that is allocated as
    fully loaded, a free one at the neutral load or its last reading, whichever is higher, and a broken one as fully
    loaded.
    """

    present: BoolColumn
    gpu_count: FloatColumn
    """GPUs that pods may ask for, allocatable or by DRA; parts added up."""
    counted_gpus: FloatColumn
    """The same; where nothing may be asked for, the GPUs that the node's agent found. For pictures of what is there: by
    these a node must not look larger to a pod."""
    healthy_gpus: FloatColumn
    """GPUs not known to be broken; infinite where no agent has told what the node has."""
    free_gpus: FloatColumn
    """Healthy, allocatable, not bound, not reserved; never negative."""
    bound_gpus: FloatColumn
    reserved_gpus: FloatColumn
    load_sum: FloatColumn
    """Decayed utilisation summed over the node's GPUs, in GPUs; a lost or hung one counts 1."""
    pending_load: FloatColumn
    """Expected load that is not in the measurement yet, in GPUs: placed lately; negative for what ended lately."""
    known_gpus: FloatColumn
    """GPUs with a fresh reading."""
    fresh: BoolColumn
    """True if the node's last sample is younger than the limit."""
    reading_age_s: FloatColumn
    """Age of the last sample; infinite if there was none."""
    pool: NDArray[np.uint8]
    """Index of the node's pool in the configuration's order; the pool `default` comes last."""
    quarantined: BoolColumn
    cordoned: BoolColumn
    capability: FloatColumn
    """Relative capability of the node's GPU model (configuration, default 1)."""
    models: NDArray[np.int16]
    """Which GPU models are in the node: an index into `model_sets`; 0 where nobody has told."""
    units: FloatColumn
    """Allocatable units of each resource that is GPUs or parts of them, shape (resources, rows)."""
    unit_gpus: FloatColumn
    """How much of a GPU one unit is, likewise; 1 where a node has none of them."""
    unit_memory_bytes: NDArray[np.float64]
    """What one unit has of memory, likewise: its own, or its GPU's, or where units share that, what is measured free;
    0 where nobody has told."""
    bound_units: FloatColumn
    """Likewise."""
    reserved_units: FloatColumn
    """Likewise."""
    free_units: FloatColumn
    """Likewise; never negative."""
    name_hash: NDArray[np.uint32]
    """Stable hash of the node's name: the last tie-break, so that near-ties pack like first-fit."""
    capability_max: float
    gpu_count_max: float
    pool_sizes: tuple[int, ...]
    """Nodes per pool, in the configuration's order, `default` last; without those that are in two."""
    stale_s: float
    resources: Mapping[str, int]
    """Names of the resources, with their row in the columns of units."""
    model_sets: tuple[frozenset[str], ...] = (frozenset(),)
    """Sets of models, in small letters, that nodes have; most have one model. The first, of none, is: unknown."""
    in_two_pools: BoolColumn | None = None
    """Nodes that the selectors of several pools take: where they belong nobody can say. None if there is none."""
    neighbours: FloatColumn | None = None
    """Pods of the request's own owner on the node, bound or promised; None if it has none anywhere."""
    image_bytes: FloatColumn | None = None
    """How much of the request's images is on the node, each image weighed by the share of nodes that have it; None if
    no node has any of it."""

    # What the pod that is asked about prefers; None where its spec does not say, or no node makes a difference.
    compared: BoolColumn | None = None
    """Nodes among which the following are compared: those large enough for the pod."""
    node_affinity: NDArray[np.float64] | None = None
    """Weights of the preferred terms that the node meets, added up."""
    pod_affinity: NDArray[np.float64] | None = None
    """Pods that are where the node is, each with the weight of its term; negative: it would be far from them."""
    topology_spread: NDArray[np.float64] | None = None
    """How crowded the node's places are by pods that should be spread; negative: it is in none."""
    untolerated_taints: NDArray[np.float64] | None = None
    """How many of its PreferNoSchedule taints the pod does not tolerate."""

    rows: int = field(init=False)
    """Length of every column; kept, since a decision asks for it two dozen times."""

    def __post_init__(self) -> None:
        """Count the rows."""
        object.__setattr__(self, "rows", len(self.present))

    def asked_gpus(self, request: PodRequest) -> FloatColumn:
        """How much of the GPUs of each node the pod would take, shape (rows,)."""
        parts = [
            self.unit_gpus[self.resources[name]] * np.float32(count)
            for name, count in request.units
            if name in self.resources
        ]
        # Of what no node has, there is no telling how much of a GPU it is.
        return sum(parts[1:], start=parts[0]) if parts else np.zeros(self.rows, np.float32)

    def has_room(self, request: PodRequest) -> BoolColumn:
        """Where as many units are free as the pod asks for, by our count; shape (rows,)."""
        return self._enough(self.free_units, request)

    def units_of(self, name: str, units: FloatColumn) -> FloatColumn:
        """One resource's row of a column of units; zeros where no node has it."""
        index = self.resources.get(name)
        return np.zeros(self.rows, np.float32) if index is None else units[index]

    def is_large_enough(self, request: PodRequest) -> BoolColumn:
        """Where there are as many units at all; shape (rows,)."""
        return self._enough(self.units, request)

    def _enough(self, units: FloatColumn, request: PodRequest) -> BoolColumn:
        parts = [self.units_of(name, units) >= count for name, count in request.units]
        if len(parts) == 1:
            return parts[0]
        return np.logical_and.reduce(parts) if parts else np.ones(self.rows, np.bool_)

    def take(self, rows: NDArray[np.intp]) -> Snapshot:
        """An independent snapshot of some rows, in the order given."""
        return self._map(lambda column: column[..., rows])

    def copy(self) -> Snapshot:
        """An independent, writable snapshot for what-ifs."""
        return self._map(lambda column: column.copy())

    def replace(self, **columns: object) -> Snapshot:
        """The same snapshot with some columns exchanged."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.init} | columns
        return Snapshot(**values)

    def _map(self, change: Callable[[AnyColumn], AnyColumn]) -> Snapshot:
        values: dict[str, Any] = {}
        for f in fields(self):
            if not f.init:
                continue
            value = getattr(self, f.name)
            values[f.name] = change(value) if isinstance(value, np.ndarray) else value
        return Snapshot(**values)
