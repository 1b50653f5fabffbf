"""Whatever a pod prefers, on whatever cluster: our policies order nodes as kube-scheduler's plugins do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.cluster.objects import Node, Partial, Pod
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.cluster.preferences import preferences_of
from scheduler.cluster.snapshot import Snapshot
from scheduler.cluster.store import Store
from scheduler.core.nouns import PodRequest, Workload
from scheduler.core.preferences import KINDS
from scheduler.policy import registry
from scheduler.policy.base import Conditional, Score
from tests.builders import make_store
from tests.properties.preference_reference import Cluster

Draw = Callable[[st.SearchStrategy[Any]], Any]

PROFILES = {workload: (workload.value, 0.9) for workload in Workload}
KEYS = ("zone", "rack", "size", "kubernetes.io/hostname")
VALUES = ("a", "b", "1", "7", "+7", "12", "x1")
NODES = ("n0", "n1", "n2", "n3", "n4")
NAMESPACES = ("team-a", "team-b")
TAINTS = ("PreferNoSchedule", "PreferNoSchedule", "NoSchedule", "NoExecute")

labels = st.fixed_dictionaries(
    {"zone": st.sampled_from(("a", "b")), "kubernetes.io/hostname": st.sampled_from(("a", "b", "1"))},
    optional={"rack": st.sampled_from(VALUES), "size": st.sampled_from(VALUES)},
) | st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=3)
pod_labels = st.fixed_dictionaries(
    {"app": st.sampled_from(("a", "b"))}, optional={"hash": st.sampled_from(("a", "b"))}
)


def expressions(keys: tuple[str, ...], values: tuple[str, ...], *, numbers: bool) -> st.SearchStrategy[Any]:
    def one(operator: str) -> st.SearchStrategy[dict[str, Any]]:
        if operator in {"Exists", "DoesNotExist"}:
            of: st.SearchStrategy[list[str]] = st.just([])
        elif operator in {"Gt", "Lt"}:
            of = st.sampled_from((["1"], ["7"], ["-3"], ["10"]))
        else:
            of = st.lists(st.sampled_from(values), min_size=1, max_size=3)
        return st.fixed_dictionaries(
            {"key": st.sampled_from(keys), "operator": st.just(operator), "values": of}
        )

    operators = ("In", "NotIn", "Exists", "DoesNotExist") + (("Gt", "Lt") if numbers else ())
    return st.lists(st.sampled_from(operators).flatmap(one), max_size=3)


selectors = st.fixed_dictionaries({}, optional={"matchLabels": pod_labels}) | st.fixed_dictionaries(
    {"matchExpressions": expressions(("app", "hash"), ("a", "b", "c"), numbers=False)}
)
node_terms = st.fixed_dictionaries(
    {},
    optional={
        "matchExpressions": expressions(KEYS, VALUES, numbers=True),
        "matchFields": st.lists(
            st.fixed_dictionaries(
                {
                    "key": st.just("metadata.name"),
                    "operator": st.sampled_from(("In", "NotIn")),
                    "values": st.lists(st.sampled_from((*NODES, "gone")), min_size=1, max_size=1),
                }
            ),
            max_size=1,
        ),
    },
)
pod_terms = st.fixed_dictionaries(
    {
        "weight": st.integers(1, 100),
        "podAffinityTerm": st.fixed_dictionaries(
            {"topologyKey": st.sampled_from(KEYS), "labelSelector": selectors},
            optional={
                "namespaces": st.lists(st.sampled_from(NAMESPACES), max_size=2),
                "namespaceSelector": st.fixed_dictionaries(
                    {}, optional={"matchLabels": st.sampled_from(({}, {"kind": "lab"}, {"kind": "shop"}))}
                ),
            },
        ),
    }
)
tolerations = st.fixed_dictionaries(
    {"operator": st.sampled_from(("Equal", "Exists", ""))},
    optional={
        "key": st.sampled_from(("old", "noisy")),
        "value": st.sampled_from(("yes", "no")),
        "effect": st.sampled_from(TAINTS),
    },
)
spreads = st.fixed_dictionaries(
    {
        "whenUnsatisfiable": st.sampled_from(("ScheduleAnyway", "ScheduleAnyway", "DoNotSchedule")),
        "topologyKey": st.sampled_from(KEYS),
        "maxSkew": st.integers(1, 3),
    },
    optional={
        "labelSelector": selectors,
        "matchLabelKeys": st.lists(st.sampled_from(("hash", "absent")), max_size=2),
        "nodeAffinityPolicy": st.sampled_from(("Honor", "Ignore")),
        "nodeTaintsPolicy": st.sampled_from(("Honor", "Ignore")),
    },
)
preferred_nodes = st.lists(
    st.fixed_dictionaries({"weight": st.integers(1, 100), "preference": node_terms}), min_size=1, max_size=3
)
preferred_pods = st.fixed_dictionaries(
    {"preferredDuringSchedulingIgnoredDuringExecution": st.lists(pod_terms, min_size=1, max_size=2)}
)
required_nodes = st.fixed_dictionaries({"nodeSelectorTerms": st.lists(node_terms, min_size=1, max_size=2)})
ABOUT_NODES = st.fixed_dictionaries(
    {
        "affinity": st.fixed_dictionaries(
            {
                "nodeAffinity": st.fixed_dictionaries(
                    {"preferredDuringSchedulingIgnoredDuringExecution": preferred_nodes},
                    optional={"requiredDuringSchedulingIgnoredDuringExecution": required_nodes},
                )
            }
        ),
        "tolerations": st.lists(tolerations, max_size=3),
    }
)
ABOUT_PODS = st.fixed_dictionaries(
    {
        "affinity": st.fixed_dictionaries({"podAffinity": preferred_pods})
        | st.fixed_dictionaries({"podAntiAffinity": preferred_pods})
        | st.fixed_dictionaries({"podAffinity": preferred_pods, "podAntiAffinity": preferred_pods})
    }
)
ABOUT_SPREAD = st.fixed_dictionaries(
    {"topologySpreadConstraints": st.lists(spreads, min_size=1, max_size=2)},
    optional={
        "tolerations": st.lists(tolerations, max_size=3),
        "nodeSelector": st.dictionaries(
            st.sampled_from(("zone", "rack")), st.sampled_from(("a", "b")), max_size=1
        ),
        "affinity": st.fixed_dictionaries(
            {
                "nodeAffinity": st.fixed_dictionaries(
                    {"requiredDuringSchedulingIgnoredDuringExecution": required_nodes}
                )
            }
        ),
    },
)
ANYTHING = st.sampled_from((ABOUT_NODES, ABOUT_PODS, ABOUT_SPREAD)).flatmap(lambda each: each)


taints = st.fixed_dictionaries(
    {
        "key": st.sampled_from(("old", "noisy")),
        "value": st.sampled_from(("yes", "no")),
        "effect": st.sampled_from(TAINTS),
    }
)
# Strategies that a function would make anew for each node and pod; to check them takes longer than to draw.
of_nodes = st.tuples(labels, st.lists(taints, max_size=3))
of_pods = st.fixed_dictionaries(
    {
        "namespace": st.sampled_from(NAMESPACES),
        "labels": pod_labels,
        "deletionTimestamp": st.sampled_from((None, None, None, "2026-11-21T00:00:00Z")),
        "limits": st.sampled_from(({"cpu": "1"}, {"nvidia.com/gpu": "1"})),
        "nodeName": st.sampled_from((*NODES, *NODES, "gone", "")),
        "phase": st.sampled_from(("Running", "Running", "Running", "Pending", "Succeeded", "Failed")),
    }
)
of_namespaces = st.sampled_from(({}, {"kind": "lab"}, {"kind": "shop"}))


def draw_node(draw: Draw, name: str) -> Node:
    its_labels, its_taints = draw(of_nodes)
    return msgspec.convert(
        {
            "metadata": {"name": name, "labels": its_labels},
            "spec": {"taints": its_taints},
            "status": {"allocatable": {"nvidia.com/gpu": "8"}},
        },
        Node,
    )


def draw_pod(draw: Draw, index: int) -> Pod:
    found = draw(of_pods)
    meta = {each: found[each] for each in ("namespace", "labels", "deletionTimestamp")}
    return msgspec.convert(
        {
            "metadata": {"name": f"p{index}", "uid": f"uid-{index}", **meta},
            "spec": {
                "nodeName": found["nodeName"],
                "containers": [{"resources": {"limits": found["limits"]}}],
            },
            "status": {"phase": found["phase"]},
        },
        Pod,
    )


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Store, Cluster]:
    """A store that has come to what there is on a crooked way, and what there is."""
    store = make_store()
    namespaces = {name: draw(of_namespaces) for name in NAMESPACES}
    for name, found in namespaces.items():
        partial = msgspec.convert({"metadata": {"name": name, "labels": found}}, Partial)
        store.apply(Changed(Kind.NAMESPACE, partial), 0.0)
    store.apply(Listed(Kind.NAMESPACE, frozenset(namespaces)), 0.0)
    there = {name: draw_node(draw, name) for name in NODES[: draw(st.integers(2, len(NODES)))]}
    here = {f"uid-{index}": draw_pod(draw, index) for index in range(draw(st.integers(3, 10)))}
    steps: list[Node | Pod] = draw(st.permutations([*there.values(), *here.values()]))
    if draw(st.booleans()):
        # Others before, which became these; or went.
        steps = [
            *(draw_node(draw, name) for name in NODES),
            *(draw_pod(draw, index) for index in range(10)),
            *steps,
        ]
    asking = draw(st.sampled_from((None, *steps)))
    for step in steps:
        store.apply(Changed(Kind.NODE if isinstance(step, Node) else Kind.POD, step), 0.0)
        if step is asking:
            # Columns are made when somebody asks, and kept up from then on.
            for key in (*KEYS, "app", "tier", "hash", ""):
                store._beside.preferred.labels.column(key, store.snapshot.rows)
                store._beside.preferred.pods._columns.column(key, 1)
    for name in NODES:
        if name in store.nodes and name not in there:
            store.apply(
                Gone(Kind.NODE, Node(metadata=msgspec.convert({"name": name}, type(there["n0"].metadata)))),
                0.0,
            )
    store.apply(Listed(Kind.POD, frozenset(here)), 0.0)
    return store, Cluster(list(there.values()), list(here.values()), namespaces)


def assert_alike(
    cluster: Cluster, pod: Pod, request: PodRequest, snapshot: Snapshot, rows: Mapping[str, int]
) -> None:
    """What is left out makes no difference; all else scores as the reference says."""
    kinds = request.preferences.kinds if request.preferences else frozenset()
    for kind in KINDS:
        policy = registry.build(kind, {})
        assert isinstance(policy, Score)
        assert isinstance(policy, Conditional)
        score = policy.score(request, snapshot) if policy.applies(request, snapshot) else None
        want = getattr(cluster, kind.replace("-", "_"))(pod)
        if score is None:
            assert kind not in kinds
            assert len(set(want.values())) == 1, f"{kind} makes a difference"
            continue
        got = {name: float(score[row]) * 100 for name, row in rows.items()}
        assert got == pytest.approx(want, abs=1e-3), kind
        assert np.isfinite(score).all()


@pytest.mark.parametrize("about", [ABOUT_NODES, ABOUT_PODS, ABOUT_SPREAD], ids=["nodes", "pods", "spread"])
@settings(max_examples=250, deadline=None)
@given(data=st.data(), world=clusters(), own=pod_labels, namespace=st.sampled_from(NAMESPACES))
def test_nodes_score_as_kube_scheduler_scores_them(
    about: st.SearchStrategy[dict[str, Any]],
    data: st.DataObject,
    world: tuple[Store, Cluster],
    own: dict[str, str],
    namespace: str,
) -> None:
    store, cluster = world
    spec = data.draw(about)
    pod = msgspec.convert(
        {
            "metadata": {"name": "new", "uid": "uid-new", "namespace": namespace, "labels": own},
            "spec": spec | {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
        },
        Pod,
    )
    request = store.request(pod, 0.0, PROFILES)
    assert request.preferences is None or not request.preferences.not_understood
    snapshot = store.snapshot_for(request)
    assert_alike(cluster, pod, request, snapshot, store.rows)


@settings(max_examples=100, deadline=None)
@given(world=clusters(), spec=ANYTHING, last=st.data())
def test_a_node_that_is_only_sent_with_the_question_is_judged_alike(
    world: tuple[Store, Cluster], spec: dict[str, Any], last: st.DataObject
) -> None:
    """Its pods are not known to anybody, and labels and taints are in the object."""
    store, cluster = world
    stranger = draw_node(last.draw, "stranger")
    pod = msgspec.convert(
        {
            "metadata": {"name": "new", "uid": "uid-new", "namespace": "team-a"},
            "spec": spec | {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
        },
        Pod,
    )
    cluster = Cluster(
        [*cluster.nodes, stranger], [p for on in cluster.pods_on.values() for p in on], cluster.namespaces
    )
    request = store.request(pod, 0.0, PROFILES)
    snapshot = store.with_strangers(store.snapshot_for(request), [stranger], request)
    rows = {**store.rows, "stranger": store.snapshot.rows}
    assert_alike(cluster, pod, request, snapshot, rows)


@settings(max_examples=200, deadline=None)
@given(
    spec=st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda of: st.dictionaries(st.sampled_from(("operator", "key", "values", "weight")), of, max_size=3),
        max_leaves=6,
    )
)
def test_whatever_an_expression_says_reading_it_raises_nothing(spec: object) -> None:
    affinity = {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "preference": {"matchExpressions": [spec]}}
            ]
        }
    }
    try:
        pod = msgspec.convert({"spec": {"affinity": affinity}}, Pod)
    except msgspec.ValidationError:
        return
    preferences_of(pod)
