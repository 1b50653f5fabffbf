"""The door itself, over real connections: what it answers, counts and survives."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientSession, web

from scheduler.core.clock import ManualClock
from scheduler.extender.answers import bind_answer, filter_all_answer, preempt_answer
from scheduler.extender.server import BUCKETS_S, LOOPBACK, ExtenderCounters, ExtenderServer, Latency

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scheduler.extender.wire import BindArgs, FilterArgs, PreemptArgs

# How long to wait for what must come; only what hangs runs into it.
PATIENCE_S = 60.0
POD = {"metadata": {"name": "p", "uid": "u"}}
QUESTION = {"Pod": POD, "Nodes": None, "NodeNames": ["a", "b"]}
BIND = {"PodName": "p", "PodNamespace": "ns", "PodUID": "u", "Node": "a"}


class EchoingVerbs:
    """Answers with what was asked; can be told to refuse, to raise, or to hold a bind."""

    def __init__(self) -> None:
        self.why_not: str | None = None
        self.loopback_only = False
        self.raises: Exception | None = None
        self.binding = asyncio.Event()
        self.may_bind = asyncio.Event()
        self.may_bind.set()
        self.asked: list[FilterArgs] = []

    def filter(self, args: FilterArgs) -> bytes:
        if self.raises is not None:
            raise self.raises
        self.asked.append(args)
        return filter_all_answer(args)

    def prioritize(self, args: FilterArgs) -> bytearray:
        return bytearray(json.dumps([{"Host": name, "Score": 0} for name in args.names]), "utf-8")

    def preempt(self, args: PreemptArgs) -> bytes:
        return preempt_answer(args.victims)

    async def bind(self, args: BindArgs) -> bytes:
        self.binding.set()
        await self.may_bind.wait()
        return bind_answer(f"{args.namespace}/{args.name} is bound to {args.node}")

    def may_answer(self, loopback: bool) -> str | None:
        return None if self.loopback_only and loopback else self.why_not


class Door:
    """A served extender, and a client that speaks HTTP/1.1 by hand."""

    def __init__(
        self,
        server: ExtenderServer,
        verbs: EchoingVerbs,
        counters: ExtenderCounters,
        clock: ManualClock,
        port: int,
    ) -> None:
        self.server = server
        self.clock = clock
        self.verbs = verbs
        self.counters = counters
        self.port = port

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def ask(self, verb: str, body: object) -> tuple[int, object]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port}/scheduler/{verb}"
        async with ClientSession() as session, session.post(url, data=data) as response:
            assert response.headers["Content-Type"].startswith("application/json")
            return response.status, json.loads(await response.read())


def request(verb: str, body: bytes, length: int | None = None) -> bytes:
    announced = len(body) if length is None else length
    return (
        f"POST /scheduler/{verb} HTTP/1.1\r\nHost: x\r\nContent-Length: {announced}\r\n\r\n".encode() + body
    )


async def read_answer(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {key.lower(): value for key, value in (line.split(": ", 1) for line in lines)}
    return first.split(" ", 1)[1], headers, await reader.readexactly(int(headers["content-length"]))


async def is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(1), PATIENCE_S) == b""
    except ConnectionError:
        return True


@asynccontextmanager
async def serving(
    *,
    body_limit_bytes: int = 64 * 2**20,
    body_timeout_s: float = 30.0,
    bodies_limit_bytes: int = 128 * 2**20,
    loopback: bool = False,
) -> AsyncIterator[Door]:
    before = asyncio.all_tasks()
    verbs, counters, clock = EchoingVerbs(), ExtenderCounters(), ManualClock()
    server = ExtenderServer(
        verbs,
        counters,
        clock,
        body_limit_bytes=body_limit_bytes,
        body_timeout_s=body_timeout_s,
        bodies_limit_bytes=bodies_limit_bytes,
    )
    app = web.Application()
    app[LOOPBACK] = loopback
    app.add_routes(server.routes("/scheduler/"))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, lingering_time=0.05)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Door(server, verbs, counters, clock, runner.addresses[0][1])
    finally:
        await runner.cleanup()
        # Handlers of clients that hung up first end by themselves, after lingering.
        others = asyncio.all_tasks() - before
        if others:
            await asyncio.wait(others, timeout=PATIENCE_S)


async def test_each_verb_is_answered() -> None:
    async with serving() as door:
        status, answer = await door.ask("filter", QUESTION)
        assert status == 200
        assert isinstance(answer, dict)
        assert answer["NodeNames"] == ["a", "b"]
        want_scores = [{"Host": "a", "Score": 0}, {"Host": "b", "Score": 0}]
        assert await door.ask("prioritize", QUESTION) == (200, want_scores)
        want_victims = {"NodeNameToMetaVictims": {"a": {"Pods": [{"UID": "v"}], "NumPDBViolations": 0}}}
        assert await door.ask("preempt", {"Pod": POD, **want_victims}) == (200, want_victims)
        assert await door.ask("bind", BIND) == (200, {"Error": "ns/p is bound to a"})
        assert dict(door.counters.requests) == {
            (verb, "ok"): 1 for verb in ("filter", "prioritize", "preempt", "bind")
        }


@pytest.mark.parametrize(
    ("body", "want_reason"),
    [
        (b"not json", "not-json"),
        (b'{"Pod":[]}', "wrong-type"),
        (b"[" * 200_000, "too-deep"),
        (b'{"NodeNames":["\xff"]}', "bad-utf8"),
        (b'{"NodeNames":["a"]}', "no-pod"),
    ],
)
async def test_a_broken_question_costs_one_answer_and_one_count(body: bytes, want_reason: str) -> None:
    async with serving() as door, door.connect() as (reader, writer):
        writer.write(request("filter", body))
        status, _, answer = await read_answer(reader)
        assert status == "400 Bad Request"
        assert json.loads(answer)["Error"].startswith(want_reason)
        assert dict(door.counters.refused) == {want_reason: 1}
        assert dict(door.counters.requests) == {("filter", "bad-request"): 1}
        # The same connection serves the next request.
        writer.write(request("filter", json.dumps(QUESTION).encode()))
        assert (await read_answer(reader))[0] == "200 OK"


async def test_a_refusal_is_logged_once_a_minute_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as door:
        for body in (b"not json", b'{"NodeNames":["a"]}') * 3:
            assert (await door.ask("filter", body))[0] == 400
        want = [
            "extender verb filter was refused: not-json: JSON is malformed: invalid character (byte 4)",
            "extender verb filter was refused: no-pod: expected Pod, the pod to place, got nothing",
        ]
        assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == want
        door.clock.advance(60.0)
        await door.ask("preempt", b"not json")
        assert caplog.records[-1].getMessage().startswith("extender verb preempt was refused: not-json")


async def test_a_verb_that_raises_is_counted_and_the_next_request_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as door:
        door.verbs.raises = ZeroDivisionError("by zero")
        assert await door.ask("filter", QUESTION) == (
            500,
            {"Error": "filter failed: ZeroDivisionError: by zero"},
        )
        assert door.counters.requests["filter", "error"] == 1
        assert "extender verb filter failed" in caplog.text
        door.verbs.raises = None
        assert (await door.ask("filter", QUESTION))[0] == 200


async def test_an_unknown_verb_and_another_method_are_refused() -> None:
    async with serving() as door:
        status, answer = await door.ask("score", QUESTION)
        assert status == 404
        assert isinstance(answer, dict)
        assert "prioritize" in answer["Error"]
        assert door.counters.refused["unknown-verb"] == 1
        url = f"http://127.0.0.1:{door.port}/scheduler/filter"
        async with ClientSession() as session, session.get(url) as response:
            assert response.status == 405


async def test_a_replica_that_may_not_answer_says_so_and_closes() -> None:
    async with serving() as door, door.connect() as (reader, writer):
        door.verbs.why_not = "not the leader"
        writer.write(request("filter", json.dumps(QUESTION).encode()))
        status, headers, answer = await read_answer(reader)
        assert status == "503 Service Unavailable"
        assert headers["connection"] == "close"
        assert json.loads(answer) == {"Error": "not the leader"}
        assert await is_closed(reader)
        assert door.counters.requests["filter", "unavailable"] == 1
        assert door.verbs.asked == []


@pytest.mark.parametrize(("loopback", "want_status"), [(True, 200), (False, 503)])
async def test_the_verbs_are_told_whether_the_listener_is_loopback(loopback: bool, want_status: int) -> None:
    async with serving(loopback=loopback) as door:
        door.verbs.why_not = "not the leader"
        door.verbs.loopback_only = True
        assert (await door.ask("filter", QUESTION))[0] == want_status


async def test_an_announced_hundred_megabytes_is_refused_before_it_is_sent() -> None:
    async with serving() as door, door.connect() as (reader, writer):
        writer.write(request("filter", b"{", length=100_000_000))
        status, headers, answer = await read_answer(reader)
        assert status == "413 Request Entity Too Large"
        assert headers["connection"] == "close"
        assert "larger than" in json.loads(answer)["Error"]
        assert door.counters.requests["filter", "too-large"] == 1


async def test_a_chunked_body_is_refused_where_it_passes_the_limit() -> None:
    async with serving(body_limit_bytes=1000) as door, door.connect() as (reader, writer):
        writer.write(b"POST /scheduler/filter HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"400\r\n" + b" " * 1024 + b"\r\n")
        assert (await read_answer(reader))[0] == "413 Request Entity Too Large"


async def test_bodies_that_arrive_at_once_share_one_limit_and_small_ones_are_served() -> None:
    part = b" " * 3 * 2**20
    async with (
        serving(bodies_limit_bytes=13 * 2**19) as door,
        door.connect() as (first, first_writer),
        door.connect() as (second, second_writer),
    ):
        first_writer.write(request("filter", part, length=2 * len(part)))
        while door.server._arriving_bytes < len(part):
            await asyncio.sleep(0.01)
        second_writer.write(request("filter", part + part))
        status, headers, answer = await read_answer(second)
        assert status == "503 Service Unavailable"
        assert headers["connection"] == "close"
        assert "arriving at once" in json.loads(answer)["Error"]
        assert dict(door.counters.refused) == {"too-many": 1}
        # A question of kube-scheduler's size is answered all the same, and the first one in its turn.
        assert (await door.ask("filter", QUESTION))[0] == 200
        first_writer.write(b" " * len(part))
        status, _, _ = await read_answer(first)
        assert status == "400 Bad Request"
        assert door.server._arriving_bytes == 0


async def test_a_body_at_the_limit_is_served_and_one_byte_more_is_not() -> None:
    body = json.dumps(QUESTION).encode()
    async with serving(body_limit_bytes=len(body)) as door:
        assert (await door.ask("filter", body))[0] == 200
        assert (await door.ask("filter", body + b" "))[0] == 413


async def test_twenty_thousand_names_are_answered() -> None:
    want_names = [f"node-{number:05d}" for number in range(20_000)]
    async with serving() as door:
        _, answer = await door.ask("filter", {"Pod": POD, "NodeNames": want_names})
        assert isinstance(answer, dict)
        assert answer["NodeNames"] == want_names


async def test_whole_nodes_are_counted_and_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as door:
        for _ in range(2):
            await door.ask("filter", {"Pod": POD, "Nodes": {"items": [{"metadata": {"name": "a"}}]}})
        assert door.counters.full_nodes == 2
        assert caplog.text.count("nodeCacheCapable") == 1


async def test_a_half_sent_body_holds_up_nobody_and_ends() -> None:
    async with serving(body_timeout_s=0.2) as door, door.connect() as (reader, writer):
        writer.write(request("filter", b'{"Pod":', length=1000))
        await writer.drain()
        assert (await door.ask("filter", QUESTION))[0] == 200
        status, headers, _ = await read_answer(reader)
        assert status == "408 Request Timeout"
        assert headers["connection"] == "close"
        assert door.counters.requests["filter", "slow-body"] == 1


async def test_a_client_that_hangs_up_half_way_is_counted() -> None:
    async with serving() as door:
        seen = asyncio.Event()
        door.counters.observe = lambda *_: seen.set()
        async with door.connect() as (_, writer):
            writer.write(request("filter", b'{"Pod":', length=1000))
            await writer.drain()
            while not door.server._connections:
                await asyncio.sleep(0)
        await asyncio.wait_for(seen.wait(), PATIENCE_S)
        assert dict(door.counters.requests) == {("filter", "disconnected"): 1}


async def test_idle_connections_close_at_demotion_and_those_in_use_after_their_answer() -> None:
    async with (
        serving() as door,
        door.connect() as (idle, idle_writer),
        door.connect() as (busy, busy_writer),
    ):
        idle_writer.write(request("filter", json.dumps(QUESTION).encode()))
        assert (await read_answer(idle))[0] == "200 OK"
        door.verbs.may_bind.clear()
        busy_writer.write(request("bind", json.dumps(BIND).encode()))
        await asyncio.wait_for(door.verbs.binding.wait(), PATIENCE_S)

        assert door.server.close_connections() == 2
        assert await is_closed(idle)
        door.verbs.may_bind.set()
        status, headers, answer = await read_answer(busy)
        assert status == "200 OK"
        assert json.loads(answer)["Error"].endswith("bound to a")
        assert headers["connection"] == "close"
        assert await is_closed(busy)
        # A new connection is served: what it may be told is for `may_answer` to say.
        assert (await door.ask("filter", QUESTION))[0] == 200


async def test_latency_is_counted_by_verb_for_those_answered() -> None:
    async with serving() as door:
        seen: list[tuple[str, float, str]] = []
        door.counters.observe = lambda *what: seen.append(what)
        await door.ask("filter", QUESTION)
        await door.ask("filter", b"broken")
        assert [(verb, result) for verb, _, result in seen] == [("filter", "ok"), ("filter", "bad-request")]
        assert sum(door.counters.latency["filter"].counts) == 1


def test_the_histogram_puts_each_duration_under_its_upper_bound() -> None:
    latency = Latency()
    for seconds_s in (0.0, BUCKETS_S[0], BUCKETS_S[0] * 1.01, 100.0):
        latency.observe(seconds_s)
    assert latency.counts[0] == 2
    assert latency.counts[1] == 1
    assert latency.counts[-1] == 1
    assert latency.sum_s == pytest.approx(100.0, abs=0.01)
