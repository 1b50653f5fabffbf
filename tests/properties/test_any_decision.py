"""Promise 5.8 over generated clusters: each decision is the best there was, adds up, and each 'no' has its reason."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cluster.objects import OwnerRef, Pod
from scheduler.cluster.port import Kind
from scheduler.cluster.reservations import CHOICES_WITHOUT_BINDING
from scheduler.core.nouns import PREFIX, Placement, PoolSpec, Reason
from scheduler.decision.decider import Outcome
from scheduler.decision.evaluation import decided
from scheduler.decision.explain import CORDONED, TOO_SMALL, evaluate
from scheduler.decision.record import DecisionRecord
from tests.builders import (
    added_up,
    all_rows,
    make_decider,
    make_inventory,
    make_pod,
    make_sample,
    make_store,
    see_node,
    see_pod,
)

POOLS = (
    PoolSpec(name="dc", selector={"site": "dc"}, spill_after_s=300.0),
    PoolSpec(name="aws", selector={"site": "aws"}),
)
POOL_NAMES = [*(pool.name for pool in POOLS), "default"]
WEIGHTS = {"least-loaded": 3.0, "pack": 1.7, "freshness": 0.1, "spread": 1.0}
CONSTANT = {reason.text for reason in Reason} | {
    f"{Reason.WAITING_FOR_POOL.text} {name}" for name in POOL_NAMES
}
NOW = 100.0


@dataclass(frozen=True, kw_only=True)
class Box:
    """A node as it was generated."""

    gpus: int
    busy_frac: float
    held: int
    site: str
    model: str
    lost: int
    quarantined: bool


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A pod as it was generated, and whether it is bound where we say."""

    gpus: int
    said: dict[str, str]
    owned: bool
    binds: bool
    tired: bool
    old: bool


BOXES = st.lists(
    st.builds(
        Box,
        gpus=st.sampled_from([8, 8, 4, 2, 1]),
        busy_frac=st.sampled_from([0.0, 0.3, 1.0]) | st.floats(0, 1),
        held=st.sampled_from([0, 0, 0, 1, 4, 8]),
        site=st.sampled_from(["dc", "aws", "none"]),
        model=st.sampled_from(["A100", "A100", "H100", ""]),
        lost=st.sampled_from([0] * 5 + [1]),
        quarantined=st.sampled_from([False] * 7 + [True]),
    ),
    min_size=1,
    max_size=14,
)
SAYS: list[dict[str, str]] = [{}, {}, {"pools": "aws,dc"}, {"pools": "default"}, {"gpu-model": "*A100*"}]
ASKS = st.lists(
    st.builds(
        Ask,
        gpus=st.sampled_from([1, 1, 1, 2, 3, 8]),
        said=st.sampled_from(SAYS),
        owned=st.booleans(),
        binds=st.booleans(),
        tired=st.booleans(),
        old=st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@dataclass
class World:
    """A store and its decider, and beside them plain counts of the same."""

    boxes: list[Box]
    placement: Placement
    held: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.store = make_store(POOLS)
        for index, box in enumerate(self.boxes):
            name, held = f"n{index}", min(box.held, box.gpus)
            labels = {"site": box.site} | ({PREFIX + "quarantine": ""} if box.quarantined else {})
            see_node(self.store, name, box.gpus, labels)
            self.store.see_inventory(name, make_inventory(name, box.gpus, box.model))
            states = ["lost"] * box.lost + ["ok"] * (box.gpus - box.lost)
            self.store.see_samples([(name, make_sample(name, [box.busy_frac] * box.gpus, states), NOW)])
            if held:
                see_pod(self.store, make_pod(f"on-{name}", held, node=name), NOW)
                self.held[name] = held
        self.decider = make_decider(self.store, self.placement, WEIGHTS)

    def free(self, name: str) -> int:
        box = self.boxes[int(name[1:])]
        return max(min(box.gpus, box.gpus - box.lost) - self.held[name], 0)

    def place(self, pod: Pod, unix_s: float) -> Outcome:
        request = self.store.request(pod, unix_s, self.decider.profile_facts)
        return self.decider.place(request, all_rows(self.store), NOW, unix_s)

    def order(self, outcome: Outcome, tired_of: str) -> list[tuple[tuple[int, int, float, int], str]]:
        """All nodes that nothing is said against, best first, by the table in decision/cycle.py."""
        wanted = outcome.request.pools or range(len(POOL_NAMES))
        found = []
        for name, row in self.store.rows.items():
            if outcome.judgement.codes[row]:
                continue
            band = 2 * (self.free(name) < outcome.request.gpus) + (name == tired_of)
            site = self.boxes[int(name[1:])].site
            rank = list(wanted).index(POOL_NAMES.index(site if site in POOL_NAMES else "default"))
            key = (band, rank, -float(outcome.judgement.total[row]), zlib.crc32(name.encode()))
            found.append((key, name))
        return sorted(found)


def a_pod(ask: Ask, index: int = 0, node: str = "") -> Pod:
    owner = OwnerRef(kind="ReplicaSet", uid="rs", controller=True) if ask.owned else None
    said = {PREFIX + key: text for key, text in ask.said.items()}
    return make_pod(f"p{index}", ask.gpus, annotations=said, owner=owner, node=node)


def assert_adds_up(record: DecisionRecord) -> None:
    for candidate in decided(record):
        assert added_up(candidate) == candidate.score
        assert 0 <= candidate.score <= 1 + 1e-9
    assert set(record.reasons) <= CONSTANT
    chosen_before = record.reasons.get(Reason.CHOSEN_BEFORE_NOT_BOUND.text, 0)
    against = sum(record.reasons.values()) - chosen_before
    assert record.fitting + against <= record.asked
    if record.result == "no_fit":
        assert against == record.asked, "each 'no' has its reason"
    assert bool(record.best) is (against < record.asked)


@given(BOXES, ASKS, st.sampled_from(Placement))
def test_each_decision_is_the_best_there_was_and_adds_up(
    boxes: list[Box], asks: list[Ask], placement: Placement
) -> None:
    world = World(boxes, placement)
    for index, ask in enumerate(asks):
        pod, tired_of, unix_s = a_pod(ask, index), "", 1000.0 if ask.old else 0.0
        if ask.tired:
            # The node that it would go to, else any.
            request = world.store.request(pod, unix_s, world.decider.profile_facts)
            tired_of = evaluate(world.decider, request, NOW, unix_s).chosen or "n0"
            for _ in range(CHOICES_WITHOUT_BINDING):
                world.store.reservations.note_choice(pod.metadata.uid, tired_of, NOW)
        outcome = world.place(pod, unix_s)
        assert_adds_up(outcome.record)
        order = world.order(outcome, tired_of)
        if not order:
            assert (outcome.result, outcome.record.chosen, len(outcome.kept)) == ("no_fit", "", 0)
            continue
        (best, chosen), names = order[0], [world.store.names[row] for row in outcome.kept.tolist()]
        assert outcome.record.best[0].node == chosen
        if placement is Placement.ADVISORY:
            assert sorted(map(str, names)) == sorted(name for key, name in order if key[:2] == best[:2])
            continue
        assert [outcome.record.chosen] == names == [chosen]
        assert outcome.result == ("placed" if best[0] < 2 else "full_by_our_count")
        assert outcome.reserved is (best[0] < 2)
        if outcome.reserved:
            world.held[chosen] += ask.gpus
            if ask.binds:
                see_pod(world.store, a_pod(ask, index, node=chosen), NOW)
    assert len(world.decider.log) == len(asks)


@given(BOXES, ASKS, st.sampled_from(Placement), st.data())
def test_what_is_explained_of_a_bound_pod_is_what_would_be_decided_if_it_came_now(
    boxes: list[Box], asks: list[Ask], placement: Placement, data: st.DataObject
) -> None:
    """Its own GPUs, and it itself among its siblings, count as if it were not there yet."""
    bound, waiting = World(boxes, placement), World(boxes, placement)
    node = f"n{data.draw(st.integers(0, len(boxes) - 1))}"
    *others, ask = asks
    for index, other in enumerate(others):
        for world in (bound, waiting):
            see_pod(world.store, a_pod(other, index, node=f"n{index % len(boxes)}"), NOW)
    unix_s = 1000.0 if ask.old else 0.0
    pod = a_pod(ask, len(asks), node=node)
    see_pod(bound.store, pod, NOW)
    for world in (bound, waiting):
        world.store.synced.add(Kind.POD)
    request = bound.store.request(pod, unix_s, bound.decider.profile_facts)
    told = evaluate(bound.decider, request, NOW, unix_s, held_on=node)
    # kube-scheduler would not offer what is too small for it; where it runs it is offered.
    rows = [
        row
        for name, row in waiting.store.rows.items()
        if boxes[int(name[1:])].gpus >= ask.gpus or name == node
    ]
    unbound = waiting.store.request(a_pod(ask, len(asks)), unix_s, waiting.decider.profile_facts)
    record = waiting.decider.place(unbound, np.array(rows, np.intp), NOW, unix_s).record
    assert told.fitting == record.fitting
    against = {each.reason: each.nodes for each in told.ruled_out if each.reason not in (CORDONED, TOO_SMALL)}
    assert against == record.reasons
    assert [(each.node, each.score, each.free_gpus) for each in told.best] == [
        (each.node, each.score, each.free_gpus) for each in record.best
    ]
    assert told.chosen == (record.best[0].node if record.best else "")
    assert told.own is not None
    assert told.unblock == ()
