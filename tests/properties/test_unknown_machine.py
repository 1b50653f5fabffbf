"""Unknown is never attractive: forgetting a reading never lowers a node's load, nor raises its score.

Two stores live the same life; one of them loses readings on the way: of single GPUs, of agents that say goodbye, of
nodes that fall silent. Each GPU does the same all its life, so that what a reading says does not depend on when it
was taken; how readings follow a GPU that changes is in tests/cluster/test_store.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scheduler.cluster.objects import Pod
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.cluster.promises import PENDING_FLOOR
from scheduler.cluster.store import Store
from scheduler.core.nouns import Placement
from scheduler.policy import registry
from scheduler.policy.base import Score
from tests.builders import (
    all_rows,
    make_decider,
    make_inventory,
    make_node,
    make_pod,
    make_request,
    make_sample,
    make_store,
)

NAMES = ["n0", "n1", "n2"]
NODE = st.sampled_from(NAMES)
WIDTH = 4
SCORES = [name for name in registry.known() if isinstance(registry.build(name, {}), Score)]
WEIGHTS = st.dictionaries(st.sampled_from(SCORES), st.sampled_from([0.5, 1.0, 3.0]), min_size=1)
# Models of the shipped table's kind: some weaker, some stronger than a model that nobody named.
CAPABILITIES = {"T4": 0.2, "H100": 2.0, "A100*": 1.0}
MODELS = st.sampled_from(["T4", "H100", "A100-80", "unheard of"])
# What the two may differ by where nothing differs: float32 sums, and pending load that is cut off at its floor.
SLACK_GPUS = 2 * PENDING_FLOOR + 1e-4
SLACK = SLACK_GPUS * max(CAPABILITIES.values()) / 1.0


def totals(store: Store, weights: dict[str, float], gpus: int, now: float) -> dict[str, float]:
    """Every node's score for a pod."""
    decider = make_decider(store, Placement.ADVISORY, weights)
    judgement = decider.judge(make_request("asks", gpus), all_rows(store), now)
    assert not decider.failures.counts
    return {name: float(judgement.total[row]) for name, row in store.rows.items()}


class ForgettingMachine(RuleBasedStateMachine):
    """`knowing` hears all samples; `forgetting` does not."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.serial = 0
        self.pods: list[Pod] = []
        self.util: dict[str, list[float]] = {}

    @initialize(
        util=st.lists(
            st.lists(st.sampled_from([0.0, 0.2, 0.7, 1.0]), min_size=WIDTH, max_size=WIDTH),
            min_size=len(NAMES),
            max_size=len(NAMES),
        ),
        models=st.lists(MODELS, min_size=len(NAMES), max_size=len(NAMES)),
        neutral=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def begin(self, util: list[list[float]], models: list[str], neutral: float) -> None:
        self.util = dict(zip(NAMES, util, strict=True))
        self.knowing, self.forgetting = (
            make_store(neutral_load=neutral, capabilities=CAPABILITIES) for _ in range(2)
        )
        for store in (self.knowing, self.forgetting):
            for name, model in zip(NAMES, models, strict=True):
                store.apply(Changed(Kind.NODE, make_node(name, WIDTH)), self.now)
                store.see_inventory(name, make_inventory(name, WIDTH, model))
            store.apply(Listed(Kind.POD, frozenset()), self.now)
            store.tick(self.now)
        self._read(self.knowing, NAMES)
        self._read(self.forgetting, NAMES)

    def _read(self, store: Store, names: list[str]) -> None:
        store.see_samples([(name, make_sample(name, list(self.util[name])), self.now) for name in names])

    # --- what both live through --------------------------------------------------------------------------------------

    @rule(node=NODE, gpus=st.integers(1, WIDTH))
    def promise(self, node: str, gpus: int) -> None:
        self.serial += 1
        request = make_request(f"p{self.serial}", gpus)
        first = self.knowing.reserve(request, node, self.now)
        assert first == self.forgetting.reserve(request, node, self.now), (
            "what is free is no matter of readings"
        )

    @rule(node=NODE, gpus=st.integers(1, WIDTH))
    def bind(self, node: str, gpus: int) -> None:
        self.serial += 1
        self.pods.append(make_pod(f"p{self.serial}", gpus, node=node))
        for store in (self.knowing, self.forgetting):
            store.apply(Changed(Kind.POD, self.pods[-1]), self.now)

    @rule()
    def end(self) -> None:
        if self.pods:
            pod = self.pods.pop(0)
            for store in (self.knowing, self.forgetting):
                store.apply(Gone(Kind.POD, pod), self.now)

    @rule(by_s=st.sampled_from([0.1, 2.0, 8.0, 11.0]), heard=st.sets(NODE))
    def pass_time(self, by_s: float, heard: set[str]) -> None:
        """Samples of all nodes reach the one store, those of some nodes the other."""
        self.now += by_s
        self._read(self.knowing, NAMES)
        self._read(self.forgetting, sorted(heard))
        for store in (self.knowing, self.forgetting):
            store.tick(self.now)

    # --- what only one forgets ---------------------------------------------------------------------------------------

    @rule(
        node=NODE,
        hidden=st.lists(st.booleans(), min_size=WIDTH, max_size=WIDTH),
        weights=WEIGHTS,
        gpus=st.integers(1, WIDTH),
        offline=st.booleans(),
    )
    def forget(
        self, node: str, hidden: list[bool], weights: dict[str, float], gpus: int, *, offline: bool
    ) -> None:
        store = self.forgetting
        # A reading now, so that its loss is all that changes.
        self._read(store, [node])
        before, load = totals(store, weights, gpus, self.now), self._load(store, node)
        if offline:
            store.see_status(node, online=False)
        else:
            util = [None if lost else busy for busy, lost in zip(self.util[node], hidden, strict=True)]
            store.see_samples([(node, make_sample(node, util), self.now)])
        after = totals(store, weights, gpus, self.now)
        assert self._load(store, node) >= load - 1e-5
        assert after.pop(node) <= before.pop(node) + 1e-6
        assert after == before, "the others are what they were"

    # --- what always holds -------------------------------------------------------------------------------------------

    def _load(self, store: Store, node: str) -> float:
        row = store.rows[node]
        return float(store.snapshot.load_sum[row] + store.snapshot.pending_load[row])

    @invariant()
    def who_forgets_sees_no_less_load(self) -> None:
        if not self.util:
            return
        for name in NAMES:
            assert self._load(self.forgetting, name) >= self._load(self.knowing, name) - SLACK_GPUS
            row = self.knowing.rows[name]
            assert self.forgetting.snapshot.free_gpus[row] == self.knowing.snapshot.free_gpus[row]

    @rule(weights=WEIGHTS, gpus=st.integers(1, WIDTH))
    def who_forgets_scores_no_higher(self, weights: dict[str, float], gpus: int) -> None:
        scored = totals(self.forgetting, weights, gpus, self.now)
        for name, want_most in totals(self.knowing, weights, gpus, self.now).items():
            assert scored[name] <= want_most + SLACK


TestForgettingMachine = ForgettingMachine.TestCase
TestForgettingMachine.settings = settings(stateful_step_count=30)


UNHEARD_OF: dict[str, Any] = {
    "how": "never heard of",
    "model": "H100",
    "labelled": True,
    "neutral": 0.5,
    "bound": 0,
    "promised": 0,
    "gpus": 1,
    "weights": {"least-loaded": 1.0},
}


@given(
    how=st.sampled_from(["never heard of", "without a sample", "offline", "silent", "unread"]),
    model=MODELS,
    labelled=st.booleans(),
    neutral=st.sampled_from([0.0, 0.5, 1.0]),
    bound=st.integers(0, WIDTH),
    promised=st.integers(0, WIDTH),
    gpus=st.integers(1, WIDTH),
    weights=WEIGHTS,
    idle_first=st.booleans(),
)
# By load alone, so that nothing else can tell the two apart; whichever has the better hash.
@example(**UNHEARD_OF | {"idle_first": True})
@example(**UNHEARD_OF | {"idle_first": False})
# A node of weak GPUs, of which neither a label nor an agent has told: its capability is unknown as well.
@example(**UNHEARD_OF | {"model": "T4", "labelled": False, "neutral": 0.0, "idle_first": False})
def test_an_unknown_node_is_never_more_attractive_than_the_same_node_known_to_be_idle(
    how: str,
    model: str,
    neutral: float,
    bound: int,
    promised: int,
    gpus: int,
    weights: dict[str, float],
    *,
    labelled: bool,
    idle_first: bool,
) -> None:
    store = make_store(neutral_load=neutral, capabilities=CAPABILITIES)
    # Ties break by a hash of the name: which of the two has the better one must not matter.
    idle, unknown = ("a", "b") if idle_first else ("b", "a")
    for name in ("a", "b"):
        labels = {"nvidia.com/gpu.product": model} if labelled else {}
        store.apply(Changed(Kind.NODE, make_node(name, WIDTH, labels)), 0.0)
        if name == idle or how != "never heard of":
            store.see_inventory(name, make_inventory(name, WIDTH, model))
        if bound:
            store.apply(Changed(Kind.POD, make_pod(f"on-{name}", bound, node=name)), 0.0)
        if promised:
            store.reserve(make_request(f"to-{name}", promised), name, 0.0)
    if how in {"offline", "silent"}:
        store.see_samples([(unknown, make_sample(unknown, [0.0] * WIDTH), 0.0)])
    now = 11.0
    store.tick(now)
    store.see_samples([(idle, make_sample(idle, [0.0] * WIDTH), now)])
    if how == "offline":
        store.see_status(unknown, online=False)
    elif how == "unread":
        store.see_samples([(unknown, make_sample(unknown, [None] * WIDTH), now)])
    scored = totals(store, weights, gpus, now)
    assert np.isfinite(list(scored.values())).all()
    assert scored[unknown] <= scored[idle] + 1e-6
    free = store.snapshot.free_gpus[store.rows[idle]]
    if "least-loaded" in weights and neutral > 0 and free >= gpus:
        decider = make_decider(store, weights=weights)
        outcome = decider.place(make_request("asks", gpus), all_rows(store), now, 0.0)
        assert outcome.record.chosen == idle
