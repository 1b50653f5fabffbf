"""Whoever is woken was refused, rests before the next time, and has room; and nobody who has room is left asleep."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.builders import make_pod, see_node, see_pod
from tests.decision.test_refused import AGAIN_S, SICK, World

GPUS = 4
NODES = ("n0", "n1", "n2")
ONE = st.sampled_from(NODES)
SOME = st.sets(ONE, min_size=1).map(lambda names: tuple(sorted(names)))


class NudgeMachine(RuleBasedStateMachine):
    """Nodes fall ill and heal, pods are refused, woken, placed, bound and end, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.serial = 0
        self.sick: set[str] = set(NODES)
        self.gpus: dict[str, int] = {}
        self.refused: dict[str, tuple[str, ...]] = {}
        """Pods that wait for us, with what was offered."""
        self.on_their_way: dict[str, tuple[str, float]] = {}
        """Pods that were woken and neither came nor took too long, with where they fitted and until when."""
        self.rests: dict[str, float] = {}
        self.bound: dict[str, str] = {}

    @initialize()
    def begin(self) -> None:
        for name in NODES:
            see_node(self.world.store, name, GPUS, SICK)

    @property
    def now(self) -> float:
        return self.world.clock.mono_s()

    def _left(self, node: str, without: str = "") -> float:
        """GPUs of a node that nobody has, is promised, or is on the way to."""
        row = self.world.store.rows[node]
        on_the_way = sum(
            self.gpus[pod]
            for pod, (where, until) in self.on_their_way.items()
            if where == node and until > self.now and pod != without
        )
        return float(self.world.store.snapshot.free_gpus[row]) - on_the_way

    @rule(node=ONE)
    def fall_ill(self, node: str) -> None:
        self.world.quarantine(node)
        self.sick.add(node)

    @rule(node=ONE)
    def heal(self, node: str) -> None:
        self.world.quarantine(node, ends=True)
        self.sick.discard(node)

    def _ask(self, name: str, nodes: tuple[str, ...]) -> None:
        result = self.world.ask(name, self.gpus[name], nodes=nodes)
        self.refused.pop(name, None)
        if result == "no_fit":
            self.refused[name] = nodes
        if result == "no_fit" or self.world.store.reservations.get(f"uid-{name}") is not None:
            self.on_their_way.pop(name, None)

    @rule(gpus=st.integers(1, GPUS), nodes=SOME)
    def come(self, gpus: int, nodes: tuple[str, ...]) -> None:
        """A new pod is asked about."""
        self.serial += 1
        name = f"p{self.serial}"
        self.gpus[name] = gpus
        self._ask(name, nodes)

    @rule(which=st.integers(0, 20), nodes=SOME)
    def come_again(self, which: int, nodes: tuple[str, ...]) -> None:
        """kube-scheduler tries a pod again, since it was woken or by itself."""
        waiting = sorted(self.gpus.keys() - self.bound.keys())
        if waiting:
            self._ask(waiting[which % len(waiting)], nodes)

    @rule(which=st.integers(0, 20))
    def bind(self, which: int) -> None:
        """A promise is kept."""
        held = sorted(self.world.store.reservations.made_before(float("inf")), key=lambda each: each.uid)
        if held:
            promise = held[which % len(held)]
            name = promise.uid.removeprefix("uid-")
            see_pod(self.world.store, make_pod(name, self.gpus[name], node=promise.node), self.now)
            self.bound[name] = promise.node
            self.refused.pop(name, None)
            self.on_their_way.pop(name, None)

    @rule(which=st.integers(0, 20))
    def end(self, which: int) -> None:
        """A pod that ran has ended."""
        if self.bound:
            name = sorted(self.bound)[which % len(self.bound)]
            ended = make_pod(name, self.gpus.pop(name), node=self.bound.pop(name), phase="Succeeded")
            see_pod(self.world.store, ended, self.now)

    @rule(by_s=st.sampled_from([0.5, 3.0, AGAIN_S, 40.0]))
    def pass_time(self, by_s: float) -> None:
        self.world.clock.advance(by_s)
        self.world.store.tick(self.now)

    @rule(at_most=st.integers(1, 10))
    def wake(self, at_most: int) -> None:
        """As the loop does; it may be interrupted."""
        for _ in range(at_most):
            choice = self.world.find()
            if choice is None:
                self._nobody_is_left()
                return
            name, node = choice.pod.name, choice.node
            assert name in self.refused
            assert node in self.refused[name]
            assert node not in self.sick
            assert self.rests.get(name, 0.0) <= self.now
            assert self._left(node) >= self.gpus[name]
            until = self.now + AGAIN_S
            self.world.refused.take(choice, until)
            self.world.refused.woken(choice, self.now)
            del self.refused[name]
            self.on_their_way[name] = (node, until)
            self.rests[name] = until

    def _nobody_is_left(self) -> None:
        for name, nodes in self.refused.items():
            if self.rests.get(name, 0.0) <= self.now:
                rooms = [self._left(node) for node in nodes if node not in self.sick]
                assert max(rooms, default=0.0) < self.gpus[name], name

    @invariant()
    def all_who_wait_are_remembered(self) -> None:
        # Bound pods are forgotten at the next look, or the one after it.
        assert self.refused.keys() <= {uid.removeprefix("uid-") for uid in self.world.refused._pods}


TestNudgeMachine = NudgeMachine.TestCase
# The profile's examples, each of up to fifty steps.
TestNudgeMachine.settings = settings(stateful_step_count=50)
