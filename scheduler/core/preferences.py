"""What a pod's spec prefers, in the words of Kubernetes, once it has been read. Pure data.

Preferences rule nothing out: they say which of the nodes that fit the pod would rather have (docs/architecture.md).
Each kind is weighed by the policy of the same name as kube-scheduler weighs it by a plugin.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

NODE_AFFINITY = "node-affinity"
POD_AFFINITY = "pod-affinity"
TAINT_TOLERATION = "taint-toleration"
TOPOLOGY_SPREAD = "topology-spread"
KINDS = (NODE_AFFINITY, POD_AFFINITY, TAINT_TOLERATION, TOPOLOGY_SPREAD)
"""Names of the policies that weigh preferences."""


class Operator(StrEnum):
    """How a label is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GT = "Gt"
    LT = "Lt"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One comparison of one label. What has no such label meets NotIn and DoesNotExist."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()


Selector = tuple[Requirement, ...]
"""All of them must be met; none: everything is selected."""


@dataclass(frozen=True, slots=True)
class NodeTerm:
    """Nodes by their labels and names. With neither it selects none."""

    labels: Selector = ()
    names: Selector = ()
    """Only In and NotIn; the key is `metadata.name`."""
    weight: int = 0
    """1 to 100; 0 where it is no preference but a condition."""


@dataclass(frozen=True, slots=True)
class PodSet:
    """Pods by namespace and labels."""

    selector: Selector | None
    """None selects no pod."""
    namespaces: tuple[str, ...] = ()
    namespace_selector: Selector | None = None
    """By labels of namespaces, beside those named; empty: all of them; None: none."""


@dataclass(frozen=True, slots=True)
class PodTerm:
    """Pods that it would be near to, or far from."""

    pods: PodSet
    topology_key: str
    """Nodes with the same value of this label are one place."""
    weight: int
    """1 to 100; negative: far from them."""


@dataclass(frozen=True, slots=True)
class SpreadTerm:
    """A topology spread that may be violated."""

    pods: PodSet
    """Those that are spread: of the pod's own namespace."""
    topology_key: str
    max_skew: int = 1
    honours_affinity: bool = True
    """Whether only nodes are counted on that the pod's own conditions allow."""
    honours_taints: bool = False
    """Whether only nodes are counted on whose taints it tolerates."""


@dataclass(frozen=True, slots=True)
class Toleration:
    """What makes a taint not matter. An empty key or effect stands for any."""

    key: str = ""
    exists: bool = False
    """Whether any value will do."""
    value: str = ""
    effect: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What of a pod's spec rules nodes out."""

    node_selector: Selector = ()
    required: tuple[NodeTerm, ...] | None = None
    """Node affinity, of which one term must hold. None: any node will do."""
    tolerations: tuple[Toleration, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """All that one pod's spec prefers, and what it takes to weigh that."""

    nodes: tuple[NodeTerm, ...] = ()
    pods: tuple[PodTerm, ...] = ()
    spreads: tuple[SpreadTerm, ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    """Those that concern PreferNoSchedule, or all where a spread honours taints."""
    node_selector: Selector = ()
    """Its condition for nodes; kept where a spread honours it."""
    required: tuple[NodeTerm, ...] | None = None
    """Likewise; one of them must hold. None: no such condition."""
    not_understood: tuple[str, ...] = ()
    """Preferences that we cannot weigh, each in some words for people."""

    @property
    def kinds(self) -> frozenset[str]:
        """Names of the policies that it takes to weigh them."""
        stated = ((NODE_AFFINITY, self.nodes), (POD_AFFINITY, self.pods), (TOPOLOGY_SPREAD, self.spreads))
        return frozenset(kind for kind, terms in stated if terms)

    def not_weighed(self, policies: Iterable[str]) -> tuple[str, ...]:
        """Which of them none of these policies weighs, each in some words for people; empty: all are weighed."""
        left_out = sorted(self.kinds.difference(policies))
        return (*self.not_understood, *(f"policy {kind} does not score" for kind in left_out))
