"""Nodes and pods of a trace as Kubernetes objects (plain JSON dicts)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from scheduler.cluster.shares import COUNT_LABEL, MODEL_LABEL, SHARED_SUFFIX
from scheduler.core.nouns import GPU_RESOURCE, PREFIX
from scheduler.simulate.traces import TraceNode
from scheduler.simulate.workload import Arrival, Room

JsonObject = dict[str, object]

REPLICAS_LABEL = "nvidia.com/gpu.replicas"
SITE_LABEL = "site"
ON_PREM_SITE = "dc-1"
CLOUD_SITE = "aws-a"
# An invented split: the trace does not tell where its machines stand.
_ON_PREM_FRAC = 0.8
NAMESPACE = "demo"
HOME = "wattbalance"
"""The daemon's own namespace: its Lease, and where people pause it."""
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
        _resource(node.replicas): str(node.gpus * node.replicas),
    }
    labels = {
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        MODEL_LABEL: node.model,
        COUNT_LABEL: str(node.gpus),
        SITE_LABEL: site_of(node),
    }
    if node.replicas > 1:
        labels[REPLICAS_LABEL] = str(node.replicas)
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
    """A pod that asks for what the task asked: whole GPUs or a replica, models and replicas as required node affinity.

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
        _resource(task.replicas): str(arrival.gpus),
    }
    spec: JsonObject = {
        "schedulerName": scheduler_name,
        "containers": [
            {"name": "main", "image": "trace", "resources": {"requests": amounts, "limits": amounts}}
        ],
    }
    required = {MODEL_LABEL: list(task.models)} if task.models else {}
    if task.replicas > 1:
        required[REPLICAS_LABEL] = [str(task.replicas)]
    if required:
        spec["affinity"] = {"nodeAffinity": _required(required)}
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


def _resource(replicas: int) -> str:
    # As the device plugin calls them with `renameByDefault`.
    return GPU_RESOURCE if replicas == 1 else f"{GPU_RESOURCE}{SHARED_SUFFIX}"


def _required(labels: Mapping[str, list[str]]) -> JsonObject:
    expressions = [{"key": key, "operator": "In", "values": values} for key, values in labels.items()]
    terms = [{"matchExpressions": expressions}]
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
