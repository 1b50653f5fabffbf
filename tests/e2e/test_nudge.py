"""Pods that were refused are woken on a real control plane: soon, by who may, and by nothing else of ours."""

from __future__ import annotations

import contextlib
import time
import urllib.error
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler.simulate.ports import free_port
from scheduler.telemetry.sample import encode
from tests.builders import make_inventory
from tests.controlplane import pod_manifest
from tests.e2e.system import NAMESPACE, Replica, System, metric, readiness, until_seen, view, wait_for
from tests.e2e.test_telemetry import publish

pytestmark = pytest.mark.e2e

RETRY = "wattbalance.io/retry"
DECISION = "wattbalance.io/decision"
SICK = {"wattbalance.io/quarantine": "xid-79"}
PAUSES = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
PAUSE = f"{PAUSES}/wattbalance-pause"
SPILL_S = 5.0
# kube-scheduler 1.20 tries a refused pod again after a minute, later versions after five; before that only an event
# of the cluster helps, and there is none in these tests.
LONGER_S = 10.0


def pools(spill: str) -> list[dict[str, object]]:
    return [
        {"name": "dc-1", "selector": {"site": "dc-1"}, "spill": {"after": spill}},
        {"name": "aws-a", "kind": "cloud", "selector": {"site": "aws-a"}},
    ]


@pytest.fixture
def system(system: System) -> Iterator[System]:
    """Without a pause at the end."""
    try:
        yield system
    finally:
        with contextlib.suppress(urllib.error.HTTPError):
            system.plane.request("DELETE", PAUSE)


def retry(system: System, pod: str) -> str:
    return str(system.pod(pod)["metadata"].get("annotations", {}).get(RETRY, ""))


def patched(system: System) -> list[str]:
    """Pods of others that we wrote to, oldest first."""
    return [
        str(request["objectRef"]["name"])
        for request in system.requests()
        if request["verb"] == "patch"
        and request["objectRef"]["resource"] == "pods"
        and request["objectRef"]["namespace"] == "default"
    ]


def write(system: System, replica: Replica, **changes: object) -> None:
    """Exchange the configuration by rename, as a ConfigMap's mount is."""
    file: Path = system.folder / f"config-{replica.port}.yaml"
    beside = file.with_suffix(".new")
    beside.write_text(yaml.safe_dump(system.config(replica.port, **changes)))
    beside.rename(file)


def refused(replica: Replica, pod: str) -> object:
    return replica.get(f"/api/v1/decisions?pod={pod}&result=no_fit")["items"]


def is_paused(replica: Replica) -> bool:
    return readiness(replica)["paused"] is not None


def is_well(replica: Replica, node: str) -> bool:
    return view(replica, node)["quarantine"] is None


def lift(system: System, node: str) -> None:
    """End a node's quarantine."""
    patch = {"metadata": {"labels": {"wattbalance.io/quarantine": None}}}
    system.plane.request("PATCH", f"/api/v1/nodes/{node}", patch)


def test_a_pod_that_waits_for_a_pool_is_bound_when_the_next_one_opens_to_it(system: System) -> None:
    system.add_node("nudge-home", 8)
    system.add_node("nudge-cloud", site="aws-a")
    system.add_pod("nudge-holds", 6, nodeName="nudge-home")
    given: dict[str, Any] = {"pools": pools(f"{SPILL_S:g}s"), "extender": {"annotate": False}}
    replica = system.serve(**given, nudge={"enabled": False})
    wait_for("it leads", lambda: readiness(replica)["role"] == "leader")
    until_seen(replica, "nudge-home", "nudge-cloud")
    before = len(patched(system))
    daemon = system.scheduler(replica.port)
    try:
        # 1. Nobody wakes it, and it waits on, long after the pool has opened to it.
        system.add_pod("nudge-waits", 8)
        wait_for("it is refused", lambda: refused(replica, "nudge-waits"))
        time.sleep(SPILL_S + LONGER_S)
        assert [system.node_of("nudge-waits"), patched(system)[before:]] == ["", []]
        # 2. Woken, it is bound; so is one that comes now, when its time has come.
        write(system, replica, **given)
        assert system.bound("nudge-waits") == "nudge-cloud"
        assert retry(system, "nudge-waits")
        system.delete_pod("nudge-waits")
        wait_for("its GPUs are free", lambda: view(replica, "nudge-cloud")["free_gpus"] == 8)
        system.add_pod("nudge-next", 8)
        wait_for("it is refused", lambda: refused(replica, "nudge-next"))
        assert system.bound("nudge-next") == "nudge-cloud"
        assert patched(system)[before:] == ["nudge-waits", "nudge-next"]
        assert metric(replica, "wattbalance_nudges_total", result="written") == 2
        # It is none of the annotations that people write.
        assert "wattbalance_annotation_errors_total{" not in replica.text("/metrics")
    finally:
        daemon.stop()


def test_an_agent_s_word_wakes_as_many_as_fit_and_no_more(system: System) -> None:
    system.add_node("told", 8)
    replica = system.serve(extender={"annotate": False})
    wait_for("it leads", lambda: readiness(replica)["role"] == "leader")
    until_seen(replica, "told")
    before = len(patched(system))
    daemon = system.scheduler(replica.port)
    try:
        for index in range(3):
            system.add_pod(f"model-{index}", 4, annotations={"wattbalance.io/gpu-model": "*"})
            wait_for("it is refused", partial(refused, replica, f"model-{index}"))
        # What kube-scheduler sees, and we have no part in.
        system.add_pod("too-large", 16)
        publish(system.broker, "told", "inventory", encode(make_inventory("told")))
        wait_for(
            "two are bound", lambda: sum(bool(system.node_of(f"model-{index}")) for index in range(3)) == 2
        )
        time.sleep(LONGER_S)
        # By age, and the third would fit only if one of them ended: that is an event of the cluster.
        assert patched(system)[before:] == ["model-0", "model-1"]
        assert [system.node_of("model-2"), system.node_of("too-large")] == ["", ""]
    finally:
        daemon.stop()


def test_nobody_is_woken_while_paused_or_by_a_standby_and_the_leader_does_after_it(system: System) -> None:
    for name in ("nudge-a", "nudge-b"):
        system.add_own_pod(name)
    system.add_node("nudge-sick", **SICK)
    leader = system.serve("nudge-a")
    wait_for("it leads", lambda: readiness(leader)["role"] == "leader")
    standby = system.serve("nudge-b")
    before = len(patched(system))
    for replica, pod in ((leader, "of-leader"), (standby, "of-standby")):
        until_seen(replica, "nudge-sick")
        system.plane.apply(pod_manifest(pod))
        question = {"Pod": system.pod(pod), "NodeNames": ["nudge-sick"]}
        assert replica.post("filter", question)["NodeNames"] == []
    system.plane.request(
        "POST",
        PAUSES,
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "wattbalance-pause"},
            "data": {"reason": "x"},
        },
    )
    for replica in (leader, standby):
        wait_for("it is paused", partial(is_paused, replica))
    lift(system, "nudge-sick")
    for replica in (leader, standby):
        wait_for("it is well", partial(is_well, replica, "nudge-sick"))
    # A dozen looks.
    time.sleep(2.0)
    assert patched(system)[before:] == []
    system.plane.request("DELETE", PAUSE)
    wait_for("the leader wakes", lambda: retry(system, "of-leader"))
    time.sleep(2.0)
    assert patched(system)[before:] == ["of-leader"]
    assert metric(standby, "wattbalance_refused_pods") == 1


def test_the_leader_wakes_a_pod_that_a_standby_refused_beside_its_own_kube_scheduler(system: System) -> None:
    for name in ("nudge-a", "nudge-b"):
        system.add_own_pod(name)
    system.add_node("nudge-sick", **SICK)
    leader = system.serve("nudge-a")
    wait_for("it leads", lambda: readiness(leader)["role"] == "leader")
    standby = system.serve("nudge-b")
    for replica in (leader, standby):
        until_seen(replica, "nudge-sick")
    before = len(patched(system))
    daemon = system.scheduler(standby.port)
    try:
        system.add_pod("next-door")
        wait_for("it is refused", lambda: refused(standby, "next-door"))
        wait_for("the leader knows", lambda: metric(leader, "wattbalance_refused_pods") == 1)
        # What kube-scheduler refuses by itself is its own affair.
        system.add_pod("too-large", 16)
        assert [refused(leader, "next-door"), patched(system)[before:]] == [[], []]
        lift(system, "nudge-sick")
        assert system.bound("next-door") == "nudge-sick"
        assert retry(system, "next-door")
        assert readiness(standby)["role"] == "standby"
        written = [metric(each, "wattbalance_nudges_total", result="written") for each in (leader, standby)]
        assert written == [1, 0]
        # Longer than the leader takes to write a decision that it knows.
        time.sleep(2.0)
        assert patched(system)[before:] == ["next-door"]
        assert DECISION not in system.pod("next-door")["metadata"]["annotations"]
    finally:
        daemon.stop()


def test_a_pod_for_which_nobody_answered_is_woken_once(system: System) -> None:
    system.add_node("nudge-well")
    before = len(patched(system))
    # Nobody listens there.
    daemon = system.scheduler(free_port())
    try:
        system.add_pod("unheard")
        replica = system.serve()
        wait_for("it is woken", lambda: retry(system, "unheard"))
        time.sleep(LONGER_S)
        assert patched(system)[before:] == ["unheard"]
        assert metric(replica, "wattbalance_refused_pods") == 1
    finally:
        daemon.stop()


def test_who_observes_wakes_nobody(system: System) -> None:
    system.add_node("nudge-seen", **SICK)
    replica = system.serve(mode="observe")
    until_seen(replica, "nudge-seen")
    before = len(patched(system))
    system.plane.apply(pod_manifest("observed"))
    question = {"Pod": system.pod("observed"), "NodeNames": ["nudge-seen"]}
    assert replica.post("filter", question)["NodeNames"] == ["nudge-seen"]
    lift(system, "nudge-seen")
    wait_for("it is well", partial(is_well, replica, "nudge-seen"))
    time.sleep(2.0)
    assert patched(system)[before:] == []
    assert metric(replica, "wattbalance_refused_pods") == 0


def test_a_pod_whose_binding_a_pause_refused_is_bound_after_resume_without_an_event(system: System) -> None:
    system.add_node("nudge-bind")
    replica = system.serve(extender={"bind": True})
    wait_for("it leads", lambda: readiness(replica)["role"] == "leader")
    until_seen(replica, "nudge-bind")
    pause = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "wattbalance-pause"}}
    system.plane.request("POST", PAUSES, pause)
    wait_for("it is paused", partial(is_paused, replica))
    daemon = system.scheduler(replica.port, bindVerb="bind")
    try:
        system.add_pod("bound-later")
        wait_for("a Binding was refused", lambda: metric(replica, "wattbalance_binds_total", result="paused"))
        system.plane.request("DELETE", PAUSE)
        assert system.bound("bound-later") == "nudge-bind"
        assert retry(system, "bound-later")
    finally:
        daemon.stop()
