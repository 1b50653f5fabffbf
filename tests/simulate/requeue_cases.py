"""What happens to a pod that waits when something changes, as data: for the stand-in and for the real scheduler.

Each pod is refused at first, by an in-tree filter. Then one thing changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.simulate.scheduler_cases import Json, node, pod, taint

TAINT = taint("team", "red", "NoSchedule")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One write. `status`: to the status subresource. No body: deletion."""

    kind: str
    name: str
    body: Json | None = None
    create: bool = False
    status: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeueCase:
    """A refused pod `p`, and a change.

    `want` is the node that it gets then, None if it goes on waiting. `event_1_20` is the name that kube-scheduler 1.20
    gives what moved the pod in its metrics, empty if nothing did. `retried_1_32` is whether 1.32 tries it again.
    """

    name: str
    nodes: tuple[Json, ...]
    bound: tuple[Json, ...] = ()
    pod: Json
    change: Change
    want: str | None = None
    event_1_20: str
    retried_1_32: bool


def add(kind: str, body: Json) -> Change:
    """Create an object."""
    return Change(kind=kind, name=body["metadata"]["name"], body=body, create=True)


def label(kind: str, name: str, **labels: str) -> Change:
    """Change labels."""
    return Change(kind=kind, name=name, body={"metadata": {"labels": labels}})


def allocatable(name: str, **amounts: str) -> Change:
    """What a device plugin or the kubelet tells."""
    named = {key.replace("gpu", "nvidia.com/gpu"): value for key, value in amounts.items()}
    return Change(
        kind="nodes", name=name, body={"status": {"allocatable": named, "capacity": named}}, status=True
    )


ZONED = pod("p", nodeSelector={"zone": "x"})

REQUEUE_CASES = (
    RequeueCase(
        name="a node that fits is added",
        nodes=(node("a", cpu="1"),),
        pod=pod("p", cpu="2"),
        change=add("nodes", node("b", cpu="4")),
        want="b",
        event_1_20="NodeAdd",
        retried_1_32=True,
    ),
    RequeueCase(
        name="a node that does not fit is added",
        nodes=(node("a", cpu="1"),),
        pod=pod("p", cpu="2"),
        change=add("nodes", node("b", cpu="1")),
        event_1_20="NodeAdd",
        retried_1_32=False,
    ),
    RequeueCase(
        name="a node with the pod's label is added",
        nodes=(node("a"),),
        pod=ZONED,
        change=add("nodes", node("b", labels={"zone": "x"})),
        want="b",
        event_1_20="NodeAdd",
        retried_1_32=True,
    ),
    RequeueCase(
        name="the label that the pod asks for appears",
        nodes=(node("a"),),
        pod=ZONED,
        change=label("nodes", "a", zone="x"),
        want="a",
        event_1_20="NodeLabelChange",
        retried_1_32=True,
    ),
    RequeueCase(
        name="another label appears",
        nodes=(node("a"),),
        pod=ZONED,
        change=label("nodes", "a", zone="y"),
        event_1_20="NodeLabelChange",
        retried_1_32=False,
    ),
    RequeueCase(
        name="a node's annotation changes",
        nodes=(node("a"),),
        pod=ZONED,
        change=Change(kind="nodes", name="a", body={"metadata": {"annotations": {"a": "b"}}}),
        event_1_20="",
        retried_1_32=False,
    ),
    RequeueCase(
        name="the taint goes",
        nodes=(node("a", taints=(TAINT,)),),
        pod=pod("p"),
        change=Change(kind="nodes", name="a", body={"spec": {"taints": None}}),
        want="a",
        event_1_20="NodeTaintChange",
        retried_1_32=True,
    ),
    RequeueCase(
        name="one taint gives way to another",
        nodes=(node("a", taints=(TAINT,)),),
        pod=pod("p"),
        change=Change(kind="nodes", name="a", body={"spec": {"taints": [taint("k", "v", "NoSchedule")]}}),
        event_1_20="NodeTaintChange",
        retried_1_32=False,
    ),
    RequeueCase(
        name="the node is uncordoned",
        nodes=(node("a", cordoned=True),),
        pod=pod("p"),
        change=Change(kind="nodes", name="a", body={"spec": {"unschedulable": None}}),
        want="a",
        event_1_20="NodeSpecUnschedulableChange",
        retried_1_32=True,
    ),
    RequeueCase(
        name="the device plugin registers enough GPUs",
        nodes=(node("a"),),
        pod=pod("p", gpu=2),
        change=allocatable("a", gpu="2"),
        want="a",
        event_1_20="NodeAllocatableChange",
        retried_1_32=True,
    ),
    RequeueCase(
        name="the device plugin registers too few GPUs",
        nodes=(node("a"),),
        pod=pod("p", gpu=2),
        change=allocatable("a", gpu="1"),
        event_1_20="NodeAllocatableChange",
        retried_1_32=False,
    ),
    RequeueCase(
        name="a node's condition changes",
        nodes=(node("a", cpu="1"),),
        pod=pod("p", cpu="2"),
        change=Change(
            kind="nodes",
            name="a",
            body={"status": {"conditions": [{"type": "DiskPressure", "status": "True"}]}},
            status=True,
        ),
        event_1_20="NodeConditionChange",
        retried_1_32=False,
    ),
    RequeueCase(
        name="a node is deleted",
        nodes=(node("a", cpu="1"), node("b", cpu="1")),
        pod=pod("p", cpu="2"),
        change=Change(kind="nodes", name="b"),
        event_1_20="",
        retried_1_32=False,
    ),
    RequeueCase(
        name="the pod that holds the GPU is deleted",
        nodes=(node("a", gpu=1),),
        bound=(pod("o", gpu=1, nodeName="a"),),
        pod=pod("p", gpu=1),
        change=Change(kind="pods", name="o"),
        want="a",
        event_1_20="AssignedPodDelete",
        retried_1_32=True,
    ),
    RequeueCase(
        name="the pod that holds the GPU succeeds",
        nodes=(node("a", gpu=1),),
        bound=(pod("o", gpu=1, nodeName="a"),),
        pod=pod("p", gpu=1),
        change=Change(kind="pods", name="o", body={"status": {"phase": "Succeeded"}}, status=True),
        want="a",
        event_1_20="AssignedPodDelete",
        retried_1_32=True,
    ),
    RequeueCase(
        name="a pod is deleted that holds nothing of what is short",
        nodes=(node("a"),),
        bound=(pod("o", cpu="1", nodeName="a"),),
        pod=pod("p", gpu=1),
        change=Change(kind="pods", name="o"),
        event_1_20="AssignedPodDelete",
        # NodeResourcesFit asks for nothing but that the pod had a node.
        retried_1_32=True,
    ),
    RequeueCase(
        name="a pod is deleted where a taint keeps out",
        nodes=(node("a", taints=(TAINT,)),),
        bound=(pod("o", cpu="1", nodeName="a"),),
        pod=pod("p"),
        change=Change(kind="pods", name="o"),
        event_1_20="AssignedPodDelete",
        retried_1_32=False,
    ),
    RequeueCase(
        name="a bound pod's label changes",
        nodes=(node("a", gpu=1),),
        bound=(pod("o", gpu=1, nodeName="a"),),
        pod=pod("p", gpu=1),
        change=label("pods", "o", a="b"),
        event_1_20="",
        retried_1_32=False,
    ),
    RequeueCase(
        name="another pod is bound",
        nodes=(node("a"),),
        pod=pod("p", gpu=1),
        change=add("pods", pod("o", cpu="1", nodeName="a")),
        event_1_20="",
        retried_1_32=False,
    ),
    RequeueCase(
        name="the pod gets the toleration that it lacks",
        nodes=(node("a", taints=(TAINT,)),),
        pod=pod("p"),
        change=Change(
            kind="pods", name="p", body={"spec": {"tolerations": [{"key": "team", "operator": "Exists"}]}}
        ),
        want="a",
        event_1_20="PodUpdate",
        retried_1_32=True,
    ),
    RequeueCase(
        name="the pod's own annotation changes",
        nodes=(node("a"),),
        pod=pod("p", gpu=1),
        change=Change(kind="pods", name="p", body={"metadata": {"annotations": {"a": "b"}}}),
        event_1_20="PodUpdate",
        retried_1_32=False,
    ),
)
