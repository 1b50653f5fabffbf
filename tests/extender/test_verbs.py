"""The four questions and their answers, as kube-scheduler reads them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from datetime import datetime
from typing import Any

import pytest

from scheduler.cluster.reservations import RESERVATION_S, VOLUME_RESERVATION_S
from scheduler.core.clock import ManualClock
from scheduler.core.nouns import Placement, Reason
from scheduler.extender.verbs import NO_UID, Verbs
from scheduler.extender.wire import BadRequest, read_filter
from tests.builders import (
    SHARED_RESOURCE,
    make_pod,
    make_sample,
    make_sharing_pod,
    measure_memory,
    see_node,
    see_pod,
    see_sharing_node,
)
from tests.extender.world import QUARANTINE, World, by_names, by_nodes, pod, whole

# --- filter ---------------------------------------------------------------------------------------------------------


def test_decisive_filter_names_one_node_and_no_failures() -> None:
    world = World()
    answer = world.filter(by_names("a", "b", "bad"))
    assert len(answer["NodeNames"]) == 1
    assert answer["NodeNames"][0] in {"a", "b"}
    assert answer["Nodes"] is None
    assert answer["FailedNodes"] == answer["FailedAndUnresolvableNodes"] == {}
    assert answer["Error"] == ""
    assert world.promised


def test_advisory_filter_keeps_all_that_fit_and_gives_reasons_for_the_rest() -> None:
    world = World(Placement.ADVISORY)
    answer = world.filter(by_names("a", "b", "bad", "who"))
    assert sorted(answer["NodeNames"]) == ["a", "b"]
    want_failed = {"bad": Reason.QUARANTINED.text, "who": Reason.UNKNOWN_NODE.text}
    assert answer["FailedNodes"] == answer["FailedAndUnresolvableNodes"] == want_failed
    assert not world.promised


def test_with_no_node_left_each_has_a_reason_in_both_maps() -> None:
    answer = World().filter(by_names("bad", "who", 'odd"\\\n\u00fc'))
    assert answer["NodeNames"] == []
    want_failed = {
        "bad": Reason.QUARANTINED.text,
        "who": Reason.UNKNOWN_NODE.text,
        'odd"\\\n\u00fc': Reason.UNKNOWN_NODE.text,
    }
    assert answer["FailedNodes"] == answer["FailedAndUnresolvableNodes"] == want_failed
    assert answer["Error"] == "", "no node fits is an answer, not an error"


@pytest.mark.parametrize(
    ("spec", "want_s"),
    [
        ({}, RESERVATION_S),
        (
            {"volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "configMap": {"name": "c"}}]},
            RESERVATION_S,
        ),
        ({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}, VOLUME_RESERVATION_S),
        (
            {"volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]},
            VOLUME_RESERVATION_S,
        ),
        ({"resourceClaims": []}, RESERVATION_S),
        ({"resourceClaims": [{"name": "g", "resourceClaimTemplateName": "t"}]}, VOLUME_RESERVATION_S),
    ],
)
def test_a_pod_that_waits_for_a_claim_keeps_its_promise_longer(
    spec: dict[str, object], want_s: float
) -> None:
    world = World()
    question = by_names("a")
    question["Pod"]["spec"].update(spec)  # type: ignore[index]  # built above
    world.filter(question)
    held = world.store.reservations.get("uid-p1")
    assert held is not None
    assert held.until_mono_s - held.made_mono_s == want_s


@pytest.mark.parametrize("placement", list(Placement))
def test_the_record_says_what_kube_scheduler_was_told_of_names_that_nobody_knows(
    placement: Placement,
) -> None:
    world = World(placement)
    answer = world.filter(by_names("bad", "who", "other", "who"))
    record = world.decider.log.of_pod("uid-p1")
    assert record is not None
    assert record.asked == len(answer["FailedNodes"]) == 3
    assert record.reasons == dict(Counter(answer["FailedNodes"].values()))
    world.filter(by_names("a", "who"))
    record = world.decider.log.of_pod("uid-p1")
    assert record is not None
    assert (record.asked, record.fitting, record.reasons) == (2, 1, {Reason.UNKNOWN_NODE.text: 1})
    world.prioritize(by_names("a", "b", "who"))
    record = world.decider.log.of_pod("uid-p1")
    assert record is not None
    assert (record.verb, record.asked, record.reasons) == ("prioritize", 3, {Reason.UNKNOWN_NODE.text: 1})


def test_the_pods_nominated_node_stays_preemptible_so_that_the_pod_waits() -> None:
    world = World()
    see_node(world.store, "bad2", labels=QUARANTINE)
    answer = world.filter(by_names("bad", "bad2", nominated="bad"))
    assert set(answer["FailedNodes"]) == {"bad", "bad2"}
    assert set(answer["FailedAndUnresolvableNodes"]) == {"bad2"}


@pytest.mark.parametrize("placement", list(Placement))
def test_a_nominated_node_that_we_do_not_know_is_waited_for_too(placement: Placement) -> None:
    # kube-scheduler asks about the nominated node alone, then about all.
    answer = World(placement).filter(by_names("new", nominated="new"))
    assert answer["NodeNames"] == []
    assert answer["FailedNodes"] == {"new": Reason.UNKNOWN_NODE.text}
    assert answer["FailedAndUnresolvableNodes"] == {}
    answer = World(placement).filter(by_names("bad", "new", "who", nominated="new"))
    assert set(answer["FailedNodes"]) == {"bad", "new", "who"}
    assert set(answer["FailedAndUnresolvableNodes"]) == {"bad", "who"}


@pytest.mark.parametrize("nominated", ["bad", "new"])
def test_a_nominated_node_sent_whole_is_waited_for_too(nominated: str) -> None:
    question = by_nodes(whole("bad"), whole("new", **QUARANTINE), nominated=nominated)
    answer = World().filter(question)
    assert set(answer["FailedNodes"]) == {"bad", "new"}
    assert set(answer["FailedAndUnresolvableNodes"]) == {"bad", "new"} - {nominated}


def read_pairs(answer: bytes | bytearray) -> list[tuple[str, Any]]:
    """The answer as pairs, so that a key that stands twice shows."""
    pairs: list[tuple[str, Any]] = json.loads(answer, object_pairs_hook=list)
    return pairs


@pytest.mark.parametrize("placement", list(Placement))
def test_a_node_named_twice_is_answered_once(placement: Placement) -> None:
    twice = ("who", "a", "bad", "b", "a", "bad", "who")
    world = World(placement)
    question = read_filter(json.dumps(by_names(*twice)).encode())
    answer = dict(read_pairs(world.verbs.filter(question)))
    if placement is Placement.ADVISORY:
        assert sorted(answer["NodeNames"]) == ["a", "b"]
        assert sorted(name for name, _ in answer["FailedNodes"]) == ["bad", "who"]
        assert sorted(name for name, _ in answer["FailedAndUnresolvableNodes"]) == ["bad", "who"]
    else:
        assert len(answer["NodeNames"]) == 1
    # kube-scheduler adds up the scores of one host.
    assert sorted(each["Host"] for each in world.prioritize(by_names(*twice))) == ["a", "b", "bad", "who"]


def test_a_node_sent_whole_twice_is_answered_once() -> None:
    world = World(Placement.ADVISORY)
    new, known, bad = whole("new"), whole("a"), whole("new-bad", **QUARANTINE)
    question = by_nodes(new, known, bad, new, known, bad)
    answer = world.filter(question)
    assert sorted(answer["NodeNames"]) == ["a", "new"]
    assert len(answer["Nodes"]["items"]) == 2
    assert set(answer["FailedNodes"]) == {"new-bad"}
    assert sorted(each["Host"] for each in world.prioritize(question)) == ["a", "new", "new-bad"]


def test_filter_by_nodes_gives_back_the_very_objects() -> None:
    world = World()
    offered = whole("a", site="x")
    answer = world.filter(by_nodes(whole("bad"), offered))
    assert answer["Nodes"]["items"] == [offered]
    assert world.promised
    refused = world.filter(by_nodes(whole("bad"), uid="uid-p2"))
    assert refused["Nodes"]["items"] == []
    assert refused["FailedNodes"] == refused["FailedAndUnresolvableNodes"] == {"bad": Reason.QUARANTINED.text}


def test_an_unknown_node_sent_whole_is_judged_and_never_promised() -> None:
    world = World()
    template = whole("template-1")
    answer = world.filter(by_nodes(template))
    assert answer["Nodes"]["items"] == [template]
    assert not world.promised
    refused = world.filter(by_nodes(whole("template-2", **QUARANTINE)))
    assert refused["FailedNodes"] == {"template-2": Reason.QUARANTINED.text}


def test_twenty_thousand_names_are_answered() -> None:
    world = World(Placement.ADVISORY)
    names = [f"gpu-node-{i:05}" for i in range(20_000)]
    for name in names[::100]:
        see_node(world.store, name)
    answer = world.filter(by_names(*names))
    assert sorted(answer["NodeNames"]) == names[::100]
    assert len(answer["FailedNodes"]) == 19_800
    decisive = World()
    see_node(decisive.store, names[7])
    assert decisive.filter(by_names(*names))["NodeNames"] == [names[7]]


def test_a_pod_without_a_uid_is_refused_only_where_we_decide() -> None:
    with pytest.raises(BadRequest) as refused:
        World().filter(by_names("a", uid=""))
    assert refused.value.reason == NO_UID
    assert World(Placement.ADVISORY).filter(by_names("a", uid=""))["NodeNames"] == ["a"]


def test_no_candidates_are_answered_with_an_empty_list() -> None:
    assert World().filter(by_names())["NodeNames"] == []


@pytest.mark.parametrize(
    "created",
    ["", "soon", "2026-01-01", "0001-01-01T00:00:00", "9999-12-31T23:59:59-14:00", "2999-01-01T00:00:00Z"],
)
def test_any_creation_time_is_answered(created: str) -> None:
    question = by_names("a")
    question["Pod"]["metadata"]["creationTimestamp"] = created  # type: ignore[index]  # built above
    assert World().filter(question)["NodeNames"] == ["a"]


# --- pods without a GPU ----------------------------------------------------------------------------------------------


def plain(
    question: dict[str, Any], resources: dict[str, object] | None = None, **spec: object
) -> dict[str, Any]:
    """The question, about a pod that asks for no whole GPU."""
    question["Pod"]["spec"] = {"containers": [{"name": "c", "resources": resources or {}}], **spec}
    return question


@pytest.mark.parametrize("whole", [True, False])
def test_preempt_counts_what_victims_asked_for_of_shared_memory(*, whole: bool) -> None:
    world = World()
    for name in ("s1", "s2"):
        see_sharing_node(world.store, name)
    for name, gib, node in (("v1", 60, "s1"), ("v2", None, "s2")):
        see_pod(world.store, make_sharing_pod(name, gib, node=node, phase="Running"), world.clock.mono_s())
    # Until then nobody knows whether it has taken that.
    world.clock.advance(60.0)
    for name in ("s1", "s2"):
        measure_memory(world.store, 70, node=name, now_mono_s=world.clock.mono_s())
    asker = {
        "metadata": {"name": "p1", "uid": "u", "annotations": {"wattbalance.io/gpu-memory": "50Gi"}},
        "spec": {"containers": [{"resources": {"limits": {SHARED_RESOURCE: "1"}}}]},
    }
    victims = {
        node: {
            "Pods": [{"metadata": {"name": name, "uid": f"uid-{name}"}} if whole else {"UID": f"uid-{name}"}],
            "NumPDBViolations": 0,
        }
        for node, name in (("s1", "v1"), ("s2", "v2"))
    }
    kept = world.preempt({"Pod": asker, "NodeNameToVictims" if whole else "NodeNameToMetaVictims": victims})
    assert list(kept["NodeNameToMetaVictims"]) == ["s1"]


def test_the_age_of_a_pod_is_by_the_clock_that_dated_it() -> None:
    world = World()
    clock = ManualClock(unix_s=datetime.fromisoformat("2026-01-01T01:01:30Z").timestamp())
    of_server = ManualClock(unix_s=clock.unix_s() - 3600.0)
    waited_s: list[float] = []
    world.decider.on_outcome = lambda outcome, _: waited_s.append(outcome.request.waited_s)
    for pods_clock in (None, of_server):
        world.verbs = Verbs(world.decider, None, clock, world.fence, pods_clock=pods_clock)
        world.filter(by_names("a"))
    assert waited_s == [3690.0, 90.0]
    assert {record.unix_s for record in world.decider.log} == {clock.unix_s()}


@pytest.mark.parametrize(
    "resources",
    [
        {},
        {"requests": {"cpu": "2", "memory": "1Gi"}},
        {"limits": {"nvidia.com/gpu": "0"}},
        {"limits": {"rdma/hca": "1", "vpc.amazonaws.com/pod-eni": "1", "devices.kubevirt.io/kvm": "1"}},
    ],
)
@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize("uid", ["uid-p1", ""])
def test_a_pod_without_a_gpu_gets_back_all_that_was_offered(
    resources: dict[str, object], placement: Placement, uid: str
) -> None:
    world = World(placement, spill_after_s=300.0)
    names = ("a", "b", "bad", "who")
    answer = world.filter(plain(by_names(*names, uid=uid), resources))
    assert answer["NodeNames"] == list(names)
    assert answer["FailedNodes"] == answer["FailedAndUnresolvableNodes"] == {}
    offered = [whole("a"), whole("bad"), whole("new")]
    assert world.filter(plain(by_nodes(*offered, uid=uid), resources))["Nodes"]["items"] == offered
    scores = world.prioritize(plain(by_names(*names, uid=uid), resources))
    assert {each["Host"]: each["Score"] for each in scores} == dict.fromkeys(names, 0)
    victims = {name: {"Pods": [{"UID": "v"}], "NumPDBViolations": 0} for name in ("bad", "who")}
    question = plain({"Pod": pod(uid=uid), "NodeNameToMetaVictims": victims}, resources)
    assert world.preempt(question)["NodeNameToMetaVictims"] == victims
    assert not len(world.store.reservations)
    assert not len(world.decider.log)
    want_counts = {("filter", "batch", "no_gpu"): 2, ("prioritize", "batch", "no_gpu"): 1}
    assert world.decider.results == want_counts | {("preempt", "batch", "no_gpu"): 1}


@pytest.mark.parametrize(
    ("resources", "spec"),
    [
        ({}, {"resourceClaims": [{"name": "gpu", "resourceClaimName": "c1"}]}),
        ({"limits": {"rdma/hca": 1}}, {"resourceClaims": [{"name": "gpu", "resourceClaimName": "c1"}]}),
        ({"limits": {"deviceclass.resource.kubernetes.io/gpu.nvidia.com": "1"}}, {}),
    ],
)
def test_a_pod_that_asks_by_claims_alone_is_left_to_kube_scheduler_and_counted(
    resources: dict[str, object], spec: dict[str, object]
) -> None:
    world, claims = World(), [{"name": "gpu", "resourceClaimName": "c1"}]
    names = ("a", "b", "bad", "who")
    assert world.filter(plain(by_names(*names), resources, **spec))["NodeNames"] == list(names)
    scores = world.prioritize(plain(by_names(*names), resources, **spec))
    assert {each["Score"] for each in scores} == {0}
    victims = {name: {"Pods": [{"UID": "v"}], "NumPDBViolations": 0} for name in ("bad", "who")}
    question = plain({"Pod": pod(), "NodeNameToMetaVictims": victims}, resources, **spec)
    assert world.preempt(question)["NodeNameToMetaVictims"] == victims
    assert not len(world.decider.log)
    want_counts = {(verb, "batch", "by_claim"): 1 for verb in ("filter", "prioritize", "preempt")}
    assert world.decider.results == want_counts
    both: dict[str, object] = {"limits": {"nvidia.com/gpu": "1"}}
    assert len(world.filter(plain(by_names(*names), both, resourceClaims=claims))["NodeNames"]) == 1


@pytest.mark.parametrize(
    ("resources", "spec"),
    [
        ({"limits": {"nvidia.com/mig-1g.5gb": "1"}}, {}),
        ({"requests": {"nvidia.com/gpu.shared": 1}}, {}),
        ({}, {"initContainers": [{"name": "i", "resources": {"limits": {"nvidia.com/mig-1g.5gb": "1"}}}]}),
    ],
)
def test_a_slice_of_a_gpu_is_placed_and_nothing_promised_for_it(
    resources: dict[str, object], spec: dict[str, object]
) -> None:
    world = World()
    question = plain(by_names("a", "b", "bad"), resources, **spec)
    (first,) = world.filter(question)["NodeNames"]
    assert first in {"a", "b"}, "quarantine is seen by us alone"
    assert not len(world.store.reservations)
    record = world.decider.log.of_pod("uid-p1")
    assert record is not None
    assert (record.chosen, record.reserved) == (first, False)
    for _ in range(2):
        assert world.filter(question)["NodeNames"] == [first]
    (other,) = world.filter(question)["NodeNames"]
    assert {first, other} == {"a", "b"}, "chosen three times and not bound: last"


# --- prioritize ------------------------------------------------------------------------------------------------------


def test_prioritize_scores_known_nodes_and_zero_for_the_unknown_and_refused() -> None:
    world = World(Placement.ADVISORY)
    samples = [("a", make_sample("a", [0.0] * 8), 1000.0), ("b", make_sample("b", [0.9] * 8), 1000.0)]
    world.store.see_samples(samples)
    scores = {e["Host"]: e["Score"] for e in world.prioritize(by_names("a", "b", "bad", "who"))}
    assert set(scores) == {"a", "b", "bad", "who"}
    assert scores["bad"] == scores["who"] == 0
    assert 10 >= scores["a"] > scores["b"] >= 0
    assert all(isinstance(score, int) for score in scores.values())


def test_a_node_that_we_do_not_know_takes_no_score_from_those_that_we_know() -> None:
    world = World(Placement.ADVISORY)
    scores = {e["Host"]: e["Score"] for e in world.prioritize(by_nodes(whole("a"), whole("new")))}
    assert scores["a"] > 0
    assert scores["new"] == 0


# --- preempt ---------------------------------------------------------------------------------------------------------


def test_preempt_keeps_acceptable_candidates_with_their_victims_unchanged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    see_pod(world.store, make_pod("x", gpus=8, node="a"))
    victims = {
        "a": {"Pods": [{"UID": "v1"}, {"UID": "v2"}], "NumPDBViolations": 1},
        "b": {"Pods": [], "NumPDBViolations": 0},
        "bad": {"Pods": [{"UID": "v3"}], "NumPDBViolations": 0},
        "who": {"Pods": [{"UID": "v4"}], "NumPDBViolations": 0},
    }
    with caplog.at_level(logging.INFO):
        answer = world.preempt({"Pod": pod(gpus=8), "NodeNameToMetaVictims": victims})
    kept = answer["NodeNameToMetaVictims"]
    assert kept == {"a": victims["a"], "b": victims["b"]}
    assert list(kept) == ["a", "b"], "in the order given"
    assert not len(world.store.reservations)
    record = next(iter(world.decider.log))
    assert (record.verb, record.result, record.asked, record.fitting) == ("preempt", "accepted", 4, 2)
    assert record.reasons == {Reason.QUARANTINED.text: 1, Reason.UNKNOWN_NODE.text: 1}
    assert [line.kv["decision"] for line in caplog.records] == [record]  # type: ignore[attr-defined]  # kv's


def test_preempt_by_whole_pods_is_answered_by_uid() -> None:
    victims = {"b": {"Pods": [pod("v1")], "NumPDBViolations": 2}, "a": None}
    answer = World().preempt({"Pod": pod(), "NodeNameToVictims": victims})
    want = {
        "b": {"Pods": [{"UID": "uid-v1"}], "NumPDBViolations": 2},
        "a": {"Pods": [], "NumPDBViolations": 0},
    }
    assert answer["NodeNameToMetaVictims"] == want


# --- observe, and who may answer -------------------------------------------------------------------------------------


async def test_observing_gives_everything_back_and_does_nothing() -> None:
    world = World(observe=True)
    answer = world.filter(by_names("a", "bad", "who"))
    assert answer["NodeNames"] == ["a", "bad", "who"]
    assert answer["FailedNodes"] == answer["FailedAndUnresolvableNodes"] == {}
    offered = [whole("a"), whole("bad"), whole("new")]
    assert world.filter(by_nodes(*offered))["Nodes"]["items"] == offered
    assert {e["Score"] for e in world.prioritize(by_names("a", "b", "who"))} == {0}
    victims = {"bad": {"Pods": [{"UID": "v"}], "NumPDBViolations": 0}}
    answer = world.preempt({"Pod": pod(), "NodeNameToMetaVictims": victims})
    assert answer["NodeNameToMetaVictims"] == victims
    newest = next(iter(world.decider.log))
    assert (newest.verb, newest.result, newest.fitting) == ("preempt", "observed", 0)
    world.cluster.add(make_pod())
    assert "off" in await world.bind()
    assert not world.cluster.bindings
    assert not len(world.store.reservations)
    record = world.decider.log.of_pod("uid-p1")
    assert record is not None
    assert record.result == "observed"


def test_a_standby_answers_its_own_scheduler_only_and_nobody_answers_unready() -> None:
    world = World()
    assert world.verbs.may_answer(loopback=True) is None
    assert world.verbs.may_answer(loopback=False) is None
    world.fence.leads = lambda: False
    assert world.verbs.may_answer(loopback=True) is None
    assert "standby" in (world.verbs.may_answer(loopback=False) or "")
    world.fence.leads = lambda: True
    world.fence.not_ready = lambda: "pods not listed yet"
    for loopback in (True, False):
        assert world.verbs.may_answer(loopback=loopback) == "pods not listed yet"
