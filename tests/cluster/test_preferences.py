"""What a pod's spec prefers: read as kube-scheduler reads it; what cannot be understood is named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from scheduler.cluster.objects import Node, Partial, Pod
from scheduler.cluster.port import Changed, Kind, Listed
from scheduler.cluster.preferences import MOST_KEYS, MOST_TERMS, MOST_VALUES, preferences_of
from scheduler.cluster.store import Store
from scheduler.core.nouns import PodRequest, Workload
from scheduler.core.preferences import (
    NodeTerm,
    Operator,
    PodSet,
    PodTerm,
    Preferences,
    Requirement,
    SpreadTerm,
    Toleration,
)
from tests.builders import make_pod, make_store, see_node, see_pod

PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
PROFILES = {workload: (workload.value, 0.9) for workload in Workload}
HOST = "kubernetes.io/hostname"
EVERY_POD = {"labelSelector": {}, "topologyKey": HOST}


def pod_with(labels: dict[str, str] | None = None, **spec: Any) -> Pod:
    return msgspec.convert(
        {
            "metadata": {"name": "p", "uid": "uid-p", "namespace": "team-a", "labels": labels or {}},
            "spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]} | spec,
        },
        Pod,
    )


def node_affinity(*terms: tuple[int, dict[str, Any]]) -> dict[str, Any]:
    return {"nodeAffinity": {PREFERRED: [{"weight": w, "preference": term} for w, term in terms]}}


def expression(operator: str, *values: str, key: str = "k") -> dict[str, Any]:
    return {"key": key, "operator": operator, "values": list(values)}


def pod_affinity(kind: str, weight: int, **term: Any) -> dict[str, Any]:
    return {kind: {PREFERRED: [{"weight": weight, "podAffinityTerm": term}]}}


def read(pod: Pod) -> Preferences:
    found = preferences_of(pod)
    assert found is not None
    return found


def spread(**constraint: Any) -> Pod:
    given = {"whenUnsatisfiable": "ScheduleAnyway", "topologyKey": "zone", "maxSkew": 1} | constraint
    return pod_with({"app": "web", "hash": "1"}, topologySpreadConstraints=[given])


def test_a_pod_that_prefers_nothing_has_no_preferences() -> None:
    assert preferences_of(pod_with()) is None
    assert preferences_of(pod_with(affinity={})) is None
    hard = {"whenUnsatisfiable": "DoNotSchedule", "topologyKey": "zone", "maxSkew": 1}
    assert preferences_of(pod_with(topologySpreadConstraints=[hard])) is None
    every = [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}]
    assert preferences_of(pod_with(tolerations=every)) is None


def test_node_terms_keep_weight_labels_and_names() -> None:
    by_name = {"matchFields": [expression("In", "n1", key="metadata.name")]}
    affinity = node_affinity((7, {"matchExpressions": [expression("Gt", "3")]} | by_name))
    want = NodeTerm(
        (Requirement("k", Operator.GT, ("3",)),), (Requirement("metadata.name", Operator.IN, ("n1",)),), 7
    )
    assert read(pod_with(affinity=affinity)).nodes == (want,)


def test_terms_without_weight_or_content_count_for_nothing() -> None:
    anything = {"matchExpressions": [expression("Exists")]}
    assert preferences_of(pod_with(affinity=node_affinity((0, anything), (5, {})))) is None
    assert preferences_of(pod_with(affinity=pod_affinity("podAffinity", 0, **EVERY_POD))) is None


def test_anti_affinity_has_a_negative_weight_and_its_own_namespace_by_default() -> None:
    term = {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": HOST}
    want = PodTerm(PodSet((Requirement("app", Operator.IN, ("web",)),), ("team-a",)), HOST, -9)
    assert read(pod_with(affinity=pod_affinity("podAntiAffinity", 9, **term))).pods == (want,)


def test_no_selector_selects_no_pod_and_an_empty_one_every_pod() -> None:
    none = read(pod_with(affinity=pod_affinity("podAffinity", 1, topologyKey=HOST))).pods
    every = read(pod_with(affinity=pod_affinity("podAffinity", 1, **EVERY_POD))).pods
    assert (none[0].pods.selector, every[0].pods.selector) == (None, ())


def test_a_spread_takes_the_pods_own_labels_by_their_keys() -> None:
    given = {"labelSelector": {"matchLabels": {"app": "web"}}, "matchLabelKeys": ["hash", "absent"]}
    want = (Requirement("app", Operator.IN, ("web",)), Requirement("hash", Operator.IN, ("1",)))
    assert read(spread(**given)).spreads == (SpreadTerm(PodSet(want, ("team-a",)), "zone"),)
    # Beside no selector, which alone would select nothing, too.
    alone = read(spread(matchLabelKeys=["hash"])).spreads
    assert alone == (SpreadTerm(PodSet(want[1:], ("team-a",)), "zone"),)


def test_what_a_spread_honours_is_kept_and_nothing_else() -> None:
    required = {"nodeSelectorTerms": [{"matchExpressions": [expression("Exists")]}]}
    affinity: Any = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    constraint = {"whenUnsatisfiable": "ScheduleAnyway", "topologyKey": "zone", "maxSkew": 2}
    tolerations = [{"key": "a", "operator": "Exists", "effect": "NoSchedule"}, {"key": "b", "value": "x"}]

    def with_policies(**policies: str) -> Preferences:
        return read(
            pod_with(
                affinity=affinity,
                nodeSelector={"disk": "ssd"},
                tolerations=tolerations,
                topologySpreadConstraints=[constraint | policies],
            )
        )

    honoured = with_policies(nodeTaintsPolicy="Honor")
    assert honoured.node_selector == (Requirement("disk", Operator.IN, ("ssd",)),)
    assert honoured.required == (NodeTerm((Requirement("k", Operator.EXISTS),)),)
    assert honoured.tolerations == (Toleration("a", True, "", "NoSchedule"), Toleration("b", False, "x", ""))
    ignored = with_policies(nodeAffinityPolicy="Ignore")
    assert (ignored.node_selector, ignored.required) == ((), None)
    assert ignored.tolerations == (Toleration("b", False, "x", ""),), "those that concern PreferNoSchedule"


@pytest.mark.parametrize(
    ("pod", "want"),
    [
        (
            pod_with(affinity=node_affinity((1, {"matchExpressions": [expression("Near", "x")]}))),
            "operator 'Near'",
        ),
        (pod_with(affinity=node_affinity((1, {"matchExpressions": [expression("In")]}))), "with 0 values"),
        (
            pod_with(affinity=node_affinity((1, {"matchExpressions": [expression("Exists", "x")]}))),
            "with 1 values",
        ),
        (
            pod_with(affinity=node_affinity((1, {"matchExpressions": [expression("Gt", "ten")]}))),
            "operator Gt of 'k'",
        ),
        (
            pod_with(
                affinity=node_affinity(
                    (1, {"matchExpressions": [expression("In", *map(str, range(MOST_VALUES + 1)))]})
                )
            ),
            f"with {MOST_VALUES + 1} values",
        ),
        (
            pod_with(affinity=node_affinity((1, {"matchFields": [expression("In", "x", key="spec.x")]}))),
            "field 'spec.x'",
        ),
        (
            pod_with(
                affinity=pod_affinity(
                    "podAffinity",
                    1,
                    labelSelector={"matchExpressions": [expression("Gt", "1")]},
                    topologyKey="zone",
                )
            ),
            "operator Gt on a label of pods",
        ),
        (
            spread(labelSelector={"matchExpressions": [expression("Lt", "1")]}),
            "operator Lt on a label of pods",
        ),
        (
            pod_with(affinity=node_affinity((1, {"matchExpressions": [expression("Lt", str(2**63))]}))),
            "operator Lt of 'k'",
        ),
        (
            pod_with(
                affinity=node_affinity(
                    (1, {"matchFields": [expression("In", "n", key="metadata.name")] * (MOST_TERMS + 1)})
                )
            ),
            f"more than {MOST_TERMS} expressions",
        ),
        (pod_with(affinity=pod_affinity("podAntiAffinity", 1, labelSelector={})), "no topologyKey"),
        (pod_with(affinity=node_affinity((101, {"matchExpressions": [expression("Exists")]}))), "weight"),
        (pod_with(affinity=node_affinity((-1, {"matchExpressions": [expression("Exists")]}))), "weight"),
        (
            pod_with(
                affinity=node_affinity((1, {"matchExpressions": [expression("Exists")] * (MOST_TERMS + 1)}))
            ),
            f"more than {MOST_TERMS} expressions",
        ),
        (
            pod_with(
                affinity=node_affinity(
                    (
                        1,
                        {
                            "matchExpressions": [
                                expression("Exists", key=f"k{i}") for i in range(MOST_KEYS + 1)
                            ]
                        },
                    )
                )
            ),
            f"more than {MOST_KEYS} different label keys",
        ),
        (pod_with(affinity=pod_affinity("podAffinity", 2**70, **EVERY_POD)), "weight"),
        (
            pod_with(
                affinity=pod_affinity("podAffinity", 1, **EVERY_POD, namespaces=["x"] * (MOST_VALUES + 1))
            ),
            f"more than {MOST_VALUES} namespaces",
        ),
        (spread(maxSkew=2**70), "maxSkew 118"),
        (spread(labelSelector={"matchLabels": {f"k{i}": "x" for i in range(MOST_TERMS + 1)}}), "expressions"),
        (spread(topologyKey=""), "topologyKey ''"),
        (spread(maxSkew=0), "maxSkew 0"),
        (spread(nodeTaintsPolicy="Perhaps"), "'Perhaps'"),
        (pod_with(tolerations=[{"key": "a", "operator": "Lt", "value": "3"}]), "toleration: operator 'Lt'"),
        (
            pod_with(
                affinity=node_affinity(
                    *[(1, {"matchExpressions": [expression("Exists")]})] * (MOST_TERMS + 1)
                )
            ),
            f"more than {MOST_TERMS}",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_understood_is_named_and_left_over(pod: Pod, want: str) -> None:
    preferences = read(pod)
    [text] = preferences.not_understood
    assert want in text
    assert preferences.not_weighed(preferences.kinds) == (text,)


NEAR_WHAT = {"matchExpressions": [expression("Near")]}
EVERY_NODE = {"matchExpressions": [expression("Exists")]}


def test_one_term_that_is_not_understood_leaves_the_others() -> None:
    """Those after it, too."""
    good, bad = {"podAffinityTerm": EVERY_POD, "weight": 1}, {"podAffinityTerm": {}, "weight": 2}
    anyway = {"whenUnsatisfiable": "ScheduleAnyway", "topologyKey": "zone"}
    preferences = read(
        pod_with(
            affinity=node_affinity((1, EVERY_NODE), (2, NEAR_WHAT), (3, EVERY_NODE))
            | {"podAffinity": {PREFERRED: [bad, good]}},
            topologySpreadConstraints=[anyway | {"maxSkew": 0}, anyway],
            tolerations=[{"key": "a", "operator": "Lt"}, {"key": "b"}],
        )
    )
    assert [term.weight for term in preferences.nodes] == [1, 3]
    assert [term.weight for term in preferences.pods] == [1]
    assert [term.max_skew for term in preferences.spreads] == [1]
    assert [each.key for each in preferences.tolerations] == ["b"]
    assert len(preferences.not_understood) == 4


def test_a_spread_whose_conditions_on_nodes_are_not_understood_is_left_out() -> None:
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [NEAR_WHAT]}}
    anyway = {"whenUnsatisfiable": "ScheduleAnyway", "topologyKey": "zone"}
    preferences = read(
        pod_with(
            affinity={"nodeAffinity": required, **pod_affinity("podAffinity", 1, **EVERY_POD)},
            topologySpreadConstraints=[anyway, anyway | {"nodeAffinityPolicy": "Ignore"}],
        )
    )
    assert not preferences.spreads
    assert len(preferences.pods) == 1
    [text] = preferences.not_understood
    assert text.startswith("node affinity that a topology spread honours: operator 'Near'")


def test_of_too_many_label_keys_nothing_is_weighed() -> None:
    keys = [expression("Exists", key=f"k{i}") for i in range(MOST_KEYS)]
    spreads = [{"whenUnsatisfiable": "ScheduleAnyway", "topologyKey": "zone"}]
    few = node_affinity((1, {"matchExpressions": keys}))
    assert not read(pod_with(affinity=few)).not_understood
    many = few | pod_affinity("podAffinity", 1, **EVERY_POD)
    preferences = read(pod_with(affinity=many, topologySpreadConstraints=spreads))
    assert (preferences.nodes, preferences.pods, preferences.spreads) == ((), (), ())
    assert preferences.not_understood == (f"more than {MOST_KEYS} different label keys",)


@pytest.mark.parametrize(
    "spec",
    [
        {"affinity": node_affinity(*[(1, EVERY_NODE)] * MOST_TERMS)},
        {"affinity": node_affinity((1, {"matchExpressions": [expression("Exists")] * MOST_TERMS}))},
        {"affinity": node_affinity((100, {"matchExpressions": [expression("In", *["x"] * MOST_VALUES)]}))},
        {"affinity": pod_affinity("podAffinity", 100, **EVERY_POD, namespaces=["x"] * MOST_VALUES)},
        {"affinity": node_affinity((1, {"matchExpressions": [expression("Gt", "0" * 40 + "1")]}))},
        {"affinity": node_affinity((1, {"matchExpressions": [expression("Lt", str(2**63 - 1))]}))},
    ],
)
def test_at_its_limit_everything_is_understood(spec: dict[str, Any]) -> None:
    assert not read(pod_with(**spec)).not_understood


def test_a_spread_of_another_kind_than_we_know_is_not_weighed() -> None:
    assert preferences_of(spread(whenUnsatisfiable="ScheduleSomehow")) is None


# --- in the store -----------------------------------------------------------------------------------------------------


def world() -> Store:
    store = make_store()
    for name in ("n0", "n1"):
        see_node(store, name, labels={HOST: name})
    store.synced.add(Kind.NAMESPACE)
    return store


def near(store: Store, request: PodRequest) -> dict[str, float]:
    column = store.snapshot_for(request).pod_affinity
    assert column is not None
    return {name: float(column[row]) for name, row in store.rows.items()}


def other(name: str, node: str = "", *, labels: dict[str, str] | None = None, gpus: int = 1) -> Pod:
    pod = make_pod(name, gpus, node=node)
    return msgspec.structs.replace(
        pod, metadata=msgspec.structs.replace(pod.metadata, labels=labels or {"app": "x"})
    )


NEAR_X = pod_affinity("podAffinity", 10, labelSelector={"matchLabels": {"app": "x"}}, topologyKey=HOST)


def test_a_snapshot_of_a_pod_that_prefers_nothing_is_the_shared_one() -> None:
    store = world()
    assert store.snapshot_for(store.request(pod_with(), 0.0, PROFILES)) is store.snapshot


def test_pods_without_a_gpu_count_and_those_that_finished_do_not() -> None:
    store = world()
    request = store.request(pod_with(affinity=NEAR_X), 0.0, PROFILES)
    see_pod(store, other("plain", "n1", gpus=0))
    assert near(store, request) == {"n0": 0, "n1": 10}
    done = msgspec.structs.replace(other("plain", "n1", gpus=0), status=make_pod(phase="Succeeded").status)
    see_pod(store, done)
    assert near(store, request) == {"n0": 0, "n1": 0}


def test_a_pod_counts_where_it_is_promised_to_be_until_the_promise_is_over() -> None:
    store = world()
    request = store.request(pod_with(affinity=NEAR_X), 0.0, PROFILES)
    first = other("first")
    see_pod(store, first)
    assert near(store, request) == {"n0": 0, "n1": 0}
    assert store.reserve(store.request(first, 0.0, PROFILES), "n1", 0.0)
    assert near(store, request) == {"n0": 0, "n1": 10}
    store.release(first.metadata.uid, 1.0)
    assert near(store, request) == {"n0": 0, "n1": 0}
    assert store.reserve(store.request(first, 0.0, PROFILES), "n1", 2.0)
    see_pod(store, other("first", "n1"), 3.0)
    assert near(store, request) == {"n0": 0, "n1": 10}, "once, bound as it is"


def test_a_pod_does_not_count_itself_when_it_is_explained() -> None:
    store = world()
    bound = pod_with({"app": "x"}, affinity=NEAR_X, nodeName="n0")
    see_pod(store, bound)
    facts = store.pods["uid-p"]
    intent = store.intents.resolve(facts.meta, "")
    again = store.request_again(facts, intent, 0.0, PROFILES[Workload.BATCH])
    assert again.preferences == preferences_of(bound)
    assert near(store, again) == {"n0": 0, "n1": 0}


def test_what_pods_of_a_template_prefer_is_read_once_for_all_and_not_again_once_they_run() -> None:
    store = world()
    for name in ("one", "two"):
        pod = other(name, "n0")
        spec = msgspec.structs.replace(pod.spec, affinity=pod_with(affinity=NEAR_X).spec.affinity)
        see_pod(store, msgspec.structs.replace(pod, spec=spec))
    first = store.pods["uid-one"].preferences
    assert first is not None
    assert store.pods["uid-two"].preferences is first
    see_pod(store, other("one", "n0"))
    assert store.pods["uid-one"].preferences is first


def test_a_node_that_comes_late_or_again_has_the_pods_that_name_it() -> None:
    store = world()
    request = store.request(pod_with(affinity=NEAR_X), 0.0, PROFILES)
    see_pod(store, other("early", "n2", gpus=0))
    see_node(store, "n2", labels={HOST: "n2"})
    assert near(store, request) == {"n0": 0, "n1": 0, "n2": 10}
    store.apply(Listed(Kind.NODE, frozenset({"n0", "n1"})), 0.0)
    see_node(store, "n3", labels={HOST: "n3"})
    assert near(store, request) == {"n0": 0, "n1": 0, "n3": 0}, "another node in the same row"
    see_node(store, "n2", labels={HOST: "n2"})
    assert near(store, request) == {"n0": 0, "n1": 0, "n2": 10, "n3": 0}


def test_pods_that_a_list_does_not_name_are_gone() -> None:
    store = world()
    request = store.request(pod_with(affinity=NEAR_X), 0.0, PROFILES)
    see_pod(store, other("kept", "n0", gpus=0))
    see_pod(store, other("lost", "n1", gpus=0))
    store.apply(Listed(Kind.POD, frozenset({"uid-kept"})), 0.0)
    assert near(store, request) == {"n0": 10, "n1": 0}


def test_namespaces_are_chosen_by_their_labels_once_these_are_known() -> None:
    lab = {"labelSelector": {}, "namespaceSelector": {"matchLabels": {"kind": "lab"}}, "topologyKey": HOST}
    store = world()
    store.synced.discard(Kind.NAMESPACE)
    see_pod(store, other("theirs", "n1"))
    pod = pod_with(affinity=pod_affinity("podAffinity", 3, **lab))
    blind = store.request(pod, 0.0, PROFILES).preferences
    assert blind is not None
    assert not blind.kinds
    assert "namespaces are not listed" in blind.not_understood[0]
    partial = msgspec.convert({"metadata": {"name": "team-a", "labels": {"kind": "lab"}}}, Partial)
    store.apply(Changed(Kind.NAMESPACE, partial), 0.0)
    store.apply(Listed(Kind.NAMESPACE, frozenset({"team-a"})), 0.0)
    assert near(store, store.request(pod, 0.0, PROFILES)) == {"n0": 0, "n1": 3}
    store.apply(Listed(Kind.NAMESPACE, frozenset()), 0.0)
    assert near(store, store.request(pod, 0.0, PROFILES)) == {"n0": 0, "n1": 0}


def test_without_namespaces_a_term_of_all_of_them_is_weighed_and_what_else_is_unclear_still_said() -> None:
    store = world()
    store.synced.discard(Kind.NAMESPACE)
    see_pod(store, other("theirs", "n1"))
    every = {"labelSelector": {}, "namespaceSelector": {}, "topologyKey": HOST}
    some = every | {"namespaceSelector": {"matchLabels": {"kind": "lab"}}}
    terms = [{"weight": weight, "podAffinityTerm": term} for weight, term in ((3, every), (5, some), (7, {}))]
    request = store.request(pod_with(affinity={"podAffinity": {PREFERRED: terms}}), 0.0, PROFILES)
    assert near(store, request) == {"n0": 0, "n1": 3}
    assert request.preferences is not None
    assert [text.rpartition(": ")[2] for text in request.preferences.not_understood] == [
        "no topologyKey",
        "namespaceSelector, since namespaces are not listed",
    ]


def test_nodes_that_have_gone_are_not_compared() -> None:
    """Neither by a pod that needs no GPU at all, for which every node is large enough."""
    store = world()
    store.apply(Listed(Kind.NODE, frozenset({"n1"})), 0.0)
    pod = pod_with(affinity=NEAR_X, containers=[{}])
    compared = store.snapshot_for(store.request(pod, 0.0, PROFILES)).compared
    assert compared is not None
    assert compared.nonzero()[0].tolist() == [store.rows["n1"]]


def test_a_soft_taint_matters_while_a_node_has_it_that_is_large_enough() -> None:
    store = world()
    tainted: dict[str, Any] = {
        "metadata": {"name": "n0"},
        "spec": {"taints": [{"key": "old", "effect": "PreferNoSchedule"}]},
        "status": {"allocatable": {"nvidia.com/gpu": "8"}},
    }
    store.apply(Changed(Kind.NODE, msgspec.convert(tainted, Node)), 0.0)
    plain = store.request(pod_with(), 0.0, PROFILES)
    column = store.snapshot_for(plain).untolerated_taints
    assert column is not None
    assert [column[store.rows[name]] for name in ("n0", "n1")] == [1, 0]
    tolerant = store.request(pod_with(tolerations=[{"key": "old", "operator": "Exists"}]), 0.0, PROFILES)
    assert store.snapshot_for(tolerant).untolerated_taints is None
    large = pod_with(containers=[{"resources": {"limits": {"nvidia.com/gpu": "9"}}}])
    assert store.snapshot_for(store.request(large, 0.0, PROFILES)).untolerated_taints is None
    store.apply(Changed(Kind.NODE, msgspec.convert(tainted | {"spec": {}}, Node)), 0.0)
    assert store.snapshot_for(plain) is store.snapshot


def test_a_node_that_is_only_sent_with_the_question_is_near_those_in_its_zone() -> None:
    store = make_store()
    for name, zone in (("n0", "a"), ("n1", "b")):
        see_node(store, name, labels={"zone": zone})
    see_pod(store, other("there", "n1"))
    term = {"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": "zone"}
    request = store.request(pod_with(affinity=pod_affinity("podAffinity", 10, **term)), 0.0, PROFILES)
    strangers = [
        msgspec.convert(
            {
                "metadata": {"name": name, "labels": {"zone": name}},
                "status": {"allocatable": {"nvidia.com/gpu": "8"}},
            },
            Node,
        )
        # Two in zones that nobody knows, one in a known one.
        for name in ("c", "d", "b")
    ]
    column = store.with_strangers(store.snapshot_for(request), strangers, request).pod_affinity
    assert column is not None
    assert column[[store.rows["n0"], store.rows["n1"]]].tolist() == [0, 10]
    assert column[store.snapshot.rows :].tolist() == [0, 0, 10]


def crowd(store: Store, pod: Pod) -> dict[str, float]:
    column = store.snapshot_for(store.request(pod, 0.0, PROFILES)).topology_spread
    assert column is not None
    return {name: float(column[row]) for name, row in store.rows.items()}


def over(key: str, **more: Any) -> dict[str, Any]:
    every = {"whenUnsatisfiable": "ScheduleAnyway", "topologyKey": key, "labelSelector": {}}
    return every | more


def test_a_spread_weighs_a_pod_by_the_places_that_are_large_enough() -> None:
    """By the logarithm of how many there are and two: of two a pod counts 1.4, of three 1.6."""
    store = make_store()
    for name, gpus in (("n0", 8), ("n1", 8), ("small", 1)):
        see_node(store, name, gpus, labels={"zone": name})
    see_pod(store, other("there", "n0"))
    one, two = (
        pod_with(
            topologySpreadConstraints=[over("zone")],
            containers=[{"resources": {"limits": {"nvidia.com/gpu": gpus}}}],
        )
        for gpus in ("1", "2")
    )
    assert crowd(store, one) == {"n0": 2, "n1": 0, "small": 0}
    assert crowd(store, two) == {"n0": 1, "n1": 0, "small": 0}


def test_a_node_that_lacks_one_of_the_labels_counts_for_none_of_them() -> None:
    store = make_store()
    for name, found in (("n0", {"rack": "r0"}), ("n1", {"rack": "r1"}), ("bare", {})):
        see_node(store, name, labels={"zone": "a", **found})
    for name in ("q", "r", "s"):
        see_pod(store, other(name, "bare"))
    assert crowd(store, pod_with(topologySpreadConstraints=[over("zone"), over("rack")])) == {
        "n0": 0,
        "n1": 0,
        "bare": -1,
    }
    assert crowd(store, pod_with(topologySpreadConstraints=[over("zone")]))["n0"] == 3


def test_required_node_affinity_without_terms_is_met_by_no_node() -> None:
    store = world()
    for name in ("n0", "n1"):
        see_node(store, name, labels={"zone": name})
        see_pod(store, other(name, name))
    affinity: Any = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}
    }
    honoured = pod_with(affinity=affinity, topologySpreadConstraints=[over("zone")])
    assert crowd(store, honoured) == {"n0": 0, "n1": 0}
    ignored = pod_with(
        affinity=affinity, topologySpreadConstraints=[over("zone", nodeAffinityPolicy="Ignore")]
    )
    assert crowd(store, ignored) == {"n0": 1, "n1": 1}
