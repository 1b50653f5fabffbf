"""The agent's little HTTP server, against clients of every kind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from scheduler.telemetry.agent_http import MOST_CLIENTS, Page, TextServer
from tests.telemetry.bus_tools import eventually, running


def fail() -> Page:
    raise ZeroDivisionError


PAGES = {
    "/metrics": lambda: Page(body="up 1\n"),
    "/healthz": lambda: Page(body="not well\n", status=503),
    "/big": lambda: Page(body="x" * 50_000_000),
    "/fails": fail,
}


@contextlib.asynccontextmanager
async def serving(patience_s: float = 30.0) -> AsyncIterator[TextServer]:
    server = TextServer("127.0.0.1", 0, PAGES, patience_s=patience_s)
    async with running(server.run()):
        await eventually(lambda: server.port)
        yield server


async def ask(server: TextServer, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_pages_are_served_with_their_status() -> None:
    async with serving() as server:
        want = b"HTTP/1.1 200 OK\r\n"
        got = await ask(server, b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert got.startswith(want)
        assert got.endswith(b"\r\n\r\nup 1\n")
        assert b"Content-Length: 5\r\n" in got
        assert (await ask(server, b"GET /healthz HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 503 ")


async def test_head_gets_the_head_only() -> None:
    async with serving() as server:
        got = await ask(server, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert b"Content-Length: 5\r\n" in got
    assert got.endswith(b"\r\n\r\n")


async def test_what_is_wrong_is_answered_and_the_next_is_served() -> None:
    async with serving() as server:
        assert (await ask(server, b"GET /nothing HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        assert (await ask(server, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
        assert (await ask(server, b"\x16\x03\x01\x00garbage\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        assert (await ask(server, b"GET / SPDY/3\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        assert (await ask(server, b"GET /fails HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 500 ")
        assert (await ask(server, b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        assert (await ask(server, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_a_head_without_end_is_refused() -> None:
    async with serving() as server:
        with contextlib.suppress(ConnectionError):
            got = await ask(server, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000)
            assert got.startswith(b"HTTP/1.1 400 ")
        assert (await ask(server, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_a_client_that_says_nothing_is_let_go() -> None:
    async with serving(patience_s=0.05) as server:
        assert await ask(server, b"GET /metr") == b""
        assert server._clients == 0


async def test_a_client_that_does_not_read_is_let_go() -> None:
    async with serving(patience_s=0.1) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(b"GET /big HTTP/1.1\r\n\r\n")
        await eventually(lambda: server._clients == 1)
        await eventually(lambda: server._clients == 0)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_too_many_clients_are_turned_away_and_the_rest_kept() -> None:
    async with serving() as server:
        crowd = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MOST_CLIENTS)]
        await eventually(lambda: server._clients == MOST_CLIENTS)
        with contextlib.suppress(ConnectionError):
            assert await ask(server, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        for _, writer in crowd:
            writer.close()
            await writer.wait_closed()
        await eventually(lambda: server._clients == 0)
        assert (await ask(server, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
