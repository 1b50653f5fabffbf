"""A binding evicts the youngest promises of its node until the sum fits, and no GPU is counted twice on the way.

The machine of test_reservation_machine.py can do all of this, and seldom comes to it: two nodes, many small promises,
and few rules beside those that crowd them.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from scheduler.cluster.port import Kind
from tests.builders import make_inventory, make_pod, make_sample
from tests.properties.books import Books, units_of

TWO = st.sampled_from(["n0", "n1"])


class EvictionMachine(Books):
    """Promises, and bindings that come twice, late, past us, or only with the next listing."""

    @initialize()
    def begin(self) -> None:
        for name in ("n0", "n1"):
            self.nodes[name] = self.node(name, 8, {})
            self.store.see_inventory(name, make_inventory(name, 8))
        self._list_all()

    @rule(
        node=TWO, sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4), apart_s=st.sampled_from([0, 0.1])
    )
    def promise(self, node: str, sizes: list[int], apart_s: float) -> None:
        """To new pods, at one instant or shortly after one another."""
        for gpus in sizes:
            self.serial += 1
            pod = self.pod(f"p{self.serial}", gpus)
            self.pods[pod.metadata.uid] = pod
            self._tell(Kind.POD, pod)
            self.store.reserve(self.request(pod), node, self.now)
            self.now += apart_s

    @rule(node=TWO, which=st.integers(0, 9))
    def ask_again(self, node: str, which: int) -> None:
        """An old promise renewed stays old; one on another node is a young one."""
        waiting = self._waiting()
        if waiting:
            pod = self.pods[waiting[which % len(waiting)]]
            self.store.reserve(self.request(pod), node, self.now)

    @rule(node=TWO, gpus=st.integers(1, 6))
    def crowd(self, node: str, gpus: int) -> None:
        """Somebody else's pod."""
        self.serial += 1
        pod = self.pod(f"p{self.serial}", gpus, node=node)
        self.pods[pod.metadata.uid] = pod
        self._tell(Kind.POD, pod)

    @rule(which=st.integers(0, 9), node=TWO, ours=st.booleans())
    def bind(self, which: int, node: str, *, ours: bool) -> None:
        """Where it was promised, or elsewhere; perhaps long after the promise ran out."""
        waiting = self._waiting()
        if waiting:
            uid = waiting[which % len(waiting)]
            held = self.store.reservations.get(uid)
            at = held.node if ours and held is not None else node
            pod = self.pods[uid]
            self.pods[uid] = make_pod(
                pod.metadata.name, node=at, shares=units_of(pod), annotations=pod.metadata.annotations
            )
            self._tell(Kind.POD, self.pods[uid])

    @rule(which=st.integers(0, 9), node=TWO, gpus=st.integers(0, 4))
    def bind_twice(self, which: int, node: str, gpus: int) -> None:
        """The same uid once more, here or on the other node, perhaps with another size."""
        bound = sorted(self.pods.keys() - set(self._waiting()))
        if bound:
            pod = self.pods[bound[which % len(bound)]]
            again = units_of(self.pod("", gpus) if gpus else pod)
            self.pods[pod.metadata.uid] = make_pod(pod.metadata.name, node=node, shares=again)
            self._tell(Kind.POD, self.pods[pod.metadata.uid])

    @rule(which=st.integers(0, 9))
    def delete(self, which: int) -> None:
        if self.pods:
            uid = sorted(self.pods)[which % len(self.pods)]
            self._tell(Kind.POD, self.pods.pop(uid), gone=True)

    @rule(node=TWO, lost=st.integers(0, 4))
    def lose_gpus(self, node: str, lost: int) -> None:
        """Promises may then exceed what is left; the next binding settles that."""
        states = ["lost"] * lost + ["ok"] * (8 - lost)
        self.store.see_samples([(node, make_sample(node, [0.5] * 8, states), self.now)])

    @rule(by_s=st.sampled_from([1.0, 31.0]))
    def pass_time(self, by_s: float) -> None:
        self.now += by_s
        self.store.tick(self.now)
        assert all(held.until_mono_s > self.now for held in self._held())

    @rule()
    def lose_the_watch_or_list_again(self) -> None:
        self.gap = not self.gap
        if not self.gap:
            self._list_all()


TestEvictionMachine = EvictionMachine.TestCase
# The profile's examples, each of up to fifty steps.
TestEvictionMachine.settings = settings(stateful_step_count=50)
