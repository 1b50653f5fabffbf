"""Nodes and pods of a trace as Kubernetes objects (plain JSON dicts)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from scheduler.core.nouns import GPU_RESOURCE, PREFIX
from scheduler.simulate.traces import TraceNode
from scheduler.simulate.workload import Arrival, Room

JsonObject = dict[str, object]

# NVIDIA's feature discovery puts the product's name there on real clusters.
MODEL_LABEL = "nvidia.com/gpu.product"
SITE_LABEL = "site"
ON_PREM_SITE = "dc-1"
CLOUD_SITE = "aws-a"
# An invented split: the trace does not tell where its machines stand.
_ON_PREM_FRAC = 0.8
NAMESPACE = "demo"
SCHEDULER_NAME = "wattbalance"


def site_of(node: TraceNode) -> str:
    """On-prem or cloud: by a hash of the name, so that a node stays where it is in every run and slice."""
    hashed = int.from_bytes(hashlib.sha256(node.name.encode()).digest()[:8], "big")
    return ON_PREM_SITE if hashed / 2**64 < _ON_PREM_FRAC else CLOUD_SITE


def node_object(node: TraceNode) -> JsonObject:
    """A ready node with everything it has allocatable."""
    amounts = {
        "cpu": f"{node.cpu_milli}m",
        "memory": f"{node.memory_mib}Mi",
        "pods": str(Room.MOST_PODS),
        GPU_RESOURCE: str(node.gpus),
    }
    labels = {
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        MODEL_LABEL: node.model,
        SITE_LABEL: site_of(node),
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": labels},
        "spec": {},
        "status": {
            "capacity": amounts,
            "allocatable": amounts,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def pod_object(
    arrival: Arrival,
    *,
    namespace: str = NAMESPACE,
    scheduler_name: str = SCHEDULER_NAME,
    node: str = "",
    annotations: Mapping[str, str] | None = None,
) -> JsonObject:
    """A pod that asks for what the task asked: GPUs whole, the models that it names as required node affinity.

    Args:
        arrival: Who comes.
        namespace: Where.
        scheduler_name: Who shall place it.
        node: Set for a pod that runs already (the initial fill); its phase is then Running.
        annotations: More than the workload's.
    """
    task = arrival.job.task
    amounts = {
        "cpu": f"{task.cpu_milli}m",
        "memory": f"{task.memory_mib}Mi",
        GPU_RESOURCE: str(arrival.gpus),
    }
    spec: JsonObject = {
        "schedulerName": scheduler_name,
        "containers": [
            {"name": "main", "image": "trace", "resources": {"requests": amounts, "limits": amounts}}
        ],
    }
    if task.models:
        spec["affinity"] = {"nodeAffinity": _required(task.models)}
    if node:
        spec["nodeName"] = node
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": arrival.name,
            "namespace": namespace,
            "annotations": {PREFIX + "workload": arrival.job.workload.value, **(annotations or {})},
        },
        "spec": spec,
        "status": {"phase": "Running" if node else "Pending"},
    }


def _required(models: tuple[str, ...]) -> JsonObject:
    expression = {"key": MODEL_LABEL, "operator": "In", "values": list(models)}
    terms = [{"matchExpressions": [expression]}]
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
