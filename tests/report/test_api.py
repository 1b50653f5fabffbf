"""The JSON API and the probes over a real socket on loopback."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request

from scheduler.decision.record import DecisionLog, DecisionRecord
from scheduler.report.api import Api
from scheduler.report.families import Sources
from scheduler.report.metrics import CONTENT_TYPE, MetricsPage
from scheduler.report.paging import Key, page_of
from scheduler.report.probes import metrics_routes, probe_routes
from scheduler.report.views import NodeView, PodView, Readiness

Client = TestClient[web.Request, web.Application]
Json = dict[str, object]


class World:
    """What app.py would offer, in dicts."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeView] = {}
        self.pods: dict[str, PodView] = {}
        self.log = DecisionLog(kept=100)
        self.why_dead = ""
        self.ready = Readiness(ready=True, role="leader", leader="me")

    def node_names(self) -> Sequence[str]:
        return list(self.nodes)

    def node_pool(self, name: str) -> str | None:
        return self.nodes[name].pool if name in self.nodes else None

    def node(self, name: str) -> NodeView | None:
        return self.nodes.get(name)

    def pod_uids(self) -> Sequence[str]:
        return list(self.pods)

    def pod_key(self, uid: str) -> tuple[str, str, str] | None:
        pod = self.pods.get(uid)
        return (pod.namespace, pod.name, uid) if pod is not None else None

    def pod_node(self, uid: str) -> str | None:
        return self.pods[uid].node if uid in self.pods else None

    def pod(self, uid: str) -> PodView | None:
        return self.pods.get(uid)

    def decisions(self) -> Iterable[DecisionRecord]:
        return iter(self.log)

    def live(self) -> str:
        return self.why_dead

    def readiness(self) -> Readiness:
        return self.ready

    def add_node(self, name: str, pool: str = "dc") -> None:
        self.nodes[name] = NodeView(name=name, pool=pool, gpus=8, free_gpus=8)

    def add_pod(self, namespace: str, name: str, node: str = "") -> None:
        uid = f"{namespace}-{name}-uid"
        self.pods[uid] = PodView(name=name, namespace=namespace, uid=uid, gpus=1, node=node)

    def add_decision(self, number: int, namespace: str = "ml") -> None:
        self.log.add(
            DecisionRecord(
                cycle=f"c{number}",
                unix_s=float(number),
                verb="filter",
                namespace=namespace,
                pod=f"pod-{number}",
                uid=f"u{number}",
                profile="training",
                placement="decisive",
                gpus=1,
                resources={"nvidia.com/gpu": 1},
                asked=5,
                fitting=2,
                chosen="n1",
                result="placed",
                reserved=True,
                reasons={"node in quarantine": 3},
                policies=(),
                best=(),
            )
        )


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def client(world: World) -> AsyncIterator[Client]:
    app = web.Application()
    app.add_routes(Api(world, world, world, "1.2.3").routes())
    app.add_routes(probe_routes(world))
    app.add_routes(metrics_routes(MetricsPage(Sources(), world)))
    async with TestClient(TestServer(app)) as opened:
        yield opened


async def get(client: Client, path: str, want_status: int = 200) -> Json:
    async with client.get(path) as response:
        assert response.status == want_status, await response.text()
        assert response.content_type == "application/json"
        answer = await response.json()
        assert isinstance(answer, dict)
        return answer


def names(answer: Json) -> list[str]:
    items = answer["items"]
    assert isinstance(items, list)
    return [item["name"] for item in items]


async def all_pages(client: Client, path: str) -> list[list[str]]:
    pages: list[list[str]] = []
    answer = await get(client, path)
    pages.append(names(answer))
    while "continue" in answer:
        answer = await get(client, f"{path}&continue={answer['continue']}")
        pages.append(names(answer))
    return pages


async def test_nodes_come_by_name_with_unknown_as_null(client: Client, world: World) -> None:
    for name in ("n2", "n1", "n3"):
        world.add_node(name)
    answer = await get(client, "/api/v1/nodes")
    assert names(answer) == ["n1", "n2", "n3"]
    assert "continue" not in answer
    first = answer["items"][0]  # type: ignore[index]  # JSON
    assert first["power_w"] is None
    assert first["load_frac"] is None


async def test_pages_hold_every_node_once(client: Client, world: World) -> None:
    for number in range(7):
        world.add_node(f"n{number}")
    pages = await all_pages(client, "/api/v1/nodes?limit=3")
    assert pages == [["n0", "n1", "n2"], ["n3", "n4", "n5"], ["n6"]]


async def test_a_filter_counts_what_it_keeps(client: Client, world: World) -> None:
    for number in range(8):
        world.add_node(f"n{number}", pool="aws" if number % 2 else "dc")
    pages = await all_pages(client, "/api/v1/nodes?pool=aws&limit=2")
    assert [name for page in pages for name in page] == ["n1", "n3", "n5", "n7"]


async def test_what_goes_between_two_pages_moves_nothing(client: Client, world: World) -> None:
    for number in range(6):
        world.add_node(f"n{number}")
    answer = await get(client, "/api/v1/nodes?limit=3")
    del world.nodes["n0"], world.nodes["n2"]
    rest = await get(client, f"/api/v1/nodes?limit=3&continue={answer['continue']}")
    assert names(rest) == ["n3", "n4", "n5"]


async def test_pods_by_namespace_and_node(client: Client, world: World) -> None:
    world.add_pod("b", "one", node="n1")
    world.add_pod("a", "two", node="n1")
    world.add_pod("a", "one")
    assert names(await get(client, "/api/v1/pods")) == ["one", "two", "one"]
    assert names(await get(client, "/api/v1/pods?namespace=a")) == ["one", "two"]
    assert names(await get(client, "/api/v1/pods?node=n1")) == ["two", "one"]
    assert await all_pages(client, "/api/v1/pods?limit=1") == [["one"], ["two"], ["one"]]


async def test_decisions_come_newest_first_and_page_on_while_new_ones_arrive(
    client: Client, world: World
) -> None:
    for number in range(5):
        world.add_decision(number)
    answer = await get(client, "/api/v1/decisions?limit=2")
    assert names(answer) == ["pod-4", "pod-3"]
    world.add_decision(5)
    rest = await get(client, f"/api/v1/decisions?limit=9&continue={answer['continue']}")
    assert names(rest) == ["pod-2", "pod-1", "pod-0"]
    assert rest["items"][0]["reasons"] == {"node in quarantine": 3}  # type: ignore[index]  # JSON


async def test_decisions_are_filtered(client: Client, world: World) -> None:
    for number in range(4):
        world.add_decision(number, namespace="web" if number % 2 else "ml")
    assert names(await get(client, "/api/v1/decisions?namespace=web")) == ["pod-3", "pod-1"]
    assert names(await get(client, "/api/v1/decisions?uid=u2")) == ["pod-2"]
    assert names(await get(client, "/api/v1/decisions?result=no_fit")) == []


async def test_a_page_that_fell_out_of_the_log_is_gone(client: Client, world: World) -> None:
    for number in range(3):
        world.add_decision(number)
    answer = await get(client, "/api/v1/decisions?limit=1")
    for number in range(10, 200):
        world.add_decision(number)
    error = await get(client, f"/api/v1/decisions?continue={answer['continue']}", want_status=410)
    assert "without `continue`" in str(error["error"])


@pytest.mark.parametrize(
    "query",
    [
        *(
            "limit=0",
            "limit=-1",
            "limit=x",
            "limit=",
            "limit=1e3",
            "limit=%D9%A3",
            "limit=99999999999999999999",
        ),
        *("continue=x", "continue=%00", "continue=bnVsbA", "continue=WyJhIiwiYiIsImMiLCJkIl0", "pol=dc"),
    ],
)
@pytest.mark.parametrize("name", ["nodes", "pods", "decisions"])
async def test_a_bad_query_is_told_and_the_next_one_served(client: Client, name: str, query: str) -> None:
    error = await get(client, f"/api/v1/{name}?{query}", want_status=400)
    assert error["error"]
    assert (await get(client, f"/api/v1/{name}"))["items"] == []


async def test_the_description_names_every_list_every_parameter_and_every_field(
    client: Client, world: World
) -> None:
    world.add_node("n1")
    world.add_pod("a", "one")
    world.add_decision(1)
    described = await get(client, "/api/v1/openapi.json")
    schemas = described["components"]["schemas"]  # type: ignore[index]  # JSON
    for path, schema in (("nodes", "NodeView"), ("pods", "PodView"), ("decisions", "DecisionRecord")):
        answer = await get(client, f"/api/v1/{path}")
        item = answer["items"][0]  # type: ignore[index]  # JSON
        assert set(item) - {"name"} == set(schemas[schema]["properties"]) - {"name"}
        operation = described["paths"][f"/api/v1/{path}"]["get"]  # type: ignore[index]  # JSON
        for parameter in operation["parameters"]:
            value = "1" if parameter["schema"]["type"] == "integer" else ""
            await get(client, f"/api/v1/{path}?{parameter['name']}={value}")


async def test_the_first_page_links_to_what_there_is(client: Client) -> None:
    async with client.get("/", headers={"Accept": "text/html,*/*;q=0.8"}) as response:
        text = await response.text()
        assert response.content_type == "text/html"
    for path in ("/api/v1/nodes", "/api/v1/pods", "/api/v1/decisions", "/api/v1/openapi.json"):
        assert f'href="{path}"' in text
        await get(client, path)
    assert "//" not in text.replace("<!doctype html>", ""), "it loads nothing from elsewhere"


@pytest.mark.parametrize("path", ["/", "/api/v1", "/api/v1/"])
async def test_who_types_the_beginning_is_told_what_there_is(client: Client, path: str) -> None:
    answer = await get(client, path)
    assert names(answer) == ["nodes", "pods", "decisions"]
    for item in answer["items"]:  # type: ignore[attr-defined]  # JSON
        for parameter in item["parameters"]:
            await get(client, f"{item['path']}?{parameter}={1 if parameter == 'limit' else ''}")
    await get(client, str(answer["openapi"]))


async def test_an_empty_filter_keeps_everything(client: Client, world: World) -> None:
    world.add_node("n")
    world.add_pod("a", "p")
    world.add_decision(1)
    for query, want_name in (
        ("nodes?pool=", "n"),
        ("pods?namespace=&node=", "p"),
        ("decisions?namespace=&pod=&uid=&result=&continue=", "pod-1"),
    ):
        assert names(await get(client, f"/api/v1/{query}")) == [want_name]


@pytest.mark.parametrize(
    ("query", "want_text"),
    [
        ("nodes?pol=dc", "known: pool, limit, continue"),
        ("nodes?limit=0", "from 1 to 5000, got '0'"),
        ("nodes?limit=1&limit=2", "limit: given more than once"),
        ("decisions?result=failed", "expected one of placed, advised, no_fit"),
        ("decisions?result=failed", "got 'failed'"),
        ("pods?continue=x", "continue: expected the value that came with the page before"),
    ],
)
async def test_a_refused_query_says_what_was_expected(client: Client, query: str, want_text: str) -> None:
    assert want_text in str((await get(client, f"/api/v1/{query}", want_status=400))["error"])


@pytest.mark.parametrize("path", ["/", "/api/v1", "/api/v1/", "/api/v1/openapi.json"])
@pytest.mark.parametrize("query", ["x=1", "x", "limit=5", "pretty=true&x=2"])
async def test_what_takes_no_parameter_refuses_each(client: Client, path: str, query: str) -> None:
    error = await get(client, f"{path}?{query}", want_status=400)
    assert str(error["error"]).startswith(f"unknown parameter {query.partition('=')[0]!r}")
    assert str(error["error"]).endswith("known: none")
    await get(client, f"{path}?")


async def test_a_hostile_name_of_a_parameter_is_shown_in_part(client: Client) -> None:
    error = await get(client, f"/api/v1/nodes?{'x' * 2000}=1", want_status=400)
    assert len(str(error["error"])) < 200


@pytest.mark.parametrize("path", ["/readyz", "/livez", "/metrics"])
async def test_probes_and_scrapers_may_add_parameters_of_their_own(client: Client, path: str) -> None:
    async with client.get(f"{path}?verbose&x=1") as response:
        assert response.status == 200


async def test_a_list_may_be_asked_for_its_head(client: Client, world: World) -> None:
    world.add_node("n1")
    async with client.head("/api/v1/nodes") as response:
        assert response.status == 200
        assert int(response.headers["Content-Length"]) > len('{"items":[]}')
        assert await response.read() == b""


def references(value: object) -> list[str]:
    if isinstance(value, dict):
        here = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return here + [found for inner in value.values() for found in references(inner)]
    return [found for inner in value for found in references(inner)] if isinstance(value, list) else []


async def test_the_description_is_sound_openapi(client: Client) -> None:
    described: Any = await get(client, "/api/v1/openapi.json")
    assert re.fullmatch(r"3\.1\.\d+", described["openapi"])
    assert described["info"]["title"]
    assert described["info"]["version"] == "1.2.3"
    assert set(described) <= {"openapi", "info", "paths", "components"}
    operations = [(path, item["get"]) for path, item in described["paths"].items()]
    assert len({operation["operationId"] for _, operation in operations}) == len(operations)
    for path, operation in operations:
        assert path.startswith("/")
        assert set(operation) <= {"operationId", "summary", "description", "parameters", "responses"}
        asked = [(each["name"], each["in"]) for each in operation["parameters"]]
        assert len(set(asked)) == len(asked)
        for parameter in operation["parameters"]:
            in_path = f"{{{parameter['name']}}}" in path
            assert set(parameter) - {"required"} == {"name", "in", "description", "schema"}
            assert parameter["in"] == ("path" if in_path else "query")
            assert parameter.get("required", False) == in_path
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[1-5]\d\d", status)
            assert response["description"]
            assert set(response["content"]) == {"application/json"}
            assert set(response["content"]["application/json"]) == {"schema"}
    for reference in references(described):
        found: Any = described
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
        assert found["type"] == "object"


async def test_the_description_says_how_a_score_came_about(client: Client, world: World) -> None:
    described: Any = await get(client, "/api/v1/openapi.json")
    assert "share times score" in described["paths"]["/api/v1/decisions"]["get"]["description"]
    schemas = described["components"]["schemas"]
    for schema, field in (
        ("DecisionRecord", "policies"),
        ("DecisionRecord", "best"),
        ("Ranked", "score"),
        ("Ranked", "scores"),
        ("Weighed", "weight"),
        ("NodeView", "reading_age_s"),
    ):
        assert schemas[schema]["properties"][field]["description"], (schema, field)
    parameters = described["paths"]["/api/v1/decisions"]["get"]["parameters"]
    [result] = [each["schema"] for each in parameters if each["name"] == "result"]
    told = schemas["DecisionRecord"]["properties"]["result"]["description"]
    assert result["enum"] == re.findall(r"(?:^|\| )(\w+)", told)


async def test_a_standby_that_knows_enough_is_ready(client: Client, world: World) -> None:
    world.ready = Readiness(ready=True, role="standby", leader="other", degraded=["broker"])
    answer = await get(client, "/readyz")
    assert answer == {
        "ready": True,
        "role": "standby",
        "leader": "other",
        "mode": "act",
        "degraded": ["broker"],
        "reasons": [],
        "forbidden": [],
        "paused": None,
    }


async def test_not_ready_says_why(client: Client, world: World) -> None:
    world.ready = Readiness(ready=False, role="standby", reasons=["API server silent for 61 s"])
    answer = await get(client, "/readyz", want_status=503)
    assert answer["reasons"] == ["API server silent for 61 s"]


async def test_alive_until_it_says_otherwise(client: Client, world: World) -> None:
    assert (await get(client, "/livez"))["live"] is True
    world.why_dead = "the store's loop has ended"
    answer = await get(client, "/livez", want_status=503)
    assert answer == {"live": False, "reasons": ["the store's loop has ended"]}


async def test_metrics_are_served_as_the_text_format(client: Client, world: World) -> None:
    world.add_node("n1")
    async with client.get(
        "/metrics", headers={aiohttp.hdrs.ACCEPT: "application/openmetrics-text"}
    ) as response:
        assert response.headers["Content-Type"] == CONTENT_TYPE
        assert 'wattbalance_pool_nodes{pool="dc"} 1.0' in await response.text()


async def test_a_large_metrics_page_is_whole_and_may_be_asked_for_its_head(
    client: Client, world: World
) -> None:
    for number in range(3000):
        world.add_node(f"n{number:05}")
    async with client.get("/metrics") as response:
        page = await response.text()
        size = response.headers["Content-Length"]
    assert len(page) == int(size)
    assert sum(line.startswith("wattbalance_node_gpus{") for line in page.splitlines()) == 4 * 3000
    async with client.head("/metrics") as response:
        assert response.status == 200
        assert await response.read() == b""
    async with client.get("/livez") as response:
        assert response.status == 200


async def test_only_get_is_answered(client: Client) -> None:
    async with client.post("/api/v1/nodes", data=b"{}") as response:
        assert response.status == 405


async def test_a_long_list_is_put_in_order_across_turns() -> None:
    numbers = [(number * 7919) % 5000 for number in range(5000)]

    def key_of(number: int) -> Key | None:
        return (f"k{number:05}",) if number % 2 else None

    keys, last = await page_of(numbers, key_of, ("k00999",), 1500)
    assert keys == [(f"k{number:05}",) for number in range(1001, 4001, 2)]
    assert last == ("k03999",)
    keys, last = await page_of(numbers, key_of, last, 1500)
    assert keys == [(f"k{number:05}",) for number in range(4001, 5000, 2)]
    assert last is None


async def test_a_page_in_several_parts_is_whole(client: Client, world: World) -> None:
    want_names = [f"n{number:05}" for number in range(5000)]
    for name in want_names:
        world.add_node(name)
    answer = await get(client, "/api/v1/nodes?limit=4999")
    assert names(answer) == want_names[:-1]
    assert names(await get(client, f"/api/v1/nodes?continue={answer['continue']}")) == want_names[-1:]
    async with client.head("/api/v1/nodes?limit=5000") as response:
        assert response.status == 200
        assert await response.read() == b""


@pytest.mark.parametrize(
    ("path", "want_turns"),
    [
        ("nodes?limit=5000", 40),
        ("nodes?pool=none", 4),
        ("pods?limit=5000", 40),
        ("pods?namespace=none", 4),
        ("pods?node=none", 4),
        ("decisions?limit=500", 10),
        ("decisions?pod=none", 4),
    ],
)
async def test_others_get_their_turn_while_a_long_list_is_made(
    world: World, path: str, want_turns: int
) -> None:
    world.log = DecisionLog(kept=2000)
    for number in range(2000):
        world.add_node(f"n{number}")
        world.add_pod("a", f"p{number}")
        world.add_decision(number)
    app = web.Application()
    app.add_routes(Api(world, world, world, "1").routes())
    asked = make_mocked_request("GET", f"/api/v1/{path}")
    found = await app.router.resolve(asked)
    asking = asyncio.ensure_future(found.handler(asked))
    turns = 0
    while not asking.done():
        turns += 1
        await asyncio.sleep(0)
    assert asking.result().status == 200
    assert turns >= want_turns
