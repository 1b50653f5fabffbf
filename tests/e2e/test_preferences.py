"""What pods prefer, on a real control plane: decisive placement answers one node, and it is the preferred one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.controlplane import Daemon, node_manifest, pod_manifest
from tests.e2e.system import SCHEDULER_NAME, Replica, System, until_seen, view, wait_for

pytestmark = pytest.mark.e2e

PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
HOST = "kubernetes.io/hostname"
ZONE = "topology.kubernetes.io/zone"
TRAINING = {"wattbalance.io/workload": "training"}
WEB = {"labelSelector": {"matchLabels": {"app": "web"}}}


def add_pod(system: System, name: str, labels: dict[str, str] | None = None, **spec: object) -> None:
    manifest: Any = pod_manifest(name, scheduler=SCHEDULER_NAME)
    manifest["metadata"] |= {"labels": labels or {}, "annotations": TRAINING}
    manifest["spec"] |= spec
    system.plane.apply(manifest)


def placed(system: System, replica: Replica, name: str, policy: str) -> str:
    """Where a pod was bound, once it is seen that we answered that node alone, and for what."""
    node = system.bound(name)
    decisions = replica.get(f"/api/v1/decisions?pod={name}")["items"]
    assert [decision["verb"] for decision in decisions] == ["filter"], "of one node nobody asks for scores"
    assert (decisions[0]["result"], decisions[0]["chosen"]) == ("placed", node)
    assert policy in [each["policy"] for each in decisions[0]["policies"]]
    explained = replica.get(f"/api/v1/explain/default/{name}")
    assert policy in [term["policy"] for term in explained["decision"]["best"][0]["terms"]]
    assert policy in [term["policy"] for term in explained["now"]["best"][0]["terms"]]
    # So that the next one finds it.
    wait_for(f"{name} is accounted", lambda: replica.get(f"/api/v1/explain/default/{name}")["node"] == node)
    return node


def nodes(system: System, replica: Replica, prefix: str, zones: str = "aab") -> list[str]:
    names = [f"{prefix}-{index}" for index in range(len(zones))]
    for name, zone in zip(names, zones, strict=True):
        system.add_node(name, **{ZONE: zone})
    until_seen(replica, *names)
    return names


def test_preferred_node_affinity_names_the_node(system: System, replica: Replica, scheduler: Daemon) -> None:
    for name in nodes(system, replica, "affine"):
        expression = {"key": HOST, "operator": "In", "values": [name]}
        term = {"weight": 1, "preference": {"matchExpressions": [expression]}}
        add_pod(system, f"to-{name}", affinity={"nodeAffinity": {PREFERRED: [term]}})
        assert placed(system, replica, f"to-{name}", "node-affinity") == name


def test_preferred_anti_affinity_keeps_apart_also_from_pods_without_gpus(
    system: System, replica: Replica, scheduler: Daemon
) -> None:
    names = nodes(system, replica, "apart")
    for name in names[:1]:
        manifest: Any = pod_manifest("plain", gpus=0, node=name)
        manifest["metadata"]["labels"] = {"app": "web"}
        system.plane.apply(manifest)
    far = {"podAntiAffinity": {PREFERRED: [{"weight": 1, "podAffinityTerm": {**WEB, "topologyKey": HOST}}]}}
    found = []
    for index in range(2):
        add_pod(system, f"far-{index}", {"app": "web"}, affinity=far)
        found.append(placed(system, replica, f"far-{index}", "pod-affinity"))
    assert sorted(found) == names[1:]


def test_a_spread_that_may_be_violated_alternates_between_zones(
    system: System, replica: Replica, scheduler: Daemon
) -> None:
    names = nodes(system, replica, "spread", "aab")
    spread = {"whenUnsatisfiable": "ScheduleAnyway", "topologyKey": ZONE, "maxSkew": 1, **WEB}
    found = []
    for index in range(4):
        add_pod(system, f"wide-{index}", {"app": "web"}, topologySpreadConstraints=[spread])
        found.append(placed(system, replica, f"wide-{index}", "topology-spread"))
    assert found.count(names[2]) == 2


def test_a_taint_of_prefer_no_schedule_is_avoided_by_who_does_not_tolerate_it(
    system: System, replica: Replica, scheduler: Daemon
) -> None:
    system.plane.apply(
        node_manifest("soft-a", labels={"site": "dc-1"})
        | {"spec": {"taints": [{"key": "old", "value": "yes", "effect": "PreferNoSchedule"}]}}
    )
    system.add_node("soft-b")
    until_seen(replica, "soft-a", "soft-b")
    # Packed by number alone, it would go there.
    system.plane.apply(pod_manifest("fills", gpus=6, node="soft-a"))
    wait_for("it is accounted", lambda: view(replica, "soft-a")["free_gpus"] == 2)
    add_pod(system, "avoids")
    assert placed(system, replica, "avoids", "taint-toleration") == "soft-b"
    add_pod(system, "tolerates", tolerations=[{"key": "old", "operator": "Exists"}])
    assert system.bound("tolerates") == "soft-a"
