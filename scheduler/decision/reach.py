"""Which pools could take a pod at all: one that never can holds it back from no later one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest, PoolSpec
from scheduler.core.preferences import Conditions
from scheduler.decision.cycle import Mask, PolicyFailures
from scheduler.policy.base import Lasting
from scheduler.policy.profiles import NamedFilter

NO_CONDITIONS = Conditions()


class Nodes(Protocol):
    """Who knows the nodes' labels and taints."""

    def could(self, conditions: Conditions) -> Mask:
        """Where a pod with these conditions could ever be, shape (rows,)."""
        ...


class Reach:
    """As pools and filters are configured."""

    def __init__(self, pools: Sequence[PoolSpec], filters: Sequence[NamedFilter]) -> None:
        self._longest_s = max((pool.spill_after_s for pool in pools), default=0.0)
        self._lasting = [(named.name, named.policy) for named in filters if isinstance(named.policy, Lasting)]

    def applied(
        self, request: PodRequest, snapshot: Snapshot, nodes: Nodes, failures: PolicyFailures
    ) -> Snapshot:
        """The snapshot with the nodes of each pool that could take the pod, were they empty and well."""
        if request.waited_s >= self._longest_s:
            return snapshot
        could = snapshot.present & snapshot.is_large_enough(request)
        if snapshot.in_two_pools is not None:
            could &= ~snapshot.in_two_pools
        could &= nodes.could(request.conditions or NO_CONDITIONS)
        for name, policy in self._lasting:
            try:
                could &= policy.could(request, snapshot)
            except Exception:  # noqa: BLE001 - the boundary around one policy's call (docs/architecture.md, 5.7)
                failures.add(name)
        sizes: list[int] = np.bincount(snapshot.pool[could], minlength=len(snapshot.pool_sizes)).tolist()
        return snapshot.replace(pool_sizes=tuple(sizes))
