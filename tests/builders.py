"""Objects with defaults, so that a test names only what it is about."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scheduler.cluster.intents import Intents
from scheduler.cluster.objects import (
    Amounts,
    Container,
    Meta,
    Node,
    NodeSpec,
    NodeStatus,
    OwnerRef,
    Pod,
    PodCondition,
    PodSpec,
    PodStatus,
)
from scheduler.cluster.objects import Resources as ContainerResources
from scheduler.cluster.port import Changed, Gone, Kind
from scheduler.cluster.reservations import Reservations
from scheduler.cluster.store import Store, StoreSettings
from scheduler.core.nouns import GPU_RESOURCE, Placement, PodRequest, PoolSpec, Workload
from scheduler.decision.decider import Decider
from scheduler.decision.evaluation import Candidate
from scheduler.policy import registry
from scheduler.policy.base import Score
from scheduler.policy.profiles import NamedFilter, Profile, Weighted
from scheduler.telemetry.sample import GpuInventory, Inventory, Sample

SHARED_RESOURCE = "nvidia.com/gpu.shared"
GIB = 2**30
FILTERS = ("quarantine", "devices", "pools", "model", "memory")


def make_node(
    name: str = "n1",
    gpus: int = 8,
    labels: dict[str, str] | None = None,
    *,
    cordoned: bool = False,
    shares: Mapping[str, int] | None = None,
) -> Node:
    """A node with GPUs in its allocatable, or with what `shares` has instead."""
    amounts = {GPU_RESOURCE: gpus} if shares is None else shares
    return Node(
        metadata=Meta(name=name, labels=labels or {}),
        spec=NodeSpec(unschedulable=cordoned),
        status=NodeStatus(allocatable={each: str(amount) for each, amount in amounts.items()}),
    )


def make_pod(
    name: str = "p1",
    gpus: int = 1,
    *,
    uid: str = "",
    node: str = "",
    nominated: str = "",
    priority: int = 0,
    phase: str = "",
    annotations: dict[str, str] | None = None,
    owner: OwnerRef | None = None,
    priority_class: str = "",
    deleted: str | None = None,
    shares: Mapping[str, int] | Mapping[str, str] | None = None,
    refused: str = "",
    created: str | None = None,
) -> Pod:
    """A pod with one container that asks for GPUs, or for what `shares` has instead.

    `deleted` is when its deletion began; `refused` what kube-scheduler wrote on it when it could not place it, and its
    scheduler is ours then.
    """
    unplaced = PodCondition(type="PodScheduled", status="False", reason="Unschedulable", message=refused)
    amounts = {GPU_RESOURCE: gpus} if shares is None else shares
    limits: Amounts = {each: str(amount) for each, amount in amounts.items()}
    return Pod(
        metadata=Meta(
            name=name,
            namespace="team-a",
            uid=uid or f"uid-{name}",
            annotations=annotations,
            owner_references=[owner] if owner else None,
            deletion_timestamp=deleted,
            creation_timestamp=created,
        ),
        spec=PodSpec(
            scheduler_name="wattbalance" if refused else "",
            node_name=node,
            priority=priority,
            priority_class_name=priority_class,
            containers=[Container(resources=ContainerResources(limits=limits))],
        ),
        status=PodStatus(
            phase=phase,
            nominated_node_name=nominated,
            conditions=[unplaced] if refused else None,
        ),
    )


def make_request(name: str = "p1", gpus: int = 1, **fields: object) -> PodRequest:
    """What policies see of a pod."""
    values: dict[str, object] = {
        "uid": f"uid-{name}",
        "namespace": "team-a",
        "name": name,
        "gpus": gpus,
    } | fields
    return PodRequest(**values)  # type: ignore[arg-type]  # the tests' own keywords


def make_inventory(node: str = "n1", gpus: int = 8, model: str = "H100") -> Inventory:
    """An agent's inventory."""
    return Inventory(
        v=1, node=node, gpus=[GpuInventory(uuid=f"{node}-{i}", model=model) for i in range(gpus)]
    )


def make_sample(
    node: str = "n1", util: list[float | None] | None = None, state: list[str] | None = None, seq: int = 1
) -> Sample:
    """A sample with 100 W per GPU."""
    busy: list[float | None] = [0.5] * 8 if util is None else util
    return Sample(
        v=1,
        node=node,
        agent="a",
        boot="b",
        seq=seq,
        unix_s=0.0,
        span_s=1.0,
        inventory="h",
        state=state or ["ok"] * len(busy),
        power_w=[100.0] * len(busy),
        util_frac=busy,
        energy_j=[1.0] * len(busy),
    )


def make_store(
    pools: tuple[PoolSpec, ...] = (), reservations: Reservations | None = None, **settings: object
) -> Store:
    """An empty store with every class of work expected to be 0.9 busy."""
    loads = dict.fromkeys(Workload, 0.9)
    fields: dict[str, object] = {"pools": pools, "expected_loads": loads} | settings
    made = StoreSettings(**fields)  # type: ignore[arg-type]  # the tests' own keywords
    return Store(made, Intents(), reservations)


def see_node(store: Store, name: str = "n1", gpus: int = 8, labels: dict[str, str] | None = None) -> None:
    """Tell a store of a node and its agent's inventory."""
    store.apply(Changed(Kind.NODE, make_node(name, gpus, labels)), 0.0)
    store.see_inventory(name, make_inventory(name, gpus))


def see_pod(store: Store, pod: Pod, now_mono_s: float = 0.0) -> None:
    """Tell a store of a pod."""
    store.apply(Changed(Kind.POD, pod), now_mono_s)


def lose_pod(store: Store, pod: Pod, now_mono_s: float = 0.0) -> None:
    """Tell a store that a pod was deleted."""
    store.apply(Gone(Kind.POD, pod), now_mono_s)


def make_decider(
    store: Store, placement: Placement = Placement.DECISIVE, weights: dict[str, float] | None = None
) -> Decider:
    """A decider with one profile for all classes of work."""
    scores = []
    for name, weight in (weights or {"least-loaded": 1.0}).items():
        policy = registry.build(name, {})
        assert isinstance(policy, Score)
        scores.append(Weighted(name, weight, policy))
    spill = tuple(p.spill_after_s for p in store.settings.pools)
    filters = []
    for name in FILTERS:
        built = registry.build(name, {"spill_after_s": spill} if name == "pools" else {})
        filters.append(NamedFilter(name, built))  # type: ignore[arg-type]  # FILTERS names filters only
    profiles = {
        w: Profile(name=w.value, workload=w, placement=placement, expected_load=0.9, scores=tuple(scores))
        for w in Workload
    }
    return Decider(store, profiles, tuple(filters), instance="test")


def all_rows(store: Store) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Rows of all nodes, by name."""
    return np.array([store.rows[name] for name in sorted(store.rows)], np.intp)


def free_of(store: Store, node: str = "n1") -> float:
    """How many GPUs a node has free by the store's count."""
    return float(store.snapshot.free_gpus[store.rows[node]])


def added_up(candidate: Candidate) -> float:
    """A node's score from its terms, as the record promises: in their order, in double precision."""
    total = 0.0
    for each in candidate.terms:
        total += each.term
    return total


def see_sharing_node(
    store: Store,
    name: str = "n1",
    *,
    gpus: int = 1,
    replicas: int = 4,
    whole: int = 0,
    memory_gib: int = 80,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Tell a store of a node some of whose GPUs are shared, those behind the whole ones, and what its agent found."""
    said = {**(labels or {}), f"{GPU_RESOURCE}.replicas": str(replicas)}
    offered = {GPU_RESOURCE: whole, SHARED_RESOURCE: gpus * replicas}
    store.apply(Changed(Kind.NODE, make_node(name, labels=said, shares=offered)), 0.0)
    found = [
        GpuInventory(uuid=f"{name}-{i}", model="H100", memory_total_bytes=memory_gib * GIB)
        for i in range(whole + gpus)
    ]
    store.see_inventory(name, Inventory(v=1, node=name, gpus=found))


def measure_memory(
    store: Store,
    *used_gib: float | None,
    node: str = "n1",
    state: list[str] | None = None,
    now_mono_s: float = 1.0,
) -> None:
    """Tell a store what is used of the memory of each GPU of a node."""
    sample = make_sample(node, [0.5] * len(used_gib), state)
    values = {each: getattr(sample, each) for each in Sample.__struct_fields__}
    used = [None if each is None else int(each * GIB) for each in used_gib]
    store.see_samples([(node, Sample(**{**values, "mem_used_bytes": used}), now_mono_s)])


def make_sharing_pod(
    name: str = "p1",
    gib: int | None = None,
    *,
    units: int = 1,
    node: str = "",
    nominated: str = "",
    priority: int = 0,
    phase: str = "",
) -> Pod:
    """A pod that asks for units that share a GPU, and for so much memory of each."""
    return make_pod(
        name,
        shares={SHARED_RESOURCE: units},
        node=node,
        nominated=nominated,
        priority=priority,
        phase=phase,
        annotations=None if gib is None else {"wattbalance.io/gpu-memory": f"{gib}Gi"},
    )
