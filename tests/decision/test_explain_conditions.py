"""Nodes that kube-scheduler never offers are not said to take a pod, and what would open them is named."""

from __future__ import annotations

import msgspec.structs
import pytest

from scheduler.cluster.objects import Node, Pod
from scheduler.cluster.port import Changed, Kind
from scheduler.cluster.preference_objects import Taint, TolerationEntry
from scheduler.cluster.store import Store
from scheduler.core.nouns import PodRequest
from scheduler.decision.decider import Decider
from scheduler.decision.evaluation import Evaluation
from scheduler.decision.explain import CORDONED, TAINTED, TOO_SMALL, UNSELECTED, evaluate
from tests.builders import (
    SHARED_RESOURCE,
    make_decider,
    make_node,
    make_pod,
    make_request,
    make_store,
    see_node,
    see_pod,
    see_sharing_node,
)

NOW = 100.0
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"


def tainted(node: Node, *taints: Taint) -> Node:
    return msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, taints=list(taints)))


def see(store: Store, node: Node) -> None:
    store.apply(Changed(Kind.NODE, node), NOW)


def asks(decider: Decider, **spec: object) -> PodRequest:
    pod: Pod = make_pod("p1")
    pod = msgspec.structs.replace(pod, spec=msgspec.structs.replace(pod.spec, **spec))
    return decider.store.request(pod, 0.0, decider.profile_facts)


def look(decider: Decider, **spec: object) -> Evaluation:
    return evaluate(decider, asks(decider, **spec), NOW, 0.0)


def against(told: Evaluation) -> dict[str, tuple[str, ...]]:
    return {each.reason: each.examples for each in told.ruled_out}


def test_a_node_that_the_pods_selector_leaves_out_is_not_said_to_take_it() -> None:
    store = make_store()
    see_node(store, "dc1")
    see_node(store, "dc2", labels={"zone": "b", "wattbalance.io/quarantine": ""})
    told = look(make_decider(store), node_selector={"zone": "b"})
    assert (told.fitting, told.chosen) == (0, "")
    assert against(told) == {UNSELECTED: ("dc1",), "node in quarantine": ("dc2",)}
    kinds = {each.kind: each for each in told.unblock}
    assert (kinds["selection"].helps, kinds["selection"].nodes) == (1, ("dc1",))
    assert "label a node as it asks" in kinds["selection"].text
    assert look(make_decider(store)).chosen == "dc1"


def test_a_taint_is_named_and_one_that_is_tolerated_is_none() -> None:
    store = make_store()
    see(
        store,
        tainted(make_node("n1"), Taint("team", "b", "NoSchedule"), Taint("soft", "", "PreferNoSchedule")),
    )
    decider = make_decider(store)
    told = look(decider)
    assert against(told) == {TAINTED: ("n1",)}
    [taint] = told.unblock
    assert (taint.kind, taint.helps) == ("taint", 1)
    assert ": 1 would take the pod. team=b:NoSchedule. kube-scheduler" in taint.text
    told = look(decider, tolerations=[TolerationEntry(key="team", operator="Exists")])
    assert (told.chosen, told.ruled_out) == ("n1", ())


def test_a_cordon_and_the_taint_that_comes_with_it_are_one_thing() -> None:
    store = make_store()
    see(store, tainted(make_node("n1", cordoned=True), Taint(UNSCHEDULABLE, "", "NoSchedule")))
    decider = make_decider(store)
    told = look(decider)
    assert against(told) == {CORDONED: ("n1",)}
    assert [(each.kind, each.helps) for each in told.unblock] == [("cordon", 1)]
    told = look(decider, tolerations=[TolerationEntry(key=UNSCHEDULABLE, operator="Exists")])
    assert told.chosen == "n1"


def test_a_pod_that_runs_is_judged_on_its_node_whatever_its_spec_asks_now() -> None:
    store = make_store()
    see(store, tainted(make_node("n1"), Taint("team", "b", "NoSchedule")))
    decider = make_decider(store)
    see_pod(store, make_pod("p1", node="n1"))
    told = evaluate(decider, asks(decider), NOW, 0.0, held_on="n1")
    assert told.own is not None
    assert (told.own.band, told.ruled_out) == ("fits", ())


@pytest.mark.parametrize(
    ("units", "want"),
    [
        ({"gpus": 0, "shares": ((SHARED_RESOURCE, 1),)}, {f"node has no {SHARED_RESOURCE}": ("whole",)}),
        (
            {"gpus": 0, "shares": ((SHARED_RESOURCE, 9),)},
            {
                f"node has no {SHARED_RESOURCE}": ("whole",),
                f"node has too few {SHARED_RESOURCE}": ("shared",),
            },
        ),
        ({"gpus": 8}, {"node has no nvidia.com/gpu": ("shared",)}),
        ({"gpus": 9}, {"node has no nvidia.com/gpu": ("shared",), TOO_SMALL: ("whole",)}),
    ],
)
def test_the_resource_that_a_node_lacks_is_named(
    units: dict[str, object], want: dict[str, tuple[str, ...]]
) -> None:
    store = make_store()
    see_node(store, "whole")
    see_sharing_node(store, "shared")
    told = evaluate(make_decider(store), make_request(**units), NOW, 0.0)  # type: ignore[arg-type]  # a builder's
    assert against(told) == want


def test_a_filter_that_is_off_is_no_hindrance() -> None:
    store = make_store()
    see_node(store, "n1", labels={"wattbalance.io/quarantine": ""})
    see_pod(store, make_pod("fills", 8, node="n1"))
    decider = make_decider(store)
    assert {"quarantine", "together"} & {each.kind for each in look(decider).unblock}
    decider.use(decider.profiles, tuple(each for each in decider.filters if each.name != "quarantine"))
    assert [each.kind for each in look(decider).unblock] == ["free_gpus"]
