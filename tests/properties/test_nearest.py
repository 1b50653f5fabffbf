"""What explain names for the nearest node suffices: done to the objects themselves, it lets the pod in there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any

import msgspec.structs
from hypothesis import event, given
from hypothesis import strategies as st

from scheduler.cluster.objects import Node, Pod
from scheduler.cluster.port import Changed, Kind
from scheduler.cluster.preference_objects import Taint
from scheduler.core.nouns import PREFIX, PoolSpec
from scheduler.decision.decider import Decider
from scheduler.decision.evaluation import Evaluation, Step
from scheduler.decision.explain import evaluate
from scheduler.telemetry.sample import GpuInventory, Inventory, Sample
from tests.builders import GIB, make_decider, make_node, make_pod, make_sample, make_store, see_pod

POOLS = (
    PoolSpec(name="dc", selector={"site": "dc"}, spill_after_s=300.0),
    PoolSpec(name="aws", selector={"paid": "hourly"}),
)
NOW = 100.0
REPLICAS = 4


@dataclass(frozen=True, kw_only=True)
class Box:
    """A node as it was generated."""

    gpus: int
    held: int
    lost: int
    quarantined: bool
    cordoned: bool
    tainted: bool
    zone: str
    dc: bool
    aws: bool
    model: str
    memory_gib: int
    used_gib: int
    shared: bool


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A pod as it was generated."""

    gpus: int
    waited_s: float
    zone: str
    said: dict[str, str]


SELDOM = st.sampled_from([False, False, True])
BOXES = st.lists(
    st.builds(
        Box,
        gpus=st.sampled_from([2, 4, 4]),
        held=st.integers(0, 4),
        lost=st.sampled_from([0, 0, 1, 2]),
        quarantined=SELDOM,
        cordoned=SELDOM,
        tainted=SELDOM,
        zone=st.sampled_from(["a", "b"]),
        dc=st.booleans(),
        aws=st.booleans(),
        model=st.sampled_from(["NVIDIA-A100", "H100", ""]),
        memory_gib=st.sampled_from([0, 40, 80]),
        used_gib=st.sampled_from([0, 30]),
        shared=SELDOM,
    ),
    min_size=1,
    max_size=4,
)
ASKS = st.builds(
    Ask,
    gpus=st.sampled_from([1, 2, 3, 4]),
    waited_s=st.sampled_from([0.0, 400.0]),
    zone=st.sampled_from(["", "a"]),
    said=st.fixed_dictionaries(
        {},
        optional={
            "pools": st.sampled_from(["dc", "aws", "default"]),
            "gpu-model": st.sampled_from(["A100", "*A100*", "*T4*"]),
            "gpu-memory": st.sampled_from(["35Gi", "60Gi", "100Gi"]),
        },
    ),
)


def the_node(name: str, box: Box) -> Node:
    labels = {"zone": box.zone}
    labels |= {"site": "dc"} if box.dc else {}
    labels |= {"paid": "hourly"} if box.aws else {}
    labels |= {PREFIX + "quarantine": ""} if box.quarantined else {}
    labels |= {"nvidia.com/gpu.replicas": str(REPLICAS)} if box.shared else {}
    made = make_node(name, box.gpus * (REPLICAS if box.shared else 1), labels, cordoned=box.cordoned)
    taints = [Taint("team", "b", "NoSchedule")] if box.tainted else None
    return msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, taints=taints))


def the_pod(ask: Ask) -> Pod:
    pod = make_pod("p1", ask.gpus, annotations={PREFIX + key: text for key, text in ask.said.items()})
    selector = {"zone": ask.zone} if ask.zone else None
    return msgspec.structs.replace(pod, spec=msgspec.structs.replace(pod.spec, node_selector=selector))


def world(boxes: list[Box]) -> Decider:
    store = make_store(POOLS)
    for index, box in enumerate(boxes):
        name = f"n{index}"
        store.apply(Changed(Kind.NODE, the_node(name, box)), NOW)
        memory_bytes = box.memory_gib * GIB or None
        gpus = [
            GpuInventory(uuid=f"{name}-{i}", model=box.model, memory_total_bytes=memory_bytes)
            for i in range(box.gpus)
        ]
        store.see_inventory(name, Inventory(v=1, node=name, gpus=gpus))
        if box.held:
            see_pod(store, make_pod(f"on-{name}", box.held, node=name), NOW)
        lost = min(box.lost, box.gpus)
        sample = make_sample(name, [0.5] * box.gpus, ["lost"] * lost + ["ok"] * (box.gpus - lost))
        values = {each: getattr(sample, each) for each in Sample.__struct_fields__}
        used = [box.used_gib * GIB] * box.gpus
        store.see_samples([(name, Sample(**{**values, "mem_used_bytes": used}), NOW)])
    return make_decider(store)


def look(boxes: list[Box], ask: Ask) -> Evaluation:
    decider = world(boxes)
    request = decider.store.request(the_pod(ask), ask.waited_s, decider.profile_facts)
    return evaluate(decider, request, NOW, 0.0)


def fits_on(boxes: list[Box], ask: Ask, node: str) -> bool:
    decider = world(boxes)
    request = decider.store.request(the_pod(ask), ask.waited_s, decider.profile_facts)
    told = evaluate(decider, request, NOW, 0.0)
    against = {name for each in told.ruled_out for name in each.examples}
    return node not in against and bool(decider.store.snapshot.has_room(request)[decider.store.rows[node]])


def done(step: Step, box: Box, ask: Ask) -> tuple[Box, Ask]:
    """The node and the pod after somebody did what a step says."""
    changes: dict[str, dict[str, Any]] = {
        "quarantine": {"quarantined": False},
        "cordon": {"cordoned": False},
        "taint": {"tainted": False},
        "selection": {"zone": ask.zone},
        "broken_gpus": {"lost": 0},
        "two_pools": {"dc": step.asks == "dc", "aws": step.asks == "aws"},
        "free_gpus": {"held": box.held - int(step.units.get("nvidia.com/gpu", 0))},
    }
    if step.kind in changes:
        return replace(box, **changes[step.kind]), ask
    if step.kind == "pool":
        return box, replace(ask, waited_s=inf)
    assert step.kind == "annotation"
    asks = (
        f"{ask.said['gpu-model']},{step.asks}" if step.annotation == "gpu-model" and step.asks else step.asks
    )
    said = {key: text for key, text in (ask.said | {step.annotation: asks}).items() if text}
    return box, replace(ask, said=said)


def after(steps: list[Step], boxes: list[Box], ask: Ask, node: str) -> tuple[list[Box], Ask]:
    changed, index = list(boxes), int(node[1:])
    for step in steps:
        changed[index], ask = done(step, changed[index], ask)
    return changed, ask


@given(BOXES, ASKS)
def test_all_that_is_named_for_the_nearest_node_lets_the_pod_in_there_and_nothing_of_it_can_be_left_out(
    boxes: list[Box], ask: Ask
) -> None:
    told = look(boxes, ask)
    large = [box for box in boxes if ask.gpus <= box.gpus * (REPLICAS if box.shared else 1)]
    assert (told.nearest is not None) == (not told.fitting and bool(large))
    if told.nearest is None:
        return
    node, steps = told.nearest.node, list(told.nearest.steps)
    event(f"{len(steps)} steps")
    assert steps
    assert fits_on(*after(steps, boxes, ask, node), node)
    for step in steps:
        left = [each for each in steps if each is not step]
        if step.annotation == "gpu-memory" and any(each.kind == "broken_gpus" for each in left):
            # What is free of shared GPUs that are broken nobody can tell before they are well.
            continue
        assert not fits_on(*after(left, boxes, ask, node), node), step.kind
    together = [each for each in told.unblock if each.kind == "together"]
    assert bool(together) == (len(steps) > 1)
    for each in together:
        assert all(step.text in each.text for step in steps)
