"""Pause on a real control plane: by a person's own rights, through a failover, and with nothing written meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.controlplane import pod_manifest
from tests.e2e.system import NAMESPACE, Replica, System, metric, readiness, until_seen, wait_for

pytestmark = pytest.mark.e2e

PAUSES = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
PAUSE = f"{PAUSES}/wattbalance-pause"
ROLE_FILE = Path(__file__).parents[2] / "deploy" / "pause-role.yaml"
# What replicas of ours write while paused: the Lease, and the leader's label on their own pods.
KINDS = (
    "/api/v1/nodes",
    "/api/v1/namespaces",
    "/api/v1/namespaces/default/pods",
    "/api/v1/events",
    PAUSES,
)


@pytest.fixture
def system(system: System) -> Iterator[System]:
    """Without a pause at the end."""
    try:
        yield system
    finally:
        with contextlib.suppress(urllib.error.HTTPError):
            system.plane.request("DELETE", PAUSE)


def say(system: System, *arguments: str, user: str = "admin") -> subprocess.CompletedProcess[str]:
    """Run the program as a person does, with their own kubeconfig."""
    return subprocess.run(
        [sys.executable, "-m", "scheduler.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KUBECONFIG": str(system.plane.kubeconfig(user)), "KUBERNETES_SERVICE_HOST": ""},
    )


def paused(replica: Replica) -> dict[str, Any] | None:
    found: dict[str, Any] | None = readiness(replica)["paused"]
    return found


def until_paused(replica: Replica) -> dict[str, Any]:
    return dict(wait_for("it is paused", lambda: paused(replica)))


def everything(system: System) -> dict[str, list[dict[str, Any]]]:
    """All objects that a daemon could think of writing to, but what is about its own replicas."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in KINDS:
        listed = system.plane.request("GET", path)
        assert isinstance(listed, dict)
        found[path] = listed["items"]
    return found


def by_us(system: System, since: int) -> set[tuple[str, str]]:
    """What we wrote since: verb and resource."""
    return {
        (request["verb"], request["objectRef"]["resource"])
        for request in system.requests()[since:]
        if request["verb"] not in {"get", "list", "watch"}
    }


def question(system: System, pod: str, *nodes: str) -> dict[str, object]:
    return {"Pod": system.pod(pod), "NodeNames": list(nodes)}


def test_a_pause_survives_a_failover_and_nothing_is_written_until_resume(system: System) -> None:
    for name in ("pause-a", "pause-b"):
        system.add_own_pod(name)
    system.add_node("pause-well")
    system.add_node("pause-sick", **{"wattbalance.io/quarantine": "xid-79"})
    system.plane.apply(pod_manifest("pause-asked"))
    first = system.serve("pause-a")
    wait_for("the first leads", lambda: readiness(first)["role"] == "leader")
    second = system.serve("pause-b")
    for replica in (first, second):
        until_seen(replica, "pause-well", "pause-sick")
    assert first.post("filter", question(system, "pause-asked", "pause-sick"))["NodeNames"] == []
    wait_for("it is written about", lambda: ("create", "events") in by_us(system, 0))
    # 1. Every replica sees it, whoever leads.
    done = say(system, "pause", "--reason", "a drill, ask Kim")
    assert done.returncode == 0, done.stderr
    assert "a drill, ask Kim" in done.stdout
    for replica in (first, second):
        found = until_paused(replica)
        assert found["reason"] == "a drill, ask Kim"
        assert found["by"] == "admin"
        assert metric(replica, "wattbalance_paused") == 1
        assert "paused" in readiness(replica)["degraded"]
    before, since = everything(system), len(system.requests())
    all_nodes = ["pause-well", "pause-sick"]
    assert first.post("filter", question(system, "pause-asked", *all_nodes))["NodeNames"] == all_nodes
    # 2. The leader dies; the next one is paused from its first moment on.
    first.process.popen.kill()
    first.process.popen.wait()
    wait_for("the second leads", lambda: readiness(second)["role"] == "leader")
    assert paused(second) == found
    for nodes in (all_nodes, ["pause-sick"]):
        assert second.post("filter", question(system, "pause-asked", *nodes))["NodeNames"] == nodes
    # 3. So is one that starts now: it is not ready before it knows.
    third = system.serve("pause-a", first.port)
    assert paused(third) == found
    assert third.post("filter", question(system, "pause-asked", "pause-sick"))["NodeNames"] == ["pause-sick"]
    assert [each["result"] for each in second.get("/api/v1/decisions")["items"]] == ["observed"] * 2
    assert everything(system) == before
    assert by_us(system, since) <= {("update", "leases"), ("create", "leases"), ("patch", "pods")}
    # 4. Resume, and it refuses and writes again.
    lost = say(system, "resume", "-n", "default")
    assert (lost.returncode, f"in namespace {NAMESPACE}" in lost.stderr) == (1, True), lost.stderr
    done = say(system, "resume")
    assert done.returncode == 0, done.stderr
    assert say(system, "resume").returncode == 0
    assert "a drill, ask Kim" in done.stdout
    wait_for("it is resumed", lambda: paused(second) is None)
    assert metric(second, "wattbalance_paused") == 0
    assert second.post("filter", question(system, "pause-asked", *all_nodes))["NodeNames"] == ["pause-well"]
    system.plane.apply(pod_manifest("pause-later"))
    since = len(system.requests())
    assert second.post("filter", question(system, "pause-later", "pause-sick"))["NodeNames"] == []
    wait_for("it writes again", lambda: ("create", "events") in by_us(system, since))


def test_kube_scheduler_places_by_itself_while_paused_and_by_us_again_after_it(system: System) -> None:
    system.add_node("pause-free")
    system.add_node("pause-gone", **{"wattbalance.io/quarantine": "xid-79"})
    replica = system.serve()
    wait_for("it leads", lambda: readiness(replica)["role"] == "leader")
    until_seen(replica, "pause-free", "pause-gone")
    assert say(system, "pause", "--reason", "a drill").returncode == 0
    until_paused(replica)
    daemon = system.scheduler(replica.port)
    try:
        # Two of eight GPUs: one of them on the node that we would have ruled out.
        for name in ("pause-one", "pause-two"):
            system.add_pod(name, 8)
        assert {system.bound("pause-one"), system.bound("pause-two")} == {"pause-free", "pause-gone"}
        for name in ("pause-one", "pause-two"):
            system.delete_pod(name)
        assert say(system, "resume").returncode == 0
        wait_for("it is resumed", lambda: paused(replica) is None)
        system.add_pod("pause-three", 8)
        assert system.bound("pause-three") == "pause-free"
        system.add_pod("pause-four", 8)
        wait_for(
            "it is refused",
            lambda: replica.get("/api/v1/decisions?pod=pause-four&result=no_fit")["items"],
        )
        assert system.node_of("pause-four") == ""
    finally:
        daemon.stop()


def test_pods_whose_binding_is_left_to_us_wait_and_are_bound_after_resume(system: System) -> None:
    system.add_node("pause-bind")
    replica = system.serve(extender={"bind": True})
    wait_for("it leads", lambda: readiness(replica)["role"] == "leader")
    until_seen(replica, "pause-bind")
    assert say(system, "pause", "--reason", "a drill").returncode == 0
    until_paused(replica)
    daemon = system.scheduler(replica.port, bindVerb="bind")
    try:
        system.add_pod("pause-bound")
        wait_for("a Binding was refused", lambda: metric(replica, "wattbalance_binds_total", result="paused"))
        assert system.node_of("pause-bound") == ""

        def told() -> bool:
            events = system.plane.request("GET", "/api/v1/namespaces/default/events")
            assert isinstance(events, dict)
            return any("paused by admin" in each["message"] for each in events["items"])

        wait_for("kubectl describe says so", told)
        assert say(system, "resume").returncode == 0
        wait_for("it is resumed", lambda: paused(replica) is None)
        # kube-scheduler tries again at the next event of a node, or after a minute.
        system.add_node("pause-bind-too")
        assert system.bound("pause-bound") in {"pause-bind", "pause-bind-too"}
        assert metric(replica, "wattbalance_binds_total", result="bound") == 1
    finally:
        daemon.stop()


def test_whoever_is_bound_to_the_role_may_pause_and_nobody_else(system: System) -> None:
    # `system.user` is the daemon's own account: it reads the pause and may not make one.
    refused = say(system, "pause", "--reason", "a drill", user=system.user)
    assert refused.returncode == 1
    assert "you may not create configmaps in namespace wattbalance: deploy/pause-role.yaml" in refused.stderr
    role = yaml.safe_load(ROLE_FILE.read_text())
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "test-pause", "namespace": NAMESPACE},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "Role",
            "name": role["metadata"]["name"],
        },
        "subjects": [{"kind": "User", "name": system.user, "apiGroup": "rbac.authorization.k8s.io"}],
    }
    system.plane.apply(role, binding)
    try:
        # The API server's view of roles is behind by moments.
        wait_for(
            "it may",
            lambda: say(system, "pause", "--reason", "a drill", user=system.user).returncode == 0,
        )
        assert "already paused by" in say(system, "pause", "--reason", "x", user=system.user).stdout
        written = system.plane.request("GET", PAUSE)
        assert isinstance(written, dict)
        assert json.dumps(written["data"]).count("a drill") == 1
        resumed = say(system, "resume", user=system.user)
        assert (resumed.returncode, "resumed" in resumed.stdout) == (0, True)
        # Their rights end at this namespace: whether it is the right one, a Lease tells.
        again = say(system, "resume", user=system.user)
        assert (again.returncode, again.stdout.startswith("nothing to resume")) == (1, True), again.stderr
        lease = {"name": "wattbalance", "namespace": NAMESPACE}
        system.plane.apply({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": lease})
        again = say(system, "resume", user=system.user)
        assert (again.returncode, again.stderr) == (0, "")
    finally:
        with contextlib.suppress(urllib.error.HTTPError):
            system.plane.request(
                "DELETE", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/wattbalance"
            )
        for path in ("rolebindings/test-pause", f"roles/{role['metadata']['name']}"):
            system.plane.request(
                "DELETE", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/{path}"
            )
