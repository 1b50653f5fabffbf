"""Slim structs of what a pod's spec prefers, and of taints: the part of objects.py that only preferences.py reads.

Every field has a default, as there; what a field may hold is judged when it is read, not when it is decoded.
"""

from __future__ import annotations

import msgspec

from scheduler.cluster.slim import Slim


class Expression(Slim, frozen=True):
    """One entry of matchExpressions or matchFields."""

    key: str = ""
    operator: str = ""
    values: list[str] | None = None


class LabelSelector(Slim, frozen=True):
    """A metav1.LabelSelector."""

    match_labels: dict[str, str] | None = None
    match_expressions: list[Expression] | None = None


class NodeSelectorTerm(Slim, frozen=True):
    """Nodes by labels and fields."""

    match_expressions: list[Expression] | None = None
    match_fields: list[Expression] | None = None


class PreferredNodes(Slim, frozen=True):
    """One preferred term of node affinity."""

    weight: int = 0
    preference: NodeSelectorTerm = NodeSelectorTerm()


class NodeSelector(Slim, frozen=True):
    """Required node affinity: one of the terms must hold."""

    node_selector_terms: list[NodeSelectorTerm] | None = None


class NodeAffinity(Slim, frozen=True):
    """spec.affinity.nodeAffinity."""

    preferred: list[PreferredNodes] | None = msgspec.field(
        name="preferredDuringSchedulingIgnoredDuringExecution", default=None
    )
    required: NodeSelector | None = msgspec.field(
        name="requiredDuringSchedulingIgnoredDuringExecution", default=None
    )


class PodAffinityTerm(Slim, frozen=True):
    """Pods, and how near is near. The API server has put matchLabelKeys into the selector already."""

    label_selector: LabelSelector | None = None
    namespaces: list[str] | None = None
    namespace_selector: LabelSelector | None = None
    topology_key: str = ""


class PreferredPods(Slim, frozen=True):
    """One preferred term of pod (anti-)affinity."""

    weight: int = 0
    pod_affinity_term: PodAffinityTerm = PodAffinityTerm()


class PodAffinity(Slim, frozen=True):
    """spec.affinity.podAffinity and podAntiAffinity; kube-scheduler has judged the required terms."""

    preferred: list[PreferredPods] | None = msgspec.field(
        name="preferredDuringSchedulingIgnoredDuringExecution", default=None
    )


class Affinity(Slim, frozen=True):
    """spec.affinity."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


class SpreadConstraint(Slim, frozen=True):
    """One topology spread constraint."""

    when_unsatisfiable: str = ""
    topology_key: str = ""
    max_skew: int = 1
    label_selector: LabelSelector | None = None
    match_label_keys: list[str] | None = None
    node_affinity_policy: str | None = None
    node_taints_policy: str | None = None


class TolerationEntry(Slim, frozen=True):
    """One entry of spec.tolerations."""

    key: str = ""
    operator: str = ""
    value: str = ""
    effect: str = ""


class Taint(Slim, frozen=True):
    """One taint of a node."""

    key: str = ""
    value: str = ""
    effect: str = ""
