"""kube-scheduler wants to make room: it asks us which victims would help, and takes no others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.controlplane import Daemon, pod_manifest, scheduler_version
from tests.e2e.system import Replica, System, metric, until_seen, view, wait_for

pytestmark = pytest.mark.e2e

PODS = "/api/v1/namespaces/default/pods"
QUARANTINE = {"wattbalance.io/quarantine": "xid-79"}
LOW, HIGH = "preempt-low", "preempt-high"


# Until kubernetes#103019 (1.22.0, and late patches of 1.20 and 1.21) a regression kept kube-scheduler from asking any
# extender about victims.
ASKS_SINCE = (1, 22)
asks = pytest.mark.skipif(
    (version := scheduler_version()) < ASKS_SINCE,
    reason=f"kube-scheduler {'.'.join(map(str, version))} asks no extender about preemption: kubernetes#103019",
)


@pytest.fixture
def replica(system: System) -> Replica:
    for name, value in ((LOW, 10), (HIGH, 1000)):
        system.plane.apply(
            {
                "apiVersion": "scheduling.k8s.io/v1",
                "kind": "PriorityClass",
                "metadata": {"name": name},
                "value": value,
            }
        )
    return system.serve()


def fill(system: System, replica: Replica, node: str, gpus: int = 8) -> str:
    """Hold a node's GPUs by one pod of low priority."""
    name = f"on-{node}"
    manifest = pod_manifest(name, gpus=gpus, node=node)
    spec = manifest["spec"]
    assert isinstance(spec, dict)
    # Without a kubelet a pod with a grace period would be terminating for ever.
    spec |= {"priorityClassName": LOW, "terminationGracePeriodSeconds": 0}
    system.plane.apply(manifest)
    wait_for(f"{name} is accounted", lambda: view(replica, node)["free_gpus"] == 8 - gpus)
    return name


def asked(replica: Replica) -> float:
    return metric(replica, "wattbalance_extender_requests_total", verb="preempt", result="ok")


def names(system: System) -> set[str]:
    listed: Any = system.plane.request("GET", PODS)
    return {pod["metadata"]["name"] for pod in listed["items"]}


def victims_of(system: System, name: str, *, whole: bool) -> dict[str, object]:
    """A candidate as kube-scheduler sends it: whole pods, or their uids alone (nodeCacheCapable)."""
    pod = system.pod(name)
    return {"Pods": [pod if whole else {"UID": pod["metadata"]["uid"]}], "NumPDBViolations": 0}


@asks
def test_a_victim_is_taken_where_we_would_place_and_never_in_quarantine(
    system: System, replica: Replica, scheduler: Daemon
) -> None:
    system.add_node("room-a")
    for name in ("sick-a", "sick-b", "sick-c"):
        system.add_node(name, **QUARANTINE)
    nodes = ("room-a", "sick-a", "sick-b", "sick-c")
    until_seen(replica, *nodes)
    victims = {node: fill(system, replica, node) for node in nodes}
    system.add_pod("urgent", 8, priorityClassName=HIGH)
    assert system.bound("urgent") == "room-a"
    assert names(system) == {"urgent", *(victims[node] for node in nodes if node != "room-a")}
    assert asked(replica) >= 1


@asks
def test_nobody_is_killed_where_that_would_not_help(
    system: System, replica: Replica, scheduler: Daemon
) -> None:
    for name in ("sick-d", "sick-e"):
        system.add_node(name, **QUARANTINE)
    until_seen(replica, "sick-d", "sick-e")
    victims = {fill(system, replica, name) for name in ("sick-d", "sick-e")}
    system.add_pod("hopeless", 8, priorityClassName=HIGH)
    wait_for("preempt is asked", lambda: asked(replica) >= 1)
    # One that is well shows that nothing else was in the way, and that a whole round passed without a victim.
    system.add_node("room-b")
    assert system.bound("hopeless") == "room-b"
    assert names(system) == {"hopeless", *victims}


@pytest.mark.parametrize("whole", [True, False])
def test_of_the_candidates_of_a_full_cluster_those_stay_that_we_would_take(
    system: System, replica: Replica, *, whole: bool
) -> None:
    system.add_node("room-c")
    system.add_node("sick-f", **QUARANTINE)
    until_seen(replica, "room-c", "sick-f")
    candidates = {
        node: victims_of(system, fill(system, replica, node), whole=whole) for node in ("room-c", "sick-f")
    }
    system.add_pod("presses", 8, priorityClassName=HIGH)
    key = "NodeNameToVictims" if whole else "NodeNameToMetaVictims"
    kept = replica.post("preempt", {"Pod": system.pod("presses"), key: candidates})
    uid = system.pod("on-room-c")["metadata"]["uid"]
    want_kept = {"room-c": {"Pods": [{"UID": uid}], "NumPDBViolations": 0}}
    assert kept == {"NodeNameToMetaVictims": want_kept}
    assert asked(replica) == 1
    assert view(replica, "room-c")["reserved_gpus"] == 0
    # And they are only words: nobody has been touched.
    assert names(system) == {"presses", "on-room-c", "on-sick-f"}


def test_the_pod_that_made_room_gets_it(system: System, replica: Replica, scheduler: Daemon) -> None:
    # On every version: the victim goes, and its node is the pod's, whoever else would like it.
    system.add_node("room-d")
    until_seen(replica, "room-d")
    fill(system, replica, "room-d")
    system.add_pod("waits", 8, priorityClassName=LOW)
    wait_for("it waits", lambda: system.pod("waits")["status"].get("conditions"))
    system.add_pod("made-room", 8, priorityClassName=HIGH)
    assert system.bound("made-room") == "room-d"
    assert names(system) == {"made-room", "waits"}
    assert system.node_of("waits") == ""
