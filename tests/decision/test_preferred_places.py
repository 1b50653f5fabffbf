"""Decisive placement of pods that prefer something: one node, the preferred one, and a record that says why."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from scheduler import config
from scheduler.cluster.objects import Node, Pod
from scheduler.cluster.port import Changed, Kind
from scheduler.cluster.store import Store
from scheduler.core.nouns import Placement
from scheduler.core.preferences import NODE_AFFINITY, TAINT_TOLERATION
from scheduler.decision.decider import Decider, Outcome
from scheduler.parts import make_decider as shipped_decider
from tests.builders import all_rows, make_decider, make_store, see_node, see_pod

NOW = 1000.0
LEAST = "cluster: {name: c}\ntelemetry: {broker: mqtt://127.0.0.1:1883}\n"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
HOST = "kubernetes.io/hostname"
NAMES = ("n0", "n1", "n2", "n3")


@pytest.fixture
def store() -> Store:
    store = make_store()
    for index, name in enumerate(NAMES):
        see_node(store, name, labels={HOST: name, "zone": "ab"[index // 2]})
    store.synced.add(Kind.NAMESPACE)
    store.tick(NOW)
    return store


@pytest.fixture
def decider(store: Store) -> Decider:
    return shipped_decider(config.load(LEAST), store, instance="test")


def pod_with(name: str = "p", gpus: int = 1, node: str = "", **spec: Any) -> Pod:
    limits = {"nvidia.com/gpu": str(gpus)}
    return msgspec.convert(
        {
            "metadata": {"name": name, "uid": f"uid-{name}", "namespace": "team-a", "labels": {"app": "web"}},
            "spec": {"nodeName": node, "containers": [{"resources": {"limits": limits}}]} | spec,
        },
        Pod,
    )


def place(decider: Decider, pod: Pod, now_mono_s: float = NOW) -> Outcome:
    see_pod(decider.store, pod, now_mono_s)
    request = decider.store.request(pod, 0.0, decider.profile_facts)
    return decider.place(request, all_rows(decider.store), now_mono_s, 0.0)


def to_node(name: str, operator: str = "In") -> dict[str, Any]:
    expression = {"key": HOST, "operator": operator, "values": [name]}
    return {"nodeAffinity": {PREFERRED: [{"weight": 1, "preference": {"matchExpressions": [expression]}}]}}


FAR = {
    "podAntiAffinity": {
        PREFERRED: [
            {
                "weight": 1,
                "podAffinityTerm": {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": HOST},
            }
        ]
    }
}


@pytest.mark.parametrize("name", NAMES)
def test_of_nodes_that_are_alike_the_preferred_one_alone_is_answered(decider: Decider, name: str) -> None:
    outcome = place(decider, pod_with(affinity=to_node(name)))
    assert [decider.store.names[row] for row in outcome.kept.tolist()] == [name]
    assert (outcome.result, outcome.reserved, outcome.record.chosen) == ("placed", True, name)
    weighed = {each.policy: each.weight for each in outcome.record.policies}
    assert 0.5 <= weighed[NODE_AFFINITY] < 0.55, (
        "as much as all others together; `image` has nothing to say here"
    )
    best = outcome.record.best[0]
    assert sum(outcome.record.terms(best)) == best.score
    assert dict(zip(weighed, best.scores, strict=True))[NODE_AFFINITY] == 1


def test_pods_that_would_be_apart_are_placed_apart_though_packing_would_stack_them(decider: Decider) -> None:
    chosen = [place(decider, pod_with(f"p{i}", affinity=FAR)).record.chosen for i in range(4)]
    assert sorted(chosen) == list(NAMES), "none of the bindings has been seen: promises count"
    alone = [place(decider, pod_with(f"q{i}")).record.chosen for i in range(4)]
    assert len(set(alone)) == 1, "and without a preference they are stacked"


def test_a_spread_over_zones_alternates(decider: Decider, store: Store) -> None:
    spread = {
        "whenUnsatisfiable": "ScheduleAnyway",
        "topologyKey": "zone",
        "maxSkew": 1,
        "labelSelector": {"matchLabels": {"app": "web"}},
    }
    zones = []
    for index in range(4):
        chosen = place(decider, pod_with(f"p{index}", topologySpreadConstraints=[spread])).record.chosen
        zones.append(store.nodes[chosen].labels["zone"])
    assert zones[0] != zones[1]
    assert zones[2] != zones[3]


def test_a_soft_taint_is_avoided_by_who_does_not_tolerate_it(decider: Decider, store: Store) -> None:
    for name in NAMES[:3]:
        made = {
            "metadata": {"name": name, "labels": {HOST: name}},
            "spec": {"taints": [{"key": "old", "effect": "PreferNoSchedule"}]},
            "status": {"allocatable": {"nvidia.com/gpu": "8"}},
        }
        store.apply(Changed(Kind.NODE, msgspec.convert(made, Node)), NOW)
    see_pod(store, pod_with("there", gpus=7, node="n0"), NOW)
    outcome = place(decider, pod_with())
    assert (outcome.result, outcome.record.chosen) == ("placed", "n3")
    assert TAINT_TOLERATION in {each.policy for each in outcome.record.policies}
    tolerant = place(decider, pod_with("q", tolerations=[{"operator": "Exists"}]))
    assert tolerant.record.chosen == "n0", "packed"
    assert TAINT_TOLERATION not in {each.policy for each in tolerant.record.policies}


def test_pods_that_prefer_nothing_are_judged_and_recorded_as_if_nobody_could(store: Store) -> None:
    plain = make_decider(store, weights={"pack": 3.0, "least-loaded": 1.0})
    every = {
        "pack": 3.0,
        "least-loaded": 1.0,
        "node-affinity": 4.0,
        "pod-affinity": 4.0,
        "topology-spread": 4.0,
    }
    able = make_decider(store, weights=every)
    records = []
    for decider in (plain, able):
        record = place(decider, pod_with()).record
        records.append((record.policies, record.best, record.chosen, record.result))
        store.release("uid-p", NOW)
    assert records[0] == records[1]


def test_a_preference_that_the_profile_does_not_weigh_is_left_to_kube_scheduler(store: Store) -> None:
    outcome = place(make_decider(store), pod_with(affinity=to_node("n0")))
    assert (outcome.result, len(outcome.kept)) == ("passed_soft", 4)


def test_one_that_is_not_understood_is_left_to_kube_scheduler_among_the_best_of_what_is(
    decider: Decider,
) -> None:
    affinity = to_node("n0", "NotIn")
    near = {"weight": 1, "preference": {"matchExpressions": [{"key": HOST, "operator": "Near"}]}}
    affinity["nodeAffinity"][PREFERRED].append(near)
    outcome = place(decider, pod_with(affinity=affinity))
    assert outcome.result == "passed_soft"
    assert {decider.store.names[row] for row in outcome.kept.tolist()} == {"n1", "n2", "n3"}
    assert decider.results["filter", outcome.record.profile, "passed_soft"] == 1


def test_advice_weighs_them_too(store: Store) -> None:
    decider = make_decider(store, Placement.ADVISORY, {"least-loaded": 1.0, "node-affinity": 1.0})
    request = store.request(pod_with(affinity=to_node("n2")), 0.0, decider.profile_facts)
    scores = decider.scores(request, all_rows(store), NOW, 0.0)
    assert scores.argmax() == 2
    assert scores.max() - scores.min() == pytest.approx(0.5)
