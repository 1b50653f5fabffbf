"""Why a pod is where it is, or waits: asked of a real daemon on a real control plane, by the real command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
from typing import Any

import pytest

from tests.controlplane import Daemon, node_manifest, pod_manifest
from tests.e2e.system import NAMESPACE, Replica, System, until_seen, view, wait_for

pytestmark = pytest.mark.e2e


def call(replica: Replica, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`wattbalance …` against this replica."""
    command = [
        sys.executable,
        "-m",
        "scheduler.cli",
        *arguments,
        "--server",
        f"http://127.0.0.1:{replica.port}",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def explained(replica: Replica, pod: str) -> dict[str, Any]:
    return dict(replica.get(f"/api/v1/explain/default/{pod}"))


def terms_add_up(told: dict[str, Any]) -> None:
    for candidate in (*told["decision"]["best"], *told["now"]["best"]):
        total = 0.0
        for term in candidate["terms"]:
            total += term["term"]
        assert total == candidate["score"]


def test_a_bound_pod_is_explained_until_it_has_gone_and_after(
    system: System, replica: Replica, scheduler: Daemon
) -> None:
    for name in ("explain-a", "explain-b"):
        system.add_node(name)
    until_seen(replica, "explain-a", "explain-b")
    system.add_pod("placed", 8, annotations={"wattbalance.io/workload": "training"})
    node = system.bound("placed")
    told = wait_for("it is seen bound", lambda: (t := explained(replica, "placed"))["state"] == "bound" and t)
    assert [told["node"], told["decision"]["chosen"]] == [node, node]
    assert told["decision"]["best"][0]["node"] == node
    terms_add_up(told)
    # Its own 8 GPUs are counted free: it would fit there again.
    assert [told["now"]["own"]["node"], told["now"]["own"]["free_gpus"]] == [node, 8]
    assert told["now"]["fitting"] == 2
    assert view(replica, node)["free_gpus"] == 0
    done = call(replica, "explain", "placed")
    assert done.returncode == 0, done.stderr
    assert f"bound to {node}" in done.stdout
    assert "training (from pod)" in done.stdout
    assert "\x1b" not in done.stdout
    system.delete_pod("placed")
    told = wait_for("it has gone", lambda: (t := explained(replica, "placed"))["state"] == "not seen" and t)
    assert [told["now"], told["decision"]["chosen"]] == [None, node]
    assert "not seen" in call(replica, "explain", "placed").stdout


def until_ending(replica: Replica, pod: str) -> dict[str, Any]:
    """What is told of it once its deletion is seen."""

    def seen() -> dict[str, Any] | None:
        told = explained(replica, pod)
        return told if told["deletion_unix_s"] else None

    return dict(wait_for(f"the end of {pod} is seen", seen))


def test_pods_that_end_or_have_ended_say_so(system: System, replica: Replica) -> None:
    system.add_node("explain-e")
    until_seen(replica, "explain-e")
    pods = "/api/v1/namespaces/default/pods"
    ends = pod_manifest("ends", node="explain-e")
    held = pod_manifest("held", gpus=64)
    held["metadata"] = {"name": "held", "namespace": "default", "finalizers": ["example.com/hold"]}
    lost = pod_manifest("lost", node="no-such-node")
    system.plane.apply(ends, held, lost)
    wait_for("it is accounted", lambda: view(replica, "explain-e")["free_gpus"] == 7)
    for name in ("ends", "held"):
        order = {"gracePeriodSeconds": 600, "kind": "DeleteOptions"}
        system.plane.request("DELETE", f"{pods}/{name}", order)
    try:
        for name, want in (("ends", "bound"), ("held", "waiting")):
            assert until_ending(replica, name)["state"] == want
        shown = call(replica, "explain", "ends").stdout
        assert "bound to explain-e; being deleted, has " in shown
        shown = call(replica, "explain", "held").stdout
        assert "being deleted, since" in shown
        assert "unblock" not in shown
        assert "bound to no-such-node, which does not exist" in call(replica, "explain", "lost").stdout
    finally:
        system.plane.request("PATCH", f"{pods}/held", {"metadata": {"finalizers": None}})
    # As after a restart: it has ended, and no decision about it is kept.
    said = '{"node":"explain-e","cycle":"ab-1","profile":"training"}'
    done = pod_manifest("done", node="explain-e", scheduler="wattbalance")
    done["metadata"] = {
        "name": "done",
        "namespace": "default",
        "annotations": {"wattbalance.io/decision": said},
    }
    system.plane.apply(done)
    system.plane.request("PATCH", f"{pods}/done/status", {"status": {"phase": "Succeeded"}})
    told = wait_for("it is over", lambda: (t := explained(replica, "done"))["state"] == "finished" and t)
    assert [told["phase"], told["node"], told["now"]] == ["Succeeded", "explain-e", None]
    ended = call(replica, "explain", "done")
    assert ended.returncode == 0, ended.stderr
    assert "it was placed on explain-e, profile training" in ended.stdout


def test_a_pending_pod_is_told_what_would_unblock_it_and_then_it_is_unblocked(
    system: System, replica: Replica, scheduler: Daemon
) -> None:
    system.add_node("explain-q", 8, **{"wattbalance.io/quarantine": "xid-79"})
    system.add_node("explain-full", 8)
    system.plane.apply(pod_manifest("fills", gpus=6, node="explain-full"))
    until_seen(replica, "explain-q", "explain-full")
    wait_for("it is accounted", lambda: view(replica, "explain-full")["free_gpus"] == 2)
    system.add_pod("waits", 4)
    told = wait_for("it is refused", lambda: (t := explained(replica, "waits"))["decision"] and t)
    assert [told["state"], told["decision"]["result"], told["decision"]["chosen"]] == [
        "waiting",
        "no_fit",
        "",
    ]
    hindrances = {each["kind"]: each for each in told["now"]["unblock"]}
    assert hindrances["quarantine"]["nodes"] == ["explain-q"]
    assert hindrances["quarantine"]["helps"] == 1
    assert [hindrances["free_gpus"]["lacking_gpus"], hindrances["free_gpus"]["nodes"]] == [
        2,
        ["explain-full"],
    ]
    done = call(replica, "explain", "default/waits", "-o", "wide")
    assert done.returncode == 0, done.stderr
    assert "What would unblock it" in done.stdout
    assert "explain-q" in done.stdout
    told = json.loads(call(replica, "explain", "pod/waits", "-o", "json").stdout)
    assert told["name"] == "waits"
    # What was said to help does.
    system.plane.apply(node_manifest("explain-new", gpus=8, labels={"site": "dc-1"}))
    assert system.bound("waits") == "explain-new"


def test_what_is_named_together_is_done_and_the_pod_is_placed(
    system: System, replica: Replica, scheduler: Daemon
) -> None:
    """kube-scheduler's own conditions among it: it never offers us the node before its label is there."""
    system.add_node("near", 8, **{"nvidia.com/gpu.memory": "81920", "zone": "b"})
    system.plane.apply(pod_manifest("holds", gpus=6, node="near"))
    until_seen(replica, "near")
    wait_for("it is accounted", lambda: view(replica, "near")["free_gpus"] == 2)
    asks = {"wattbalance.io/gpu-memory": "100Gi"}
    system.add_pod("waits", 4, annotations=asks, nodeSelector={"zone": "a"})
    told = wait_for("it is known", lambda: (t := explained(replica, "waits"))["state"] == "waiting" and t)
    near = told["now"]["nearest"]
    assert [near["node"], {step["kind"] for step in near["steps"]}] == [
        "near",
        {"annotation", "selection", "free_gpus"},
    ]
    assert [told["now"]["fitting"], told["now"]["ruled_out"][0]["reason"]] == [
        0,
        "kube-scheduler: nodeSelector or affinity of the pod",
    ]
    steps = {step["kind"]: step for step in near["steps"]}
    assert steps["free_gpus"]["units"] == {"nvidia.com/gpu": 2}
    done = call(replica, "explain", "waits")
    assert "Nearest is near. All of this together lets the pod in there: " in done.stdout
    metadata = {"annotations": {"wattbalance.io/gpu-memory": steps["annotation"]["asks"]}}
    system.plane.request("PATCH", "/api/v1/namespaces/default/pods/waits", {"metadata": metadata})
    system.plane.request("PATCH", "/api/v1/nodes/near", {"metadata": {"labels": {"zone": "a"}}})
    left = wait_for(
        "only room is lacking",
        lambda: len(t := explained(replica, "waits")["now"]["nearest"]["steps"]) == 1 and t,
    )
    assert [step["kind"] for step in left] == ["free_gpus"]
    system.delete_pod("holds")
    assert system.bound("waits") == "near"


def test_what_is_not_known_is_said_with_what_is(system: System, replica: Replica) -> None:
    system.add_node("explain-n")
    until_seen(replica, "explain-n")
    with pytest.raises(urllib.error.HTTPError) as caught:
        explained(replica, "nobody")
    with caught.value as answer:
        assert answer.code == 404
        assert json.loads(answer.read())["error"].startswith("nothing is known of pod default/nobody")
    done = call(replica, "explain", "nobody")
    assert [done.returncode, done.stdout] == [1, ""]
    assert "nothing is known of pod default/nobody" in done.stderr
    # Bound by hand, and so without a decision; as after a restart.
    system.plane.apply(pod_manifest("by-hand", gpus=2, node="explain-n"))
    told = wait_for("it is seen", lambda: explained(replica, "by-hand"))
    assert [told["state"], told["decision"]] == ["bound", None]
    assert "none of our scheduler_names (wattbalance)" in told["notes"][0]
    assert "since this replica began" in told["notes"][1]
    assert told["now"]["own"]["node"] == "explain-n"


def test_nodes_are_listed(system: System, replica: Replica) -> None:
    system.add_node("list-b", site="aws-a")
    system.add_node("list-a", 4)
    until_seen(replica, "list-a", "list-b")
    done = call(replica, "nodes")
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["NODE", "POOL", "STATE", "GPUS", "FREE", "LOAD", "POWER", "AGE", "AGENT"]
    rows = [line.split() for line in lines if line.startswith("list-")]
    assert rows == [
        ["list-b", "aws-a", "unread", "8", "8", "-", "-", "-", "-"],
        ["list-a", "dc-1", "unread", "4", "4", "-", "-", "-", "-"],
    ]
    found = json.loads(call(replica, "nodes", "-o", "json", "--pool", "dc-1").stdout)["items"]
    assert [node["name"] for node in found if node["name"].startswith("list-")] == ["list-a"]


def test_the_leader_is_found_by_a_real_kubectl_which_says_why_it_cannot_forward(system: System) -> None:
    """The pod's node has no kubelet; with one, see test_kubectl.py."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on the path")

    def nodes() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "scheduler.cli", "nodes"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**environment, "KUBECONFIG": str(system.plane.kubeconfig())},
        )

    environment = {key: value for key, value in os.environ.items() if key != "WATTBALANCE_SERVER"}
    done = nodes()
    assert done.returncode == 1
    assert "no running pod carries the label wattbalance.io/role=leader" in done.stderr
    system.add_node("no-kubelet")
    system.add_own_pod("wattbalance-0", node="no-kubelet")
    system.serve("wattbalance-0")
    done = wait_for("it leads", lambda: "no running pod" not in (told := nodes()).stderr and told)
    assert done.returncode == 1
    assert f"kubectl port-forward to {NAMESPACE}/wattbalance-0: " in done.stderr
    assert "error upgrading connection: " in done.stderr
    assert "--server URL" in done.stderr
