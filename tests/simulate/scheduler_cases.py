"""What a kube-scheduler does with given nodes and pods, as data: for the stand-in and for the real one.

Each case holds in-tree filters only, and leaves one possible node, or names every node that will do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Nodes, pods that are there and bound, and pods to place one after another.

    `want` maps each pod to place to the nodes that it may get; an empty tuple: it stays pending.
    """

    name: str
    nodes: tuple[Json, ...]
    bound: tuple[Json, ...] = ()
    pods: tuple[Json, ...]
    want: dict[str, tuple[str, ...]] = field(default_factory=dict)


def node(
    name: str,
    *,
    cpu: str = "8",
    memory: str = "32Gi",
    gpu: int = 0,
    pods: str = "110",
    labels: dict[str, str] | None = None,
    taints: tuple[Json, ...] = (),
    cordoned: bool = False,
) -> Json:
    """A ready node."""
    allocatable = {"cpu": cpu, "memory": memory, "pods": pods}
    if gpu:
        allocatable["nvidia.com/gpu"] = str(gpu)
    spec: Json = {"taints": list(taints)} if taints else {}
    if cordoned:
        spec["unschedulable"] = True
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "spec": spec,
        "status": {
            "allocatable": allocatable,
            "capacity": allocatable,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def pod(
    name: str,
    *,
    cpu: str = "",
    memory: str = "",
    gpu: int = 0,
    init: tuple[Json, ...] = (),
    **spec: object,
) -> Json:
    """A pod of one container."""
    asked = {"cpu": cpu, "memory": memory, "nvidia.com/gpu": str(gpu) if gpu else ""}
    container = {"name": "c", "image": "i", "resources": asks(asked)}
    inits = {"initContainers": list(init)} if init else {}
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [container], **inits, **spec},
    }


def asks(amounts: dict[str, str]) -> Json:
    """Requests and equal limits."""
    present = {resource: amount for resource, amount in amounts.items() if amount}
    return {"requests": present, "limits": present}


def init_container(**amounts: str) -> Json:
    """A plain init container."""
    return {"name": "i", "image": "i", "resources": asks(amounts)}


def required(*terms: Json) -> Json:
    """Required node affinity."""
    return {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}
    }


def expression(key: str, operator: str, *values: str) -> Json:
    """One match expression."""
    return {"key": key, "operator": operator} | ({"values": list(values)} if values else {})


def matching(key: str, operator: str, *values: str) -> Json:
    """Required affinity of one expression."""
    return required({"matchExpressions": [expression(key, operator, *values)]})


def taint(key: str, value: str, effect: str) -> Json:
    """A taint."""
    return {"key": key, "value": value, "effect": effect}


A, B = node("a", labels={"zone": "x", "gen": "4"}), node("b", labels={"zone": "y", "gen": "5"})
PLAIN = node("plain")
FULL = taint("team", "red", "NoSchedule")

CASES = (
    Case(
        name="cpu fits on the larger node",
        nodes=(node("a", cpu="1"), node("b", cpu="4")),
        pods=(pod("p", cpu="2"),),
        want={"p": ("b",)},
    ),
    Case(
        name="cpu asked exactly fits",
        nodes=(node("a", cpu="2"),),
        pods=(pod("p", cpu="2"),),
        want={"p": ("a",)},
    ),
    Case(
        name="millicores add up without rounding",
        nodes=(node("a", cpu="300m"),),
        pods=(pod("p", cpu="100m"), pod("q", cpu="100m"), pod("r", cpu="100m"), pod("s", cpu="1m")),
        want={"p": ("a",), "q": ("a",), "r": ("a",), "s": ()},
    ),
    Case(
        name="memory is short everywhere",
        nodes=(node("a", memory="1Gi"),),
        pods=(pod("p", memory="2Gi"),),
        want={"p": ()},
    ),
    Case(
        name="gpus choose the node that has them",
        nodes=(PLAIN, node("g", gpu=8)),
        pods=(pod("p", gpu=8),),
        want={"p": ("g",)},
    ),
    Case(
        name="gpus of bound pods are taken",
        nodes=(node("a", gpu=2), node("b", gpu=2)),
        bound=(pod("o", gpu=1, nodeName="a"),),
        pods=(pod("p", gpu=2),),
        want={"p": ("b",)},
    ),
    Case(
        name="gpus run out one by one",
        nodes=(node("a", gpu=2),),
        pods=(pod("p", gpu=1), pod("q", gpu=1), pod("r", gpu=1)),
        want={"p": ("a",), "q": ("a",), "r": ()},
    ),
    Case(
        name="the number of pods is a resource",
        nodes=(node("a", pods="1"),),
        pods=(pod("p"), pod("q")),
        want={"p": ("a",), "q": ()},
    ),
    Case(
        name="an init container asks more than the rest",
        nodes=(node("a", cpu="1"), node("b", cpu="4")),
        pods=(pod("p", cpu="1", init=(init_container(cpu="2"),)),),
        want={"p": ("b",)},
    ),
    Case(
        name="init containers do not add up",
        nodes=(node("a", cpu="2"),),
        pods=(pod("p", cpu="1", init=(init_container(cpu="2"),)),),
        want={"p": ("a",)},
    ),
    Case(
        name="a node selector picks its node",
        nodes=(A, B),
        pods=(pod("p", nodeSelector={"zone": "y"}),),
        want={"p": ("b",)},
    ),
    Case(
        name="all pairs of a node selector must match",
        nodes=(A, B),
        pods=(pod("p", nodeSelector={"zone": "x", "gen": "5"}),),
        want={"p": ()},
    ),
    Case(
        name="affinity In",
        nodes=(A, B),
        pods=(pod("p", affinity=matching("zone", "In", "q", "y")),),
        want={"p": ("b",)},
    ),
    Case(
        name="affinity NotIn",
        nodes=(A, B),
        pods=(pod("p", affinity=matching("zone", "NotIn", "x")),),
        want={"p": ("b",)},
    ),
    Case(
        name="affinity NotIn takes a node without the label",
        nodes=(A, PLAIN),
        pods=(pod("p", affinity=matching("zone", "NotIn", "x")),),
        want={"p": ("plain",)},
    ),
    Case(
        name="affinity Exists",
        nodes=(A, PLAIN),
        pods=(pod("p", affinity=matching("zone", "Exists")),),
        want={"p": ("a",)},
    ),
    Case(
        name="affinity DoesNotExist",
        nodes=(A, PLAIN),
        pods=(pod("p", affinity=matching("zone", "DoesNotExist")),),
        want={"p": ("plain",)},
    ),
    Case(
        name="affinity Gt",
        nodes=(A, B, PLAIN),
        pods=(pod("p", affinity=matching("gen", "Gt", "4")),),
        want={"p": ("b",)},
    ),
    Case(
        name="affinity Lt",
        nodes=(A, B, PLAIN),
        pods=(pod("p", affinity=matching("gen", "Lt", "5")),),
        want={"p": ("a",)},
    ),
    Case(
        name="affinity Gt of a word matches nothing",
        nodes=(A,),
        pods=(pod("p", affinity=matching("zone", "Gt", "1")),),
        want={"p": ()},
    ),
    Case(
        name="affinity terms are alternatives",
        nodes=(A, B),
        want={"p": ("b",)},
        pods=(
            pod(
                "p",
                affinity=required(
                    {"matchExpressions": [expression("zone", "In", "q")]},
                    {"matchExpressions": [expression("gen", "In", "5")]},
                ),
            ),
        ),
    ),
    Case(
        name="expressions of one term must all match",
        nodes=(A, B),
        want={"p": ()},
        pods=(
            pod(
                "p",
                affinity=required(
                    {"matchExpressions": [expression("zone", "In", "x"), expression("gen", "In", "5")]}
                ),
            ),
        ),
    ),
    Case(
        name="affinity by name",
        nodes=(A, B),
        want={"p": ("b",)},
        pods=(pod("p", affinity=required({"matchFields": [expression("metadata.name", "In", "b")]})),),
    ),
    Case(
        name="selector and affinity must both match",
        nodes=(A, B),
        want={"p": ()},
        pods=(pod("p", nodeSelector={"zone": "x"}, affinity=matching("gen", "In", "5")),),
    ),
    Case(
        name="a tainted node is avoided",
        nodes=(node("a", taints=(FULL,)), node("b")),
        pods=(pod("p"),),
        want={"p": ("b",)},
    ),
    Case(
        name="a NoExecute taint keeps pods away too",
        nodes=(node("a", taints=(taint("k", "", "NoExecute"),)),),
        pods=(pod("p"),),
        want={"p": ()},
    ),
    Case(
        name="a PreferNoSchedule taint does not",
        nodes=(node("a", taints=(taint("k", "", "PreferNoSchedule"),)),),
        pods=(pod("p"),),
        want={"p": ("a",)},
    ),
    Case(
        name="a toleration of the pair lets in",
        nodes=(node("a", taints=(FULL,)),),
        want={"p": ("a",), "q": ()},
        pods=(
            pod("p", tolerations=[{"key": "team", "value": "red", "effect": "NoSchedule"}]),
            pod("q", tolerations=[{"key": "team", "value": "blue", "effect": "NoSchedule"}]),
        ),
    ),
    Case(
        name="a toleration by key alone lets in",
        nodes=(node("a", taints=(FULL,)),),
        want={"p": ("a",)},
        pods=(pod("p", tolerations=[{"key": "team", "operator": "Exists"}]),),
    ),
    Case(
        name="a toleration of everything lets in",
        nodes=(node("a", taints=(FULL, taint("k", "v", "NoExecute"))),),
        pods=(pod("p", tolerations=[{"operator": "Exists"}]),),
        want={"p": ("a",)},
    ),
    Case(
        name="a toleration of another effect does not",
        nodes=(node("a", taints=(FULL,)),),
        want={"p": ()},
        pods=(pod("p", tolerations=[{"key": "team", "operator": "Exists", "effect": "NoExecute"}]),),
    ),
    Case(
        name="one of two taints untolerated keeps out",
        nodes=(node("a", taints=(FULL, taint("k", "v", "NoSchedule"))),),
        pods=(pod("p", tolerations=[{"key": "team", "operator": "Exists"}]),),
        want={"p": ()},
    ),
    Case(
        name="a cordoned node is avoided",
        nodes=(node("a", cordoned=True), node("b")),
        pods=(pod("p"),),
        want={"p": ("b",)},
    ),
    Case(
        name="the emptier node is preferred",
        nodes=(node("a"), node("b")),
        bound=(pod("o", cpu="6", memory="24Gi", nodeName="a"),),
        pods=(pod("p", cpu="1", memory="4Gi"),),
        want={"p": ("b",)},
    ),
    Case(name="overhead of no node at all", nodes=(), pods=(pod("p"),), want={"p": ()}),
)
