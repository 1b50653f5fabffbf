"""Whose count of a node's GPUs holds: an agent's until a device plugin comes up, whatever it calls them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping

import pytest

from tests.controlplane import node_manifest, pod_manifest
from tests.e2e.conftest import StartAgent
from tests.e2e.system import SCHEDULER_NAME, System, metric, until_seen, view, wait_for
from tests.fakes.nvml_stub.stub import NvmlStub

pytestmark = pytest.mark.e2e

GPU, OWN = "nvidia.com/gpu", "example.com/a100"


def add_node(system: System, name: str, shares: Mapping[str, int], **labels: str) -> None:
    given = {f"nvidia.com/gpu.{key}": value for key, value in labels.items()}
    manifest = node_manifest(name, gpus=0, labels={"site": "dc-1", **given})
    status = manifest["status"]
    assert isinstance(status, dict)
    amounts = {each: str(amount) for each, amount in shares.items()}
    kept = {each: amount for each, amount in status["allocatable"].items() if each != GPU}
    status["allocatable"] = status["capacity"] = kept | amounts
    system.plane.apply(manifest)


def add_pod(system: System, name: str, resource: str, units: int) -> None:
    manifest = pod_manifest(name, gpus=0, scheduler=SCHEDULER_NAME)
    spec = manifest["spec"]
    assert isinstance(spec, dict)
    amounts = {resource: str(units)}
    spec["containers"][0]["resources"] = {"limits": amounts, "requests": {**amounts, "cpu": "100m"}}
    system.plane.apply(manifest)


def test_gpus_that_an_agent_finds_are_seen_and_wait_for_a_device_plugin(
    system: System,
    make_stub: Callable[[str], NvmlStub],
    start_agent: StartAgent,
) -> None:
    replica = system.serve()
    scheduler = system.scheduler(replica.port)
    try:
        add_node(system, "bare", {})
        until_seen(replica, "bare")
        start_agent("bare", make_stub("bare"))
        wait_for("its agent is read", lambda: view(replica, "bare")["fresh"])
        seen = view(replica, "bare")
        assert (seen["counted_by"], seen["gpus"], seen["free_gpus"]) == ("inventory", 8, 0)
        labels = {"node": "bare", "pool": "dc-1", "state": "unoffered"}
        assert metric(replica, "wattbalance_node_gpus", **labels) == 8
        add_pod(system, "early", GPU, 2)
        wait_for("it is known", lambda: replica.get("/api/v1/pods?namespace=default")["items"])
        notes = replica.get("/api/v1/explain/default/early")["notes"]
        assert any("Kubernetes does not offer (bare)" in note for note in notes)
        server = ["--server", f"http://127.0.0.1:{replica.port}"]
        shown = subprocess.run(
            [sys.executable, "-m", "scheduler.cli", "nodes", "-o", "wide", *server],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        assert "COUNTED BY" in shown
        assert "inventory" in shown
        assert system.node_of("early") == ""
        # The plugin comes up.
        amounts = {GPU: "8"}
        status = {"allocatable": amounts, "capacity": amounts}
        system.plane.request("PATCH", "/api/v1/nodes/bare/status", {"status": status})
        assert system.bound("early") == "bare"
        wait_for("it is held", lambda: view(replica, "bare")["bound_gpus"] == 2)
        seen = view(replica, "bare")
        assert (seen["counted_by"], seen["gpus"], seen["free_gpus"]) == ("allocatable", 8, 6)
        assert seen["contradictions"] == []
    finally:
        scheduler.stop()


def test_gpus_by_a_name_of_ones_own_are_filled_to_the_last_unit_whole_and_shared(system: System) -> None:
    replica = system.serve(gpu_resources=[OWN])
    managed = [{"name": name, "ignoredByScheduler": False} for name in (GPU, OWN, f"{OWN}.shared")]
    scheduler = system.scheduler(replica.port, managedResources=managed)
    try:
        add_node(system, "whole", {OWN: 2})
        add_node(system, "renamed", {f"{OWN}.shared": 8, GPU: 1}, replicas="4", count="3")
        until_seen(replica, "whole", "renamed")
        assert [view(replica, name)["gpus"] for name in ("whole", "renamed")] == [2, 3]
        names = [f"w{index}" for index in range(3)] + [f"s{index}" for index in range(9)]
        for name in names:
            add_pod(system, name, OWN if name.startswith("w") else f"{OWN}.shared", 1)

        def bound() -> list[float]:
            return [view(replica, name)["bound_gpus"] for name in ("whole", "renamed")]

        wait_for("both are full", lambda: bound() == [2, 2])
        left = [name for name in names if not system.node_of(name)]
        assert sorted(name[0] for name in left) == ["s", "w"]
        decided = replica.get("/api/v1/decisions?limit=1000")["items"]
        placed = {each["pod"]: each["chosen"] for each in decided if each["result"] == "placed"}
        assert placed == {name: system.node_of(name) for name in names if name not in left}
        assert metric(replica, "wattbalance_contradicting_nodes") == 0
        assert metric(replica, "wattbalance_bypassed_pods_total", reason="no_decision") == 0
    finally:
        scheduler.stop()
