"""What `kubectl describe pod` shows of us: events written by a real `serve`, with its own role, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.brokers import mosquitto_path
from tests.controlplane import WHY_NOT, assets, node_manifest, pod_manifest
from tests.e2e.system import Replica, System, run_system, wait_for

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(assets() is None, reason=WHY_NOT),
    pytest.mark.skipif(mosquitto_path() is None, reason="mosquitto is missing"),
]

EVENTS = "/api/v1/namespaces/default/events"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A control plane and a broker."""
    with run_system(tmp_path_factory.mktemp("events")) as system:
        yield system


def events(system: System, reason: str) -> list[dict[str, Any]]:
    """As kubectl reads them: core/v1."""
    listed = system.plane.request("GET", EVENTS)
    assert isinstance(listed, dict)
    return [event for event in listed["items"] if event["reason"] == reason]


def leading(replica: Replica) -> bool:
    return (replica.ready() or {}).get("role") == "leader"


def test_a_pod_that_waits_and_one_that_was_placed_past_us_say_so(system: System) -> None:
    replica = system.serve()
    scheduler = system.scheduler(replica.port)
    try:
        wait_for("it leads", lambda: leading(replica))
        system.plane.apply(node_manifest("sick", labels={"wattbalance.io/quarantine": "xid-79"}))
        wait_for("it knows the node", lambda: replica.get("/api/v1/nodes")["items"])
        system.add_pod("waits")
        system.plane.apply(pod_manifest("foreign", node="sick"))
        wait_for(
            "both are told", lambda: events(system, "NoNodeFits") and events(system, "PlacedPastWattbalance")
        )
        # Asked again and again meanwhile: still one.
        replica.post("filter", {"Pod": system.pod("waits"), "NodeNames": ["sick"]})
        [waits] = events(system, "NoNodeFits")
        [foreign] = events(system, "PlacedPastWattbalance")
        assert waits["involvedObject"]["uid"] == system.pod("waits")["metadata"]["uid"]
        assert waits["type"] == foreign["type"] == "Warning"
        assert "1: node in quarantine" in waits["message"]
        assert foreign["involvedObject"]["name"] == "foreign"
        assert foreign["reportingComponent"] == "wattbalance.io/wattbalance"
    finally:
        scheduler.stop()
        system.clear()


def test_a_bad_annotation_is_told_on_its_pod_and_the_pod_is_placed(system: System) -> None:
    replica = system.serve()
    scheduler = system.scheduler(replica.port)
    try:
        wait_for("it leads", lambda: leading(replica))
        system.add_node("n1")
        wait_for("it knows the node", lambda: replica.get("/api/v1/nodes")["items"])
        said = {"wattbalance.io/workload": "trianing", "wattbalance.io/gpu-memry": "40Gi"}
        system.add_pod("misspelt", annotations=said)
        wait_for("it is bound", lambda: system.pod("misspelt")["spec"].get("nodeName") == "n1")
        wait_for("it is told", lambda: events(system, "BadAnnotation"))
        [told] = events(system, "BadAnnotation")
        assert told["involvedObject"]["uid"] == system.pod("misspelt")["metadata"]["uid"]
        assert told["type"] == "Warning"
        for part in ("'trianing'; did you mean training?", "did you mean wattbalance.io/gpu-memory?"):
            assert part in told["message"]
    finally:
        scheduler.stop()
        system.clear()


def test_observing_leaves_no_trace(system: System) -> None:
    before = {event["metadata"]["uid"] for event in events(system, "NoNodeFits")}
    replica = system.serve("own", mode="observe")
    try:
        assert replica.get("/readyz")["role"] == "observer"
        system.add_own_pod("own")
        system.plane.apply(node_manifest("sick", labels={"wattbalance.io/quarantine": "xid-79"}))
        wait_for("it knows the node", lambda: replica.get("/api/v1/nodes")["items"])
        system.plane.apply(pod_manifest("foreign", node="sick"))
        system.plane.apply(pod_manifest("asked"))
        answer = replica.post("filter", {"Pod": system.pod("asked"), "NodeNames": ["sick"]})
        assert answer["NodeNames"] == ["sick"]
        wait_for("it knows the pods", lambda: len(replica.get("/api/v1/pods")["items"]) == 2)
        assert {event["metadata"]["uid"] for event in events(system, "NoNodeFits")} == before
        assert "labels" not in system.pod("own", "wattbalance")["metadata"]
        leases = system.plane.request("GET", "/apis/coordination.k8s.io/v1/namespaces/wattbalance/leases")
        assert isinstance(leases, dict)
        assert leases["items"] == []
    finally:
        system.clear()
