"""The decider: promises, spill, last choices, advice, and the record of why."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cluster.objects import OwnerRef
from scheduler.cluster.reservations import RENEWALS, RESERVATION_S, VOLUME_RESERVATION_S
from scheduler.cluster.store import Store
from scheduler.core.nouns import PREFIX, Placement, PodRequest, PoolSpec, Reason
from scheduler.core.preferences import Preferences
from scheduler.decision.decider import Decider, Outcome
from scheduler.decision.record import DecisionLog, DecisionRecord
from tests.builders import (
    all_rows,
    free_of,
    lose_pod,
    make_decider,
    make_node,
    make_pod,
    make_request,
    make_sample,
    make_store,
    see_node,
    see_pod,
)

NOW = 1000.0
UNCLEAR = Preferences(not_understood=("operator 'Near'",))


def world(
    nodes: int = 3, placement: Placement = Placement.DECISIVE, gpus: int = 8, pools: tuple[PoolSpec, ...] = ()
) -> tuple[Store, Decider]:
    store = make_store(pools)
    for index in range(nodes):
        see_node(store, f"n{index}", gpus)
    store.tick(NOW)
    return store, make_decider(store, placement)


def place(decider: Decider, request: PodRequest, now: float = NOW, *, observe: bool = False) -> Outcome:
    return decider.place(request, all_rows(decider.store), now, 0.0, observe=observe)


def names_of(decider: Decider, outcome: Outcome) -> list[str]:
    return sorted(decider.store.names[row] or "" for row in outcome.kept.tolist())


def test_decisive_answers_one_node_and_promises_its_gpus() -> None:
    store, decider = world()
    outcome = place(decider, make_request(gpus=3))
    assert outcome.result == "placed"
    assert outcome.reserved
    (node,) = names_of(decider, outcome)
    assert free_of(store, node) == 5
    assert [each.free_gpus for each in outcome.record.best] == [8, 8, 8], "as it was when the choice was made"
    held = store.reservations.get("uid-p1")
    assert held is not None
    assert held.until_mono_s == NOW + RESERVATION_S
    assert outcome.record.chosen == node


def test_a_burst_of_pods_never_shares_a_gpu() -> None:
    store, decider = world(nodes=2, gpus=4)
    results = [place(decider, make_request(f"p{i}", gpus=1)).result for i in range(10)]
    assert results == ["placed"] * 8 + ["full_by_our_count"] * 2
    assert free_of(store, "n0") == free_of(store, "n1") == 0
    assert len(store.reservations) == 8


def test_a_node_full_by_our_count_is_answered_without_a_promise() -> None:
    store, decider = world(nodes=1)
    see_pod(store, make_pod("x", gpus=8, node="n0"))
    outcome = place(decider, make_request())
    assert outcome.result == "full_by_our_count"
    assert names_of(decider, outcome) == ["n0"]
    assert not outcome.reserved
    assert not len(store.reservations)
    assert decider.disagreements == 1


def test_a_promise_is_taken_back_when_its_node_no_longer_fits() -> None:
    store, decider = world(nodes=1)
    place(decider, make_request(gpus=8))
    store.see_samples([("n0", make_sample("n0", [0.1] * 8, ["lost"] + ["ok"] * 7), NOW)])
    outcome = place(decider, make_request(gpus=8))
    assert outcome.result == "no_fit"
    assert outcome.record.reasons == {Reason.BROKEN_GPUS.text: 1}
    assert not len(store.reservations)


def test_the_same_pod_is_answered_the_same_and_its_promise_renewed_twice() -> None:
    store, decider = world()
    first = names_of(decider, place(decider, make_request(gpus=2)))
    for renewal in range(1, RENEWALS + 1):
        # Make every other node the better one: without the promise the answer would move.
        store.see_samples([(f"n{i}", make_sample(f"n{i}", [0.0] * 8, seq=renewal), NOW) for i in range(3)])
        store.see_samples([(first[0], make_sample(first[0], [0.9] * 8, seq=renewal), NOW + 0.1)])
        outcome = place(decider, make_request(gpus=2), NOW + 5 * renewal)
        assert names_of(decider, outcome) == first
        held = store.reservations.get("uid-p1")
        assert held is not None
        assert held.renewals == renewal
        assert held.until_mono_s == NOW + 5 * renewal + RESERVATION_S
    assert len(store.reservations) == 1
    assert free_of(store, first[0]) == 6


def test_a_node_chosen_three_times_without_a_binding_is_last_for_five_minutes() -> None:
    store, decider = world()
    request = make_request(gpus=8)
    (node,) = {names_of(decider, place(decider, request, NOW + i))[0] for i in range(3)}
    outcome = place(decider, request, NOW + 3)
    assert names_of(decider, outcome) != [node]
    assert outcome.record.reasons == {Reason.CHOSEN_BEFORE_NOT_BOUND.text: 1}
    only = np.array([store.rows[node]], np.intp)
    last = decider.place(request, only, NOW + 4, 0.0)
    assert names_of(decider, last) == [node], "last, not never"
    assert last.result == "placed"
    assert store.reservations.last_choices(request.uid, NOW + 2 + 299) == [node]
    assert store.reservations.last_choices(request.uid, NOW + 2 + 300) == []
    assert names_of(decider, place(decider, make_request("other"), NOW + 4)) != [], "others are not concerned"


def test_nodes_full_by_our_count_take_turns_too() -> None:
    store, decider = world(nodes=2)
    for i in range(2):
        see_pod(store, make_pod(f"x{i}", gpus=8, node=f"n{i}"))
    request = make_request()
    want = [names_of(decider, place(decider, request, NOW + i))[0] for i in range(6)]
    assert want[0] == want[1] == want[2] != want[3] == want[4] == want[5]


def test_several_nodes_that_come_to_nothing_three_times_become_one_at_a_time() -> None:
    store, decider = world(nodes=3)
    request = make_request(gpus=8, preferences=UNCLEAR)
    answers = [names_of(decider, place(decider, request, NOW + i)) for i in range(12)]
    assert answers[:3] == [["n0", "n1", "n2"]] * 3
    singles = [node for (node,) in answers[3:]]
    assert {node: singles.count(node) for node in singles} == {"n0": 3, "n1": 3, "n2": 3}
    see_pod(store, make_pod("p1", gpus=8, node="n0"))
    lose_pod(store, make_pod("p1", gpus=8, node="n0"))
    assert len(names_of(decider, place(decider, request, NOW + 20))) == 3, (
        "that is forgotten with the binding"
    )


def test_a_pod_goes_where_others_made_room_for_it() -> None:
    store, decider = world(nodes=3)
    store.see_samples([(f"n{i}", make_sample(f"n{i}", [u] * 8), NOW) for i, u in enumerate((0.0, 0.1, 0.9))])
    assert names_of(decider, place(decider, make_request("other"))) == ["n0"]
    assert names_of(decider, place(decider, make_request(nominated_node="n2"))) == ["n2"]


def test_a_binding_ends_the_history_of_choices() -> None:
    store, decider = world(nodes=1)
    for i in range(3):
        place(decider, make_request(), NOW + i)
    assert store.reservations.last_choices("uid-p1", NOW + 3) == ["n0"]
    see_pod(store, make_pod(node="n0"), NOW + 3)
    assert store.reservations.last_choices("uid-p1", NOW + 3) == []
    assert not len(store.reservations)
    assert free_of(store, "n0") == 7


def test_a_promise_runs_out_and_its_gpus_are_free_again() -> None:
    store, decider = world(nodes=1)
    place(decider, make_request(gpus=8))
    assert free_of(store, "n0") == 0
    store.tick(NOW + RESERVATION_S - 0.1)
    assert free_of(store, "n0") == 0
    store.tick(NOW + RESERVATION_S)
    assert free_of(store, "n0") == 8


def test_a_pod_that_waits_for_a_volume_keeps_its_promise_longer() -> None:
    store, decider = world(nodes=1)
    place(decider, make_request(gpus=8, waits_for_volume=True))
    store.tick(NOW + VOLUME_RESERVATION_S - 1)
    assert free_of(store, "n0") == 0
    store.tick(NOW + VOLUME_RESERVATION_S)
    assert free_of(store, "n0") == 8


def test_the_pods_own_promise_counts_as_free_for_it_alone() -> None:
    store, decider = world(nodes=1)
    request = make_request(gpus=8)
    place(decider, request)
    judgement = decider.judge(request, all_rows(store), NOW)
    assert judgement.snapshot.free_gpus[all_rows(store)].tolist() == [8]
    fresh_store, fresh_decider = world(nodes=1)
    want_total = (
        fresh_decider.judge(request, all_rows(fresh_store), NOW).total[all_rows(fresh_store)].tolist()
    )
    assert judgement.total[all_rows(store)].tolist() == pytest.approx(want_total), (
        "its own expected load is not counted twice"
    )
    assert decider.judge(make_request("other"), all_rows(store), NOW).snapshot.free_gpus[
        all_rows(store)
    ].tolist() == [0]


def test_a_nominated_pod_holds_its_gpus_against_its_equals_and_below() -> None:
    store, decider = world(nodes=1)
    see_pod(store, make_pod("vip", gpus=6, nominated="n0", priority=10))
    rows = all_rows(store)
    assert decider.judge(make_request(priority=10), rows, NOW).snapshot.free_gpus[
        all_rows(store)
    ].tolist() == [2]
    assert decider.judge(make_request(priority=11), rows, NOW).snapshot.free_gpus[
        all_rows(store)
    ].tolist() == [8]
    assert decider.judge(make_request("vip", gpus=6, priority=10), rows, NOW).snapshot.free_gpus[
        all_rows(store)
    ].tolist() == [8]
    see_pod(store, make_pod("vip", gpus=6, node="n0", nominated="n0", priority=10))
    assert decider.judge(make_request(priority=10), rows, NOW).snapshot.free_gpus[
        all_rows(store)
    ].tolist() == [2], "counted once"


def test_a_nominated_pod_with_a_promise_there_is_counted_once() -> None:
    store, decider = world(nodes=1)
    see_pod(store, make_pod("vip", gpus=3, nominated="n0"))
    place(decider, make_request("vip", gpus=3))
    assert decider.judge(make_request(), all_rows(store), NOW).snapshot.free_gpus[
        all_rows(store)
    ].tolist() == [5]


def test_a_later_pool_opens_when_the_wait_for_the_earlier_is_over() -> None:
    pools = (
        PoolSpec(name="dc-1", selector={"site": "dc-1"}, spill_after_s=300.0),
        PoolSpec(name="aws-a", selector={"site": "aws-a"}),
    )
    store = make_store(pools)
    see_node(store, "own", labels={"site": "dc-1"})
    see_node(store, "cloud", labels={"site": "aws-a"})
    see_pod(store, make_pod("x", gpus=8, node="own"))
    decider = make_decider(store)
    early = place(decider, make_request(waited_s=10.0))
    assert names_of(decider, early) == ["own"], "full by our count is still offered, and nothing else"
    assert not early.reserved
    assert early.record.reasons == {f"{Reason.WAITING_FOR_POOL.text} dc-1": 1}
    cloud = np.array([store.rows["cloud"]], np.intp)
    assert decider.place(make_request(waited_s=10.0), cloud, NOW, 0.0).result == "no_fit"
    late = place(decider, make_request(waited_s=301.0))
    assert names_of(decider, late) == ["cloud"]
    assert late.reserved


def test_a_pod_goes_to_the_pools_it_names_in_its_own_order_and_to_no_other() -> None:
    pools = tuple(PoolSpec(name=name, selector={"site": name}) for name in ("dc-1", "aws-a", "edge"))
    store = make_store(pools)
    for name in ("dc-1", "aws-a", "edge"):
        see_node(store, f"n-{name}", labels={"site": name})
    see_node(store, "n-default")
    decider = make_decider(store)
    asked = {PREFIX + "pools": "edge, dc-1"}

    def ask(name: str) -> Outcome:
        pod = make_pod(name, gpus=8, annotations=asked)
        return place(decider, store.request(pod, 0.0, decider.profile_facts))

    outcomes = [ask(f"p{index}") for index in range(3)]
    assert [names_of(decider, each) for each in outcomes[:2]] == [["n-edge"], ["n-dc-1"]]
    assert outcomes[2].result == "full_by_our_count"
    assert outcomes[2].record.reasons == {Reason.OTHER_POOL.text: 2}
    assert names_of(decider, place(decider, make_request("other"))) == ["n-aws-a"]


def test_a_pods_own_order_of_pools_is_waited_for_too() -> None:
    pools = (
        PoolSpec(name="dc-1", selector={"site": "dc-1"}),
        PoolSpec(name="edge", selector={"site": "edge"}, spill_after_s=60.0),
    )
    store = make_store(pools)
    for name in ("dc-1", "edge"):
        see_node(store, f"n-{name}", labels={"site": name})
    decider = make_decider(store)
    own = np.array([store.rows["n-dc-1"]], np.intp)
    early = decider.place(make_request(pools=(1, 0), waited_s=59.0), own, NOW, 0.0)
    assert early.record.reasons == {f"{Reason.WAITING_FOR_POOL.text} edge": 1}
    late = decider.place(make_request(pools=(1, 0), waited_s=61.0), own, NOW, 0.0)
    assert names_of(decider, late) == ["n-dc-1"]
    assert names_of(decider, place(decider, make_request("p2", pools=(0, 1)))) == ["n-dc-1"]


def test_advisory_returns_the_best_rank_and_promises_nothing() -> None:
    pools = (PoolSpec(name="dc-1", selector={"site": "dc-1"}),)
    store = make_store(pools)
    for name in ("a", "b", "c"):
        see_node(store, name, labels={"site": "dc-1"} if name != "c" else {})
    decider = make_decider(store, Placement.ADVISORY)
    outcome = place(decider, make_request())
    assert names_of(decider, outcome) == ["a", "b"]
    assert outcome.result == "advised"
    assert outcome.record.chosen == ""
    assert not len(store.reservations)


def test_soft_preferences_get_all_within_two_percent_and_no_promise() -> None:
    store, decider = world(nodes=3)
    # n0 and n1 are alike; n2 is clearly busier.
    store.see_samples([(f"n{i}", make_sample(f"n{i}", [u] * 8), NOW) for i, u in enumerate((0.1, 0.1, 0.6))])
    outcome = place(decider, make_request(preferences=UNCLEAR))
    assert names_of(decider, outcome) == ["n0", "n1"]
    assert outcome.result == "passed_soft"
    assert not len(store.reservations)
    scores = decider.scores(make_request(preferences=UNCLEAR), all_rows(store), NOW, 0.0)
    assert scores.tolist() == [0, 0, 0], "our opinion was the filter; the in-tree scores choose"


def test_a_soft_preference_without_an_equal_is_one_node_and_a_promise() -> None:
    store, decider = world(nodes=2)
    store.see_samples([("n0", make_sample("n0", [0.0] * 8), NOW), ("n1", make_sample("n1", [0.9] * 8), NOW)])
    outcome = place(decider, make_request(preferences=UNCLEAR))
    assert names_of(decider, outcome) == ["n0"]
    assert outcome.reserved


def test_observing_decides_and_records_and_promises_nothing() -> None:
    store, decider = world()
    outcome = place(decider, make_request(), observe=True)
    assert outcome.result == "observed"
    assert outcome.record.chosen
    assert not outcome.reserved
    assert not len(store.reservations)
    for i in range(5):
        place(decider, make_request(), NOW + i, observe=True)
    assert store.reservations.last_choices("uid-p1", NOW + 5) == [], "an answer that nobody got was no choice"


def test_a_stranger_is_judged_and_never_promised() -> None:
    store, decider = world(nodes=0)
    template = make_node("template-a", gpus=4)
    rows = np.array([store.snapshot.rows], np.intp)
    outcome = decider.place(make_request(gpus=4), rows, NOW, 0.0, [template])
    assert outcome.record.chosen == "template-a"
    assert outcome.result == "placed"
    assert not outcome.reserved
    assert not len(store.reservations)


def test_preempt_asks_what_only_we_can_see_and_reserves_nothing() -> None:
    store, decider = world(nodes=2)
    see_node(store, "n2", labels={"wattbalance.io/quarantine": "xid-79"})
    see_pod(store, make_pod("victim", gpus=8, node="n0"))
    placed = place(decider, make_request(gpus=8))
    store.release("uid-p1", NOW)
    accepted, record = decider.acceptable(make_request(gpus=8), all_rows(store), NOW, 0.0, unknown=1)
    assert accepted.tolist() == [True, True, False]
    assert not len(store.reservations)
    assert (record.verb, record.result, record.asked, record.fitting) == ("preempt", "accepted", 4, 2)
    assert record.reasons == {Reason.QUARANTINED.text: 1, Reason.UNKNOWN_NODE.text: 1}
    assert (record.chosen, record.reserved) == ("", False)
    assert {ranked.node for ranked in record.best} == {"n0", "n1"}
    assert decider.results["preempt", "batch", "accepted"] == 1
    assert list(decider.log) == [record, placed.record]
    assert decider.log.of_pod("uid-p1") is placed.record, "preempt places nothing"
    _, record = decider.acceptable(make_request(gpus=8), all_rows(store)[2:], NOW, 0.0)
    assert (record.result, record.asked, record.fitting, record.best) == ("no_fit", 1, 0, ())


def test_no_node_leaves_a_reason_for_each_and_takes_the_promise_back() -> None:
    store, decider = world(nodes=2)
    place(decider, make_request())
    for name in ("n0", "n1"):
        see_node(store, name, labels={"wattbalance.io/quarantine": ""})
    outcome = place(decider, make_request())
    assert outcome.result == "no_fit"
    assert outcome.record.reasons == {Reason.QUARANTINED.text: 2}
    assert outcome.record.fitting == 0
    assert not len(store.reservations)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8)), min_size=1, max_size=25),
    st.tuples(st.floats(0.01, 10), st.floats(0.01, 10), st.floats(0.01, 10)),
)
def test_in_the_record_the_terms_of_every_node_add_up_to_its_score(
    nodes: list[tuple[float, int]], weights: tuple[float, float, float]
) -> None:
    store = make_store()
    for index, (busy_frac, bound) in enumerate(nodes):
        see_node(store, f"n{index}")
        store.see_samples([(f"n{index}", make_sample(f"n{index}", [busy_frac] * 8), NOW)])
        if bound:
            see_pod(store, make_pod(f"b{index}", gpus=bound, node=f"n{index}"), NOW)
    decider = make_decider(
        store, weights=dict(zip(("least-loaded", "pack", "freshness"), weights, strict=True))
    )
    record = place(decider, make_request(gpus=2)).record
    assert record.best[0].node == record.chosen
    assert len(record.best) == min(len(nodes), 10)
    assert record.asked == len(nodes)
    for ranked in record.best:
        total = 0.0
        for term in record.terms(ranked):
            total += term
        assert total == ranked.score
    assert decider.log.of_pod("uid-p1") is record


def test_a_burst_of_one_owners_replicas_goes_one_to_a_node_before_any_is_bound() -> None:
    store = make_store()
    for index in range(4):
        see_node(store, f"n{index}")
    decider = make_decider(store, weights={"pack": 1.0, "spread": 1.0})
    owner = OwnerRef(kind="ReplicaSet", uid="rs", controller=True)
    pods = [make_pod(f"web-{index}", owner=owner) for index in range(8)]
    for pod in pods:
        see_pod(store, pod)
    requests = [store.request(pod, 0.0, decider.profile_facts) for pod in pods]
    nodes = [place(decider, request).record.chosen for request in requests]
    assert len(set(nodes[:4])) == len(set(nodes[4:])) == 4
    # Without an owner in common they are packed, as before.
    alone = [
        place(decider, store.request(make_pod(f"one-{index}"), 0.0, decider.profile_facts)).record
        for index in range(2)
    ]
    assert alone[0].chosen == alone[1].chosen
    assert [each.policy for each in alone[0].policies] == ["pack"]


def test_who_listens_hears_of_a_pod_that_fits_nowhere_and_who_made_it() -> None:
    store = make_store()
    see_node(store, "n1", labels={"wattbalance.io/quarantine": ""})
    decider = make_decider(store)
    heard: list[tuple[DecisionRecord, PodRequest]] = []
    decider.on_no_fit = lambda record, request: heard.append((record, request))
    owner = OwnerRef(kind="ReplicaSet", uid="rs", name="web-7f", controller=True, api_version="apps/v1")
    pod = make_pod("p1", owner=owner)
    request = store.request(pod, 0.0, decider.profile_facts)
    assert request.controller == owner
    outcome = place(decider, request)
    assert heard == [(outcome.record, request)]
    see_node(store, "n2")
    place(decider, request)
    assert len(heard) == 1
    # A what-if knows it by what the store keeps of the pod.
    see_pod(store, pod)
    facts = store.pods["uid-p1"]
    again = store.request_again(
        facts, store.intents.resolve(facts.meta, ""), 0.0, decider.profile_facts[request.workload]
    )
    assert again.controller == owner


def record_of(uid: str, cycle: str, verb: str = "filter") -> DecisionRecord:
    values = {"unix_s": 0.0, "verb": verb, "namespace": "", "pod": "", "profile": "", "placement": ""}
    return DecisionRecord(
        cycle=cycle, uid=uid, gpus=1, resources={}, asked=0, fitting=0, chosen="", result="no_fit", reserved=False,
        reasons={}, policies=(), best=(), **values,  # type: ignore[arg-type]  # texts, and one float
    )  # fmt: skip


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["filter", "preempt"])), max_size=20),
)
def test_the_log_keeps_the_last_few_and_the_newest_of_each_pods_place(
    kept: int, told: list[tuple[str, str]]
) -> None:
    log = DecisionLog(kept)
    records = [record_of(uid, str(index), verb) for index, (uid, verb) in enumerate(told)]
    for record in records:
        log.add(record)
    want_kept = records[-kept:]
    assert list(log) == want_kept[::-1]
    for uid in "abc":
        places = (each for each in reversed(want_kept) if each.uid == uid and each.verb == "filter")
        want = next(places, None)
        assert log.of_pod(uid) is want
