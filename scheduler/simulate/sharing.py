"""Which nodes of a trace replicate their GPUs, and which tasks ask for a replica. docs/model.md states the rule."""

from __future__ import annotations

import math
from dataclasses import replace

from scheduler.simulate.traces import Trace, TraceTask, node_kind, pick_evenly
from scheduler.simulate.workload import LONGEST_RUN_S, SHORTEST_RUN_S

# Replicas a GPU. What asks more than half of one leaves no room for a second of its kind.
REPLICAS = (4, 2)


def share_out(trace: Trace) -> Trace:
    """The same trace with some nodes replicating their GPUs, as many as what shares a GPU keeps busy.

    Nodes are picked evenly over models and sizes. A task that finds no node of its own model among them asks for a
    whole GPU; so do all where the trace has too few nodes to set any apart.
    """
    nodes = {node.name: node for node in trace.nodes}
    total_s = sum(_gpu_s(task) for task in trace.tasks)
    for replicas in REPLICAS:
        asked_s = sum(_gpu_s(task) for task in trace.tasks if _replicas(task) == replicas)
        whole = [node for node in nodes.values() if node.replicas == 1]
        # What asks for whole GPUs keeps a node, be it the only one.
        most = len(whole) - any(_replicas(task) == 1 for task in trace.tasks if task.gpus)
        count = min(math.ceil(asked_s / total_s * len(nodes)) if asked_s else 0, most)
        for node in pick_evenly(whole, count, key=node_kind) if count else ():
            nodes[node.name] = replace(node, replicas=replicas)
    there = {(node.replicas, node.model) for node in nodes.values()}
    tasks = tuple(_asking(task, there) for task in trace.tasks)
    return replace(trace, nodes=tuple(nodes.values()), tasks=tasks)


def _asking(task: TraceTask, there: set[tuple[int, str]]) -> TraceTask:
    replicas = _replicas(task)
    models = {model for count, model in there if count == replicas}
    possible = models.intersection(task.models) if task.models else models
    return replace(task, replicas=replicas) if replicas > 1 and possible else task


def _replicas(task: TraceTask) -> int:
    """How many of its kind share a GPU; 1: it takes a whole one."""
    return next((each for each in REPLICAS if task.shares_gpu and task.gpu_milli * each <= 1000), 1)


def _gpu_s(task: TraceTask) -> float:
    return min(max(task.run_s, SHORTEST_RUN_S), LONGEST_RUN_S) * task.gpus / _replicas(task)
