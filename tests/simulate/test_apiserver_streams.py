"""The simulated API server, asked over HTTP: paged lists, watches and faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from scheduler.core.clock import ManualClock
from scheduler.simulate.apiserver import ApiServer

PARTIAL = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io,application/json"
PARTIAL_LIST = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json"
# Long beside anything that loopback does, so that only silence runs into it.
SILENCE_S = 0.3


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[ApiServer, aiohttp.ClientSession]]:
    server = ApiServer(ManualClock(), **options)
    await server.start()
    try:
        async with aiohttp.ClientSession(server.url) as session:
            yield server, session
    finally:
        await server.stop()


async def get(session: aiohttp.ClientSession, path: str, accept: str = "*/*") -> tuple[int, dict[str, Any]]:
    async with session.get(path, headers={"Accept": accept}) as response:
        return response.status, await response.json()


def node(name: str, **meta: object) -> dict[str, Any]:
    return {"metadata": {"name": name, **meta}, "status": {"allocatable": {"cpu": "4"}}}


@contextlib.asynccontextmanager
async def watching(
    session: aiohttp.ClientSession, query: str, path: str = "/api/v1/nodes", accept: str = "*/*"
) -> AsyncIterator[aiohttp.StreamReader]:
    async with session.get(f"{path}?watch=1&{query}", headers={"Accept": accept}) as response:
        assert response.status == 200
        yield response.content


async def line(content: aiohttp.StreamReader) -> dict[str, Any]:
    async with asyncio.timeout(60):
        found: dict[str, Any] = json.loads(await content.readline())
        return found


async def silent(content: aiohttp.StreamReader) -> bool:
    try:
        async with asyncio.timeout(SILENCE_S):
            return not await content.readline()
    except TimeoutError:
        return True


async def test_pages_are_one_consistent_list_whatever_is_written_between_them() -> None:
    async with serving() as (server, session):
        for at in range(7):
            server.create("nodes", node(f"n{at}"))
        _, first = await get(session, "/api/v1/nodes?limit=3")
        server.delete("nodes", "n5")
        server.create("nodes", node("n9"))
        assert first["metadata"]["remainingItemCount"] == 4
        names, token = [item["metadata"]["name"] for item in first["items"]], first["metadata"]["continue"]
        while token:
            _, page = await get(session, f"/api/v1/nodes?limit=3&continue={token}")
            assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
            names += [item["metadata"]["name"] for item in page["items"]]
            token = page["metadata"].get("continue")
        assert names == [f"n{at}" for at in range(7)]


async def test_list_items_lack_kind_and_partial_items_have_only_metadata() -> None:
    async with serving() as (server, session):
        server.create("nodes", node("n", labels={"a": "b"}))
        _, whole = await get(session, "/api/v1/nodes")
        assert (whole["kind"], whole["items"][0].keys()) == ("NodeList", {"metadata", "status"})
        _, partial = await get(session, "/api/v1/nodes", PARTIAL_LIST)
        assert partial["kind"] == "PartialObjectMetadataList"
        assert partial["items"][0].keys() == {"kind", "apiVersion", "metadata"}
        assert partial["items"][0]["metadata"]["labels"] == {"a": "b"}
        assert (await get(session, "/api/v1/nodes/n", PARTIAL))[1]["kind"] == "PartialObjectMetadata"


async def test_version_0_ignores_the_limit_as_the_watch_cache_does() -> None:
    async with serving() as (server, session):
        for at in range(5):
            server.create("nodes", node(f"n{at}"))
        _, answer = await get(session, "/api/v1/nodes?limit=2&resourceVersion=0")
        assert len(answer["items"]) == 5


@pytest.mark.parametrize("by_fault", [True, False])
async def test_an_expired_continue_token_is_410(by_fault: bool) -> None:
    async with serving() as (server, session):
        for at in range(3):
            server.create("nodes", node(f"n{at}"))
        _, first = await get(session, "/api/v1/nodes?limit=1")
        if by_fault:
            server.faults.expire_continue = True
        else:
            server.expire_lists()
        status, answer = await get(session, f"/api/v1/nodes?limit=1&continue={first['metadata']['continue']}")
        assert (status, answer["reason"]) == (410, "Expired")


async def test_what_never_was_a_continue_token_is_400() -> None:
    async with serving() as (_, session):
        assert (await get(session, "/api/v1/nodes?limit=1&continue=xx"))[0] == 400


async def test_big_lists_are_packed_for_clients_that_take_it() -> None:
    async with serving() as (server, session):
        server.create("nodes", node("n", annotations={"big": "x" * 200_000}))
        for _ in range(2):
            async with session.get("/api/v1/nodes") as response:
                assert response.headers["Content-Encoding"] == "gzip"
                assert (await response.json())["items"][0]["metadata"]["name"] == "n"
        async with session.get("/api/v1/nodes", headers={"Accept-Encoding": "identity"}) as response:
            assert "Content-Encoding" not in response.headers


@pytest.mark.parametrize(
    ("query", "want_names"),
    [
        ("fieldSelector=metadata.name%3Dn1", ["n1"]),
        ("fieldSelector=metadata.name!%3Dn1", ["n0", "n2"]),
        ("labelSelector=at%3D2", ["n2"]),
        ("labelSelector=at!%3D2", ["n0", "n1"]),
        ("labelSelector=at+in+(0,2),at", ["n0", "n2"]),
        ("labelSelector=at+notin+(0,2)", ["n1"]),
        ("labelSelector=!at", []),
    ],
)
async def test_lists_select_by_field_and_label(query: str, want_names: list[str]) -> None:
    async with serving() as (server, session):
        for at in range(3):
            server.create("nodes", node(f"n{at}", labels={"at": str(at)}))
        _, answer = await get(session, f"/api/v1/nodes?{query}")
        assert [item["metadata"]["name"] for item in answer["items"]] == want_names


async def test_a_watch_from_a_list_version_gets_what_came_after_it_in_order() -> None:
    async with serving() as (server, session):
        server.create("nodes", node("before"))
        _, listed = await get(session, "/api/v1/nodes")
        server.create("nodes", node("n"))
        async with watching(session, f"resourceVersion={listed['metadata']['resourceVersion']}") as content:
            server.patch("nodes", "n", "", {"metadata": {"labels": {"a": "b"}}})
            server.delete("nodes", "n")
            events = [await line(content) for _ in range(3)]
        assert [event["type"] for event in events] == ["ADDED", "MODIFIED", "DELETED"]
        assert [event["object"]["metadata"]["name"] for event in events] == ["n", "n", "n"]
        assert events[0]["object"]["kind"] == "Node"
        versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
        assert versions == sorted(set(versions))


@pytest.mark.parametrize("query", ["", "resourceVersion=0"])
async def test_a_watch_without_a_version_replays_what_there_is(query: str) -> None:
    async with serving() as (server, session):
        server.create("nodes", node("n"))
        async with watching(session, query, accept=PARTIAL) as content:
            event = await line(content)
        assert (event["type"], event["object"]["kind"]) == ("ADDED", "PartialObjectMetadata")
        assert "status" not in event["object"]


async def test_a_watch_from_the_future_is_200_and_silence() -> None:
    async with serving() as (server, session), watching(session, "resourceVersion=99999") as content:
        server.create("nodes", node("n"))
        assert await silent(content)


@pytest.mark.parametrize("by_fault", [True, False])
async def test_a_watch_from_too_old_a_version_is_told_so_inside_a_200(by_fault: bool) -> None:
    async with serving(window_events=2) as (server, session):
        if by_fault:
            server.faults.expire_watches = True
        for at in range(0 if by_fault else 4):
            server.create("nodes", node(f"n{at}"))
        async with watching(session, "resourceVersion=1") as content:
            event = await line(content)
            assert await content.read() == b""
        assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
        assert event["object"]["status"] == "Failure"


async def test_bookmarks_come_when_asked_for_and_a_watch_ends_at_its_time() -> None:
    async with serving(bookmark_every_s=0.05) as (server, session):
        query = "resourceVersion=1&timeoutSeconds=1&allowWatchBookmarks=true"
        async with watching(session, query) as content:
            server.create("pods", {"metadata": {"name": "p"}})
            bookmark = await line(content)
            rest = await content.read()
        assert bookmark["type"] == "BOOKMARK"
        assert bookmark["object"]["kind"] == "Node"
        assert b"BOOKMARK" not in rest or rest.endswith(b"\n")
        async with watching(session, "resourceVersion=1&timeoutSeconds=1") as content:
            assert await content.read() == b""


async def test_the_watch_list_is_refused_by_servers_that_lack_it() -> None:
    query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    async with serving() as (_, session):
        assert (await get(session, f"/api/v1/nodes?{query}"))[0] == 422
    async with serving(watch_list=True) as (server, session):
        server.create("nodes", node("n"))
        async with watching(session, query) as content:
            assert (await line(content))["type"] == "ADDED"
            end = await line(content)
        assert end["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_a_watch_of_one_namespace_or_selection_sees_only_that() -> None:
    async with serving() as (server, session):
        server.create("namespaces", {"metadata": {"name": "team"}})
        path = "/api/v1/namespaces/team/pods"
        async with watching(session, "resourceVersion=1&labelSelector=a%3Db", path=path) as content:
            for namespace in ("default", "team"):
                server.create("pods", {"metadata": {"name": "p", "namespace": namespace}})
            server.patch("pods", "p", "team", {"metadata": {"labels": {"a": "b"}}})
            server.patch("pods", "p", "team", {"metadata": {"labels": {"a": "c"}}})
            types = [(await line(content))["type"] for _ in range(2)]
        assert types == ["ADDED", "DELETED"]


async def test_a_dropped_watch_breaks_off_and_can_resume() -> None:
    async with serving() as (server, session):
        async with watching(session, "resourceVersion=1") as content:
            server.create("nodes", node("n"))
            seen = await line(content)
            server.drop_watches()
            with pytest.raises(aiohttp.ClientPayloadError):
                await content.readline()
        server.create("nodes", node("m"))
        rv = seen["object"]["metadata"]["resourceVersion"]
        async with watching(session, f"resourceVersion={rv}") as content:
            assert (await line(content))["object"]["metadata"]["name"] == "m"


async def test_silent_watches_lose_what_happens_meanwhile() -> None:
    async with serving() as (server, session), watching(session, "resourceVersion=1") as content:
        server.faults.silent_watches = True
        server.create("nodes", node("lost"))
        assert await silent(content)


async def test_a_frozen_server_is_silent_and_goes_on_once_thawed() -> None:
    async with serving() as (server, session), watching(session, "resourceVersion=1") as content:
        server.faults.frozen = True
        asked = asyncio.ensure_future(get(session, "/api/v1/nodes"))
        server.create("nodes", node("n"))
        assert await silent(content)
        assert not asked.done()
        server.faults.frozen = False
        assert (await asked)[0] == 200
        assert (await line(content))["object"]["metadata"]["name"] == "n"


async def test_a_refusing_server_closes_everything_and_comes_back_on_its_port() -> None:
    async with serving() as (server, session):
        server.create("nodes", node("n"))
        await server.refuse()
        with pytest.raises(aiohttp.ClientConnectorError):
            await get(session, "/api/v1/nodes")
        await server.accept()
        assert len((await get(session, "/api/v1/nodes"))[1]["items"]) == 1


async def test_throttled_requests_name_a_delay() -> None:
    async with serving() as (server, session):
        server.faults.throttle_next = 1
        async with session.get("/api/v1/nodes") as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "1")
        assert (await get(session, "/api/v1/nodes"))[0] == 200


async def test_failing_and_unauthorized_answers_are_statuses() -> None:
    async with serving() as (server, session):
        server.faults.fail_next = 1
        assert (await get(session, "/api/v1/nodes"))[0] == 500
        server.faults.unauthorized = True
        assert (await get(session, "/api/v1/nodes"))[1]["reason"] == "Unauthorized"


async def test_a_slow_server_answers_late() -> None:
    async with serving() as (server, session):
        server.faults.slow_s = 2 * SILENCE_S
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SILENCE_S):
                await get(session, "/api/v1/nodes")


async def test_a_forbidden_verb_is_named_with_its_resource() -> None:
    async with serving() as (server, session):
        server.faults.forbidden.add(("list", "nodes"))
        status, answer = await get(session, "/api/v1/nodes")
        assert (status, answer["reason"]) == (403, "Forbidden")
        assert 'cannot list resource "nodes" in API group "" at the cluster scope' in answer["message"]
        assert server.requests["list", "nodes"] == 1


async def test_a_bind_whose_answer_is_lost_is_applied_all_the_same() -> None:
    async with serving() as (server, session):
        body = {"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}}
        server.create("pods", {"metadata": {"name": "p"}})
        server.faults.lose_binds = 1
        server.faults.lose_bind_answers = 1
        short = aiohttp.ClientTimeout(total=SILENCE_S)
        faults = server.faults
        for want_node, fault in ((None, "lose_binds"), ("n", "lose_bind_answers")):
            # On a machine that stalls the time may be over before the request came.
            while getattr(faults, fault):
                with pytest.raises(TimeoutError):
                    await session.post("/api/v1/namespaces/default/pods/p/binding", json=body, timeout=short)
            assert server.get("pods", "p", "default")["spec"].get("nodeName") == want_node


async def test_huge_objects_are_served_everywhere() -> None:
    async with serving() as (server, session):
        server.create("nodes", node("n"))
        server.faults.pad_bytes = 1_000_000
        assert len((await get(session, "/api/v1/nodes"))[1]["items"][0]["padding"]) == 1_000_000
        assert len((await get(session, "/api/v1/nodes/n"))[1]["padding"]) == 1_000_000
        async with session.get("/api/v1/nodes?watch=1", read_bufsize=4_000_000) as response:
            assert len((await line(response.content))["object"]["padding"]) == 1_000_000


async def test_a_hook_hears_what_is_there_and_what_comes_until_it_is_ended() -> None:
    async with serving() as (server, _):
        server.create("nodes", node("n"))
        heard: list[tuple[str, str]] = []
        end = server.subscribe(
            "nodes", lambda event: heard.append((event.type, event.object["metadata"]["name"]))
        )
        server.create("nodes", node("m"))
        end()
        server.delete("nodes", "m")
        assert heard == [("ADDED", "n"), ("ADDED", "m")]
