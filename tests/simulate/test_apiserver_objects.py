"""The simulated API server, asked over HTTP: objects, Bindings, Leases and Events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from scheduler.core.clock import ManualClock
from scheduler.simulate.apiserver import ApiServer

PODS = "/api/v1/namespaces/default/pods"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
MERGE = "application/merge-patch+json"
NOW = "2026-01-01T00:00:00.000000Z"


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[ApiServer, Call]]:
    server = ApiServer(ManualClock(), **options)
    await server.start()
    try:
        async with aiohttp.ClientSession(server.url) as session:
            yield server, Call(session)
    finally:
        await server.stop()


class Call:
    """One request; answers (status, body)."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def __call__(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(method, path, json=body, headers=named) as response:
            if response.content_type != "application/json":
                return response.status, {"text": await response.text()}
            return response.status, await response.json()


def pod(name: str, **spec: object) -> dict[str, Any]:
    resources = {"limits": {"cpu": "1", "nvidia.com/gpu": "1"}}
    containers = [{"name": "c", "image": "i", "resources": resources}]
    return {"metadata": {"name": name}, "spec": {"containers": containers, **spec}}


def binding(name: str, node: str, **meta: object) -> dict[str, Any]:
    return {"metadata": {"name": name, **meta}, "target": {"kind": "Node", "name": node}}


async def test_a_pod_is_created_with_defaults_and_served_with_its_kind() -> None:
    async with serving() as (_, call):
        status, made = await call("POST", PODS, pod("a"))
        assert status == 201
        assert made["kind"] == "Pod"
        assert made["spec"]["schedulerName"] == "default-scheduler"
        assert made["spec"]["containers"][0]["resources"]["requests"]["nvidia.com/gpu"] == "1"
        assert made["status"]["phase"] == "Pending"
        assert (await call("GET", PODS + "/a")) == (200, made)


@pytest.mark.parametrize(
    ("path", "body", "want_status", "want_reason"),
    [
        (PODS, pod("taken"), 409, "AlreadyExists"),
        (PODS, pod("A_b"), 422, "Invalid"),
        (PODS, {"metadata": {"name": "a", "resourceVersion": "5"}}, 500, "InternalError"),
        (PODS, {"metadata": {"name": "a", "annotations": {"x y": "1"}}}, 422, "Invalid"),
        (PODS, {"metadata": {"name": "a", "annotations": {"x": "y" * 262_144}}}, 422, "Invalid"),
        (PODS, {"metadata": {"name": "a", "labels": {"x": "no good"}}}, 422, "Invalid"),
        (PODS, {"metadata": {"name": "a", "namespace": "other"}}, 400, "BadRequest"),
        (PODS, [], 400, "BadRequest"),
        ("/api/v1/namespaces/nope/pods", pod("a"), 404, "NotFound"),
    ],
)
async def test_a_create_is_refused(path: str, body: object, want_status: int, want_reason: str) -> None:
    async with serving() as (server, call):
        server.create("pods", pod("taken"))
        status, answer = await call("POST", path, body)
        assert (status, answer["reason"], answer["code"]) == (want_status, want_reason, want_status)


@pytest.mark.parametrize(
    ("patch", "want_status"),
    [
        ({"metadata": {"annotations": {"a": "b"}}}, 200),
        ({"metadata": {"uid": "another", "annotations": {"a": "b"}}}, 422),
        ({"metadata": {"resourceVersion": "1", "annotations": {"a": "b"}}}, 409),
        ({"metadata": {"annotations": {"a": "b" * 262_144}}}, 422),
        ({"spec": {"nodeName": "n"}}, 422),
        ({"spec": {"schedulerName": "other"}}, 422),
        ({"spec": {"tolerations": [{"key": "k", "operator": "Exists"}]}}, 200),
    ],
)
async def test_a_pod_is_patched_or_refused(patch: dict[str, Any], want_status: int) -> None:
    async with serving() as (server, call):
        server.create("pods", pod("a"))
        status, _ = await call("PATCH", PODS + "/a", patch, Content_Type=MERGE)
        assert status == want_status


async def test_a_patch_pinned_to_the_right_uid_is_applied_and_null_removes() -> None:
    async with serving() as (server, call):
        uid = server.create("pods", pod("a"))["metadata"]["uid"]
        patch = {"metadata": {"uid": uid, "annotations": {"a": "b", "c": "d"}}}
        await call("PATCH", PODS + "/a", patch, Content_Type=MERGE)
        patch = {"metadata": {"uid": uid, "annotations": {"a": None}}}
        _, changed = await call("PATCH", PODS + "/a", patch, Content_Type=MERGE)
        assert changed["metadata"]["annotations"] == {"c": "d"}


async def test_a_patch_that_changes_nothing_is_no_new_version() -> None:
    async with serving() as (server, call):
        want_rv = server.create("pods", pod("a"))["metadata"]["resourceVersion"]
        patch = {"metadata": {"labels": None}, "status": {"phase": "Running"}}
        status, same = await call("PATCH", PODS + "/a", patch, Content_Type=MERGE)
        assert (status, same["metadata"]["resourceVersion"]) == (200, want_rv)


async def test_status_changes_only_through_its_subresource() -> None:
    async with serving() as (server, call):
        server.create("pods", pod("a"))
        patch = {
            "status": {"phase": "Running"},
            "spec": {"nodeName": "n"},
            "metadata": {"annotations": {"q": "1"}},
        }
        status, changed = await call("PATCH", PODS + "/a/status", patch, Content_Type=MERGE)
        assert (status, changed["status"]["phase"]) == (200, "Running")
        assert "nodeName" not in changed["spec"]
        assert changed["metadata"]["annotations"] == {"q": "1"}


async def test_a_binding_places_the_pod_and_merges_annotations_but_not_labels() -> None:
    async with serving() as (server, call):
        server.create("pods", pod("a") | {"metadata": {"name": "a", "annotations": {"old": "1"}}})
        sent = binding("a", "a-node-that-is-not-there", annotations={"new": "2"}, labels={"l": "3"})
        status, answer = await call("POST", PODS + "/a/binding", sent)
        assert (status, answer["status"]) == (201, "Success")
        bound = server.get("pods", "a", "default")
        assert bound["spec"]["nodeName"] == "a-node-that-is-not-there"
        assert bound["metadata"]["annotations"] == {"old": "1", "new": "2"}
        assert "labels" not in bound["metadata"]
        assert bound["status"]["conditions"][0]["type"] == "PodScheduled"


async def test_a_second_binding_is_a_conflict_even_to_the_same_node() -> None:
    async with serving() as (server, call):
        server.create("pods", pod("a"))
        server.bind("a", "default", "n")
        status, answer = await call("POST", PODS + "/a/binding", binding("a", "n"))
        assert status == 409
        assert 'already assigned to node "n"' in answer["message"]


@pytest.mark.parametrize(
    ("sent", "want_status"),
    [
        (binding("a", ""), 500),
        ({"metadata": {"name": "a"}, "target": {"kind": "Pod", "name": "n"}}, 500),
        (binding("gone", "n"), 404),
        (binding("a", "n", uid="another"), 409),
    ],
)
async def test_a_wrong_binding_is_refused(sent: dict[str, Any], want_status: int) -> None:
    async with serving() as (server, call):
        server.create("pods", pod("a"))
        name = sent["metadata"]["name"]
        assert (await call("POST", f"{PODS}/{name}/binding", sent))[0] == want_status


async def test_version_1_20_ignores_the_uid_of_a_binding_and_drops_new_fields() -> None:
    async with serving(minor=20) as (server, call):
        server.create("pods", pod("a", schedulingGates=[{"name": "g"}]))
        assert "schedulingGates" not in server.get("pods", "a", "default")["spec"]
        assert (await call("POST", PODS + "/a/binding", binding("a", "n", uid="another")))[0] == 201
        server.create("jobs", {"metadata": {"name": "j"}, "spec": {"suspend": True}})
        assert "suspend" not in server.get("jobs", "j", "default")["spec"]
        assert (await call("GET", "/apis/batch/v1/cronjobs"))[0] == 404


async def test_a_gated_or_deleted_pod_is_not_bound() -> None:
    async with serving() as (server, call):
        server.create("pods", pod("gated", schedulingGates=[{"name": "g"}]))
        held = pod("going")
        held["metadata"]["finalizers"] = ["example.com/held"]
        server.create("pods", held)
        server.delete("pods", "going", "default")
        for name in ("gated", "going"):
            assert (await call("POST", f"{PODS}/{name}/binding", binding(name, "n")))[0] == 409
        opened = {"spec": {"schedulingGates": None, "nodeSelector": {"a": "b"}}}
        assert (await call("PATCH", PODS + "/gated", opened, Content_Type=MERGE))[0] == 200


async def test_a_bound_pod_goes_in_two_steps_and_an_unbound_one_at_once() -> None:
    async with serving() as (server, call):
        server.create("pods", pod("bound"))
        server.bind("bound", "default", "n")
        server.create("pods", pod("waiting"))
        status, going = await call("DELETE", PODS + "/bound")
        assert status == 200
        assert going["metadata"]["deletionGracePeriodSeconds"] == 30
        assert (await call("GET", PODS + "/bound"))[0] == 200
        assert (await call("DELETE", PODS + "/bound?gracePeriodSeconds=0"))[0] == 200
        assert (await call("GET", PODS + "/bound"))[0] == 404
        assert (await call("DELETE", PODS + "/waiting"))[0] == 200
        assert (await call("DELETE", PODS + "/waiting"))[0] == 404


async def test_an_object_with_a_finalizer_stays_until_that_is_gone() -> None:
    async with serving() as (server, call):
        server.create("nodes", {"metadata": {"name": "n", "finalizers": ["example.com/held"]}})
        assert (await call("DELETE", "/api/v1/nodes/n"))[0] == 200
        assert "deletionTimestamp" in server.get("nodes", "n")["metadata"]
        freed = {"metadata": {"finalizers": None}}
        await call("PATCH", "/api/v1/nodes/n", freed, Content_Type=MERGE)
        assert (await call("GET", "/api/v1/nodes/n"))[0] == 404


async def test_a_delete_for_another_uid_is_a_conflict() -> None:
    async with serving() as (server, call):
        server.create("nodes", {"metadata": {"name": "n"}})
        sent = {"preconditions": {"uid": "another"}}
        assert (await call("DELETE", "/api/v1/nodes/n", sent))[0] == 409


def lease(**meta: str) -> dict[str, Any]:
    return {"metadata": {"name": "l", **meta}, "spec": {"holderIdentity": "a", "renewTime": NOW}}


async def test_a_lease_is_held_by_whoever_writes_the_latest_version() -> None:
    async with serving() as (_, call):
        status, made = await call("PUT", LEASES + "/l", lease())
        assert status == 201
        first_rv = made["metadata"]["resourceVersion"]
        assert (await call("POST", LEASES, lease()))[1]["reason"] == "AlreadyExists"
        won = lease(resourceVersion=first_rv)
        won["spec"]["holderIdentity"] = "b"
        assert (await call("PUT", LEASES + "/l", won))[0] == 200
        status, answer = await call("PUT", LEASES + "/l", lease(resourceVersion=first_rv))
        assert (status, answer["reason"]) == (409, "Conflict")
        assert (await call("PUT", LEASES + "/l", lease()))[0] == 422


@pytest.mark.parametrize("time", ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.123Z"])
async def test_times_without_six_digits_are_refused(time: str) -> None:
    async with serving() as (_, call):
        assert (await call("POST", LEASES, {"metadata": {"name": "q"}, "spec": {"renewTime": time}}))[
            0
        ] == 400
        assert (await call("POST", EVENTS, event(eventTime=time)))[0] == 400


def event(**changed: object) -> dict[str, Any]:
    whole = {
        "metadata": {"name": "a.1"},
        "eventTime": NOW,
        "action": "Scheduling",
        "reason": "Placed",
        "type": "Normal",
        "reportingController": "wattbalance",
        "reportingInstance": "wattbalance-1",
        "regarding": {"kind": "Pod", "namespace": "default", "name": "a"},
        "note": "hello",
    }
    return {key: value for key, value in {**whole, **changed}.items() if value is not None}


@pytest.mark.parametrize(
    ("changed", "want_status"),
    [
        ({}, 201),
        ({"action": None}, 422),
        ({"reason": None}, 422),
        ({"reportingController": None}, 422),
        ({"reportingInstance": None}, 422),
        ({"eventTime": None}, 422),
        ({"type": "Odd"}, 422),
        ({"note": "x" * 1025}, 422),
        ({"metadata": {"generateName": "a."}}, 422),
        ({"regarding": {"kind": "Pod", "namespace": "other", "name": "a"}}, 422),
    ],
)
async def test_an_event_is_complete_or_refused(changed: dict[str, Any], want_status: int) -> None:
    async with serving() as (_, call):
        assert (await call("POST", EVENTS, event(**changed)))[0] == want_status


async def test_an_event_becomes_a_series_by_patch_and_is_404_once_gone() -> None:
    async with serving() as (server, call):
        await call("POST", EVENTS, event())
        series = {"series": {"count": 2, "lastObservedTime": NOW}}
        assert (await call("PATCH", EVENTS + "/a.1", series, Content_Type=MERGE))[0] == 200
        server.delete("events", "a.1", "default")
        assert (await call("PATCH", EVENTS + "/a.1", series, Content_Type=MERGE))[0] == 404


async def test_an_update_with_a_stale_version_or_another_uid_is_a_conflict() -> None:
    async with serving() as (server, call):
        made = server.create("nodes", {"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "4"}}})
        made["metadata"]["labels"] = {"a": "b"}
        assert (await call("PUT", "/api/v1/nodes/n", made))[0] == 200
        assert server.get("nodes", "n")["status"]["allocatable"] == {"cpu": "4"}
        assert (await call("PUT", "/api/v1/nodes/n", made))[0] == 409
        assert (await call("PUT", "/api/v1/nodes/n", {"metadata": {"name": "n", "uid": "x"}}))[0] == 409
        assert (await call("PUT", "/api/v1/nodes/m", {"metadata": {"name": "m"}}))[0] == 404


async def test_probes_versions_and_groups_are_discovered() -> None:
    async with serving(hidden_groups=frozenset({"apps"})) as (_, call):
        assert (await call("GET", "/readyz")) == (200, {"text": "ok"})
        assert (await call("GET", "/version"))[1]["minor"] == "32"
        assert (await call("GET", "/api"))[1]["versions"] == ["v1"]
        names = [group["name"] for group in (await call("GET", "/apis"))[1]["groups"]]
        assert names == ["batch", "coordination.k8s.io", "events.k8s.io"]
        assert (await call("GET", "/apis/batch/v1"))[1]["resources"][0]["name"] == "jobs"
        assert (await call("GET", "/apis/apps/v1"))[0] == 404
        assert (await call("GET", "/apis/apps/v1/deployments"))[0] == 404


async def test_an_unknown_resource_method_or_patch_type_is_refused() -> None:
    async with serving() as (server, call):
        server.create("pods", pod("a"))
        assert (await call("GET", "/api/v1/secrets"))[0] == 404
        assert (await call("GET", PODS + "/a/log"))[0] == 404
        assert (await call("DELETE", PODS))[0] == 405
        assert (await call("PATCH", PODS + "/a", {}, Content_Type="application/json-patch+json"))[0] == 415


async def test_a_strategic_patch_is_taken_where_it_means_the_same_as_a_merge() -> None:
    kind = "application/strategic-merge-patch+json"
    async with serving() as (server, call):
        server.create("nodes", {"metadata": {"name": "n"}})
        taints = [{"key": "k", "effect": "NoSchedule"}]
        patch: dict[str, Any] = {"spec": {"unschedulable": True, "taints": taints}}
        assert (await call("PATCH", "/api/v1/nodes/n", patch, Content_Type=kind))[0] == 200
        assert server.get("nodes", "n")["spec"] == patch["spec"]
        patch = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        assert (await call("PATCH", "/api/v1/nodes/n/status", patch, Content_Type=kind))[0] == 415


async def test_a_token_is_demanded_where_one_is_set() -> None:
    async with serving(token="secret") as (_, call):
        assert (await call("GET", PODS))[0] == 401
        assert (await call("GET", PODS, Authorization="Bearer secret"))[0] == 200
        assert (await call("GET", "/readyz"))[0] == 200


async def test_a_deleted_namespace_takes_its_objects_along() -> None:
    async with serving() as (server, call):
        server.create("namespaces", {"metadata": {"name": "team"}})
        server.create("pods", {**pod("a"), "metadata": {"name": "a", "namespace": "team"}})
        await call("DELETE", "/api/v1/namespaces/team")
        assert server.count("pods") == 0
