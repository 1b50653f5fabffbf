"""Shared, sliced and whole GPUs side by side: a real kube-scheduler fills them to the last unit and never beyond."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.controlplane import Daemon, node_manifest, pod_manifest
from tests.e2e.conftest import StartAgent
from tests.e2e.service import BoundPods
from tests.e2e.system import SCHEDULER_NAME, Replica, System, metric, until_seen, view, wait_for
from tests.fakes.nvml_stub.stub import NvmlStub

pytestmark = pytest.mark.e2e

GPU, SHARED = "nvidia.com/gpu", "nvidia.com/gpu.shared"
SEVENTH, THREE = "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"
RESOURCES = (GPU, SHARED, SEVENTH, THREE)
# Two GPUs each, but for the slices: seven and one, and two of three sevenths.
NODES: dict[str, tuple[Mapping[str, int], Mapping[str, str]]] = {
    "whole": ({GPU: 2}, {}),
    "renamed": ({SHARED: 8}, {"nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.count": "2"}),
    "replicated": ({GPU: 8}, {"nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.count": "2"}),
    "sliced": ({SEVENTH: 8, THREE: 2}, {f"{SEVENTH}.count": "8", f"{THREE}.count": "2"}),
}
OFFERED = Counter({GPU: 10, SHARED: 8, SEVENTH: 8, THREE: 2})


@pytest.fixture
def scheduler(system: System, replica: Replica) -> Iterator[Daemon]:
    """As a shared scheduler has it: each resource is named, and kube-scheduler goes on counting."""
    managed = [{"name": name, "ignoredByScheduler": False} for name in RESOURCES]
    daemon = system.scheduler(replica.port, managedResources=managed)
    yield daemon
    daemon.stop()


def add_node(system: System, name: str, shares: Mapping[str, int], labels: Mapping[str, str]) -> None:
    manifest = node_manifest(name, gpus=0, labels={"site": "dc-1", **labels})
    status = manifest["status"]
    assert isinstance(status, dict)
    amounts = {each: str(amount) for each, amount in shares.items()}
    kept = {each: amount for each, amount in status["allocatable"].items() if each != GPU}
    status["allocatable"] = status["capacity"] = kept | amounts
    system.plane.apply(manifest)


def add_pod(system: System, name: str, resource: str, memory: str = "") -> None:
    manifest = pod_manifest(name, gpus=0, scheduler=SCHEDULER_NAME)
    metadata, spec = manifest["metadata"], manifest["spec"]
    assert isinstance(metadata, dict)
    assert isinstance(spec, dict)
    if memory:
        metadata["annotations"] = {"wattbalance.io/gpu-memory": memory}
    amounts = {resource: "1"}
    spec["containers"][0]["resources"] = {"limits": amounts, "requests": {**amounts, "cpu": "100m"}}
    system.plane.apply(manifest)


def hold(system: System, name: str, node: str, units: int, memory: str = "") -> None:
    """A pod that is there already, bound by somebody else."""
    manifest = pod_manifest(name, gpus=0, node=node)
    metadata, spec = manifest["metadata"], manifest["spec"]
    assert isinstance(metadata, dict)
    assert isinstance(spec, dict)
    if memory:
        metadata["annotations"] = {"wattbalance.io/gpu-memory": memory}
    amounts = {SHARED: str(units)}
    spec["containers"][0]["resources"] = {"limits": amounts, "requests": amounts}
    system.plane.apply(manifest)


def held(system: System) -> Counter[tuple[str, str]]:
    """Units that pods hold by node and resource, as the API server has it."""
    listed = system.plane.request("GET", "/api/v1/namespaces/default/pods")
    assert isinstance(listed, dict)
    return Counter(
        (pod["spec"]["nodeName"], resource)
        for pod in listed["items"]
        if pod["spec"].get("nodeName")
        for resource in pod["spec"]["containers"][0]["resources"]["limits"]
    )


def full() -> Counter[tuple[str, str]]:
    return Counter(
        {(node, name): units for node, (shares, _) in NODES.items() for name, units in shares.items()}
    )


def check_books(system: System, replica: Replica) -> None:
    """Ours are the API server's, and nothing is left."""

    def same() -> bool:
        ours = Counter(
            {
                (node, name): int(resource["bound"])
                for node in NODES
                for name, resource in view(replica, node)["resources"].items()
            }
        )
        return ours == full() == held(system)

    wait_for("all is bound, and accounted", same)
    for node in NODES:
        seen = view(replica, node)
        assert {each["free"] for each in seen["resources"].values()} == {0}
        assert (seen["free_gpus"], seen["reserved_gpus"], seen["contradictions"]) == (0, 0, [])
        assert seen["gpus"] == 2
        assert seen["bound_gpus"] == pytest.approx(2)


def test_all_are_filled_to_the_last_unit_never_beyond_and_again_when_pods_end(
    system: System, replica: Replica, scheduler: Daemon
) -> None:
    for name, (shares, labels) in NODES.items():
        add_node(system, name, shares, labels)
    until_seen(replica, *NODES)
    with BoundPods(system.plane) as followed:
        # One of each kind more than fits; in turn, so that several are on their way at once.
        waiting = [
            (f"{index}-{name.rpartition('/')[2].replace('.', '-')}", name)
            for index in range(max(OFFERED.values()) + 1)
            for name in RESOURCES
            if index <= OFFERED[name]
        ]
        for pod, resource in waiting:
            add_pod(system, pod, resource)
        check_books(system, replica)
        left = {pod for pod, _ in waiting if not system.node_of(pod)}
        assert len(left) == len(RESOURCES)
        # Two of each kind end; those that waited and one more of each take their place.
        by_resource = {
            name: [pod for pod, asked in waiting if asked == name and pod not in left] for name in RESOURCES
        }
        for name in RESOURCES:
            add_pod(system, f"later-{name.rpartition('/')[2].replace('.', '-')}", name)
            for pod in by_resource[name][:2]:
                system.delete_pod(pod)
        for pod in left:
            system.bound(pod)
        check_books(system, replica)
    assert all(len(nodes) <= 1 for nodes in followed.nodes.values())
    decided = Counter(each["result"] for each in replica.get("/api/v1/decisions?limit=1000")["items"])
    assert decided["placed"] >= sum(OFFERED.values()) + 2 * len(RESOURCES)
    assert decided["full_by_our_count"] == 0
    for reason in ("evicted", "expired"):
        assert metric(replica, "wattbalance_reservations_lost_total", reason=reason) == 0
    assert metric(replica, "wattbalance_contradicting_nodes") == 0


def test_memory_on_shared_gpus_is_what_agents_measure_free(
    system: System,
    replica: Replica,
    scheduler: Daemon,
    make_stub: Callable[[str], NvmlStub],
    start_agent: StartAgent,
) -> None:
    labels = {"nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.count": "8"}
    for name in ("roomy", "crowded", "unread"):
        add_node(system, name, {SHARED: 32}, labels)
    for name, used_gib in (("roomy", 10), ("crowded", 70)):
        stub = make_stub(name)
        # The device plugin chooses: one full GPU is enough.
        stub.set(5, "mem_used", used_gib * 1024**3)
        start_agent(name, stub)
    wait_for("both are read", lambda: all(view(replica, name)["fresh"] for name in ("roomy", "crowded")))
    for pod in ("first", "second", "third"):
        add_pod(system, pod, SHARED, memory="30Gi")
        assert system.bound(pod) == "roomy"
    # What they asked for is not taken yet: beside the 10 GiB that are, nobody has 60 GiB to give now.
    add_pod(system, "large", SHARED, memory="60Gi")
    wait_for("it was asked about", lambda: replica.get("/api/v1/decisions?pod=large")["items"])
    newest, *_ = replica.get("/api/v1/decisions?pod=large")["items"]
    assert newest["reasons"] == {"not enough GPU memory": 2, "GPU memory unknown": 1}
    assert system.node_of("large") == ""
    add_pod(system, "any", SHARED)
    assert system.bound("any") in {"roomy", "crowded", "unread"}
    for pod in ("first", "second", "third"):
        system.delete_pod(pod)
    assert system.bound("large") == "roomy"


def test_of_pods_that_come_at_once_no_more_are_bound_than_what_others_use_leaves_room_for(
    system: System,
    replica: Replica,
    scheduler: Daemon,
    make_stub: Callable[[str], NvmlStub],
    start_agent: StartAgent,
) -> None:
    stub = make_stub("busy")
    stub.set_count(1)
    # By somebody who asked for nothing: of 80 GiB 8 are left.
    stub.set(0, "mem_used", 72 * 1024**3)
    add_node(system, "busy", {SHARED: 4}, {"nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.count": "1"})
    start_agent("busy", stub)
    wait_for("it is read", lambda: view(replica, "busy")["fresh"])
    pods = [f"at-once-{index}" for index in range(4)]
    for pod in pods:
        add_pod(system, pod, SHARED, memory="7Gi")

    def refused() -> list[str]:
        found = [explained["decision"] or {} for pod in pods if (explained := told(pod))]
        return [each["result"] for each in found if each.get("result") == "no_fit"]

    def told(pod: str) -> dict[str, Any]:
        return dict(replica.get(f"/api/v1/explain/default/{pod}"))

    wait_for("three are refused", lambda: len(refused()) == 3)
    [placed] = [pod for pod in pods if told(pod)["decision"]["result"] == "placed"]
    assert system.bound(placed) == "busy"
    waiting = [pod for pod in pods if pod != placed]
    for pod in waiting:
        why = " ".join(each["text"] for each in told(pod)["now"]["unblock"])
        assert "busy has most, 1Gi" in why
        assert "counts on top of what is measured" in why
    # Others leave, and what was placed has not begun: one more of 7 GiB has room.
    stub.set(0, "mem_used", 60 * 1024**3)
    wait_for("one more is bound", lambda: sum(bool(system.node_of(pod)) for pod in waiting) == 1)
    [left, _] = [pod for pod in waiting if not system.node_of(pod)]
    wait_for("it is known", lambda: "busy has most, 6Gi" in str(told(left)["now"]["unblock"]))
    # What they take is in the measurement once they have run for a minute; then it alone counts.
    stub.set(0, "mem_used", 73 * 1024**3)
    for pod in pods:
        if system.node_of(pod):
            path = f"/api/v1/namespaces/default/pods/{pod}/status"
            system.plane.request("PATCH", path, {"status": {"phase": "Running"}})
    wait_for("the third is woken", lambda: sum(bool(system.node_of(pod)) for pod in pods) == 3, 240.0)
    assert sum(bool(system.node_of(pod)) for pod in pods) == 3


def test_a_victim_makes_room_in_memory_if_it_had_asked_for_some(
    system: System,
    replica: Replica,
    scheduler: Daemon,
    make_stub: Callable[[str], NvmlStub],
    start_agent: StartAgent,
) -> None:
    stubs = {name: make_stub(name) for name in ("asked", "silent")}
    for name, stub in stubs.items():
        labels = {"nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.count": "8"}
        add_node(system, name, {SHARED: 32}, labels)
        # All that is used is on one GPU: so what it had, the victim had there.
        for gpu in range(8):
            stub.set(gpu, "mem_used", 70 * 1024**3 if gpu == 5 else 0)
        start_agent(name, stub)
        # Of 32 units one is the victim's.
        hold(system, f"stays-{name}", name, 31)
        hold(system, f"victim-{name}", name, 1, "65Gi" if name == "asked" else "")
    wait_for("both are read", lambda: all(view(replica, name)["fresh"] for name in stubs))
    wait_for("both are full", lambda: all(view(replica, name)["free_gpus"] == 0 for name in stubs))
    add_pod(system, "urgent", SHARED, memory="60Gi")
    # As newer versions of kube-scheduler ask.
    uids = {name: system.pod(f"victim-{name}")["metadata"]["uid"] for name in stubs}
    victims = {name: {"Pods": [{"UID": uid}], "NumPDBViolations": 0} for name, uid in uids.items()}

    def kept() -> object:
        answer = replica.post("preempt", {"Pod": system.pod("urgent"), "NodeNameToMetaVictims": victims})
        return answer["NodeNameToMetaVictims"]

    # Until it has run for a minute, nobody knows whether it has taken what it asked for.
    assert kept() == {}
    for name in stubs:
        path = f"/api/v1/namespaces/default/pods/victim-{name}/status"
        system.plane.request("PATCH", path, {"status": {"phase": "Running"}})
    assert wait_for("the victim has its memory", kept, 180.0) == {"asked": victims["asked"]}
    for name in stubs:
        system.delete_pod(f"victim-{name}")
    # What they had is measured still.
    newest = wait_for(
        "it is refused",
        lambda: [
            each for each in replica.get("/api/v1/decisions?pod=urgent")["items"] if each["verb"] == "filter"
        ],
    )[0]
    assert newest["reasons"].keys() == {"not enough GPU memory"}
    stubs["asked"].set(5, "mem_used", 5 * 1024**3)
    assert system.bound("urgent") == "asked"


def test_labels_that_claim_what_is_not_allocatable_make_an_event_of_the_node(
    system: System, replica: Replica
) -> None:
    claims = {"nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.count": "8"}
    add_node(system, "claims", {GPU: 8}, claims)
    add_node(system, "plain", {GPU: 8}, {})
    add_node(system, "replicated", {GPU: 32}, claims)
    until_seen(replica, "claims", "plain", "replicated")
    want = "label nvidia.com/gpu.replicas is 4, but allocatable nvidia.com/gpu is 8, of 8 that are there"
    server = ["--server", f"http://127.0.0.1:{replica.port}"]
    done = subprocess.run(
        [sys.executable, "-m", "scheduler.cli", "nodes", "-o", "json", *server],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    shown = {node["name"]: node for node in json.loads(done.stdout)["items"]}
    assert {name: node["contradictions"] for name, node in shown.items()} == {
        "claims": [want],
        "plain": [],
        "replicated": [],
    }
    # Allocatable counts, and the unit is the larger thing.
    assert [shown["claims"]["gpus"], shown["replicated"]["gpus"]] == [8, 8]
    assert metric(replica, "wattbalance_contradicting_nodes") == 1
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on the path")
    kubectl = ["kubectl", "--kubeconfig", str(system.plane.kubeconfig())]

    def told(*arguments: str) -> str:
        return subprocess.run(
            [*kubectl, *arguments], capture_output=True, text=True, timeout=60, check=True
        ).stdout

    selector = "--field-selector=involvedObject.name=claims"
    line = wait_for("the event is written", lambda: told("get", "events", "-A", "--no-headers", selector))
    assert "Warning" in line
    assert "LabelsContradictAllocatable" in line
    assert want in line
    assert want in told("describe", "node", "claims")
    assert "LabelsContradict" not in told("get", "events", "-A", "--field-selector=involvedObject.name=plain")
