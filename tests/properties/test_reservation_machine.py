"""A GPU is promised once: through binds to anywhere, gaps in the watch, resizes, lost GPUs, expiry and restarts."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from scheduler.cluster.port import Kind
from tests.builders import make_inventory, make_pod, make_sample
from tests.properties.books import NODES, Books, units_of

GPUS = st.integers(0, 8)


class ReservationMachine(Books):
    """Everything that can happen, in any order."""

    # --- nodes -----------------------------------------------------------------------------------------------------

    @initialize(pods=st.lists(st.integers(1, 4), min_size=4, max_size=8))
    def begin(self, pods: list[int]) -> None:
        for name in NODES[:3]:
            self.nodes[name] = self.node(name, 8, {})
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
        self.nodes[name] = self.node(name, gpus, labels, cordoned=cordoned)
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
        pod = self.pod(f"p{self.serial}", gpus, priority=priority, nominated=nominated)
        self.pods[pod.metadata.uid] = pod
        self._tell(Kind.POD, pod)

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
        request = self.request(
            pod,
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

    @precondition(lambda self: self._waiting())
    @rule(
        node=st.sampled_from([*NODES, "nowhere"]),
        gpus=st.lists(st.integers(1, 3), min_size=1, max_size=6),
        apart_s=st.sampled_from([0.0, 0.1]),
    )
    def reserve(self, node: str, gpus: list[int], apart_s: float) -> None:
        """The store keeps its promise by itself, whoever asks and for whatever; several at one instant too."""
        # Without a promise first: those that have one would only renew it.
        uids = sorted(self._waiting(), key=lambda uid: self.store.reservations.get(uid) is not None)
        for uid, each in zip(uids, gpus, strict=False):
            self.store.reserve(self.request(self.pods[uid], each), node, self.now)
            self.now += apart_s

    @precondition(lambda self: len(self.store.reservations) > 0)
    @rule(data=st.data(), gpus=st.integers(1, 8))
    def crowd(self, data: st.DataObject, gpus: int) -> None:
        """Somebody else's pod, bound where GPUs are promised."""
        self.serial += 1
        node = data.draw(st.sampled_from(sorted({held.node for held in self._held()})))
        pod = self.pod(f"p{self.serial}", gpus, node=node)
        self.pods[pod.metadata.uid] = pod
        self._tell(Kind.POD, pod)

    @precondition(lambda self: self._waiting())
    @rule(data=st.data(), past_us=st.sampled_from([*NODES, "nowhere"]), ours=st.booleans())
    def bind(self, data: st.DataObject, past_us: str, *, ours: bool) -> None:
        """To the node that was promised, or wherever somebody else likes, full or not."""
        uid = data.draw(st.sampled_from(self._waiting()))
        held = self.store.reservations.get(uid)
        node = held.node if ours and held is not None else past_us
        pod = self.pods[uid]
        nominated = pod.status.nominated_node_name
        self.pods[uid] = make_pod(
            pod.metadata.name,
            node=node,
            nominated=nominated,
            shares=units_of(pod),
            annotations=pod.metadata.annotations,
        )
        self._tell(Kind.POD, self.pods[uid])

    @precondition(lambda self: len(self._waiting()) < len(self.pods))
    @rule(data=st.data(), node=st.sampled_from(["", *NODES, "nowhere"]), gpus=st.integers(1, 8))
    def bind_twice(self, data: st.DataObject, node: str, gpus: int) -> None:
        """The same uid on another node, with another size, or waiting again: nobody should, and nothing breaks."""
        uid = data.draw(st.sampled_from(sorted(self.pods.keys() - set(self._waiting()))))
        self.pods[uid] = self.pod(self.pods[uid].metadata.name, gpus, node=node)
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
        finished = self.pod(pod.metadata.name, 1, node=pod.spec.node_name, phase=phase)
        self._tell(Kind.POD, finished)

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def tell_again(self, data: st.DataObject) -> None:
        """A watch repeats objects that did not change."""
        self._tell(Kind.POD, self.pods[data.draw(st.sampled_from(sorted(self.pods)))])

    # --- time, gaps and restarts -----------------------------------------------------------------------------------

    @rule(by_s=st.sampled_from([0.0, 0.1, 0.5, 3.0, 11.0, 31.0, 400.0]))
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


TestReservationMachine = ReservationMachine.TestCase
# The profile's examples, each of up to fifty steps.
TestReservationMachine.settings = settings(stateful_step_count=50)
