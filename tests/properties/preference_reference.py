"""kube-scheduler's scores of preferences in plain Python, node by node and pod by pod, from the objects themselves.

Shares nothing with what it is compared to but the structs that Kubernetes' JSON is read into. Scores are 0 to 100.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from scheduler.cluster.objects import Node, Pod
from scheduler.cluster.preference_objects import (
    Expression,
    LabelSelector,
    NodeSelectorTerm,
    PodAffinityTerm,
    SpreadConstraint,
    Taint,
)

Labels = Mapping[str, str]
Scores = dict[str, float]


def integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def expression_holds(each: Expression, labels: Labels) -> bool:
    there, values = each.key in labels, each.values or []
    value = labels.get(each.key, "")
    if each.operator == "In":
        return there and value in values
    if each.operator == "NotIn":
        return not there or value not in values
    if each.operator == "Exists":
        return there
    if each.operator == "DoesNotExist":
        return not there
    have, want = integer(value), integer(values[0])
    if not there or have is None or want is None:
        return False
    return have > want if each.operator == "Gt" else have < want


def selector_holds(selector: LabelSelector | None, labels: Labels) -> bool:
    if selector is None:
        return False
    exact = all(labels.get(key) == value for key, value in (selector.match_labels or {}).items())
    return exact and all(expression_holds(each, labels) for each in selector.match_expressions or ())


def term_holds(term: NodeSelectorTerm, node: Node) -> bool:
    if not term.match_expressions and not term.match_fields:
        return False
    labels, fields = node.metadata.labels or {}, {"metadata.name": node.metadata.name}
    return all(expression_holds(each, labels) for each in term.match_expressions or ()) and all(
        expression_holds(each, fields) for each in term.match_fields or ()
    )


def conditions_hold(pod: Pod, node: Node) -> bool:
    labels = node.metadata.labels or {}
    if any(labels.get(key) != value for key, value in (pod.spec.node_selector or {}).items()):
        return False
    affinity = pod.spec.affinity
    required = affinity.node_affinity.required if affinity and affinity.node_affinity else None
    return required is None or any(term_holds(term, node) for term in required.node_selector_terms or ())


def tolerated(pod: Pod, taint: Taint) -> bool:
    for each in pod.spec.tolerations or ():
        if each.effect and each.effect != taint.effect:
            continue
        if each.key and each.key != taint.key:
            continue
        if each.operator == "Exists" or each.value == taint.value:
            return True
    return False


class Cluster:
    """What there is: nodes, pods that are bound to them, and labels of namespaces."""

    def __init__(self, nodes: Sequence[Node], pods: Sequence[Pod], namespaces: Mapping[str, Labels]) -> None:
        self.nodes = nodes
        self.namespaces = namespaces
        self.pods_on: dict[str, list[Pod]] = {node.metadata.name: [] for node in nodes}
        for pod in pods:
            if pod.status.phase not in {"Succeeded", "Failed"} and pod.spec.node_name in self.pods_on:
                self.pods_on[pod.spec.node_name].append(pod)

    def node_affinity(self, pod: Pod) -> Scores:
        affinity = pod.spec.affinity
        given = affinity.node_affinity.preferred if affinity and affinity.node_affinity else None
        raw = {
            node.metadata.name: sum(term.weight for term in given or () if term_holds(term.preference, node))
            for node in self.nodes
        }
        most = max(raw.values())
        return {name: 100 * each / most if most else 0.0 for name, each in raw.items()}

    def taint_toleration(self, pod: Pod) -> Scores:
        raw = {
            node.metadata.name: sum(
                taint.effect == "PreferNoSchedule" and not tolerated(pod, taint)
                for taint in node.spec.taints or ()
            )
            for node in self.nodes
        }
        most = max(raw.values())
        return {name: 100 - 100 * each / most if most else 100.0 for name, each in raw.items()}

    def pod_affinity(self, pod: Pod) -> Scores:
        affinity = pod.spec.affinity
        near = affinity.pod_affinity.preferred if affinity and affinity.pod_affinity else None
        far = affinity.pod_anti_affinity.preferred if affinity and affinity.pod_anti_affinity else None
        terms = [(each.pod_affinity_term, each.weight) for each in near or ()]
        terms += [(each.pod_affinity_term, -each.weight) for each in far or ()]
        at: dict[tuple[str, str], int] = {}
        for term, weight in terms:
            for node in self.nodes:
                value = (node.metadata.labels or {}).get(term.topology_key)
                for other in self.pods_on[node.metadata.name]:
                    if value is not None and self._selects(term, pod, other):
                        at[term.topology_key, value] = at.get((term.topology_key, value), 0) + weight
        raw = {
            node.metadata.name: sum(
                score for (key, value), score in at.items() if (node.metadata.labels or {}).get(key) == value
            )
            for node in self.nodes
        }
        least, most = min(raw.values()), max(raw.values())
        return {
            name: 100 * (each - least) / (most - least) if most > least else 0.0 for name, each in raw.items()
        }

    def _selects(self, term: PodAffinityTerm, pod: Pod, other: Pod) -> bool:
        names = list(term.namespaces or ())
        if not names and term.namespace_selector is None:
            names = [pod.metadata.namespace]
        namespace = other.metadata.namespace
        among = namespace in names or selector_holds(
            term.namespace_selector, self.namespaces.get(namespace, {})
        )
        return among and selector_holds(term.label_selector, other.metadata.labels or {})

    def topology_spread(self, pod: Pod) -> Scores:
        constraints = [
            each
            for each in pod.spec.topology_spread_constraints or ()
            if each.when_unsatisfiable == "ScheduleAnyway"
        ]

        def placed(node: Node) -> bool:
            return all(each.topology_key in (node.metadata.labels or {}) for each in constraints)

        nodes = [node for node in self.nodes if placed(node)]
        raw = dict.fromkeys((node.metadata.name for node in nodes), 0.0)
        for each in constraints:
            counted = self._counter(pod, each)
            key = each.topology_key
            values = {(node.metadata.labels or {})[key] for node in nodes}
            if key == "kubernetes.io/hostname":
                size, here = len(nodes), {n.metadata.name: counted(n) for n in nodes}
            else:
                size = len(values)
                sums = dict.fromkeys(values, 0)
                for node in filter(self._honours(pod, each), nodes):
                    sums[(node.metadata.labels or {})[key]] += counted(node)
                here = {n.metadata.name: sums[(n.metadata.labels or {})[key]] for n in nodes}
            for name, count in here.items():
                raw[name] += count * math.log(size + 2) + each.max_skew - 1
        whole = {name: int(score + 0.5) for name, score in raw.items()}
        least, most = min(whole.values(), default=0), max(whole.values(), default=0)
        return {
            node.metadata.name: (
                0.0
                if node.metadata.name not in whole
                else 100.0
                if most == 0
                else 100 * (most + least - whole[node.metadata.name]) / most
            )
            for node in self.nodes
        }

    def _counter(self, pod: Pod, constraint: SpreadConstraint) -> Callable[[Node], int]:
        own = pod.metadata.labels or {}
        same = {key: own[key] for key in constraint.match_label_keys or () if key in own}

        def matches(labels: Labels) -> bool:
            if constraint.label_selector is not None and not selector_holds(
                constraint.label_selector, labels
            ):
                return False
            if constraint.label_selector is None and not same:
                return False
            return all(labels.get(key) == value for key, value in same.items())

        return lambda node: sum(
            other.metadata.deletion_timestamp is None
            and other.metadata.namespace == pod.metadata.namespace
            and matches(other.metadata.labels or {})
            for other in self.pods_on[node.metadata.name]
        )

    @staticmethod
    def _honours(pod: Pod, constraint: SpreadConstraint) -> Callable[[Node], bool]:
        def honoured(node: Node) -> bool:
            if constraint.node_affinity_policy != "Ignore" and not conditions_hold(pod, node):
                return False
            return constraint.node_taints_policy != "Honor" or not any(
                taint.effect in {"NoSchedule", "NoExecute"} and not tolerated(pod, taint)
                for taint in node.spec.taints or ()
            )

        return honoured
