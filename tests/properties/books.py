"""What the API server would hold, a store that hears of it, and books kept again from scratch to check the store by.

The machines that drive it are in test_reservation_machine.py and test_eviction_machine.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import fields
from fractions import Fraction
from math import ceil, isfinite

import numpy as np
from hypothesis.stateful import RuleBasedStateMachine, invariant

from scheduler.cluster.objects import Node, Pod
from scheduler.cluster.port import Changed, ClusterEvent, Gone, Kind, Listed
from scheduler.cluster.reservations import Reservation, Reservations
from scheduler.cluster.store import Store
from scheduler.core.nouns import PodRequest, PoolSpec, Units
from scheduler.decision.decider import Decider
from tests.builders import make_decider, make_node, make_pod, make_request, make_store

POOLS = (
    PoolSpec(name="first", selector={"pool": "first"}, spill_after_s=30.0),
    PoolSpec(name="second", selector={"pool": "other"}),
)
NODES = [f"n{i}" for i in range(4)]
# Of sums of sevenths in 32 bits.
ROUNDING = 1e-4
MAY_BE_UNBOUNDED = {"healthy_gpus", "reading_age_s"}


def units_of(pod: Pod) -> Counter[str]:
    limits = pod.spec.containers[0].resources.limits  # type: ignore[index,union-attr]  # make_pod's shape
    return Counter({name: int(amount) for name, amount in (limits or {}).items()})


def gpus_of(pod: Pod) -> int:
    return units_of(pod)["nvidia.com/gpu"]


def added(units: Iterable[Units]) -> Counter[str]:
    """Units by resource; not one of them negative."""
    sums: Counter[str] = Counter()
    for each in units:
        sums.update({name: int(count) for name, count in each})
    return sums


def _exactly(gpus: float) -> Fraction:
    """A seventh as it was meant."""
    return Fraction(gpus).limit_denominator(1000)


class CheckedReservations(Reservations):
    """The real ones, with a look at what is free at the very instant of a promise."""

    def __init__(self, reservation_s: float, check: Callable[[Reservation], None]) -> None:
        super().__init__(reservation_s)
        self._check = check

    def make(
        self,
        uid: str,
        node: str,
        units: Units,
        load: float,
        now_mono_s: float,
        *,
        memory_bytes: float = 0.0,
        waits_for_volume: bool = False,
    ) -> Reservation:
        made = super().make(
            uid, node, units, load, now_mono_s, memory_bytes=memory_bytes, waits_for_volume=waits_for_volume
        )
        self._check(made)
        return made


class Books(RuleBasedStateMachine):
    """`pods` and `nodes` are the API's truth; `gap` is open while the watch is away."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.pods: dict[str, Pod] = {}
        self.nodes: dict[str, Node] = {}
        self.inventories: dict[str, int] = {}
        self.gap = False
        self.serial = 0
        self.made: list[str] = []
        """Whom a promise was made to, in that order; the last mention counts."""
        self.store, self.decider = self._fresh()

    def _fresh(self) -> tuple[Store, Decider]:
        store = make_store(POOLS, CheckedReservations(30.0, self._was_free))
        return store, make_decider(store)

    # --- what sizes mean: other machines have other kinds of GPUs ---------------------------------------------------

    def node(self, name: str, size: int, labels: dict[str, str], *, cordoned: bool = False) -> Node:
        return make_node(name, size, labels, cordoned=cordoned)

    def pod(
        self, name: str, size: int, *, node: str = "", priority: int = 0, nominated: str = "", phase: str = ""
    ) -> Pod:
        return make_pod(name, size, node=node, priority=priority, nominated=nominated, phase=phase)

    def request(self, pod: Pod, size: int | None = None, **fields: object) -> PodRequest:
        """What a pod asks for, or a request of another size in its name."""
        units = units_of(pod if size is None else self.pod("", size))
        gpus = units.pop("nvidia.com/gpu", 0)
        return make_request(pod.metadata.name, gpus, shares=tuple(units.items()), **fields)

    # --- the books, kept again from scratch ------------------------------------------------------------------------

    def _bound(self, store: Store, node: str) -> Counter[str]:
        record = store.nodes[node]
        return added(record.held(facts) for facts in store.pods.values() if facts.node == node)

    def _reserved(self, store: Store, node: str) -> Counter[str]:
        return added(held.units for held in store.reservations.on_node(node))

    def _held(self) -> list[Reservation]:
        return [held for node in [*NODES, "nowhere"] for held in self.store.reservations.on_node(node)]

    def _usable(self, store: Store, node: str) -> Counter[str]:
        """Units of each resource that broken GPUs leave, in exact fractions."""
        healthy = float(store.snapshot.healthy_gpus[store.rows[node]])
        parts = {name: (int(o.units), _exactly(o.gpus)) for name, o in store.nodes[node].offers.items()}
        lost = Fraction(0)
        if isfinite(healthy):
            lost = max(sum((u * each for u, each in parts.values()), lost) - int(healthy), lost)
        return Counter(
            # What was on those GPUs: no more than there is room for on as many of them.
            {
                name: units - min(ceil(lost / each), ceil(lost) * (1 // each))
                for name, (units, each) in parts.items()
            }
        )

    def _was_free(self, made: Reservation) -> None:
        store = self.store
        assert made.node in store.rows, "promised on a node that is unknown"
        usable, bound = self._usable(store, made.node), self._bound(store, made.node)
        reserved = self._reserved(store, made.node)
        for name, _ in made.units:
            assert bound[name] + reserved[name] <= usable[name], f"promised {made.units} of {usable}"
        facts = store.pods.get(made.uid)
        assert facts is None or not facts.node, "promised to a pod that is bound"
        self.made.append(made.uid)

    def _tell(self, kind: Kind, thing: Pod | Node, *, gone: bool = False) -> None:
        if not self.gap:
            self._hear(Gone(kind, thing) if gone else Changed(kind, thing))

    def _hear(self, event: ClusterEvent) -> None:
        """Apply one event; a pod's takes back its own promise at most, and a binding's those that it must."""
        thing = None if isinstance(event, Listed) else event.object
        if not isinstance(thing, Pod):
            self.store.apply(event, self.now)
            return
        uid, node = thing.metadata.uid, thing.spec.node_name
        known = self.store.pods.get(uid)
        others = [held for held in self._held() if held.uid != uid]
        self.store.apply(event, self.now)
        now_known = self.store.pods.get(uid)
        want_kept = {held.uid for held in others}
        if now_known is not None and node in self.store.rows and (known is None or known.node != node):
            here = sorted(
                (held for held in others if held.node == node),
                key=lambda held: len(self.made) - self.made[::-1].index(held.uid),
            )
            room = self._usable(self.store, node)
            room.subtract(self._bound(self.store, node))
            self._take_youngest(here, room, want_kept)
        kept = {held.uid for held in self._held()} - {uid}
        assert kept == want_kept, "the youngest of the node, until the sum fits, and only those"

    def _take_youngest(self, here: list[Reservation], room: Counter[str], kept: set[str]) -> None:
        for held in reversed(here):
            left = added(each.units for each in here if each.uid in kept)
            over = {name for name, count in left.items() if count > max(room[name], 0)}
            if over & {name for name, _ in held.units}:
                kept.remove(held.uid)

    def _waiting(self) -> list[str]:
        return sorted(uid for uid, pod in self.pods.items() if not pod.spec.node_name)

    def _list_all(self, *, pods_first: bool = False) -> None:
        kinds: list[tuple[Kind, dict[str, Pod] | dict[str, Node]]] = [
            (Kind.NODE, self.nodes),
            (Kind.POD, self.pods),
        ]
        for kind, things in kinds[::-1] if pods_first else kinds:
            for thing in things.values():
                self._hear(Changed(kind, thing))
            self._hear(Listed(kind, frozenset(things)))

    # --- what always holds -----------------------------------------------------------------------------------------

    @invariant()
    def the_columns_say_what_the_objects_say(self) -> None:
        store, snapshot = self.store, self.store.snapshot
        pools = [0] * len(store.pool_names)
        for name, row in store.rows.items():
            bound, reserved, usable = (
                each(store, name) for each in (self._bound, self._reserved, self._usable)
            )
            each_gpus = {resource: _exactly(o.gpus) for resource, o in store.nodes[name].offers.items()}
            free = {r: max(usable[r] - bound[r] - reserved[r], 0) for r in each_gpus}
            assert snapshot.present[row]
            for resource in each_gpus:
                held = (snapshot.bound_units, snapshot.reserved_units, snapshot.free_units)
                told = [snapshot.units_of(resource, column)[row] for column in held]
                assert told == [bound[resource], reserved[resource], free[resource]]
            free_gpus = float(sum(free[r] * each for r, each in each_gpus.items()))
            # What pods hold by names of which nothing is allocatable any more is not free either.
            gone = snapshot.units[:, row] == 0
            bound_units, reserved_units = snapshot.bound_units[gone, row], snapshot.reserved_units[gone, row]
            if bound_units.any():
                strays = (bound_units + reserved_units) * snapshot.unit_gpus[gone, row]
                free_gpus = max(free_gpus - float(strays.sum()), 0)
            assert abs(snapshot.free_gpus[row] - free_gpus) < ROUNDING
            assert snapshot.free_gpus[row] <= snapshot.healthy_gpus[row] + ROUNDING
            most = max(snapshot.gpu_count[row], self.inventories.get(name, 0))
            assert 0 <= snapshot.load_sum[row] <= most + ROUNDING
            pools[snapshot.pool[row]] += 1
        assert snapshot.pool_sizes == tuple(pools)
        assert int(snapshot.present.sum()) == len(store.rows) == len(store.nodes)
        nobodys = ~snapshot.present
        for column in (snapshot.bound_gpus, snapshot.reserved_gpus, snapshot.free_gpus, snapshot.gpu_count):
            assert not column[nobodys].any()

    @invariant()
    def promises_are_for_waiting_pods_on_known_nodes(self) -> None:
        held = self._held()
        assert len(held) == len(self.store.reservations)
        for reservation in held:
            assert reservation == self.store.reservations.get(reservation.uid)
            assert reservation.node in self.store.rows
            facts = self.store.pods.get(reservation.uid)
            assert facts is None or not facts.node
            if not self.gap:
                assert reservation.uid in self.pods or facts is None

    @invariant()
    def without_a_gap_the_store_knows_the_truth(self) -> None:
        if self.gap:
            return
        assert {uid: facts.node for uid, facts in self.store.pods.items()} == {
            uid: pod.spec.node_name for uid, pod in self.pods.items()
        }
        assert set(self.store.rows) == set(self.nodes)
        assert set(self.store.waiting) == set(self._waiting())

    @invariant()
    def gpus_are_counted_once_and_where_the_pod_is(self) -> None:
        store = self.store
        counted = Counter(uid for record in store.nodes.values() for uid in record.pods)
        assert all(times == 1 for times in counted.values())
        promised = {held.uid for held in self._held()}
        assert not promised & counted.keys(), "a pod holds its GPUs or is promised them"
        if self.gap:
            return
        for name, row in store.rows.items():
            here = [pod for pod in self.pods.values() if pod.spec.node_name == name]
            told = store.snapshot.units_of("nvidia.com/gpu", store.snapshot.bound_units)[row]
            record = store.nodes[name]
            if record.outgrown or len(record.offers) > 1:
                # What they hold is held to in test_resized_machine.py.
                assert told == self._bound(store, name)["nvidia.com/gpu"]
            else:
                assert told == sum(gpus_of(pod) for pod in here)

    @invariant()
    def columns_are_sound_and_read_only(self) -> None:
        snapshot = self.store.snapshot
        for field in fields(snapshot):
            column = getattr(snapshot, field.name)
            if not isinstance(column, np.ndarray):
                continue
            assert not column.flags.writeable, field.name
            assert not np.isnan(column).any(), field.name
            if field.name not in MAY_BE_UNBOUNDED:
                assert np.isfinite(column).all(), field.name
        assert (snapshot.free_gpus >= 0).all()
