"""A refused TLS handshake: told with who and why, counted, and never often enough to fill a log."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from scheduler.handshakes import REASONS, TELL_EVERY_S, Handshake, Refusals, no_refusals
from scheduler.listeners import Listeners, ListenerSpec, TlsFiles
from tests.certs import Authority

PATIENCE_S = 60.0
HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Site:
    """A listener's certificates, and clients of two authorities, one of which it does not know."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ours, self.theirs = Authority("ours"), Authority("theirs")
        self.files = TlsFiles(
            cert_file=folder / "tls.crt", key_file=folder / "tls.key", client_ca_file=folder / "ca.crt"
        )
        self.ours.issue("server", self.files.cert_file, self.files.key_file)
        self.ours.write(folder / "ca.crt")

    def client(self, authority: Authority | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        if authority is not None:
            authority.issue("client", self.folder / "client.crt", self.folder / "client.key")
            context.load_cert_chain(self.folder / "client.crt", self.folder / "client.key")
        return context


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def fine(_: web.Request) -> web.Response:
    return web.Response(text="fine")


@asynccontextmanager
async def listening(site: Site) -> AsyncIterator[Listeners]:
    spec = ListenerSpec(address="127.0.0.1:0", serves=frozenset({"probes"}), tls=site.files)
    listeners = Listeners([spec], {"probes": [web.get("/", fine)]}, grace_s=0.5)
    await listeners.start()
    try:
        yield listeners
    finally:
        await listeners.stop()


def tried(port: int, context: ssl.SSLContext | None) -> str:
    """Ask as curl does, on a blocking socket: it sends its alerts, as asyncio's client does not."""
    plain = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    here = f"127.0.0.1:{plain.getsockname()[1]}"
    with plain, suppress(OSError):
        client = plain if context is None else context.wrap_socket(plain, server_hostname="localhost")
        with client:
            client.sendall(HTTP)
            while client.recv(4096):
                pass
    return here


async def refused(listeners: Listeners, context: ssl.SSLContext | None) -> str:
    """Try until it is counted; gives the client's address."""
    before = sum(listeners.refused_handshakes.values())
    here = await asyncio.to_thread(tried, listeners.addresses[0][1], context)
    await until(lambda: sum(listeners.refused_handshakes.values()) > before)
    return here


async def until(found: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not found():
            await asyncio.sleep(0.005)


def told(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(each)["kv"] for each in caplog.records if each.getMessage() == "tls handshake refused"]


def old_client(site: Site) -> ssl.SSLContext:
    context = site.client(site.ours)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.parametrize(
    ("client", "want_reason", "want_why"),
    [
        (lambda site: site.client(None), "no_certificate", "the client showed no certificate"),
        (lambda site: site.client(site.theirs), "bad_certificate", "certificate is not accepted"),
        (lambda _: None, "not_tls", "http:// instead of https://"),
        (old_client, "old_version", "TLS 1.3"),
        (lambda _: ssl.create_default_context(), "distrusts_us", "does not accept our certificate"),
    ],
)
async def test_a_refused_handshake_is_told_with_who_and_why_and_counted(
    site: Site,
    caplog: pytest.LogCaptureFixture,
    client: Callable[[Site], ssl.SSLContext | None],
    want_reason: str,
    want_why: str,
) -> None:
    async with listening(site) as listeners:
        want_peer = await refused(listeners, client(site))
        assert listeners.refused_handshakes == no_refusals() | {want_reason: 1}
        [line] = told(caplog)
        assert line["peer"] == want_peer
        assert line["reason"] == want_reason
        assert want_why in line["why"]
        assert line["listener"] == "127.0.0.1:0"
        assert caplog.records[-1].levelno == logging.WARNING


async def test_who_is_let_in_and_who_only_looks_whether_the_port_is_open_are_not_told(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(site) as listeners:
        port = listeners.addresses[0][1]
        _, looking = await asyncio.open_connection("127.0.0.1", port)
        looking.close()
        context = site.client(site.ours)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="localhost"
        )
        writer.write(HTTP)
        assert (await asyncio.wait_for(reader.readline(), PATIENCE_S)).startswith(b"HTTP/1.1 200")
        writer.transport.abort()
        assert listeners.refused_handshakes == no_refusals()
    assert told(caplog) == []


async def test_a_flood_of_them_is_one_line_each_minute_and_all_are_counted(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    many = 200
    async with listening(site) as listeners:
        port = listeners.addresses[0][1]
        for _ in range(many):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HTTP)
            with suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), PATIENCE_S)
            writer.transport.abort()
        await until(lambda: listeners.refused_handshakes["not_tls"] == many)
        assert len(told(caplog)) == 1
        # Another reason is another person's fault.
        await refused(listeners, site.client(None))
        assert [each["reason"] for each in told(caplog)] == ["not_tls", "no_certificate"]


def test_after_a_minute_the_next_line_says_how_many_were_not_told(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals("0.0.0.0:9443", no_refusals())
    error = ssl.SSLError(1, "text of OpenSSL")
    for now_mono_s in (0.0, 1.0, 59.0, TELL_EVERY_S, TELL_EVERY_S + 1, 3 * TELL_EVERY_S):
        refusals.note(error, ("10.0.0.9", 4711), now_mono_s)
    assert [each["untold_before"] for each in told(caplog)] == [0, 2, 1]
    assert refusals.counts == no_refusals() | {"other": 6}


@pytest.mark.parametrize(
    ("peer", "want_peer"),
    [(("::1", 7, 0, 0), "[::1]:7"), (("10.0.0.9", 7), "10.0.0.9:7"), (None, "unknown"), ("", "unknown")],
)
def test_a_peer_is_shown(caplog: pytest.LogCaptureFixture, peer: object, want_peer: str) -> None:
    Refusals("a", no_refusals()).note(ssl.SSLError(1, "x"), peer, 0.0)
    assert told(caplog)[0]["peer"] == want_peer


def test_reasons_are_a_closed_set() -> None:
    assert set(no_refusals()) == set(REASONS)
    assert len(REASONS) < 10


async def test_a_refused_connection_leaves_nothing_for_the_garbage_collection(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds a buffer of 256 KiB, and the daemon collects seldom."""
    made: list[weakref.ref[Handshake]] = []
    begin = Handshake.connection_made

    def noting(self: Handshake, transport: asyncio.BaseTransport) -> None:
        made.append(weakref.ref(self))
        begin(self, transport)

    monkeypatch.setattr(Handshake, "connection_made", noting)
    async with listening(site) as listeners:
        gc.disable()
        try:
            for client in (site.client(None), None):
                await refused(listeners, client)
            # The gate forgets who is gone when the next one comes.
            _, writer = await asyncio.open_connection("127.0.0.1", listeners.addresses[0][1])
            await until(lambda: len(made) == 3 and made[0]() is None and made[1]() is None)
            writer.transport.abort()
        finally:
            gc.enable()
