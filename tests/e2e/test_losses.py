"""The broker goes, the API server goes, somebody sends SIGTERM: what is left keeps going and says what it lacks."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Callable

import pytest

from tests.e2e.conftest import StartAgent
from tests.e2e.system import LEASE, Replica, System, wait_for
from tests.fakes.nvml_stub.stub import NvmlStub

pytestmark = pytest.mark.e2e


def reading_age_s(replica: Replica, node: str) -> float | None:
    found = next(item for item in replica.get("/api/v1/nodes")["items"] if item["name"] == node)
    age_s = found["reading_age_s"]
    return None if age_s is None else float(age_s)


def is_fresh(replica: Replica, node: str) -> bool:
    return any(item["name"] == node and item["fresh"] for item in replica.get("/api/v1/nodes")["items"])


def degraded(replica: Replica) -> list[str]:
    body = replica.ready()
    assert body is not None, "a replica without its broker stays ready"
    return list(body["degraded"])


def why_not_ready(replica: Replica) -> list[str]:
    try:
        replica.get("/readyz")
    except urllib.error.HTTPError as error:
        with error:
            return list(json.loads(error.read())["reasons"])
    return []


def test_without_the_broker_it_serves_on_and_takes_samples_again_when_it_is_back(
    system: System, make_stub: Callable[[str], NvmlStub], start_agent: StartAgent
) -> None:
    system.add_node("loss-a")
    start_agent("loss-a", make_stub("loss-a"))
    replica = system.serve()
    wait_for("samples flow", lambda: is_fresh(replica, "loss-a"))
    assert degraded(replica) == []
    system.broker.stop()
    try:
        wait_for("it says that the broker is away", lambda: degraded(replica) == ["broker_away"])
        wait_for("the reading gets too old", lambda: not is_fresh(replica, "loss-a"))
    finally:
        system.broker.start()
    wait_for("it is whole again", lambda: degraded(replica) == [])
    wait_for("samples flow again", lambda: is_fresh(replica, "loss-a"))


def test_without_the_api_server_it_is_not_ready_and_becomes_ready_again_by_itself(system: System) -> None:
    system.add_node("loss-b")
    cluster = {
        "name": "test",
        "kubeconfig": str(system.plane.kubeconfig(system.user)),
        "stale": "3s",
        "api_timeout": "2s",
    }
    replica = system.serve(cluster=cluster)
    system.plane.kill_apiserver()
    try:
        wait_for("it stops answering", lambda: why_not_ready(replica) == ["the API server is silent"])
    finally:
        system.plane.start_apiserver()
    system.until_ready(replica)
    assert replica.process.popen.poll() is None
    # It has not only reconnected: it sees what is new.
    system.add_node("loss-c")
    wait_for(
        "a new node is seen",
        lambda: "loss-c" in {node["name"] for node in replica.get("/api/v1/nodes")["items"]},
    )


def test_sigterm_ends_it_with_0_and_hands_the_lease_back(system: System) -> None:
    system.add_node("loss-d")
    replica = system.serve()

    def holder() -> str:
        lease = system.plane.request("GET", LEASE)
        assert isinstance(lease, dict)
        return str(lease["spec"].get("holderIdentity") or "")

    wait_for("it leads", lambda: (replica.ready() or {}).get("role") == "leader")
    assert holder()
    replica.process.popen.terminate()
    # Twice the configured grace of 5 s: the bound is there so that a hang fails, it measures nothing.
    assert replica.process.popen.wait(10) == 0
    assert holder() == ""
