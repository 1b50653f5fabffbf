"""Nothing that comes in can stop the daemon, in whatever order: questions, messages, objects, losses, restarts.

test_nothing_stops_us.py looks at each of these by itself. Here they meet in one life of a store, and after each a plain
question gets a plain answer.
"""

from __future__ import annotations

import json
from contextlib import suppress

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scheduler.cluster.objects import Node, Partial, Pod
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.core.clock import ManualClock
from scheduler.core.errors import BadMessage
from scheduler.core.nouns import Placement
from scheduler.extender.verbs import Verbs
from scheduler.extender.wire import read_filter
from scheduler.telemetry.intake import Intake
from scheduler.telemetry.sample import Inventory, Sample, encode
from tests.builders import make_inventory, make_sample
from tests.properties.anything import (
    NAMES,
    NODES,
    PODS,
    THINGS,
    ask_all,
    asked,
    assert_books_balance,
    assert_columns_sound,
    decoded,
    make_verbs,
    mutated,
)

KEPT = 12
# The intake refuses nodes whose names no topic could carry; two of these are there from the beginning.
TOLD = st.sampled_from(["n1", "n2", "who"])
POD = {
    "metadata": {"name": "plain", "namespace": "n", "uid": "plain"},
    "spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
}


class AnythingMachine(RuleBasedStateMachine):
    """One daemon's memory, and everybody who talks to it."""

    verbs: Verbs

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.seq = 0
        self.seen: list[tuple[Kind, Pod | Node | Partial]] = []

    @initialize(placement=st.sampled_from(Placement), observe=st.booleans())
    def start(self, placement: Placement, *, observe: bool) -> None:
        self.placement, self.observe = placement, observe
        self.restart()

    @rule()
    def restart(self) -> None:
        """A new process: what was seen is listed anew."""
        self.verbs = make_verbs(self.placement, observe=self.observe, clock=self.clock)
        self.intake = Intake()
        self.told: dict[str, tuple[str, int]] = {}
        """Node -> hash of its newest inventory, and how many GPUs that has."""
        for node in ("n1", "n2"):
            # What the broker retains.
            known, inventory = self.intake.inventory(node, encode(make_inventory(node)), self.clock.mono_s())
            self.told[node] = known, len(inventory.gpus)
            self.verbs.store.see_inventory(node, inventory)
        for kind, thing in self.seen:
            self.verbs.store.apply(Changed(kind, thing), self.clock.mono_s())

    # --- who talks ---------------------------------------------------------------------------------------------------

    @rule(pod=PODS, names=st.lists(NAMES, max_size=4), nodes=st.lists(NODES, max_size=2), data=st.data())
    def question(self, pod: object, names: list[str], nodes: list[object], data: st.DataObject) -> None:
        whole = data.draw(st.sampled_from(asked(pod, names, nodes)))
        ask_all(self.verbs, json.dumps(mutated(whole, data)).encode())

    @rule(node=TOLD, agent=st.sampled_from("ab"), bent=st.booleans(), data=st.data())
    def sample(self, node: str, agent: str, data: st.DataObject, *, bent: bool) -> None:
        self.seq += 1
        inventory, gpus = self.told.get(node, ("never heard of", 8))
        util = data.draw(st.lists(st.none() | st.floats(0, 1), min_size=gpus, max_size=gpus))
        whole = msgspec.structs.replace(
            make_sample(node, util, seq=self.seq), agent=agent, inventory=inventory
        )
        now = self.clock.mono_s()
        with suppress(BadMessage):
            taken = self.intake.sample(node, self._payload(whole, data, bent=bent), now, self.clock.unix_s())
            self.verbs.store.see_samples([(node, taken, now)])

    @rule(node=TOLD, gpus=st.integers(0, 12), bent=st.booleans(), data=st.data())
    def inventory(self, node: str, gpus: int, data: st.DataObject, *, bent: bool) -> None:
        with suppress(BadMessage):
            payload = self._payload(make_inventory(node, gpus), data, bent=bent)
            known, taken = self.intake.inventory(node, payload, self.clock.mono_s())
            self.told[node] = known, len(taken.gpus)
            self.verbs.store.see_inventory(node, taken)

    def _payload(self, whole: Sample | Inventory, data: st.DataObject, *, bent: bool) -> bytes:
        return json.dumps(mutated(json.loads(encode(whole)), data)).encode() if bent else encode(whole)

    @rule(node=TOLD)
    def inventory_cleared(self, node: str) -> None:
        self.intake.forget(node)
        self.told.pop(node, None)
        self.verbs.store.forget_inventory(node)

    @rule(node=TOLD, online=st.booleans())
    def status(self, node: str, *, online: bool) -> None:
        self.verbs.store.see_status(node, online=online)

    @rule(thing=THINGS)
    def appear(self, thing: tuple[Kind, object]) -> None:
        kind, made = thing[0], decoded(*thing)
        if made is not None:
            self.seen = [*self.seen, (kind, made)][-KEPT:]
            self.verbs.store.apply(Changed(kind, made), self.clock.mono_s())

    @rule(which=st.integers(0, KEPT))
    def vanish(self, which: int) -> None:
        """What goes may have been gone before."""
        if self.seen:
            kind, thing = self.seen[which % len(self.seen)]
            self.verbs.store.apply(Gone(kind, thing), self.clock.mono_s())

    @rule(
        kind=st.sampled_from(Kind), keys=st.frozensets(st.sampled_from(["", "n1", "n2", "u1", "u2", "who"]))
    )
    def list_again(self, kind: Kind, keys: frozenset[str]) -> None:
        self.verbs.store.apply(Listed(kind, keys), self.clock.mono_s())

    @rule(by_s=st.sampled_from([0.0, 0.1, 11.0, 700.0, 1e9]))
    def pass_time(self, by_s: float) -> None:
        self.clock.advance(by_s)
        self.verbs.store.tick(self.clock.mono_s())
        self.verbs.store.reservations.forget_old_choices(self.clock.mono_s())

    # --- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def the_columns_are_sound(self) -> None:
        if hasattr(self, "verbs"):
            assert_columns_sound(self.verbs.store)
            assert_books_balance(self.verbs.store)

    @rule()
    def a_plain_question_gets_a_plain_answer(self) -> None:
        names = [name for name in self.verbs.store.rows if name] or ["n1"]
        answer = json.loads(
            self.verbs.filter(read_filter(json.dumps({"Pod": POD, "NodeNames": names}).encode()))
        )
        refused = answer["FailedNodes"] or answer["FailedAndUnresolvableNodes"]
        assert not answer["Error"]
        assert set(answer["NodeNames"]) <= set(names)
        assert answer["NodeNames"] or set(refused) == set(names)


TestAnythingMachine = AnythingMachine.TestCase
TestAnythingMachine.settings = settings(stateful_step_count=30)
