"""Which Host headers are answered: a page in somebody's browser must not read what 127.0.0.1 tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from scheduler.hosts import host_of
from scheduler.listeners import Listeners, ListenerSpec

PATIENCE_S = 60.0


async def fine(_: web.Request) -> web.Response:
    return web.Response(text="fine")


ROUTES = {
    "api": [web.get("/", fine), web.get("/api/v1/nodes", fine)],
    "extender": [web.post("/scheduler/filter", fine)],
    "probes": [web.get("/readyz", fine)],
}


@asynccontextmanager
async def listening(address: str) -> AsyncIterator[int]:
    spec = ListenerSpec(address=address, serves=frozenset(ROUTES))
    listeners = Listeners([spec], ROUTES, grace_s=0.5)
    listeners.paused = lambda: "paused by kim: a secret reason"
    await listeners.start()
    try:
        yield listeners.addresses[0][1]
    finally:
        await listeners.stop()


async def answer(port: int, head: str, connect_to: str = "127.0.0.1") -> str:
    reader, writer = await asyncio.open_connection(connect_to, port)
    try:
        writer.write(f"{head}Connection: close\r\nContent-Length: 0\r\n\r\n".encode())
        return (await asyncio.wait_for(reader.read(), PATIENCE_S)).decode()
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8080", "localhost.:1", "127.0.0.1", "127.0.0.1:41234", "[::1]", "[::1]:9441"],
)
@pytest.mark.parametrize("path", ["/", "/api/v1/nodes"])
async def test_who_names_this_machine_is_answered_on_any_port(host: str, path: str) -> None:
    async with listening("127.0.0.1:0") as port:
        told = await answer(port, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n")
        assert told.startswith("HTTP/1.1 200")
        assert ("secret" in told) == path.startswith("/api/")


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:9441", "localhost.evil.example", "127.0.0.1.evil.example:9441"),
        *("10.0.0.1:9441", "", "localhost:x", "[::1].evil.example", "::1", "localhost@evil.example"),
    ],
)
async def test_a_name_that_somebody_lets_point_here_is_refused_with_the_reason(host: str) -> None:
    async with listening("127.0.0.1:0") as port:
        for path in ("/", "/api/v1/nodes"):
            told = await answer(port, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n")
            assert told.startswith("HTTP/1.1 421")
            assert "application/json" in told
            assert f"Host {host!r} is none of 127.0.0.1, [::1], localhost (on any port)" in told
            assert "fine" not in told
            assert "secret" not in told


async def test_each_answer_of_the_api_says_what_is_only_observed_unless_all_is_paused() -> None:
    listeners = Listeners(
        [ListenerSpec(address="127.0.0.1:0", serves=frozenset(ROUTES))], ROUTES, grace_s=0.5
    )
    listeners.observing = lambda: "pool aws-ä"
    await listeners.start()
    try:
        port = listeners.addresses[0][1]
        want = "Wattbalance-Observing: pool aws-%C3%A4\r\n"
        assert want in await answer(port, "GET /api/v1/nodes HTTP/1.1\r\nHost: localhost\r\n")
        assert "Wattbalance" not in await answer(port, "GET /readyz HTTP/1.1\r\nHost: localhost\r\n")
        assert "Wattbalance" not in await answer(port, "GET /api/v1/nodes HTTP/1.1\r\nHost: evil\r\n")
        listeners.paused = lambda: "paused by kim"
        told = await answer(port, "GET /api/v1/nodes HTTP/1.1\r\nHost: localhost\r\n")
        assert "Wattbalance-Paused: paused by kim\r\n" in told
        assert "Observing" not in told
    finally:
        await listeners.stop()


async def test_the_listeners_own_host_is_one_of_its_names() -> None:
    async with listening("127.0.0.2:0") as port:
        request = "GET / HTTP/1.1\r\nHost: 127.0.0.2:1\r\n"
        assert (await answer(port, request, "127.0.0.2")).startswith("HTTP/1.1 200")


async def test_http_without_a_host_comes_from_no_browser() -> None:
    async with listening("127.0.0.1:0") as port:
        assert "fine" in await answer(port, "GET / HTTP/1.0\r\n")


async def test_the_extender_and_probes_are_not_looked_at() -> None:
    async with listening("127.0.0.1:0") as port:
        for request in ("POST /scheduler/filter", "GET /readyz"):
            told = await answer(port, f"{request} HTTP/1.1\r\nHost: scheduler.example\r\n")
            assert told.startswith("HTTP/1.1 200")


async def test_off_loopback_any_name_may_be_ours() -> None:
    async with listening("0.0.0.0:0") as port:
        assert "fine" in await answer(port, "GET / HTTP/1.1\r\nHost: node-7.example\r\n")


@pytest.mark.parametrize(
    ("header", "want_host"),
    [("A.b:1", "a.b"), ("[FE80::1%25x]:1", "fe80::1%25x"), ("a:b:c", None), ("[::1", None), ("", "")],
)
def test_a_host_is_read(header: str, want_host: str | None) -> None:
    assert host_of(header) == want_host
