"""A GPU is promised once: through binds to anywhere, gaps in the watch, resizes, lost GPUs, expiry and restarts.

The machine holds what the API server would hold, and a store that hears of it in the order that a watch allows, or
not at all until the next listing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler.cluster.objects import Node, Pod
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.cluster.reservations import Reservation, Reservations
from scheduler.cluster.store import Store
from scheduler.core.nouns import PoolSpec
from scheduler.decision.decider import Decider
from tests.builders import (
    make_decider,
    make_inventory,
    make_node,
    make_pod,
    make_request,
    make_sample,
    make_store,
)

POOLS = (PoolSpec(name="first", selector={"pool": "first"}, spill_after_s=30.0), PoolSpec(name="second"))
NODES = [f"n{i}" for i in range(4)]
GPUS = st.integers(0, 8)
MAY_BE_UNBOUNDED = {"healthy_gpus", "reading_age_s"}


class CheckedReservations(Reservations):
    """The real ones, with a look at what is free at the very instant of a promise."""

    def __init__(self, reservation_s: float, check: Callable[[Reservation], None]) -> None:
        super().__init__(reservation_s)
        self._check = check

    def make(
        self,
        uid: str,
        node: str,
        gpus: float,
        load: float,
        now_mono_s: float,
        *,
        waits_for_volume: bool = False,
    ) -> Reservation:
        made = super().make(uid, node, gpus, load, now_mono_s, waits_for_volume=waits_for_volume)
        self._check(made)
        return made


class ReservationMachine(RuleBasedStateMachine):
    """`pods` and `nodes` are the API's truth; `gap` is open while the watch is away."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.pods: dict[str, Pod] = {}
        self.nodes: dict[str, Node] = {}
        self.broken: dict[str, int] = {}
        self.inventories: dict[str, int] = {}
        self.gap = False
        self.serial = 0
        self.store, self.decider = self._fresh()

    def _fresh(self) -> tuple[Store, Decider]:
        store = make_store(POOLS, CheckedReservations(30.0, self._was_free))
        return store, make_decider(store)

    # --- the books, kept again from scratch ------------------------------------------------------------------------

    def _bound(self, store: Store, node: str) -> float:
        return sum(facts.gpus for facts in store.pods.values() if facts.node == node)

    def _reserved(self, store: Store, node: str) -> float:
        return sum(held.gpus for held in store.reservations.on_node(node))

    def _held(self) -> list[Reservation]:
        return [held for node in [*NODES, "nowhere"] for held in self.store.reservations.on_node(node)]

    def _usable(self, store: Store, node: str) -> float:
        row = store.rows[node]
        return float(min(store.snapshot.gpu_count[row], store.snapshot.healthy_gpus[row]))

    def _was_free(self, made: Reservation) -> None:
        store = self.store
        assert made.node in store.rows, "promised on a node that is unknown"
        others = self._reserved(store, made.node) - made.gpus
        free = self._usable(store, made.node) - self._bound(store, made.node) - others
        assert made.gpus <= free, f"promised {made.gpus} of {free}"
        facts = store.pods.get(made.uid)
        assert facts is None or not facts.node, "promised to a pod that is bound"

    def _tell(self, kind: Kind, thing: Pod | Node, *, gone: bool = False) -> None:
        if not self.gap:
            self.store.apply(Gone(kind, thing) if gone else Changed(kind, thing), self.now)

    # --- nodes -----------------------------------------------------------------------------------------------------

    @initialize(pods=st.lists(st.integers(1, 8), min_size=2, max_size=6))
    def begin(self, pods: list[int]) -> None:
        for name in NODES[:2]:
            self.nodes[name] = make_node(name, 8)
        for gpus in pods:
            self.create_pod(gpus, 0, "")
        self._list_all()

    @rule(
        name=st.sampled_from(NODES),
        gpus=GPUS,
        pool=st.sampled_from(["first", "other"]),
        cordoned=st.booleans(),
        quarantined=st.booleans(),
    )
    def see_node(self, name: str, gpus: int, pool: str, *, cordoned: bool, quarantined: bool) -> None:
        """Added, resized, moved to another pool, cordoned, or put in quarantine."""
        labels = {"pool": pool} | ({"wattbalance.io/quarantine": "x"} if quarantined else {})
        self.nodes[name] = make_node(name, gpus, labels, cordoned=cordoned)
        self._tell(Kind.NODE, self.nodes[name])

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def remove_node(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.nodes)))
        self._tell(Kind.NODE, self.nodes.pop(name), gone=True)

    @rule(name=st.sampled_from(NODES), gpus=st.integers(0, 10))
    def see_inventory(self, name: str, gpus: int) -> None:
        self.inventories[name] = gpus
        self.store.see_inventory(name, make_inventory(name, gpus))

    @rule(name=st.sampled_from(NODES), data=st.data())
    def see_sample(self, name: str, data: st.DataObject) -> None:
        """Busy, unread, lost and hung GPUs in any mixture; from nodes without an inventory too."""
        count = self.inventories.get(name, 8)
        util = data.draw(st.lists(st.none() | st.floats(0, 1), min_size=count, max_size=count))
        states = st.sampled_from(["ok", "ok", "unknown", "lost", "hung", "new word"])
        state = data.draw(st.lists(states, min_size=count, max_size=count))
        self.store.see_samples([(name, make_sample(name, util, state), self.now)])

    @rule(name=st.sampled_from(NODES), online=st.booleans())
    def see_status(self, name: str, *, online: bool) -> None:
        self.store.see_status(name, online=online)

    # --- pods ------------------------------------------------------------------------------------------------------

    @rule(gpus=st.integers(1, 8), priority=st.integers(0, 2), nominated=st.sampled_from(["", *NODES]))
    def create_pod(self, gpus: int, priority: int, nominated: str) -> None:
        self.serial += 1
        pod = make_pod(f"p{self.serial}", gpus, priority=priority, nominated=nominated)
        self.pods[pod.metadata.uid] = pod
        self._tell(Kind.POD, pod)

    def _waiting(self) -> list[str]:
        return sorted(uid for uid, pod in self.pods.items() if not pod.spec.node_name)

    @precondition(lambda self: self.pods)
    @rule(
        data=st.data(),
        candidates=st.lists(st.sampled_from(NODES), unique=True, min_size=1),
        times=st.integers(1, 4),
        waited_s=st.sampled_from([0.0, 60.0]),
        observe=st.booleans(),
    )
    def ask(
        self, data: st.DataObject, candidates: list[str], times: int, waited_s: float, *, observe: bool
    ) -> None:
        # Bound ones too: kube-scheduler's news may be older than ours.
        pod = self.pods[data.draw(st.sampled_from(sorted(self.pods)))]
        gpus = int(pod.spec.containers[0].resources.limits["nvidia.com/gpu"])  # type: ignore[index,union-attr]  # make_pod's shape
        request = make_request(
            pod.metadata.name,
            gpus,
            waited_s=waited_s,
            priority=pod.spec.priority,
            nominated_node=pod.status.nominated_node_name,
        )
        rows = np.array([self.store.rows[n] for n in candidates if n in self.store.rows], np.intp)
        for _ in range(times):
            before = len(self.store.reservations)
            outcome = self.decider.place(request, rows, self.now, 0.0, observe=observe)
            assert len(outcome.kept) <= 1, "decisive"
            assert set(outcome.kept.tolist()) <= set(rows.tolist())
            if observe:
                assert not outcome.reserved
                assert len(self.store.reservations) <= before, "observing promises nothing"

    @rule(number=st.integers(1, 4), gpus=st.integers(1, 8), node=st.sampled_from([*NODES, "nowhere"]))
    def reserve(self, number: int, gpus: int, node: str) -> None:
        """The store keeps its promise by itself, whoever asks and for whatever."""
        if f"uid-p{number}" in self.pods:
            self.store.reserve(make_request(f"p{number}", gpus), node, self.now)

    @precondition(lambda self: self._waiting())
    @rule(data=st.data(), past_us=st.sampled_from([*NODES, "nowhere"]), ours=st.booleans())
    def bind(self, data: st.DataObject, past_us: str, *, ours: bool) -> None:
        """To the node that was promised, or wherever somebody else likes, full or not."""
        uid = data.draw(st.sampled_from(self._waiting()))
        held = self.store.reservations.get(uid)
        node = held.node if ours and held is not None else past_us
        pod = self.pods[uid]
        gpus = int(pod.spec.containers[0].resources.limits["nvidia.com/gpu"])  # type: ignore[index,union-attr]  # make_pod's shape
        nominated = pod.status.nominated_node_name
        self.pods[uid] = make_pod(pod.metadata.name, gpus, node=node, nominated=nominated)
        self._tell(Kind.POD, self.pods[uid])

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def delete_pod(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(sorted(self.pods)))
        self._tell(Kind.POD, self.pods.pop(uid), gone=True)

    @precondition(lambda self: self.pods)
    @rule(data=st.data(), phase=st.sampled_from(["Succeeded", "Failed"]))
    def finish_pod(self, data: st.DataObject, phase: str) -> None:
        uid = data.draw(st.sampled_from(sorted(self.pods)))
        pod = self.pods.pop(uid)
        finished = make_pod(pod.metadata.name, 1, node=pod.spec.node_name, phase=phase)
        self._tell(Kind.POD, finished)

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def tell_again(self, data: st.DataObject) -> None:
        """A watch repeats objects that did not change."""
        self._tell(Kind.POD, self.pods[data.draw(st.sampled_from(sorted(self.pods)))])

    # --- time, gaps and restarts -----------------------------------------------------------------------------------

    @rule(by_s=st.sampled_from([0.0, 0.5, 3.0, 11.0, 31.0, 400.0]))
    def pass_time(self, by_s: float) -> None:
        self.now += by_s
        self.store.tick(self.now)
        assert all(held.until_mono_s > self.now for held in self._held())

    @precondition(lambda self: not self.gap)
    @rule()
    def lose_the_watch(self) -> None:
        self.gap = True

    @precondition(lambda self: self.gap)
    @rule()
    def list_again(self) -> None:
        self.gap = False
        self._list_all()
        for node in self.store.nodes:
            assert node in self.nodes

    @rule(pods_first=st.booleans())
    def restart(self, *, pods_first: bool) -> None:
        """A new process knows what the API and the retained inventories say, and nothing else."""
        self.gap = False
        self.store, self.decider = self._fresh()
        self._list_all(pods_first=pods_first)
        for name, gpus in self.inventories.items():
            self.store.see_inventory(name, make_inventory(name, gpus))
        self.store.tick(self.now)

    def _list_all(self, *, pods_first: bool = False) -> None:
        kinds: list[tuple[Kind, dict[str, Pod] | dict[str, Node]]] = [
            (Kind.NODE, self.nodes),
            (Kind.POD, self.pods),
        ]
        for kind, things in kinds[::-1] if pods_first else kinds:
            for thing in things.values():
                self.store.apply(Changed(kind, thing), self.now)
            self.store.apply(Listed(kind, frozenset(things)), self.now)

    # --- what always holds -----------------------------------------------------------------------------------------

    @invariant()
    def the_columns_say_what_the_objects_say(self) -> None:
        store, snapshot = self.store, self.store.snapshot
        pools = [0] * len(store.pool_names)
        for name, row in store.rows.items():
            bound, reserved = self._bound(store, name), self._reserved(store, name)
            assert snapshot.present[row]
            assert snapshot.bound_gpus[row] == bound
            assert snapshot.reserved_gpus[row] == reserved
            assert snapshot.free_gpus[row] == max(self._usable(store, name) - bound - reserved, 0)
            assert 0 <= snapshot.load_sum[row] <= max(snapshot.gpu_count[row], self.inventories.get(name, 0))
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


TestReservationMachine = ReservationMachine.TestCase
# The profile's examples, each of up to fifty steps.
TestReservationMachine.settings = settings(stateful_step_count=50)
