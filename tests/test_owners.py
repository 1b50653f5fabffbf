"""Owners that cannot be read, on the simulated API server: said once in the log, and of each pod in explain."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from scheduler.cluster import kubernetes
from scheduler.cluster.port import Kind
from scheduler.cluster.reflector import Pace
from tests.contracts.cluster_contract import eventually
from tests.test_app import Replica, World, world  # noqa: F401 - a fixture

Owner = dict[str, Any]
GROUPS = {"jobs": "Job", "replicasets": "ReplicaSet", "deployments": "Deployment"}


def add_owner(cluster: World, plural: str, name: str, owner: Owner | None = None, **said: str) -> Owner:
    """Create it; returns how those that it owns refer to it."""
    metadata: dict[str, Any] = {"name": name, "namespace": "default"}
    metadata["annotations"] = {f"wattbalance.io/{key}": value for key, value in said.items()}
    metadata["ownerReferences"] = [owner] if owner else []
    made = cluster.api.create(plural, {"metadata": metadata, "spec": {}})
    kind = GROUPS[plural]
    return {"kind": kind, "name": name, "uid": made["metadata"]["uid"], "controller": True}


def add_pod(cluster: World, name: str, owner: Owner) -> None:
    containers = [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]
    metadata = {"name": name, "namespace": "default", "ownerReferences": [owner]}
    cluster.api.create("pods", {"metadata": metadata, "spec": {"containers": containers}})


async def explained(replica: Replica, pod: str) -> dict[str, Any]:
    async with replica.session.get(f"/api/v1/explain/default/{pod}") as answer:
        assert answer.status == 200, await answer.text()
        return dict(await answer.json())


def refused(replica: Replica) -> int:
    """How often lists of Deployments were refused."""
    return replica.daemon.cluster.counters.errors["list", "deployments", "403"]


async def seen(replica: Replica, *pods: str) -> None:
    store = replica.daemon.store
    await eventually(lambda: {each.name for each in store.pods.values()} >= set(pods))


async def test_a_kind_that_the_role_cannot_list_is_told_once_and_the_rest_counts(
    world: World,  # noqa: F811 - the fixture's value
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    # It is asked for again and again, as it is every minute.
    monkeypatch.setattr(kubernetes, "Pace", partial(Pace, refused_s=0.02))
    world.api.faults.forbidden.add(("list", "deployments"))
    web = add_owner(world, "deployments", "web", queue="q")
    add_pod(world, "p1", add_owner(world, "replicasets", "web-1", web, workload="training"))
    async with world.replica() as replica:
        await seen(replica, "p1")
        told = await explained(replica, "p1")
        # What the ReplicaSet says counts, what the Deployment says does not.
        assert [(each["key"], each["where"]) for each in told["annotations"]] == [
            ("workload", "replicaset web-1")
        ]
        [note] = [each for each in told["notes"] if "cannot be read" in each]
        assert "replicaset web-1's owner, a Deployment," in note
        assert "deployments" in note
        async with replica.session.get("/readyz") as answer:
            assert "cannot_list_deployments" in (await answer.json())["degraded"]
        before = refused(replica)
        await eventually(lambda: refused(replica) >= before + 5)
        assert sum("deployments cannot be followed" in each for each in caplog.messages) == 1
        # With the right it speaks for its ReplicaSet too, and nothing is said of it any more.
        world.api.faults.forbidden.clear()
        await eventually(lambda: Kind.DEPLOYMENT not in replica.daemon.cluster.refused)
        told = await explained(replica, "p1")
        assert [(each["key"], each["where"]) for each in told["annotations"]] == [("queue", "deployment web")]
        assert not any("owner" in each for each in told["notes"])


async def test_a_cycle_and_an_owner_that_is_gone_are_told(world: World) -> None:  # noqa: F811 - likewise
    first = add_owner(world, "jobs", "a")
    second = add_owner(world, "jobs", "b", first, workload="inference")
    job = world.api.get("jobs", "a", "default")
    world.api.update("jobs", {**job, "metadata": {**job["metadata"], "ownerReferences": [second]}})
    add_pod(world, "in-a-circle", first)
    gone = add_owner(world, "jobs", "c", workload="batch")
    add_pod(world, "left", gone)
    world.api.delete("jobs", "c", "default")
    async with world.replica() as replica:
        await seen(replica, "in-a-circle", "left")
        told = await explained(replica, "in-a-circle")
        assert told["workload"] == "inference"
        assert any("own each other: job a and job b" in each for each in told["notes"])
        told = await explained(replica, "left")
        assert told["workload_from"] == "owner's kind Job"
        assert any("a Job, is gone" in each for each in told["notes"])
