"""Sockets, certificates and stopping, with real TLS on loopback."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import pytest
from aiohttp import web

from scheduler import connections as connections_module
from scheduler import handshakes as handshakes_module
from scheduler.connections import SILENT_S, Connection
from scheduler.listeners import Listeners, ListenerSpec, TlsFiles
from tests.certs import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

# How long to wait for what must come; only what hangs runs into it.
PATIENCE_S = 60.0
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
async def listening(
    *specs: ListenerSpec,
    routes: list[web.RouteDef] | None = None,
    silent_s: float = SILENT_S,
    connections: int = 128,
) -> AsyncIterator[Listeners]:
    before = asyncio.all_tasks()
    serves = ROUTES if routes is None else {"probes": routes}
    listeners = Listeners(specs, serves, grace_s=0.5, silent_s=silent_s, connections=connections)
    await listeners.start()
    try:
        yield listeners
    finally:
        await listeners.stop()
        if others := asyncio.all_tasks() - before:
            await asyncio.wait(others, timeout=PATIENCE_S)


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
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
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
        assert listeners.certificate_not_reloaded()
        assert await serial_served(port, client) == site.serial

        want_serial = site.servers.issue("server", site.files.cert_file, site.files.key_file)
        listeners.check_certificates()
        assert listeners.reloads.ok == 1
        assert not listeners.certificate_not_reloaded()
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

    listeners = Listeners([spec()], {"probes": [web.get("/healthz", slow)]}, grace_s=60.0)
    await listeners.start()
    port = listeners.addresses[0][1]
    async with connected(port) as (reader, writer), asyncio.TaskGroup() as group:
        answer = group.create_task(ask(reader, writer))
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        stopped = group.create_task(listeners.stop())
        # Nobody else is let in from the first turn on, while the one that was asked is still being answered.
        await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert not stopped.done()
        may_answer.set()
        await stopped
        assert (await answer).startswith(b"HTTP/1.1 200")


async def test_stopping_closes_idle_connections_on_every_listener() -> None:
    listeners = Listeners([spec(), spec()], ROUTES, grace_s=10 * PATIENCE_S)
    await listeners.start()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(port)) for _, port in listeners.addresses]
        for client in clients:
            await ask(*client)
        # Long before the grace is over: nobody waits for a connection that asks nothing.
        await asyncio.wait_for(listeners.stop(), PATIENCE_S)
        for reader, _ in clients:
            assert await is_closed(reader)


@pytest.mark.parametrize(("grace_s", "want_answer"), [(10 * PATIENCE_S, True), (0.2, False)])
async def test_an_answer_may_take_the_grace_and_no_longer(grace_s: float, want_answer: bool) -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        asked.set()
        try:
            await asyncio.sleep(0.5 if want_answer else 600.0)
        finally:
            ended.set()
        return web.Response(text="fine")

    listeners = Listeners([spec()], {"probes": [web.get("/healthz", slow)]}, grace_s=grace_s)
    await listeners.start()
    async with connected(listeners.addresses[0][1]) as (reader, writer):
        writer.write(GET)
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        await asyncio.wait_for(listeners.stop(), PATIENCE_S)
        assert ended.is_set()
        assert (b"fine" in await asyncio.wait_for(reader.read(), PATIENCE_S)) == want_answer


async def test_a_taken_address_leaves_no_other_bound() -> None:
    async with listening(spec()) as first:
        taken = f"127.0.0.1:{first.addresses[0][1]}"
        second = Listeners([spec(), ListenerSpec(address=taken, serves=frozenset())], ROUTES)
        with pytest.raises(OSError, match="in use"):
            await second.start()
        assert second.addresses == []


async def test_what_cannot_be_bound_is_named_with_its_place_in_the_configuration() -> None:
    unknown = ListenerSpec(address="no-such-host.invalid:1", serves=frozenset())
    listeners = Listeners([spec(), unknown], ROUTES)
    with pytest.raises(OSError, match=r"^listeners\[1\] \(no-such-host\.invalid:1\): expected an address"):
        await listeners.start()


@pytest.mark.parametrize(
    ("bad", "want"), [("tls.crt", "cert_file .*tls.crt"), ("client-ca.crt", "client_ca_file .*client-ca.crt")]
)
async def test_a_certificate_of_garbage_is_named(tmp_path: Path, bad: str, want: str) -> None:
    site = Site(tmp_path)
    (tmp_path / bad).write_bytes(b"\x00garbage")
    with pytest.raises(OSError, match=want):
        await Listeners([spec(site.files)], ROUTES).start()


async def test_a_pipe_in_place_of_a_certificate_holds_nobody(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with listening(spec(site.files)) as listeners:
        port, client = listeners.addresses[0][1], site.client(site.old)
        site.files.key_file.unlink()
        os.mkfifo(site.files.key_file)
        listeners.check_certificates()
        assert listeners.reloads.failed == 1
        assert await serial_served(port, client) == site.serial
    with pytest.raises(OSError, match=r"tls\.key: expected a file, got a pipe"):
        await Listeners([spec(site.files)], ROUTES).start()


T = TypeVar("T")


async def until(found: Callable[[], T]) -> T:
    """Wait for something true."""
    async with asyncio.timeout(PATIENCE_S):
        while not (it := found()):
            await asyncio.sleep(0.005)
    return it


def connections_of(listeners: Listeners) -> list[Connection]:
    """What is open now; nobody else needs to know."""
    servers = [runner.server for runner in listeners._runners if runner.server is not None]
    return [each for server in servers for each in server.connections if isinstance(each, Connection)]


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the other side closes, sooner or later."""
    try:
        return await asyncio.wait_for(reader.read(1), PATIENCE_S) == b""
    except ConnectionError:
        return True


def is_open(reader: asyncio.StreamReader) -> bool:
    return not reader.at_eof() and reader.exception() is None


def test_go_is_the_first_to_close_a_connection_that_it_keeps() -> None:
    want_longer_than_s = 90.0  # http.Transport.IdleConnTimeout, as client-go leaves it
    assert want_longer_than_s < SILENT_S


@pytest.mark.parametrize(
    "sent", [b"", b"G", GET[:-2], b"GET /healthz HTTP/1.1\r\n", GET + GET[:-2]], ids=repr
)
async def test_a_header_that_is_never_finished_does_not_hold_its_connection(sent: bytes) -> None:
    async with (
        # Not silent for so long before its first question, even on a machine that stalls.
        listening(spec(), silent_s=3.0 if sent.startswith(GET) else 0.3) as listeners,
        connected(listeners.addresses[0][1]) as (reader, writer),
    ):
        writer.write(sent)
        if sent.startswith(GET):
            await asyncio.wait_for(reader.readuntil(b"fine"), PATIENCE_S)
        assert await is_closed(reader)


async def test_a_header_that_comes_in_drops_does_not_last_longer() -> None:
    async with (
        listening(spec(), silent_s=0.5) as listeners,
        connected(listeners.addresses[0][1]) as (reader, writer),
    ):
        closed = asyncio.ensure_future(is_closed(reader))
        writer.write(GET[:-2])
        drops = 0
        while not closed.done() and drops < 1000:
            writer.write(b"x: y\r\n")
            drops += 1
            await asyncio.wait([closed], timeout=0.03)
        assert await closed


async def test_a_kept_connection_is_answered_after_a_pause_within_the_limit() -> None:
    async with (
        listening(spec(), silent_s=30.0) as listeners,
        connected(listeners.addresses[0][1]) as (reader, writer),
    ):
        for _ in range(3):
            assert (await ask(reader, writer)).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.1)


async def test_a_crowd_that_says_nothing_keeps_nobody_out(caplog: pytest.LogCaptureFixture) -> None:
    most, crowd = 20, 300
    async with listening(spec(), connections=most) as listeners, AsyncExitStack() as stack:
        port = listeners.addresses[0][1]
        first_reader, first_writer = await stack.enter_async_context(connected(port))
        await ask(first_reader, first_writer)
        readers = [(await stack.enter_async_context(connected(port)))[0] for _ in range(crowd)]
        # Who was served before keeps its connection, and who comes now is served.
        assert (await ask(first_reader, first_writer)).startswith(b"HTTP/1.1 200")
        async with connected(port) as (reader, writer):
            assert (await ask(reader, writer)).startswith(b"HTTP/1.1 200")
        for reader in readers[: crowd - most]:
            assert await is_closed(reader)
        # The earliest went; the last are still there.
        assert all(is_open(reader) for reader in readers[-(most - 3) :])
        assert listeners.refused.crowded == 1 + crowd + 1 - most
        assert caplog.text.count("silent ones are closed") == 1


async def test_of_those_that_asked_the_longest_idle_one_makes_room() -> None:
    async with listening(spec(), connections=3) as listeners, AsyncExitStack() as stack:
        port = listeners.addresses[0][1]
        clients = [await stack.enter_async_context(connected(port)) for _ in range(3)]
        for at in (0, 1, 2, 0):
            await ask(*clients[at])
        newest = await stack.enter_async_context(connected(port))
        await ask(*newest)
        assert await is_closed(clients[1][0])
        for client in (clients[0], clients[2], newest):
            assert (await ask(*client)).startswith(b"HTTP/1.1 200")


async def test_nobody_who_is_being_answered_is_sent_away() -> None:
    asked, may_answer = asyncio.Semaphore(0), asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        asked.release()
        await may_answer.wait()
        return web.Response(text="fine")

    async with (
        listening(spec(), routes=[web.get("/healthz", slow)], connections=2) as listeners,
        AsyncExitStack() as stack,
    ):
        port = listeners.addresses[0][1]
        busy = [await stack.enter_async_context(connected(port)) for _ in range(2)]
        for _, writer in busy:
            writer.write(GET)
            await asyncio.wait_for(asked.acquire(), PATIENCE_S)
        async with connected(port) as (reader, _):
            assert await is_closed(reader)
        may_answer.set()
        for reader, _ in busy:
            assert b"200" in await asyncio.wait_for(reader.readuntil(b"\r\n"), PATIENCE_S)
        assert listeners.refused.crowded == 1


async def test_a_crowd_in_its_tls_handshake_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is their number that ends them.
    monkeypatch.setattr(handshakes_module, "HANDSHAKE_S", 10 * PATIENCE_S)
    site = Site(tmp_path)
    most, crowd = 10, 60
    async with listening(spec(site.files), connections=most) as listeners, AsyncExitStack() as stack:
        port = listeners.addresses[0][1]
        # Plain TCP: the handshake never begins.
        readers = [(await stack.enter_async_context(connected(port)))[0] for _ in range(crowd)]
        assert await serial_served(port, site.client(site.old)) == site.serial
        for reader in readers[: crowd - most]:
            assert await is_closed(reader)
        assert listeners.refused.crowded == crowd + 1 - most


async def test_stopping_ends_a_handshake_that_never_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshakes_module, "HANDSHAKE_S", 10 * PATIENCE_S)
    site = Site(tmp_path)
    async with AsyncExitStack() as stack:
        async with listening(spec(site.files)) as listeners:
            silent, _ = await stack.enter_async_context(connected(listeners.addresses[0][1]))
            # Who comes later is served: the silent one has been accepted by then.
            assert await serial_served(listeners.addresses[0][1], site.client(site.old)) == site.serial
        assert await is_closed(silent)


async def test_a_tls_handshake_that_never_comes_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes_module, "HANDSHAKE_S", 0.3)
    site = Site(tmp_path)
    async with (
        listening(spec(site.files)) as listeners,
        connected(listeners.addresses[0][1]) as (reader, writer),
    ):
        writer.write(b"\x16\x03\x01")
        assert await is_closed(reader)


async def test_an_answer_that_nobody_takes_ends_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "STUCK_S", 1.0)
    ended = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        try:
            await response.prepare(request)
            while True:
                await response.write(b"x" * 2**16)
        finally:
            ended.set()

    async with listening(spec(), routes=[web.get("/healthz", endless)]) as listeners:
        with socket.create_connection(listeners.addresses[0]) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(GET)
            await asyncio.wait_for(ended.wait(), PATIENCE_S)


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


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n"]
)
async def test_what_is_not_http_is_counted_and_fills_no_log(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(spec()) as listeners:
        async with connected(listeners.addresses[0][1]) as (reader, writer):
            writer.write(sent)
            assert (await asyncio.wait_for(reader.readline(), PATIENCE_S)).startswith(b"HTTP/1.0 400")
        assert listeners.refused.malformed == 1
    assert not caplog.records


async def test_a_fault_of_ours_is_told_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: web.Request) -> web.Response:
        raise ZeroDivisionError("ours")

    async with (
        listening(spec(), routes=[web.get("/healthz", broken)]) as listeners,
        connected(listeners.addresses[0][1]) as (reader, writer),
    ):
        writer.write(GET)
        assert b"500" in await asyncio.wait_for(reader.readline(), PATIENCE_S)
        assert listeners.refused.malformed == 0
    assert "ZeroDivisionError: ours" in caplog.text


@pytest.mark.parametrize(
    ("asked", "want_status", "want_text"),
    [
        ("GET /metricz", 404, "nothing at /metricz; this listener has /healthz"),
        ("POST /", 404, "nothing at /; this listener has /healthz"),
        ("GET /healthz/", 404, "/healthz"),
        ("POST /healthz", 405, "/healthz takes GET and HEAD, not POST"),
    ],
)
async def test_who_asks_for_something_else_is_told_what_there_is(
    asked: str, want_status: int, want_text: str
) -> None:
    async with (
        listening(spec()) as listeners,
        connected(listeners.addresses[0][1]) as (reader, writer),
    ):
        writer.write(f"{asked} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)).decode()
        assert head.startswith(f"HTTP/1.1 {want_status} ")
        assert "application/json" in head
        assert ("Allow: GET,HEAD" in head) == (want_status == 405)
        assert want_text in (await asyncio.wait_for(reader.readuntil(b"}"), PATIENCE_S)).decode()
        # The connection goes on.
        await ask(reader, writer)


POST = b"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n0123456789"


async def ask_back(request: web.Request) -> web.Response:
    return web.Response(text=f"got {await request.text()}")


ASK = {"probes": [web.post("/ask", ask_back)]}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kept", [False, True], ids=["first", "kept"])
@pytest.mark.parametrize("sent", [4, POST.index(b"01"), POST.index(b"5")], ids=["line", "header", "body"])
async def test_a_request_that_is_still_arriving_is_answered_and_ends_its_connection(
    tmp_path: Path, sent: int, *, kept: bool, tls: bool
) -> None:
    site = Site(tmp_path)
    # Nothing but the answer ends it: the grace is longer than our patience.
    listeners = Listeners([spec(site.files if tls else None)], ASK, grace_s=10 * PATIENCE_S)
    await listeners.start()
    context = site.client(site.old) if tls else None
    async with (
        connected(listeners.addresses[0][1], context) as (reader, writer),
        asyncio.TaskGroup() as group,
    ):
        if kept:
            writer.write(POST)
            await asyncio.wait_for(reader.readuntil(b"got 0123456789"), PATIENCE_S)
        writer.write(POST[:sent])
        # Seen by the listeners: who sends later takes his chance with any server.
        [connection] = await until(lambda: connections_of(listeners))
        await until(lambda: not connection.idle)
        stopped = group.create_task(listeners.stop())
        await asyncio.sleep(0.1)
        assert not stopped.done()
        writer.write(POST[sent:])
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"Connection: close" in answer
        assert answer.endswith(b"got 0123456789")
        writer.close()
        await asyncio.wait_for(stopped, PATIENCE_S)


@pytest.mark.parametrize("sent", [4, POST.index(b"01"), POST.index(b"5")], ids=["line", "header", "body"])
async def test_a_request_that_never_comes_whole_holds_the_end_for_the_grace_only(sent: int) -> None:
    listeners = Listeners([spec()], ASK, grace_s=0.5)
    await listeners.start()
    async with connected(listeners.addresses[0][1]) as (reader, writer):
        writer.write(POST[:sent])
        [connection] = await until(lambda: connections_of(listeners))
        await until(lambda: not connection.idle)
        await asyncio.wait_for(listeners.stop(), PATIENCE_S)
        assert await is_closed(reader)


async def test_idle_connections_do_not_stay_for_a_request_that_is_still_arriving() -> None:
    listeners = Listeners(
        [spec(), spec()], {"probes": [*ROUTES["probes"], *ASK["probes"]]}, grace_s=10 * PATIENCE_S
    )
    await listeners.start()
    async with AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(connected(port)) for _, port in listeners.addresses]
        for client in idle:
            await ask(*client)
        silent, _ = await stack.enter_async_context(connected(listeners.addresses[0][1]))
        reader, writer = await stack.enter_async_context(connected(listeners.addresses[1][1]))
        writer.write(POST[:-5])
        await until(lambda: len(connections_of(listeners)) == 4)
        await until(lambda: sum(not each.idle for each in connections_of(listeners)) == 1)
        async with asyncio.TaskGroup() as group:
            stopped = group.create_task(listeners.stop())
            for closing in (silent, *(each for each, _ in idle)):
                assert await is_closed(closing)
            assert not stopped.done()
            writer.write(POST[-5:])
            assert b"got 0123456789" in await asyncio.wait_for(reader.read(), PATIENCE_S)
            await asyncio.wait_for(stopped, PATIENCE_S)


async def test_an_answer_that_had_begun_before_ends_its_connection_too() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def long(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"long ")
        begun.set()
        await may_end.wait()
        await response.write(b"answer")
        return response

    listeners = Listeners([spec()], {"probes": [web.get("/healthz", long)]}, grace_s=10 * PATIENCE_S)
    await listeners.start()
    async with connected(listeners.addresses[0][1]) as (reader, writer), asyncio.TaskGroup() as group:
        writer.write(GET)
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        stopped = group.create_task(listeners.stop())
        await asyncio.sleep(0.1)
        may_end.set()
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        # Its header went out before anybody thought of stopping: the client learns it by the end.
        assert b"Connection: close" not in answer
        assert b"answer" in answer
        await asyncio.wait_for(stopped, PATIENCE_S)


async def test_a_question_that_came_in_the_turn_of_the_stop_is_answered() -> None:
    listeners = Listeners([spec()], ASK, grace_s=10 * PATIENCE_S)
    await listeners.start()
    async with connected(listeners.addresses[0][1]) as (reader, writer):
        writer.write(POST)
        await asyncio.wait_for(reader.readuntil(b"got 0123456789"), PATIENCE_S)
        # Sent past our own loop, so that it stands in the kernel before the stop begins.
        os.write(writer.get_extra_info("socket").fileno(), POST)
        await asyncio.wait_for(listeners.stop(), PATIENCE_S)
        assert (await asyncio.wait_for(reader.read(), PATIENCE_S)).endswith(b"got 0123456789")
