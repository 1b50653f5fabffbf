"""Bindings of ours: kube-scheduler asks us to bind, nodes go away in between, the API server falls silent."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from scheduler.extender.binder import ANSWER_LIMIT_S
from tests.controlplane import pod_manifest
from tests.e2e.system import ACCOUNT, Replica, System, metric, readiness, until_seen, view, wait_for

pytestmark = pytest.mark.e2e

DECISION = "wattbalance.io/decision"
# kube-scheduler's own, where its configuration names no httpTimeout.
SCHEDULER_WAITS_S = 5.0


@pytest.fixture
def replica(system: System) -> Replica:
    # A leader stays one for longer than a test freezes the API server, so that it is the Binding that meets silence.
    lease = {"duration": "40s", "renew_deadline": "30s", "retry": "500ms"}
    replica = system.serve(extender={"bind": True}, lease=lease)
    wait_for("it leads", lambda: readiness(replica)["role"] == "leader")
    return replica


def binding(system: System, pod: str, node: str, **changes: str) -> dict[str, str]:
    uid = system.pod(pod)["metadata"]["uid"]
    return {"PodName": pod, "PodNamespace": "default", "PodUID": uid, "Node": node, **changes}


def choose(system: System, replica: Replica, pod: str, *nodes: str) -> str:
    """Let the extender decide, as kube-scheduler would."""
    answer = replica.post("filter", {"Pod": system.pod(pod), "NodeNames": list(nodes)})
    [chosen] = answer["NodeNames"]
    return str(chosen)


def decision(system: System, pod: str) -> dict[str, Any]:
    return dict(json.loads(system.pod(pod)["metadata"]["annotations"][DECISION]))


def test_where_kube_scheduler_leaves_binding_to_us_and_we_do_not_people_are_told(system: System) -> None:
    replica = system.serve(extender={"bind": False}, nudge={"enabled": True, "again": "1s"})
    wait_for("it leads", lambda: readiness(replica)["role"] == "leader")
    system.add_node("n1")
    until_seen(replica, "n1")
    assert "bind_off" not in readiness(replica)["degraded"]
    daemon = system.scheduler(replica.port, bindVerb="bind")
    try:
        system.add_pod("p")
        wait_for("it is degraded", lambda: "bind_off" in readiness(replica)["degraded"])
        wait_for(
            "the pod says why",
            lambda: any(
                "bind is off: extender.bind is off" in each.get("message", "")
                for each in system.pod("p")["status"].get("conditions", ())
            ),
        )
        assert metric(replica, "wattbalance_binds_total", result="off") >= 1
        assert metric(replica, "wattbalance_degraded", reason="bind_off") == 1
        wait_for("the daemon knows that it waits", lambda: metric(replica, "wattbalance_waiting_pods") == 1)
        assert metric(replica, "wattbalance_refused_pods") == 0
    finally:
        daemon.stop()
    assert system.node_of("p") == ""
    # What is to be done now is either; the pod is bound soon, as kube-scheduler begins anew.
    daemon = system.scheduler(replica.port)
    try:
        assert system.bound("p") == "n1"
    finally:
        daemon.stop()
    assert metric(replica, "wattbalance_nudges_total", result="written") == 0


def test_kube_scheduler_leaves_binding_to_us(system: System, replica: Replica) -> None:
    for name in ("bind-a", "bind-b"):
        system.add_node(name)
    until_seen(replica, "bind-a", "bind-b")
    before = len(system.requests())
    daemon = system.scheduler(replica.port, bindVerb="bind")
    try:
        names = ["bind-1", "bind-2", "bind-3"]
        for name in names:
            system.add_pod(name, 4, annotations={"wattbalance.io/workload": "training"})
        landed = {name: system.bound(name) for name in names}
    finally:
        daemon.stop()
    for name in names:
        [record] = replica.get(f"/api/v1/decisions?pod={name}")["items"]
        assert record["chosen"] == landed[name]
        want_decision = {
            "node": landed[name],
            "profile": "training",
            "score": record["best"][0]["score"],
            "cycle": record["cycle"],
            "term": 1,
        }
        assert decision(system, name) == want_decision

    def bound_by() -> list[tuple[str, str]]:
        return sorted(
            (request["objectRef"]["name"], request["user"]["username"])
            for request in system.requests()[before:]
            if request.get("objectRef", {}).get("subresource") == "binding"
        )

    # Written down when it is answered, or a moment later.
    wait_for("all are written down", lambda: len(bound_by()) >= len(names))
    assert bound_by() == [(name, ACCOUNT) for name in names]


def test_a_pod_without_room_for_a_decision_can_be_written_after_we_bound_it(
    system: System, replica: Replica
) -> None:
    system.add_node("bind-full")
    until_seen(replica, "bind-full")
    daemon = system.scheduler(replica.port, bindVerb="bind")
    try:
        system.add_pod("full", annotations={"note": "x" * (256 * 1024 - len("note"))})
        assert system.bound("full") == "bind-full"
    finally:
        daemon.stop()
    assert DECISION not in system.pod("full")["metadata"]["annotations"]
    # As the kubelet writes it.
    path = "/api/v1/namespaces/default/pods/full/status"
    system.plane.request("PATCH", path, {"status": {"phase": "Running"}})
    assert system.pod("full")["status"]["phase"] == "Running"


def test_a_binding_to_a_node_that_was_cordoned_or_went_meanwhile_is_refused(
    system: System, replica: Replica
) -> None:
    for name in ("gone-a", "gone-b"):
        system.add_node(name)
    system.plane.apply(pod_manifest("late"))
    until_seen(replica, "gone-a", "gone-b")
    chosen = choose(system, replica, "late", "gone-a", "gone-b")
    system.plane.request("PATCH", f"/api/v1/nodes/{chosen}", {"spec": {"unschedulable": True}})
    wait_for("the cordon is seen", lambda: view(replica, chosen)["cordoned"])
    assert replica.post("bind", binding(system, "late", chosen)) == {
        "Error": f"node {chosen} was cordoned meanwhile"
    }
    system.plane.request("DELETE", f"/api/v1/nodes/{chosen}")
    wait_for("it is gone", lambda: chosen not in {n["name"] for n in replica.get("/api/v1/nodes")["items"]})
    assert replica.post("bind", binding(system, "late", chosen)) == {"Error": f"node {chosen} is gone"}
    assert system.node_of("late") == ""
    # The next attempt goes elsewhere.
    other = choose(system, replica, "late", "gone-a", "gone-b")
    assert other != chosen
    asked = binding(system, "late", other)
    wait_for("it is bound", lambda: replica.post("bind", asked) == {"Error": ""})
    assert system.node_of("late") == other


def test_a_binding_for_another_uid_binds_nothing(system: System, replica: Replica) -> None:
    system.add_node("uid-a")
    system.plane.apply(pod_manifest("again"))
    until_seen(replica, "uid-a")
    asked = binding(system, "again", "uid-a")
    system.delete_pod("again")
    system.plane.apply(pod_manifest("again"))
    now = system.pod("again")["metadata"]["uid"]
    error = replica.post("bind", asked)["Error"]
    assert error == f"pod default/again has uid {now} now, not {asked['PodUID']}"
    assert system.node_of("again") == ""
    system.delete_pod("again")
    assert replica.post("bind", asked) == {"Error": "pod default/again is gone"}


def test_the_same_binding_twice_is_success_and_one_elsewhere_is_not(system: System, replica: Replica) -> None:
    for name in ("twice-a", "twice-b"):
        system.add_node(name)
    system.plane.apply(pod_manifest("twice"))
    until_seen(replica, "twice-a", "twice-b")
    want_error = "pod default/twice is bound to twice-a already"
    asked = binding(system, "twice", "twice-a")
    # At once, before the watch has told of it, and then again when it has.
    for _ in range(2):
        wait_for("it is bound", lambda: replica.post("bind", asked) == {"Error": ""})
        assert replica.post("bind", binding(system, "twice", "twice-b")) == {"Error": want_error}
        wait_for("the binding is seen", lambda: view(replica, "twice-a")["bound_gpus"] == 1)
    assert system.node_of("twice") == "twice-a"


def test_a_binding_that_meets_silence_is_looked_up_before_its_promise_goes(
    system: System, replica: Replica
) -> None:
    system.add_node("still-a")
    system.plane.apply(pod_manifest("still", gpus=8))
    system.plane.apply(pod_manifest("other", gpus=8))
    until_seen(replica, "still-a")
    assert choose(system, replica, "still", "still-a") == "still-a"
    asked = binding(system, "still", "still-a")
    rival = {"Pod": system.pod("other"), "NodeNames": ["still-a"]}
    apiserver = system.plane.apiserver
    assert apiserver is not None
    apiserver.pause()
    try:
        # The API server is frozen all the while: who answers did not wait for it.
        assert replica.post("bind", asked) == {
            "Error": "whether pod default/still was bound is unknown: the API server does not answer"
        }
        assert ANSWER_LIMIT_S < SCHEDULER_WAITS_S
        # What is not known to be free is given to nobody: this is the other pod's only candidate, yet no promise.
        replica.post("filter", rival)
        assert view(replica, "still-a")["reserved_gpus"] == 8
        assert [p["reserved_node"] for p in replica.get("/api/v1/pods")["items"] if p["name"] == "still"] == [
            "still-a"
        ]
    finally:
        apiserver.resume()

    # kube-scheduler tries again. Whatever became of the first one: bound, there, once.
    def again() -> bool:
        return bool(replica.post("bind", asked) == {"Error": ""})

    wait_for("it is bound", again)
    assert system.node_of("still") == "still-a"
    wait_for("the binding is seen", lambda: view(replica, "still-a")["bound_gpus"] == 8)
    assert view(replica, "still-a")["reserved_gpus"] == 0


def test_a_node_that_fails_after_filter_each_time_is_not_chosen_for_ever(
    system: System, replica: Replica
) -> None:
    # pack prefers the node that is fuller, so without what is tested it would be chosen again and again.
    system.add_node("fails-a")
    system.add_node("fails-b")
    system.plane.apply(pod_manifest("beside-it", gpus=4, node="fails-a"))
    system.plane.apply(pod_manifest("unlucky", gpus=1))
    wait_for("the pod beside is accounted", lambda: view(replica, "fails-a")["free_gpus"] == 4)
    until_seen(replica, "fails-b")
    chosen = [choose(system, replica, "unlucky", "fails-a", "fails-b") for _ in range(4)]
    assert chosen == ["fails-a"] * 3 + ["fails-b"]
    # It is the last choice, not none.
    assert choose(system, replica, "unlucky", "fails-a") == "fails-a"
    # Another pod has nothing to do with it.
    system.plane.apply(pod_manifest("lucky", gpus=1))
    assert choose(system, replica, "lucky", "fails-a", "fails-b") == "fails-a"


def test_a_frozen_api_server_ends_the_leaders_acting_before_its_lease_does(system: System) -> None:
    # Not ready only later: here it is the Lease that ends the acting.
    lease = {"duration": "20s", "renew_deadline": "3s", "retry": "500ms"}
    replica = system.serve(extender={"bind": True}, lease=lease)
    wait_for("it leads", lambda: readiness(replica)["role"] == "leader")
    system.add_node("ice-a")
    system.plane.apply(pod_manifest("ice"))
    until_seen(replica, "ice-a")
    asked = binding(system, "ice", "ice-a")
    apiserver = system.plane.apiserver
    assert apiserver is not None
    lasts = threading.Timer(15.0, apiserver.resume)
    apiserver.pause()
    lasts.start()
    try:
        # Of its 20 s at least 15 are left when it stops.
        wait_for("it stops leading", lambda: readiness(replica)["role"] == "standby", 15.0)
        assert lasts.is_alive(), "the API server was frozen throughout"
        assert readiness(replica)["ready"], "it knows enough to answer"
        assert replica.post("bind", asked) == {"Error": "this replica no longer leads; ask again"}
    finally:
        lasts.cancel()
        lasts.join()
        apiserver.resume()
    # As kube-scheduler does: again and again, until it leads.
    wait_for("it is bound", lambda: replica.post("bind", asked) == {"Error": ""})
    assert system.node_of("ice") == "ice-a"
