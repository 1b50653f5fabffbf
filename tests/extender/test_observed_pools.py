"""Pools that are only observed, beside pools that are acted on: docs/adr/0010, question by question."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.clock import ManualClock
from scheduler.core.nouns import Placement, PoolSpec
from scheduler.extender.verbs import Fence, Verbs
from tests.builders import make_decider, make_pod, make_store, see_node, see_pod
from tests.extender.world import QUARANTINE, World, by_names, by_nodes, pod, whole
from tests.fakes.cluster import FakeCluster

SITES = ("own", "seen", "far")


class Mixed(World):
    """Pools `own` and `far` are acted on, `seen` between them is observed; two nodes each, and one in none."""

    def __init__(
        self,
        placement: Placement = Placement.DECISIVE,
        *,
        observed: tuple[str, ...] = ("seen",),
        spill_after_s: float = 0.0,
    ) -> None:
        self.clock = ManualClock()
        pools = [
            PoolSpec(
                name=site, selector={"site": site}, observe=site in observed, spill_after_s=spill_after_s
            )
            for site in SITES
        ]
        self.store = make_store(tuple(pools))
        for site in SITES:
            for name in (f"{site}-1", f"{site}-2"):
                see_node(self.store, name, labels={"site": site})
        see_node(self.store, "none-1")
        self.decider = make_decider(self.store, placement)
        self.cluster = FakeCluster()
        self.fence = Fence()
        self.verbs = Verbs(self.decider, self.cluster, self.clock, self.fence)

    def quarantine(self, *names: str) -> None:
        for name in names:
            see_node(self.store, name, labels={**QUARANTINE, "site": name.split("-")[0]})

    def result(self) -> tuple[str, str, bool]:
        record = self.decider.log.of_pod("uid-p1")
        assert record is not None
        return record.result, record.chosen, record.reserved


ALL = ("far-1", "far-2", "none-1", "own-1", "own-2", "seen-1", "seen-2")


@pytest.mark.parametrize("placement", list(Placement))
def test_where_our_choice_is_acted_on_it_is_answered_as_ever(placement: Placement) -> None:
    mixed = Mixed(placement)
    kept = mixed.filter(by_names(*ALL))["NodeNames"]
    assert set(kept) <= {"own-1", "own-2"}
    assert len(kept) == (1 if placement is Placement.DECISIVE else 2)


@pytest.mark.parametrize("placement", list(Placement))
def test_where_it_would_be_observed_all_that_was_offered_there_is_kept_and_nothing_promised(
    placement: Placement,
) -> None:
    mixed = Mixed(placement)
    # What would rule out a node of ours rules out none that is observed.
    mixed.quarantine("own-1", "own-2", "seen-2")
    answer = mixed.filter(by_names(*ALL))
    assert sorted(answer["NodeNames"]) == ["seen-1", "seen-2"]
    assert answer["FailedNodes"] == answer["FailedAndUnresolvableNodes"] == {}
    assert mixed.result() == ("observed", "seen-1", False)
    assert not len(mixed.store.reservations)
    scores = mixed.prioritize(by_names("seen-1", "seen-2"))
    assert {each["Score"] for each in scores} == {0}


def test_what_is_left_to_kube_scheduler_goes_back_whole_too() -> None:
    mixed = Mixed()
    offered = [whole("seen-2", site="seen"), whole("far-1", site="far"), whole("new", site="seen")]
    assert mixed.filter(by_nodes(*offered))["Nodes"]["items"] == [offered[0], offered[2]]


def test_where_nothing_that_we_act_on_fits_observed_nodes_are_kept_whatever_we_think_of_them() -> None:
    mixed = Mixed()
    mixed.quarantine(*(name for name in ALL if name != "none-1"))
    assert sorted(mixed.filter(by_names("own-1", "seen-1", "seen-2"))["NodeNames"]) == ["seen-1", "seen-2"]
    assert mixed.result() == ("observed", "", False)
    answer = mixed.filter(by_names("own-1", "far-1"))
    assert answer["NodeNames"] == []
    assert set(answer["FailedNodes"]) == {"own-1", "far-1"}
    assert mixed.result()[0] == "no_fit"


def test_the_wait_for_a_pool_holds_for_what_we_act_on_only() -> None:
    # The pod is new, and all of them want it to wait.
    mixed = Mixed(spill_after_s=1e12)
    mixed.quarantine("own-1", "own-2")
    assert mixed.filter(by_names("own-1", "far-1"))["NodeNames"] == []
    assert mixed.filter(by_names("own-1", "far-1", "seen-2"))["NodeNames"] == ["seen-2"]


def test_of_several_observed_pools_none_is_preferred() -> None:
    mixed = Mixed(observed=("own", "far"))
    kept = mixed.filter(by_names(*ALL))["NodeNames"]
    assert sorted(kept) == ["far-1", "far-2", "own-1", "own-2"]
    assert mixed.result()[1].startswith("own")


def test_scores_of_observed_nodes_are_zeros_beside_others() -> None:
    mixed = Mixed(Placement.ADVISORY)
    scores = {each["Host"]: each["Score"] for each in mixed.prioritize(by_names(*ALL))}
    assert all((score == 0) == name.startswith("seen") for name, score in scores.items())


def test_a_candidate_of_preemption_in_an_observed_pool_stays() -> None:
    mixed = Mixed()
    mixed.quarantine("seen-1", "own-1")
    victims = {name: {"Pods": [{"UID": "v"}], "NumPDBViolations": 0} for name in ("seen-1", "own-1")}
    answer = mixed.preempt({"Pod": pod(), "NodeNameToMetaVictims": victims})
    assert answer["NodeNameToMetaVictims"] == {"seen-1": victims["seen-1"]}


async def test_we_bind_where_we_are_asked_to_and_leave_no_word_on_pods_of_observed_nodes() -> None:
    for node, want_annotated in (("seen-1", False), ("own-1", True)):
        mixed = Mixed()
        mixed.cluster.add(make_pod())
        assert await mixed.bind(node) == ""
        [(_, bound, annotations)] = mixed.cluster.bindings
        assert (bound, bool(annotations)) == (node, want_annotated)


def test_what_was_promised_before_a_pool_was_observed_is_taken_back() -> None:
    mixed = Mixed(observed=())
    for name in ("seen-1", "own-1"):
        mixed.filter(by_names(name, name=f"p-{name}"))
    assert len(mixed.store.reservations) == 2
    seen = Mixed().store.settings
    mixed.store.use(seen, mixed.store.intents.settings, 0.0)
    mixed.decider.use(mixed.decider.profiles, mixed.decider.filters)
    mixed.decider.drop_observed_promises(0.0)
    assert [held.node for held in mixed.store.reservations.made_before(1e9)] == ["own-1"]


@given(data=st.data())
def test_whatever_happens_an_observed_pool_is_offered_whole_or_not_at_all(data: st.DataObject) -> None:
    observed = tuple(data.draw(st.sets(st.sampled_from(SITES), min_size=1)))
    mixed = Mixed(data.draw(st.sampled_from(Placement)), observed=observed)
    mixed.quarantine(*data.draw(st.sets(st.sampled_from(ALL[:2] + ALL[3:]))))
    for index, name in enumerate(data.draw(st.lists(st.sampled_from(ALL), max_size=8))):
        see_pod(mixed.store, make_pod(f"there-{index}", 8, node=name))
    offered = data.draw(st.lists(st.sampled_from(ALL), unique=True))
    question: dict[str, Any] = by_names(*offered, gpus=data.draw(st.integers(1, 8)))
    kept = mixed.filter(question)["NodeNames"]
    seen = [name for name in offered if name.split("-")[0] in observed]
    result, chosen, reserved = mixed.result()
    if result == "observed":
        assert sorted(kept) == sorted(seen)
        assert (reserved, len(mixed.store.reservations)) == (False, 0)
        assert not chosen or chosen in seen
    else:
        assert not set(kept) & set(seen)
        assert kept or not seen
