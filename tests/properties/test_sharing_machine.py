"""A whole GPU, a replica, a slice is promised once: nodes that offer several of them, pods that ask for any mix.

The machine of test_reservation_machine.py, with other sizes: of nodes, how their GPUs are divided; of pods, of what.
"""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from scheduler.cluster.objects import Node, Pod
from tests.builders import make_node, make_pod
from tests.properties.books import NODES
from tests.properties.test_reservation_machine import ReservationMachine

GPU, SHARED = "nvidia.com/gpu", "nvidia.com/gpu.shared"
SEVENTH, TWO, THREE = "nvidia.com/mig-1g.10gb", "nvidia.com/mig-2g.20gb", "nvidia.com/mig-3g.40gb"


def _replicas(each: int, gpus: int) -> dict[str, str]:
    return {"nvidia.com/gpu.replicas": str(each), "nvidia.com/gpu.count": str(gpus)}


LAYOUTS: tuple[tuple[Mapping[str, int], Mapping[str, str]], ...] = (
    # The plugin restarts.
    ({GPU: 0, SHARED: 0, SEVENTH: 0, THREE: 0}, _replicas(4, 2)),
    ({GPU: 4}, {}),
    ({GPU: 1, SHARED: 8}, _replicas(4, 3)),
    ({GPU: 8}, _replicas(4, 2)),
    ({SEVENTH: 8, THREE: 2}, {f"{SEVENTH}.count": "8"}),
    ({GPU: 1, SHARED: 3, SEVENTH: 7, TWO: 3, THREE: 2}, _replicas(3, 6)),
    # As many as make sums in 32 bits go wrong.
    ({SEVENTH: 42}, {}),
    # Neither the replicas nor the slices are there.
    ({GPU: 4}, _replicas(4, 4) | {f"{TWO}.count": "3"}),
    ({SHARED: 7, SEVENTH: 3}, _replicas(2, 4)),
)
ASKS: tuple[Mapping[str, int], ...] = (
    {GPU: 1},
    {SHARED: 1},
    {SEVENTH: 1},
    {THREE: 1},
    {GPU: 2},
    {SHARED: 3},
    {SEVENTH: 2, THREE: 1},
    {GPU: 1, SHARED: 1, TWO: 1},
)


class SharingMachine(ReservationMachine):
    """Sizes are indexes: of nodes from 0, of pods from 1."""

    def node(self, name: str, size: int, labels: dict[str, str], *, cordoned: bool = False) -> Node:
        shares, of_layout = LAYOUTS[size]
        return make_node(name, labels={**labels, **of_layout}, cordoned=cordoned, shares=shares)

    def pod(
        self, name: str, size: int, *, node: str = "", priority: int = 0, nominated: str = "", phase: str = ""
    ) -> Pod:
        shares = ASKS[size - 1]
        return make_pod(name, node=node, priority=priority, nominated=nominated, phase=phase, shares=shares)

    @initialize(
        layouts=st.lists(st.integers(1, 8), min_size=3, max_size=3),
        pods=st.lists(st.integers(1, 8), min_size=4, max_size=8),
    )
    def begin(self, layouts: list[int], pods: list[int]) -> None:
        for name, layout in zip(NODES[:3], layouts, strict=True):
            self.nodes[name] = self.node(name, layout, {})
        for size in pods:
            self.create_pod(size, 0, "")
        self._list_all()


TestSharingMachine = SharingMachine.TestCase
# The profile's examples, each of up to fifty steps.
TestSharingMachine.settings = settings(stateful_step_count=50)
