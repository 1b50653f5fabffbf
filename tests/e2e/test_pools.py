"""Work goes over from one pool to the next and back, and never to a node of which nobody can say where it belongs."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.core.nouns import PREFIX
from scheduler.core.units import parse_instant
from tests.e2e.system import Replica, System, readiness, until_seen, view, wait_for
from tests.e2e.test_explain import call

pytestmark = pytest.mark.e2e

SPILL_S = 5.0
POOLS = [
    {"name": "dc-1", "kind": "on-prem", "selector": {"site": "dc-1"}, "spill": {"after": f"{SPILL_S:g}s"}},
    {"name": "aws-a", "kind": "cloud", "selector": {"site": "aws-a"}},
]


def decisions(replica: Replica, pod: str) -> list[dict[str, Any]]:
    """Newest first."""
    return list(replica.get(f"/api/v1/decisions?pod={pod}")["items"])


def test_work_spills_from_on_prem_to_cloud_and_comes_back(system: System) -> None:
    replica = system.serve(pools=POOLS)
    scheduler = system.scheduler(replica.port)
    try:
        system.add_node("own", site="dc-1")
        system.add_node("hired", site="aws-a")
        until_seen(replica, "own", "hired")
        system.add_pod("first", 8)
        assert system.bound("first") == "own"
        # No room at home: it waits for it a while, is told so, and then goes to the cloud.
        system.add_pod("second", 4)
        assert system.bound("second") == "hired"
        newest, *earlier = decisions(replica, "second")
        assert earlier[-1]["reasons"] == {"waiting for pool dc-1": 1}
        # A pod's creation is told in whole seconds.
        created_unix_s = parse_instant(system.pod("second")["metadata"]["creationTimestamp"])
        assert newest["unix_s"] - created_unix_s >= SPILL_S
        # Room at home again: the next goes there, though the cloud has room too.
        system.delete_pod("first")
        wait_for("home is free", lambda: view(replica, "own")["free_gpus"] == 8)
        system.add_pod("third", 4)
        assert system.bound("third") == "own"
        # Who names pools has an order of his own, and no others.
        system.add_pod("fourth", 2, annotations={PREFIX + "pools": "aws-a,dc-1"})
        assert system.bound("fourth") == "hired"
        system.add_pod("fifth", 4, annotations={PREFIX + "pools": "aws-a,dc-1"})
        assert system.bound("fifth") == "own", "a pool without patience is left at once"
        system.add_pod("sixth", 1, annotations={PREFIX + "pools": "dc-1"})
        wait_for("it was asked about", lambda: decisions(replica, "sixth"))
        assert decisions(replica, "sixth")[0]["reasons"] == {"pool not among those asked for": 1}
        assert system.node_of("sixth") == ""
    finally:
        scheduler.stop()


def test_a_node_in_two_pools_gets_nothing_until_one_is_left(system: System) -> None:
    pools = [
        {"name": "dc-1", "kind": "on-prem", "selector": {"site": "dc-1"}},
        {"name": "hired", "kind": "cloud", "selector": {"paid": "hourly"}},
    ]
    replica = system.serve(pools=pools)
    scheduler = system.scheduler(replica.port)
    try:
        system.add_node("both", site="dc-1", paid="hourly")
        until_seen(replica, "both")
        assert view(replica, "both")["in_pools"] == ["dc-1", "hired"]
        assert "node_in_two_pools" in readiness(replica)["degraded"]
        system.add_pod("waits", 1)
        wait_for("it was asked about", lambda: decisions(replica, "waits"))
        assert decisions(replica, "waits")[0]["reasons"] == {"node in two pools": 1}
        told = call(replica, "explain", "waits")
        assert told.returncode == 0, told.stderr
        assert "both: dc-1 and hired" in " ".join(told.stdout.split())
        event = wait_for("an event stands on the node", lambda: events_of(system, "both", "NodeInTwoPools"))[
            0
        ]
        assert "dc-1 and hired" in event["note"]
        patch = {"metadata": {"labels": {"paid": None}}}
        system.plane.request("PATCH", "/api/v1/nodes/both", patch)
        assert system.bound("waits") == "both"
        wait_for("nothing is in two pools", lambda: "node_in_two_pools" not in readiness(replica)["degraded"])
    finally:
        scheduler.stop()


def events_of(system: System, node: str, reason: str) -> list[dict[str, Any]]:
    listed = system.plane.request("GET", "/apis/events.k8s.io/v1/events")
    assert isinstance(listed, dict)
    return [
        event
        for event in listed["items"]
        if event["regarding"]["kind"] == "Node"
        and event["regarding"]["name"] == node
        and event["reason"] == reason
    ]
