"""The configuration changes while a real kube-scheduler places pods: nothing fails, and the new order holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.system import NAMESPACE, Replica, System, metric, readiness, until_seen, view, wait_for

pytestmark = pytest.mark.e2e

DC = {"name": "dc-1", "selector": {"site": "dc-1"}}
AWS = {"name": "aws-a", "kind": "cloud", "selector": {"site": "aws-a"}}
EVENTS = f"/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events"


def file_of(system: System, replica: Replica) -> Path:
    return system.folder / f"config-{replica.port}.yaml"


def write(system: System, replica: Replica, **changes: object) -> None:
    """Exchange the file by rename, as a ConfigMap's mount is."""
    file = file_of(system, replica)
    beside = file.with_suffix(".new")
    beside.write_text(yaml.safe_dump(system.config(replica.port, **changes)))
    beside.rename(file)


def reloads(replica: Replica, result: str) -> float:
    return metric(replica, "wattbalance_config_reloads_total", result=result)


def until_taken(replica: Replica, times: float) -> None:
    wait_for("the file is taken", lambda: reloads(replica, "ok") == times)


def lacks(replica: Replica, word: str) -> bool:
    return word in readiness(replica)["degraded"]


def events(system: System, reason: str) -> list[dict[str, Any]]:
    listed = system.plane.request("GET", EVENTS)
    assert isinstance(listed, dict)
    return [each for each in listed["items"] if each["reason"] == reason]


def test_pools_are_reordered_while_pods_are_placed(system: System) -> None:
    for number in range(3):
        system.add_node(f"dc-{number}", site="dc-1")
        system.add_node(f"aws-{number}", site="aws-a")
    replica = system.serve(pools=[DC, AWS])
    until_seen(replica, *(f"{site}-{number}" for site in ("dc", "aws") for number in range(3)))
    names = iter(f"p{number}" for number in range(100))
    placed: dict[str, str] = {}

    def place(count: int) -> list[str]:
        wave = [next(names) for _ in range(count)]
        for name in wave:
            system.add_pod(name)
        placed.update({name: system.bound(name) for name in wave})
        return [placed[name] for name in wave]

    daemon = system.scheduler(replica.port)
    try:
        assert all(node.startswith("dc-") for node in place(5))
        for order, first in (([AWS, DC], "aws-"), ([DC, AWS], "dc-"), ([AWS, DC], "aws-")):
            before = reloads(replica, "ok")
            # These are asked about before, at and after the exchange.
            under_way = [next(names) for _ in range(4)]
            for name in under_way[:2]:
                system.add_pod(name)
            write(system, replica, pools=order)
            for name in under_way[2:]:
                system.add_pod(name)
            until_taken(replica, before + 1)
            assert all(node.startswith(first) for node in place(3))
            placed.update({name: system.bound(name) for name in under_way})
    finally:
        daemon.stop()
    bound = system.bound_pods()
    assert {name: bound.count(name) for name in placed} == dict.fromkeys(placed, 1)
    for name, node in placed.items():
        # Each where it was decided, by a record that names what there was.
        asked = replica.get(f"/api/v1/decisions?pod={name}")["items"]
        decision = next(each for each in asked if each["verb"] == "filter")
        assert decision["chosen"] == node
        assert {each["pool"] for each in decision["best"]} <= {"dc-1", "aws-a", "default"}
    for reason in ("no_decision", "other_node", "other_scheduler"):
        assert metric(replica, "wattbalance_bypassed_pods_total", reason=reason) == 0
    assert not lacks(replica, "config_refused")
    assert not lacks(replica, "restart_needed")
    assert "Traceback" not in replica.process.log
    assert {view(replica, f"{site}-0")["pool"] for site in ("dc", "aws")} == {"dc-1", "aws-a"}


def test_a_bad_file_and_one_that_vanishes_change_nothing_and_are_said_on_our_own_pod(system: System) -> None:
    system.add_node("keep-dc", site="dc-1")
    system.add_node("keep-aws", site="aws-a")
    system.add_own_pod("wb-0")
    replica = system.serve("wb-0", pools=[DC, AWS])
    until_seen(replica, "keep-dc", "keep-aws")
    wait_for("it leads", lambda: readiness(replica)["role"] == "leader")
    file = file_of(system, replica)
    good = file.read_text()
    daemon = system.scheduler(replica.port)

    try:
        write(system, replica, pools=[AWS, {"name": "dc-1"}], profiles={"traning": {}})
        wait_for("it is refused", lambda: lacks(replica, "config_refused"))
        assert reloads(replica, "refused") == 1
        system.add_pod("kept-1")
        assert system.bound("kept-1") == "keep-dc"
        [event] = wait_for("an event", lambda: events(system, "ConfigRefused"))
        assert event["regarding"]["name"] == "wb-0"
        own = system.pod("wb-0", NAMESPACE)
        assert event["regarding"]["uid"] == own["metadata"]["uid"]
        assert event["type"] == "Warning"
        assert "pools[1].selector" in event["note"]
        assert "profiles.traning" in event["note"]
        assert "configuration refused" in replica.process.log
        file.unlink()
        wait_for("it is refused again", lambda: reloads(replica, "refused") == 2)
        system.add_pod("kept-2")
        assert system.bound("kept-2") == "keep-dc"
        file.write_text(good)
        wait_for("all is well", lambda: not lacks(replica, "config_refused"))
        # What needs a restart is said, and the rest of the same file holds.
        write(
            system,
            replica,
            pools=[AWS, DC],
            lease={"duration": "20s", "renew_deadline": "6s", "retry": "500ms"},
        )
        wait_for("a restart is asked for", lambda: lacks(replica, "restart_needed"))
        [event] = wait_for("an event", lambda: events(system, "ConfigNeedsRestart"))
        assert "lease.duration" in event["note"]
        system.add_pod("moved")
        assert system.bound("moved") == "keep-aws"
        write(system, replica, pools=[AWS, DC])
        wait_for("nothing is missing", lambda: not lacks(replica, "restart_needed"))
    finally:
        daemon.stop()
        system.plane.request("DELETE", EVENTS)


def test_a_restart_after_a_reload_begins_with_the_same_settings(system: System) -> None:
    system.add_node("again-dc", site="dc-1")
    replica = system.serve(pools=[DC, AWS])
    wait_for("it leads", lambda: readiness(replica)["role"] == "leader")
    system.plane.request("DELETE", EVENTS)
    write(system, replica, pools=[AWS])
    until_taken(replica, 1)
    until_seen(replica, "again-dc")
    assert view(replica, "again-dc")["pool"] == "default"
    # Outside of a pod the event is about the Lease that we hold.
    told = wait_for("an event", lambda: events(system, "ConfigReloaded"))
    assert [(e["regarding"]["kind"], e["regarding"]["name"]) for e in told] == [("Lease", "wattbalance")]
    assert "pools" in told[0]["note"]
    figure = metric(replica, "wattbalance_config_hash")
    assert figure > 0
    assert replica.process.stop() == 0
    second = system.serve(port=replica.port, pools=[AWS])
    wait_for("the same file", lambda: metric(second, "wattbalance_config_hash") == figure)
    until_seen(second, "again-dc")
    assert view(second, "again-dc")["pool"] == "default"
    assert reloads(second, "ok") == 0
