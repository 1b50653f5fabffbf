"""What is known here of kube-scheduler's own filters: a node's size, its cordon, its labels and its taints. Pure.

What it sees beside (CPU, memory, ports, volumes, other pods) is not known here. A condition of a pod that we cannot
read rules nothing out.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.cluster.preference_objects import Taint
from scheduler.cluster.preferences import tolerates
from scheduler.cluster.store import Store
from scheduler.core.nouns import PodRequest
from scheduler.core.preferences import Conditions, Toleration
from scheduler.decision.cycle import Mask
from scheduler.decision.reach import NO_CONDITIONS

# A cordoned node has it, and ending the cordon takes it away.
UNSCHEDULABLE = Taint("node.kubernetes.io/unschedulable", effect="NoSchedule")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class KubeFilters:
    """Nodes that each of its filters alone keeps from a pod, shape (rows,)."""

    small: Mask
    """Fewer units than the pod asks for, at all."""
    cordoned: Mask
    unselected: Mask
    """By the pod's nodeSelector, or its required node affinity."""
    tainted: Mask

    @property
    def against(self) -> Mask:
        """Nodes that any of them keeps from the pod."""
        return self.small | self.cordoned | self.unselected | self.tainted


def kube_filters(store: Store, request: PodRequest) -> KubeFilters:
    """Ask them about all nodes that the store knows."""
    snapshot = store.snapshot
    conditions = request.conditions or NO_CONDITIONS
    cordoned = snapshot.present & snapshot.cordoned
    if any(tolerates(each, UNSCHEDULABLE) for each in conditions.tolerations):
        cordoned &= False
    unselected, tainted = _kept_away(store, conditions)
    return KubeFilters(
        small=snapshot.present & ~snapshot.is_large_enough(request),
        cordoned=cordoned,
        unselected=snapshot.present & unselected,
        tainted=snapshot.present & tainted,
    )


def allowed(store: Store, request: PodRequest) -> Mask:
    """Nodes that neither the pod's selector or affinity nor their own taints keep from it; the cordon is none."""
    unselected, tainted = _kept_away(store, request.conditions or NO_CONDITIONS)
    return ~(unselected | tainted)


def _kept_away(store: Store, conditions: Conditions) -> tuple[Mask, Mask]:
    nodes = store.known_nodes(store.snapshot.rows)
    unselected = ~nodes.selected(conditions.node_selector, conditions.required)
    return unselected, nodes.forbidden(beside_cordon(conditions.tolerations))


def beside_cordon(tolerations: tuple[Toleration, ...]) -> tuple[Toleration, ...]:
    """The same, and the cordon's own taint."""
    return (*tolerations, Toleration(UNSCHEDULABLE.key, exists=True))
