"""Sockets, certificates and stopping, with real TLS on loopback."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from scheduler.listeners import Listeners, ListenerSpec, TlsFiles
from tests.certs import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def healthy(_: web.Request) -> web.Response:
    return web.Response(text="fine")


ROUTES = {"probes": [web.get("/healthz", healthy)]}


class Site:
    """Certificates on disk: a server's, and a client's by each of two authorities."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers, self.old, self.new = Authority("servers"), Authority("old"), Authority("new")
        self.files = TlsFiles(
            cert_file=folder / "tls.crt", key_file=folder / "tls.key", client_ca_file=folder / "client-ca.crt"
        )
        self.serial = self.servers.issue("server", self.files.cert_file, self.files.key_file)
        self.old.write(folder / "client-ca.crt")
        self.servers.write(folder / "server-ca.crt")

    def client(self, authority: Authority | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder / "server-ca.crt"))
        context.set_alpn_protocols(["h2", "http/1.1"])
        if authority is not None:
            cert_file, key_file = self.folder / "client.crt", self.folder / "client.key"
            authority.issue("client", cert_file, key_file)
            context.load_cert_chain(cert_file, key_file)
        return context


@asynccontextmanager
async def listening(*specs: ListenerSpec) -> AsyncIterator[Listeners]:
    before = asyncio.all_tasks()
    listeners = Listeners(specs, ROUTES, grace_s=0.5)
    await listeners.start()
    try:
        yield listeners
    finally:
        await listeners.stop()
        if others := asyncio.all_tasks() - before:
            await asyncio.wait(others, timeout=10)


@asynccontextmanager
async def connected(
    port: int, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    name = "localhost" if context is not None else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(GET)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    await reader.readexactly(len(b"fine"))
    return head


async def serial_served(port: int, context: ssl.SSLContext) -> int:
    async with connected(port, context) as (reader, writer):
        assert (await ask(reader, writer)).startswith(b"HTTP/1.1 200")
        tls = writer.get_extra_info("ssl_object")
        assert tls.selected_alpn_protocol() == "http/1.1"
        return int(tls.getpeercert()["serialNumber"], 16)


async def is_refused(port: int, context: ssl.SSLContext) -> bool:
    # In TLS 1.3 the client's handshake ends before the server has judged it: the refusal comes with the first read.
    try:
        async with connected(port, context) as (reader, writer):
            await ask(reader, writer)
    except (OSError, asyncio.IncompleteReadError):
        return True
    return False


def spec(tls: TlsFiles | None = None) -> ListenerSpec:
    return ListenerSpec(address="127.0.0.1:0", serves=frozenset({"probes"}), tls=tls)


async def test_only_clients_of_the_client_ca_are_served(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with listening(spec(site.files)) as listeners:
        port = listeners.addresses[0][1]
        assert await serial_served(port, site.client(site.old)) == site.serial
        assert await is_refused(port, site.client(None))
        assert await is_refused(port, site.client(site.new))


async def test_a_rotated_certificate_is_served_and_a_mismatched_pair_is_not(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with listening(spec(site.files)) as listeners:
        port = listeners.addresses[0][1]
        client = site.client(site.old)
        listeners.check_certificates()
        assert (listeners.reloads.ok, listeners.reloads.failed) == (0, 0)

        site.servers.issue("server", site.files.cert_file, tmp_path / "unused.key")
        listeners.check_certificates()
        listeners.check_certificates()  # the same fault is counted once
        assert (listeners.reloads.ok, listeners.reloads.failed) == (0, 1)
        assert await serial_served(port, client) == site.serial

        want_serial = site.servers.issue("server", site.files.cert_file, site.files.key_file)
        listeners.check_certificates()
        assert listeners.reloads.ok == 1
        assert await serial_served(port, client) == want_serial


async def test_a_removed_ca_is_refused_and_its_open_connections_end(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with listening(spec(site.files)) as listeners:
        port = listeners.addresses[0][1]
        old_client = site.client(site.old)
        async with connected(port, old_client) as (reader, writer):
            await ask(reader, writer)
            site.new.write(tmp_path / "client-ca.crt")
            listeners.check_certificates()
            assert b"Connection: close" in await ask(reader, writer)
        assert await is_refused(port, old_client)
        assert await serial_served(port, site.client(site.new)) == site.serial


async def test_stopping_answers_what_is_in_flight_and_refuses_the_rest() -> None:
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        asked.set()
        await may_answer.wait()
        return web.Response(text="fine")

    listeners = Listeners([spec()], {"probes": [web.get("/healthz", slow)]}, end_streams=[may_answer.set])
    await listeners.start()
    port = listeners.addresses[0][1]
    async with connected(port) as (reader, writer), asyncio.TaskGroup() as group:
        answer = group.create_task(ask(reader, writer))
        await asyncio.wait_for(asked.wait(), 10)
        await listeners.stop()
        assert (await answer).startswith(b"HTTP/1.1 200")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_a_taken_address_leaves_no_other_bound() -> None:
    async with listening(spec()) as first:
        taken = f"127.0.0.1:{first.addresses[0][1]}"
        second = Listeners([spec(), ListenerSpec(address=taken, serves=frozenset())], ROUTES)
        with pytest.raises(OSError, match="in use"):
            await second.start()
        assert second.addresses == []


@pytest.mark.parametrize(
    ("address", "want_host_port", "want_loopback"),
    [
        ("127.0.0.1:9443", ("127.0.0.1", 9443), True),
        ("[::1]:9443", ("::1", 9443), True),
        ("localhost:1", ("localhost", 1), True),
        (":9440", (None, 9440), False),
        ("0.0.0.0:9440", ("0.0.0.0", 9440), False),
        ("example.org:9440", ("example.org", 9440), False),
    ],
)
def test_an_address_is_read(
    address: str, want_host_port: tuple[str | None, int], want_loopback: bool
) -> None:
    given = ListenerSpec(address=address, serves=frozenset())
    assert given.host_port() == want_host_port
    assert given.is_loopback() == want_loopback
