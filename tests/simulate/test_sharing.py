"""Nodes that replicate their GPUs, and the tasks that ask for a replica."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scheduler.simulate.manifests import node_object, pod_object
from scheduler.simulate.sharing import share_out
from scheduler.simulate.traces import Trace, TraceNode, TraceTask, load_trace
from scheduler.simulate.utilisation import LoadModel
from scheduler.simulate.workload import Room, WorkloadModel


def node(name: str, *, gpus: int = 2, model: str = "T4", replicas: int = 1) -> TraceNode:
    return TraceNode(
        name=name, cpu_milli=96_000, memory_mib=786_432, gpus=gpus, model=model, replicas=replicas
    )


def task(name: str, gpu_milli: int, *, models: tuple[str, ...] = ()) -> TraceTask:
    return TraceTask(
        name=name, cpu_milli=1000, memory_mib=1024, gpus=1, gpu_milli=gpu_milli, models=models, qos="LS", run_s=600.0
    )  # fmt: skip


@pytest.mark.parametrize(
    ("gpu_milli", "want_replicas"),
    [(50, 4), (250, 4), (251, 2), (500, 2), (501, 1), (810, 1), (1000, 1)],
)
def test_a_task_asks_for_the_smallest_replica_that_is_large_enough(
    gpu_milli: int, want_replicas: int
) -> None:
    tasks = tuple(task(f"t{each}", each) for each in (250, 500, gpu_milli))
    shared = share_out(Trace(nodes=tuple(node(f"n{i}") for i in range(40)), tasks=tasks, source="here"))
    assert shared.tasks[2].replicas == want_replicas


def test_as_many_nodes_replicate_as_what_shares_keeps_busy() -> None:
    trace = load_trace()
    shared = share_out(trace)
    jobs = WorkloadModel(shared, load_frac=0.9, speed_per_s=60.0, seed=1).jobs
    asked_s = {
        replicas: sum(j.gpu_share * j.run_s for j in jobs if j.replicas == replicas) for replicas in (1, 2, 4)
    }
    for replicas in (2, 4):
        there = [n for n in shared.nodes if n.replicas == replicas]
        # Rounded up to whole nodes; and nodes differ in size.
        want = asked_s[replicas] / sum(asked_s.values())
        assert want <= len(there) / len(trace.nodes) <= want + 1.5 / len(trace.nodes)
        assert len({n.model for n in there}) > 1
    assert [n.name for n in shared.nodes] == [n.name for n in trace.nodes]
    assert share_out(trace) == shared


def test_a_task_whose_models_no_such_node_has_takes_a_whole_gpu() -> None:
    nodes = (*(node(f"n{i}") for i in range(9)), node("rare", model="P100"))
    tasks = (task("any", 200), task("named", 200, models=("P100",)), *(task(f"w{i}", 1000) for i in range(8)))
    shared = share_out(Trace(nodes=nodes, tasks=tasks, source="here"))
    assert [each.replicas for each in shared.tasks[:2]] == [4, 1]
    counted = WorkloadModel(shared, load_frac=0.5, speed_per_s=60.0, seed=1).counted
    assert (counted.sharing, counted.shares_made_whole) == (1, 1)


def test_a_node_for_replicas_takes_nothing_else_and_no_more_than_it_has() -> None:
    trace = Trace(
        nodes=(node("whole"), node("shared", replicas=4)),
        tasks=(task("w", 1000), *(replace(task(f"s{i}", 200), replicas=4) for i in range(9))),
        source="here",
    )  # fmt: skip
    jobs = {job.task.name: job for job in WorkloadModel(trace, load_frac=0.5, speed_per_s=60.0, seed=1).jobs}
    room = Room(trace)
    assert room.fitting(jobs["w"]).tolist() == [0]
    taken = 0
    while room.fits(1, jobs["s0"]):
        room.take(1, jobs["s0"])
        taken += 1
    assert taken == 8
    assert not room.fitting(jobs["s1"]).size


def test_replicas_spread_over_gpus_and_each_keeps_its_part_busy() -> None:
    load = LoadModel([node("a", gpus=2, replicas=4)], np.random.default_rng(1))
    load._noise_frac[:] = 0.0
    taken = [load.start(0, 1, 0.8) for _ in range(8)]
    assert taken == [(0,), (1,)] * 4
    assert load.util_frac[0].tolist() == pytest.approx([0.8, 0.8])
    assert load.allocated.tolist() == [2.0]
    with pytest.raises(ValueError, match="room"):
        load.start(0, 1, 0.8)
    for indices in taken[:3]:
        load.stop(0, indices, 0.8)
    assert load.util_frac[0].tolist() == pytest.approx([0.4, 0.6])
    assert load.allocated.tolist() == [1.25]
    for indices in taken[3:]:
        load.stop(0, indices, 0.8)
    assert load.util_frac[0].tolist() == [0.0, 0.0]


def test_kubernetes_sees_replicas_as_the_device_plugin_tells_them() -> None:
    shared = node_object(node("a", gpus=2, replicas=4))
    assert shared["status"]["allocatable"]["nvidia.com/gpu.shared"] == "8"  # type: ignore[index]  # plain JSON
    assert "nvidia.com/gpu" not in shared["status"]["allocatable"]  # type: ignore[index]  # likewise
    assert shared["metadata"]["labels"]["nvidia.com/gpu.replicas"] == "4"  # type: ignore[index]  # likewise
    trace = Trace(
        nodes=(node("a", replicas=4),),
        tasks=(replace(task("s", 200, models=("T4",)), replicas=4),),
        source="here",
    )
    arrival = next(WorkloadModel(trace, load_frac=0.5, speed_per_s=60.0, seed=1).arrivals())
    spec = pod_object(arrival)["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu.shared"] == "1"  # type: ignore[index]  # likewise
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]  # type: ignore[index]  # likewise
    keys = {each["key"]: each["values"] for each in terms["nodeSelectorTerms"][0]["matchExpressions"]}
    assert keys == {"nvidia.com/gpu.product": ["T4"], "nvidia.com/gpu.replicas": ["4"]}


def test_the_only_node_stays_whole_for_what_asks_for_whole_gpus() -> None:
    few, whole = (node("n1"),), task("w", 1000)
    assert share_out(Trace(nodes=few, tasks=(task("s", 200), whole), source="here")).nodes[0].replicas == 1
    assert share_out(Trace(nodes=few, tasks=(task("s", 200),), source="here")).nodes[0].replicas == 4
