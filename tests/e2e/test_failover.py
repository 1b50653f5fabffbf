"""Replicas die, freeze and are replaced; kube-scheduler finds nobody: work goes on and nothing is promised twice."""

from __future__ import annotations

import http.client
import itertools
import signal
import threading
import time
import urllib.error

import pytest

from scheduler.simulate.ports import free_port
from tests.controlplane import pod_manifest
from tests.e2e.system import NAMESPACE, Replica, System, until_seen, wait_for

pytestmark = pytest.mark.e2e

ROLE = "wattbalance.io/role"
# What the product promises of a rolling restart. A machine that stands still for seconds breaks that for it, but not
# each time; a Lease that nobody hands back (8 s here) does.
LONGEST_SILENCE_S = 5.0
ATTEMPTS = 3


def role(replica: Replica) -> str:
    return str((replica.ready() or {}).get("role", ""))


def label(system: System, pod: str) -> str:
    return str(system.pod(pod, NAMESPACE)["metadata"].get("labels", {}).get(ROLE, ""))


def start_two(system: System) -> tuple[Replica, Replica]:
    """A leader that carries the label, and a standby."""
    for name in ("replica-a", "replica-b"):
        system.add_own_pod(name)
    leader = system.serve("replica-a")
    wait_for("the first leads", lambda: role(leader) == "leader")
    standby = system.serve("replica-b")
    assert role(standby) == "standby"
    wait_for("the leader is labelled", lambda: label(system, "replica-a") == "leader")
    return leader, standby


def question(system: System, pod: str, *nodes: str) -> dict[str, object]:
    return {"Pod": system.pod(pod), "NodeNames": list(nodes)}


def test_the_standby_takes_over_when_the_leader_is_killed(system: System) -> None:
    leader, standby = start_two(system)
    leader.process.popen.kill()
    leader.process.popen.wait()
    wait_for("the standby leads", lambda: role(standby) == "leader")
    wait_for(
        "the label moved", lambda: (label(system, "replica-a"), label(system, "replica-b")) == ("", "leader")
    )


def test_a_leader_that_was_frozen_comes_back_as_standby_and_alive(system: System) -> None:
    leader, standby = start_two(system)
    leader.process.signal(signal.SIGSTOP)
    wait_for("the standby leads", lambda: role(standby) == "leader")
    leader.process.signal(signal.SIGCONT)
    wait_for("the old leader is standby", lambda: role(leader) == "standby")
    assert leader.process.popen.poll() is None
    assert role(standby) == "leader"
    wait_for(
        "the label moved", lambda: (label(system, "replica-a"), label(system, "replica-b")) == ("", "leader")
    )


def test_gpus_of_a_pod_bound_while_we_were_dead_are_not_promised_again(system: System) -> None:
    for node in ("between-a", "between-b"):
        system.add_node(node)
    for pod in ("between-1", "between-2"):
        system.plane.apply(pod_manifest(pod, gpus=8))
    replica = system.serve()
    wait_for("it leads", lambda: role(replica) == "leader")
    until_seen(replica, "between-a", "between-b")
    [chosen] = replica.post("filter", question(system, "between-1", "between-a", "between-b"))["NodeNames"]
    replica.process.popen.kill()
    replica.process.popen.wait()
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": "between-1"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": chosen},
    }
    system.plane.request("POST", "/api/v1/namespaces/default/pods/between-1/binding", binding)
    again = system.serve(port=replica.port)
    wait_for("it leads again", lambda: role(again) == "leader")
    answer = again.post("filter", question(system, "between-2", "between-a", "between-b"))
    [want_other] = {"between-a", "between-b"} - {chosen}
    assert answer["NodeNames"] == [want_other]


@pytest.mark.alone
def test_a_rolling_restart_leaves_no_long_silence(system: System) -> None:
    system.add_node("rolling-a")
    system.plane.apply(pod_manifest("asker"))
    replicas = list(start_two(system))
    until_seen(replicas[0], "rolling-a")
    asked = question(system, "asker", "rolling-a")
    silences_s: list[float] = []
    while len(silences_s) < ATTEMPTS:
        silences_s.append(longest_silence_s(system, replicas, asked))
        if silences_s[-1] < LONGEST_SILENCE_S:
            return
    raise AssertionError(f"silent for {silences_s} s")


def longest_silence_s(system: System, replicas: list[Replica], asked: dict[str, object]) -> float:
    """Restart one after the other, while somebody asks whoever leads."""
    ended = threading.Event()
    answered_mono_s: list[float] = []

    def ask() -> None:
        while not ended.is_set():
            for replica in tuple(replicas):
                try:
                    if role(replica) == "leader" and replica.post("filter", asked)["NodeNames"]:
                        answered_mono_s.append(time.monotonic())
                except urllib.error.HTTPError as error:
                    error.close()
                except (OSError, TypeError, http.client.HTTPException):
                    # Away, or no node in the answer: the gap is what is measured.
                    continue
            ended.wait(0.1)

    client = threading.Thread(target=ask)
    client.start()
    try:
        wait_for("the client is answered", lambda: answered_mono_s)
        for at, old in enumerate(tuple(replicas)):
            assert old.process.stop() == 0
            replicas[at] = system.serve(old.pod_name, old.port)
        wait_for("somebody leads", lambda: any(role(replica) == "leader" for replica in replicas))
        after_mono_s = time.monotonic()
        wait_for("the client is answered at the end", lambda: answered_mono_s[-1] > after_mono_s)
    finally:
        ended.set()
        client.join()
    return max(later - earlier for earlier, later in itertools.pairwise(answered_mono_s))


def test_kube_scheduler_binds_without_us_where_we_are_ignorable(system: System) -> None:
    system.add_node("away-a")
    daemon = system.scheduler(free_port(), ignorable=True)
    try:
        system.add_pod("unasked")
        assert system.bound("unasked") == "away-a"
    finally:
        daemon.stop()


def test_kube_scheduler_waits_for_us_where_we_are_not_ignorable(system: System) -> None:
    system.add_node("away-b")
    port = free_port()
    daemon = system.scheduler(port)
    try:
        system.add_pod("waits")

        def condition() -> object:
            return system.pod("waits")["status"].get("conditions")

        wait_for("kube-scheduler has tried", condition)
        assert system.node_of("waits") == ""
        replica = system.serve(port=port)
        wait_for("it leads", lambda: role(replica) == "leader")
        # kube-scheduler tries again at the next event of a node, or after a minute.
        system.add_node("away-c")
        assert system.bound("waits") in {"away-b", "away-c"}
        [decision, *_] = replica.get("/api/v1/decisions?pod=waits")["items"]
        assert decision["chosen"] == system.node_of("waits")
    finally:
        daemon.stop()
