"""The broker goes, the API server goes, somebody sends SIGTERM: what is left keeps going and says what it lacks."""

from __future__ import annotations

import contextlib
import json
import urllib.error
from collections.abc import Callable, Iterator

import pytest

from tests.controlplane import pod_manifest
from tests.e2e.conftest import StartAgent
from tests.e2e.system import LEASE, PATIENCE_S, Replica, System, readiness, until_seen, view, wait_for
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


@contextlib.contextmanager
def frozen(system: System) -> Iterator[None]:
    """The API server keeps its connections, takes new ones, and says nothing."""
    apiserver = system.plane.apiserver
    assert apiserver is not None
    apiserver.pause()
    try:
        yield
    finally:
        apiserver.resume()


@contextlib.contextmanager
def away(system: System) -> Iterator[None]:
    """Nobody listens where the API server was."""
    system.plane.kill_apiserver()
    try:
        yield
    finally:
        system.plane.start_apiserver()


Lost = Callable[[System], contextlib.AbstractContextManager[None]]


def impatient(system: System) -> dict[str, str]:
    return {
        "name": "test",
        "kubeconfig": str(system.plane.kubeconfig(system.user)),
        "stale": "3s",
        "api_timeout": "2s",
    }


@pytest.mark.parametrize("lost", [away, frozen])
def test_without_the_api_server_it_is_not_ready_and_becomes_ready_again_by_itself(
    system: System, lost: Lost
) -> None:
    system.add_node("loss-b")
    system.add_node("loss-e")
    system.plane.apply(pod_manifest("holds", gpus=3, node="loss-b"))
    replica = system.serve(cluster=impatient(system))
    wait_for("the pod is accounted", lambda: view(replica, "loss-b")["bound_gpus"] == 3)
    with lost(system):
        wait_for("it stops answering", lambda: why_not_ready(replica) == ["the API server is silent"])
        with pytest.raises(urllib.error.HTTPError) as refused:
            replica.post("filter", {"Pod": {"metadata": {"uid": "u"}}, "NodeNames": ["loss-b"]})
        with refused.value as answer:
            assert answer.code == 503
    # At once, so that it must notice by itself what changed while it could not see.
    system.delete_pod("holds")
    system.plane.request("DELETE", "/api/v1/nodes/loss-e")
    system.add_node("loss-c")
    system.until_ready(replica)
    assert replica.process.popen.poll() is None
    wait_for(
        "the cluster is seen as it is",
        lambda: (
            {node["name"]: node["free_gpus"] for node in replica.get("/api/v1/nodes")["items"]}
            == {"loss-b": 8, "loss-c": 8}
        ),
    )
    wait_for("it leads again", lambda: readiness(replica)["role"] == "leader")


@pytest.mark.parametrize("lost", [away, frozen])
def test_without_the_api_server_at_start_it_waits_and_says_so(system: System, lost: Lost) -> None:
    system.add_node("loss-f")
    with lost(system):
        replica = system.launch(cluster=impatient(system))
        wait_for(
            "it says why",
            lambda: why_not_ready(replica)[0].startswith("the API server has not answered yet"),
        )
        wait_for("the broker is there", lambda: "broker_away" not in readiness(replica)["degraded"])
        assert replica.process.popen.poll() is None
    system.until_ready(replica)
    until_seen(replica, "loss-f")


def test_sigterm_ends_it_with_0_and_hands_the_lease_back(system: System) -> None:
    system.add_node("loss-d")
    # A quarter of it is for the Lease: the API server may stand still for a moment just then.
    replica = system.serve(shutdown={"grace": "10s"})

    def holder() -> str:
        lease = system.plane.request("GET", LEASE)
        assert isinstance(lease, dict)
        return str(lease["spec"].get("holderIdentity") or "")

    wait_for("it leads", lambda: (replica.ready() or {}).get("role") == "leader")
    assert holder()
    replica.process.popen.terminate()
    # The bound is there so that a hang fails, it measures nothing: past the grace it would end with 1.
    assert replica.process.popen.wait(PATIENCE_S) == 0
    assert holder() == ""
