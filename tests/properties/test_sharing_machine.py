"""A whole GPU, a replica, a slice is promised once: nodes that offer several of them, pods that ask for any mix.

The machines of test_reservation_machine.py and test_eviction_machine.py, with other sizes: of nodes, how their GPUs are
divided; of pods, of what.
"""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from scheduler.cluster.objects import Node, Pod, quantity
from scheduler.core.nouns import PodRequest
from tests.builders import make_inventory, make_node, make_pod
from tests.properties.books import NODES, Books
from tests.properties.test_eviction_machine import EvictionMachine
from tests.properties.test_reservation_machine import ReservationMachine

MEMORY_KEY = "wattbalance.io/gpu-memory"
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


# What each unit is to have of memory, by size.
MEMORY_GIB = {2: 20, 6: 30, 7: 9, 8: 5}


class Sharing(Books):
    """Sizes are indexes: of nodes from 0, of pods from 1."""

    def node(self, name: str, size: int, labels: dict[str, str], *, cordoned: bool = False) -> Node:
        shares, of_layout = LAYOUTS[size]
        return make_node(name, labels={**labels, **of_layout}, cordoned=cordoned, shares=shares)

    def pod(
        self, name: str, size: int, *, node: str = "", priority: int = 0, nominated: str = "", phase: str = ""
    ) -> Pod:
        return make_pod(
            name,
            node=node,
            priority=priority,
            nominated=nominated,
            phase=phase,
            shares=ASKS[size - 1],
            annotations={MEMORY_KEY: f"{MEMORY_GIB[size]}Gi"} if size in MEMORY_GIB else None,
        )

    def request(self, pod: Pod, size: int | None = None, **fields: object) -> PodRequest:
        asking = pod if size is None else self.pod("", size)
        memory_bytes = int(quantity((asking.metadata.annotations or {}).get(MEMORY_KEY)))
        return super().request(pod, size, gpu_memory_bytes=memory_bytes, **fields)

    @invariant()
    def shared_memory_that_is_asked_for_is_added_up(self) -> None:
        columns = self.store._columns
        for name, row in self.store.rows.items():
            record = self.store.nodes[name]
            shared = {each for each, offer in record.offers.items() if offer.shared}
            bound = [
                (f.units, quantity((f.meta.annotations or {}).get(MEMORY_KEY))) for f in record.pods.values()
            ]
            reserved = [(held.units, held.memory_bytes) for held in self.store.reservations.on_node(name)]
            for asks, told in (
                (bound, columns.memory_bound_bytes),
                (reserved, columns.memory_reserved_bytes),
                # No pod of this world runs.
                (bound, columns.memory_untaken_bytes),
            ):
                each = [
                    (count, memory_bytes)
                    for units, memory_bytes in asks
                    for resource, count in units
                    if resource in shared
                ]
                whole = sum(count * memory_bytes for count, memory_bytes in each)
                most = max((memory_bytes for _, memory_bytes in each), default=0)
                assert told[:, row].tolist() == [whole, most]


class SharingMachine(Sharing, ReservationMachine):
    """Everything that can happen, in any order."""

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

    @precondition(lambda self: self._waiting())
    @rule(
        node=st.sampled_from([*NODES, "nowhere"]),
        gpus=st.lists(st.integers(1, 8), min_size=1, max_size=6),
        apart_s=st.sampled_from([0.0, 0.1]),
    )
    def reserve(self, node: str, gpus: list[int], apart_s: float) -> None:
        """Whoever asks, and for whatever mix: all of it is there, or nothing is promised."""
        super().reserve(node=node, gpus=gpus, apart_s=apart_s)


class SharingEvictionMachine(Sharing, EvictionMachine):
    """Promises of several kinds, crowded on two nodes: only those go that hold what is lacking."""

    @initialize(layouts=st.lists(st.sampled_from([2, 4, 5]), min_size=2, max_size=2))
    def begin(self, layouts: list[int]) -> None:
        for name, layout in zip(("n0", "n1"), layouts, strict=True):
            self.nodes[name] = self.node(name, layout, {})
            self.inventories[name] = 8
            self.store.see_inventory(name, make_inventory(name, 8))
        self._list_all()


TestSharingMachine = SharingMachine.TestCase
# The profile's examples, each of up to fifty steps.
TestSharingMachine.settings = settings(stateful_step_count=50)
TestSharingEvictionMachine = SharingEvictionMachine.TestCase
TestSharingEvictionMachine.settings = settings(stateful_step_count=50)
