"""What may stand between a pod and a node, and the same world without it. Pure.

A what-if is judged as a decision is, by all filters and with the pools that could take the pod then. What a filter
says is looked at filter by filter: of two that are against a node, a decision names only the first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from scheduler.cluster.snapshot import FloatColumn, Snapshot, lost_units
from scheduler.cluster.store import Store
from scheduler.core.nouns import PodRequest, Reason
from scheduler.core.preferences import Conditions
from scheduler.decision.cycle import Mask, PolicyFailures, judge
from scheduler.decision.decider import Decider
from scheduler.decision.kube_filters import KubeFilters
from scheduler.decision.reach import Reach
from scheduler.policy.base import POOL_CODES, CodeArray
from scheduler.policy.profiles import Profile

MIB = 2**20


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class World:
    """How things are, or would be."""

    request: PodRequest
    snapshot: Snapshot
    """Before pools that could never take the pod are left out."""
    kube: KubeFilters
    selected: Mask
    """Nodes that were given what the pod's own conditions ask for."""


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """What stands against each node in one world; masks of shape (rows,)."""

    world: World
    codes: tuple[CodeArray, ...]
    """Of filters that are against any node."""
    room: Mask
    fits: Mask

    def has(self, *reasons: int) -> Mask:
        """Where a filter gives one of these codes."""
        among = np.zeros(256, bool)
        among[list(reasons)] = True
        return self._any([among[codes] for codes in self.codes])

    def waits(self) -> Mask:
        """Where a pool is waited for."""
        return self._any([codes >= POOL_CODES for codes in self.codes])

    def _any(self, masks: list[Mask]) -> Mask:
        return np.logical_or.reduce(masks) if masks else np.zeros(len(self.room), bool)


class Court:
    """Judges worlds as a decider's decisions do.

    Args:
        decider: Whose store, filters and profiles.
        workload's profile is asked without its scores: they rule nothing out.
    """

    def __init__(self, decider: Decider) -> None:
        self._store = decider.store
        self._filters = decider.filters
        self._reach = Reach(decider.store.settings.pools, decider.filters)
        any_profile = next(iter(decider.profiles.values()))
        self._unscored: Profile = replace(any_profile, scores=())

    def stand(self, world: World) -> Standing:
        """Judge one."""
        request, failures = world.request, PolicyFailures()
        snapshot = self._reach.applied(request, world.snapshot, _Given(self._store, world.selected), failures)
        codes = []
        for each in self._filters:
            alone = judge(request, np.arange(0), snapshot, self._unscored, (each,), failures)
            if np.count_nonzero(alone.codes):
                codes.append(alone.codes)
        room = world.snapshot.present & snapshot.has_room(request)
        passing = room & ~world.kube.against
        for each_codes in codes:
            passing = passing & (each_codes == 0)
        return Standing(world, tuple(codes), room, passing)


@dataclass(frozen=True, slots=True, eq=False)
class _Given:
    """The store's nodes, some of which meet whatever a pod asks of them."""

    store: Store
    selected: Mask

    def could(self, conditions: Conditions) -> Mask:
        return self.selected | self.store.known_nodes(len(self.selected)).could(conditions)


class Lift(ABC):
    """One thing that may stand against nodes, and what it would be to be without it."""

    kind: str
    key: str = ""
    """Of an annotation."""

    @abstractmethod
    def concerned(self, standing: Standing) -> Mask:
        """Where it stands in the way."""

    @abstractmethod
    def lifted(self, world: World, rows: Mask) -> World:
        """The world without it on these nodes."""


class Cordon(Lift):
    """kubectl cordon."""

    kind = "cordon"

    def concerned(self, standing: Standing) -> Mask:
        """See above."""
        return standing.world.kube.cordoned

    def lifted(self, world: World, rows: Mask) -> World:
        """Likewise."""
        return replace(world, kube=replace(world.kube, cordoned=world.kube.cordoned & ~rows))


class Selection(Lift):
    """The pod's nodeSelector and required node affinity."""

    kind = "selection"

    def concerned(self, standing: Standing) -> Mask:
        """See above."""
        return standing.world.kube.unselected

    def lifted(self, world: World, rows: Mask) -> World:
        """Likewise."""
        kube = replace(world.kube, unselected=world.kube.unselected & ~rows)
        return replace(world, kube=kube, selected=world.selected | (rows & ~kube.tainted))


class Taints(Lift):
    """Taints that the pod does not tolerate."""

    kind = "taint"

    def concerned(self, standing: Standing) -> Mask:
        """See above."""
        return standing.world.kube.tainted

    def lifted(self, world: World, rows: Mask) -> World:
        """Likewise."""
        kube = replace(world.kube, tainted=world.kube.tainted & ~rows)
        return replace(world, kube=kube, selected=world.selected | (rows & ~kube.unselected))


class Quarantine(Lift):
    """The label."""

    kind = "quarantine"

    def concerned(self, standing: Standing) -> Mask:
        """See above."""
        return standing.has(Reason.QUARANTINED)

    def lifted(self, world: World, rows: Mask) -> World:
        """Likewise."""
        left = world.snapshot.quarantined & ~rows
        return replace(world, snapshot=world.snapshot.replace(quarantined=left))


@dataclass(frozen=True, eq=False)
class TwoPools(Lift):
    """A node that the selectors of several pools take stays in the one that the pod would rather go to."""

    store: Store
    kind = "two_pools"

    def concerned(self, standing: Standing) -> Mask:
        """See above."""
        return standing.has(Reason.IN_TWO_POOLS)

    def lifted(self, world: World, rows: Mask) -> World:
        """Likewise."""
        snapshot = world.snapshot
        pool = snapshot.pool.copy()
        for row in np.flatnonzero(rows).tolist():
            pool[row] = self.stays_in(row, world.request)
        left = None if snapshot.in_two_pools is None else snapshot.in_two_pools & ~rows
        return replace(world, snapshot=snapshot.replace(in_two_pools=left, pool=pool))

    def stays_in(self, row: int, request: PodRequest) -> int:
        """Index of that pool."""
        names = self.store.pool_names
        mine = [names.index(each) for each in self.store.nodes[self.store.names[row] or ""].in_pools]
        return next((pool for pool in request.pools if pool in mine), mine[0])


class Broken(Lift):
    """GPUs that are lost or hung."""

    kind = "broken_gpus"

    def concerned(self, standing: Standing) -> Mask:
        """Where a filter says so, or where there is no room and would be, or must be for what ends to suffice."""
        snapshot, request = standing.world.snapshot, standing.world.request
        broken = snapshot.healthy_gpus < snapshot.gpu_count
        if not broken.any():
            return standing.has(Reason.BROKEN_GPUS)
        repaired = self.lifted(standing.world, broken).snapshot.has_room(request)
        ends = Room.could_end(snapshot, request)
        return standing.has(Reason.BROKEN_GPUS) | (broken & ~standing.room & (repaired | ~ends))

    def lifted(self, world: World, rows: Mask) -> World:
        """Likewise."""
        snapshot = world.snapshot
        free = np.where(
            rows, snapshot.units - snapshot.bound_units - snapshot.reserved_units, snapshot.free_units
        )
        healthy = np.where(rows, np.float32(inf), snapshot.healthy_gpus)
        free_units = np.maximum(free, 0)
        return replace(world, snapshot=snapshot.replace(healthy_gpus=healthy, free_units=free_units))


class PoolWait(Lift):
    """Pools that the pod waits for."""

    kind = "pool"

    def concerned(self, standing: Standing) -> Mask:
        """See above."""
        return standing.waits()

    def lifted(self, world: World, rows: Mask) -> World:
        """It has waited long enough."""
        del rows
        return replace(world, request=replace(world.request, waited_s=inf))


class OtherPools(Lift):
    """Which pools are asked for: the nodes' own too, behind the others."""

    kind, key = "annotation", "pools"

    def concerned(self, standing: Standing) -> Mask:
        """See above."""
        return standing.has(Reason.OTHER_POOL)

    def lifted(self, world: World, rows: Mask) -> World:
        """Likewise."""
        request = world.request
        more = [pool for pool in np.unique(world.snapshot.pool[rows]).tolist() if pool not in request.pools]
        return replace(world, request=replace(request, pools=(*request.pools, *more)))


class OtherModels(Lift):
    """Which models are asked for: the nodes' own too; where nobody tells them, any."""

    kind, key = "annotation", "gpu-model"

    def concerned(self, standing: Standing) -> Mask:
        """See above."""
        return standing.has(Reason.OTHER_MODEL, Reason.UNKNOWN_MODEL)

    def lifted(self, world: World, rows: Mask) -> World:
        """Likewise."""
        sets = [world.snapshot.model_sets[index] for index in np.unique(world.snapshot.models[rows]).tolist()]
        globs: tuple[str, ...] = ()
        if all(sets):
            more = sorted({each.replace("[", "[[]") for models in sets for each in models})
            globs = (*world.request.gpu_models, *more)
        return replace(world, request=replace(world.request, gpu_models=globs))


@dataclass(frozen=True, eq=False)
class LessMemory(Lift):
    """How much memory is asked for: what these nodes have; where nobody tells, none."""

    store: Store
    kind, key = "annotation", "gpu-memory"

    def concerned(self, standing: Standing) -> Mask:
        """See above."""
        return standing.has(Reason.TOO_LITTLE_MEMORY, Reason.UNKNOWN_MEMORY)

    def lifted(self, world: World, rows: Mask) -> World:
        """Likewise."""
        least_bytes = min(self.there(world.snapshot, world.request, rows), default=0)
        request = replace(world.request, gpu_memory_bytes=least_bytes)
        # What is free of shared GPUs depends on what is asked for.
        memory_bytes = self.store.snapshot_for(request).unit_memory_bytes
        return replace(
            world, request=request, snapshot=world.snapshot.replace(unit_memory_bytes=memory_bytes)
        )

    @staticmethod
    def there(snapshot: Snapshot, request: PodRequest, rows: Mask) -> list[int]:
        """Bytes that each of these nodes has for what is asked for, in whole MiB; 0 where that is not known."""
        parts = [
            snapshot.unit_memory_bytes[snapshot.resources[name]][rows]
            for name, _ in request.units
            if name in snapshot.resources
        ]
        return [int(each // MIB * MIB) for each in np.min(parts, axis=0).tolist()] if parts else []


class Room(Lift):
    """GPUs that others hold."""

    kind = "free_gpus"

    def concerned(self, standing: Standing) -> Mask:
        """See above."""
        world = standing.world
        return world.snapshot.present & ~world.kube.small & ~standing.room

    def lifted(self, world: World, rows: Mask) -> World:
        """As much of it ends as the pod lacks."""
        snapshot = world.snapshot
        bound, reserved = snapshot.bound_units.copy(), snapshot.reserved_units.copy()
        for name, lacking in lacking_units(snapshot, world.request):
            if (index := snapshot.resources.get(name)) is not None:
                ends = np.where(rows, lacking, 0)
                of_bound = np.minimum(bound[index], ends)
                bound[index] -= of_bound
                reserved[index] -= np.minimum(reserved[index], ends - of_bound)
        free = _left(snapshot, bound + reserved)
        free_units = np.where(rows, np.maximum(free, 0), snapshot.free_units)
        bound_gpus = np.where(rows, (bound * snapshot.unit_gpus).sum(0), snapshot.bound_gpus)
        changed = snapshot.replace(
            bound_units=bound, reserved_units=reserved, free_units=free_units, bound_gpus=bound_gpus
        )
        return replace(world, snapshot=changed)

    @staticmethod
    def could_end(snapshot: Snapshot, request: PodRequest) -> Mask:
        """Where as much is held as the pod lacks."""
        held = snapshot.bound_units + snapshot.reserved_units
        enough = [
            lacking <= snapshot.units_of(name, held) for name, lacking in lacking_units(snapshot, request)
        ]
        return np.logical_and.reduce(enough) if enough else np.ones(snapshot.rows, bool)


def _left(snapshot: Snapshot, held: FloatColumn) -> FloatColumn:
    """Units that nobody holds and that are not broken; below 0 where more is held than there is."""
    left: FloatColumn = (
        snapshot.units - held - lost_units(snapshot.unit_gpus, snapshot.gpu_count - snapshot.healthy_gpus)
    )
    return left


def lacking_units(snapshot: Snapshot, request: PodRequest) -> list[tuple[str, FloatColumn]]:
    """How many units must end on each node for the pod to have room, by resource."""
    left = _left(snapshot, snapshot.bound_units + snapshot.reserved_units)
    return [(name, np.maximum(count - snapshot.units_of(name, left), 0)) for name, count in request.units]


def lifts_of(store: Store) -> Sequence[Lift]:
    """All there are; room comes last, since how much of it is lacking depends on others."""
    return (
        Quarantine(),
        Cordon(),
        TwoPools(store),
        Broken(),
        PoolWait(),
        OtherPools(),
        OtherModels(),
        LessMemory(store),
        Selection(),
        Taints(),
        Room(),
    )
