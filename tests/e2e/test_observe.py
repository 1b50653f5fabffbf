"""Observing on a real control plane: of all, and of one pool; nothing is changed, and the report says what would be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest

from scheduler.decision.shadow import NO_ROOM
from tests.decision.test_shadow import best_fit
from tests.e2e.conftest import StartAgent
from tests.e2e.system import NAMESPACE, Replica, System, metric, readiness, until_seen, view, wait_for
from tests.fakes.nvml_stub.stub import NvmlStub

pytestmark = pytest.mark.e2e

KINDS = (
    "/api/v1/nodes",
    "/api/v1/namespaces",
    "/api/v1/pods",
    "/api/v1/configmaps",
    "/apis/events.k8s.io/v1/events",
    f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases",
)
STILL = ("/api/v1/nodes", "/api/v1/namespaces", "/api/v1/configmaps", KINDS[-1])
# By free GPUs alone, so that a plain reference can say what we choose.
PACK = {each: {"policies": {"pack": {"weight": 1}}} for each in ("training", "inference", "batch")}
SICK = {"wattbalance.io/quarantine": "xid-79"}


def everything(system: System) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for path in KINDS:
        listed = system.plane.request("GET", path)
        assert isinstance(listed, dict)
        found[path] = listed["items"]
    return found


def traces(objects: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Objects that we wrote to, by their managers, or by what stands on them."""
    found = []
    for path, items in objects.items():
        for item in items:
            meta = item["metadata"]
            managers = {each.get("manager", "") for each in meta.get("managedFields", [])}
            words = {*meta.get("annotations", {}), *meta.get("labels", {})} - {*SICK}
            ours = any(word.startswith("wattbalance.io/") for word in words)
            if ours or "wattbalance" in managers:
                found.append(f"{path}/{meta['name']}")
    return found


def writes(system: System, since: int) -> list[dict[str, Any]]:
    return [each for each in system.requests()[since:] if each["verb"] not in {"get", "list", "watch"}]


def report(replica: Replica) -> dict[str, Any]:
    return dict(replica.get("/api/v1/observe?limit=1000"))


def say(replica: Replica, *arguments: str) -> str:
    """What a person reads."""
    command = [sys.executable, "-m", "scheduler.cli", "report", "observe", *arguments]
    server = f"http://127.0.0.1:{replica.port}"
    done = subprocess.run(
        [*command, "--server", server], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def busy(stub: NvmlStub) -> NvmlStub:
    """All of its GPUs but one work."""
    for gpu in range(8):
        stub.set(gpu, "util_pct", 60 if gpu else 0)
        for each in ("power_mw", "power_average_mw", "power_instant_mw"):
            stub.set(gpu, each, 300_000 if gpu else 60_000)
    return stub


def is_measured(replica: Replica, node: str) -> bool:
    return view(replica, node)["load_frac"] is not None


def is_followed(replica: Replica, pod: str) -> bool:
    return pod in {each["name"] for each in report(replica)["pods"]}


def until_bound(system: System, replica: Replica, *pods: str) -> dict[str, str]:
    nodes = {pod: system.bound(pod) for pod in pods}
    wait_for("they are followed", lambda: report(replica)["pods_so_far"] >= len(pods))
    return nodes


def check_work_and_watts(
    replica: Replica, said: dict[str, Any], pods: dict[str, int], nodes: Iterable[str]
) -> None:
    """The real column is what `wattbalance nodes` says of nodes with a pod; who stands elsewhere works all the same."""
    watts = [view(replica, name)["power_w"] for name in nodes]
    assert said["real"]["power_in_use_w"] == pytest.approx(sum(watts), rel=0.01)
    assert said["real"]["held_gpus"] == said["ours"]["held_gpus"] == sum(pods.values())
    assert not any("lacks the work" in line for line in said["legend"])


def test_observing_leaves_no_trace_in_the_cluster_and_reports_what_would_be(
    system: System, start_agent: StartAgent, make_stub: Callable[[str], NvmlStub]
) -> None:
    sizes = {"observe-a": 8, "observe-b": 8, "observe-c": 8}
    for name in (*sizes, "observe-sick"):
        system.add_node(name, **(SICK if name == "observe-sick" else {}))
        start_agent(name, busy(make_stub(name)))
    before, since = everything(system), len(system.requests())
    replica = system.serve(mode="observe", profiles=PACK)
    until_seen(replica, *sizes, "observe-sick")
    for name in (*sizes, "observe-sick"):
        wait_for(f"{name} is measured", partial(is_measured, replica, name))
    wait_for("it follows", lambda: report(replica)["status"] == "no_data")
    assert "No data yet" in say(replica)
    scheduler = system.scheduler(replica.port)
    try:
        held: dict[str, int] = {}
        pods = {f"observe-{index}": gpus for index, gpus in enumerate((2, 1, 4, 1, 2, 4))}
        for name, gpus in pods.items():
            system.add_pod(name, gpus)
            system.bound(name)
            wait_for(
                f"{name} is followed",
                partial(is_followed, replica, name),
            )
            # 1. Each pod stands where we would have placed it, by free GPUs as they would be.
            [told] = [each for each in report(replica)["pods"] if each["name"] == name]
            want = best_fit(sizes, held, gpus)
            assert (told["ours"], told["real"]) == (want, system.node_of(name))
            assert told["place"] == ("same" if want == told["real"] else "elsewhere")
            held[want] = held.get(want, 0) + gpus
        # 2. The figures of both worlds.
        said = report(replica)
        real: dict[str, int] = {}
        for name, gpus in pods.items():
            real[system.node_of(name)] = real.get(system.node_of(name), 0) + gpus
        for world, holds in (("real", real), ("ours", held)):
            free = [8 - holds.get(name, 0) for name in sizes]
            # The sick one is not counted: no pod of ours goes there.
            assert said[world]["stranded_gpus"] == sum(each for each in free if each < 8)
            assert said[world]["used_nodes"] == len(holds)
        wait_for("what was moved is measured", lambda: report(replica)["pods_unmeasured"] == 0)
        said = report(replica)
        check_work_and_watts(replica, said, pods, real)
        moved = [each for each in said["pods"] if each["place"] == "elsewhere"]
        assert all(each["load"] > 0 and each["power_w"] > 0 for each in moved)
        for world in ("real", "ours"):
            assert said[world]["load_spread_frac"] >= 0
            assert said[world]["power_in_use_w"] > 0
        assert said["nodes_load_known"] == 4
        assert said["nodes_power_known"] == said["nodes_in_use"]
        table = say(replica)
        assert "AN ESTIMATE" in table
        assert "REALLY" in table
        assert json.loads(say(replica, "-o", "json"))["pods_so_far"] == len(pods)
    finally:
        scheduler.stop()
    # 3. Nobody wrote anything but kube-scheduler.
    after = everything(system)
    assert {path: after[path] for path in STILL} == {path: before[path] for path in STILL}
    assert set(traces(after)) <= set(traces(before)), "events of other tests may be there"
    assert readiness(replica)["role"] == "observer"
    assert replica.process.stop() == 0
    assert writes(system, since) == []


def test_one_pool_is_observed_and_the_other_acted_on(system: System) -> None:
    for name in ("observe-own-1", "observe-own-2"):
        system.add_node(name, site="dc-1")
    for name, labels in (("observe-far-1", {}), ("observe-far-2", SICK)):
        system.add_node(name, site="aws-a", **labels)
    pools = [
        {"name": "dc-1", "selector": {"site": "dc-1"}},
        {"name": "aws-a", "selector": {"site": "aws-a"}, "mode": "observe"},
    ]
    since = len(system.requests())
    replica = system.serve(pools=pools, profiles=PACK)
    wait_for("it leads", lambda: readiness(replica)["role"] == "leader")
    until_seen(replica, "observe-own-1", "observe-far-2")
    wait_for("it follows", lambda: report(replica)["observing"] == "pool aws-a" and report(replica)["real"])
    assert metric(replica, "wattbalance_pool_observed", pool="aws-a") == 1
    assert view(replica, "observe-far-1")["observed"]
    scheduler = system.scheduler(replica.port)
    try:
        # 1. Into the observed pool only: all of it is filled, the node that is in quarantine too.
        far = {"nodeSelector": {"site": "aws-a"}}
        for name in ("observe-far-a", "observe-far-b"):
            system.add_pod(name, 8, annotations={"wattbalance.io/max-slowdown": "much"}, **far)
        nodes = until_bound(system, replica, "observe-far-a", "observe-far-b")
        assert set(nodes.values()) == {"observe-far-1", "observe-far-2"}
        # 2. Where both would do, the order of pools holds: ours, by our decision.
        for index in range(3):
            system.add_pod(f"observe-own-{index}", 4)
        placed = [system.bound(f"observe-own-{index}") for index in range(3)]
        assert set(placed) <= {"observe-own-1", "observe-own-2"}
        assert placed[0] == placed[1]
        wait_for(
            "the decisions are written",
            lambda: metric(replica, "wattbalance_decisions_written_total", result="written") == 3,
        )
        said = report(replica)
        assert {each["name"] for each in said["pods"]} == {"observe-far-a", "observe-far-b"}
        # One of them would not run with us, in quarantine.
        assert said["pods_waiting"] == 1
        [reason] = [each["reason"] for each in said["pods"] if each["place"] == "waiting"]
        # Which of the two is asked about with which node left is kube-scheduler's choice.
        assert reason in {"node in quarantine", NO_ROOM}
        results = {each["pod"]: each["result"] for each in replica.get("/api/v1/decisions")["items"]}
        assert {results["observe-far-a"], results["observe-far-b"]} == {"observed"}
        assert metric(replica, "wattbalance_bypassed_pods_total", reason="other_node") == 0
    finally:
        scheduler.stop()
    written = {
        (each["verb"], each["objectRef"]["resource"], each["objectRef"].get("name", ""))
        for each in writes(system, since)
    }
    assert {name for verb, kind, name in written if kind == "pods"} == {
        f"observe-own-{index}" for index in range(3)
    }
    assert {kind for _, kind, _ in written} <= {"leases", "pods"}
    for name in ("observe-far-a", "observe-far-b"):
        assert "wattbalance.io/decision" not in system.pod(name)["metadata"].get("annotations", {})
