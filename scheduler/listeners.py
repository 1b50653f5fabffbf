"""Sockets: which address serves what, under which certificate, until when.

Composition only: what answers stands in the rooms. One application a listener; a listener may serve several
roles. Certificates and client CAs are read again when their files change.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiohttp import web

from scheduler.connections import CONNECTIONS, SILENT_S, Connection, ConnectionCounters, Gate, HttpLog, Site
from scheduler.core.errors import CannotListen
from scheduler.core.files import read_regular
from scheduler.extender.server import LOOPBACK
from scheduler.handshakes import Handshake, Refusals, no_refusals
from scheduler.hosts import guarded
from scheduler.report.views import OBSERVING_HEADER, PAUSED_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from aiohttp.web_protocol import RequestHandler

_log = logging.getLogger(__name__)

API = "/api/"
SAFE = " :,;()`"  # what a header may hold, and is read more easily as it is
CHECK_S = 10.0  # kubelet refreshes a mounted secret about once a minute: often enough, and costs nothing
LAST_FRAC = 0.1  # of the grace: to end what was not answered within the rest
GRACE_S = 5.0  # kube-scheduler's default httpTimeout: nobody waits longer for an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where a listener's certificate is. With a client CA, only its clients are served."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSpec:
    """One address and the roles it serves.

    Address: `host:port`, `[::1]:port`, or `:port` for all interfaces.
    """

    address: str
    serves: frozenset[str]
    tls: TlsFiles | None = None

    def host_port(self) -> tuple[str | None, int]:
        """Split the address; no host means every interface."""
        host, colon, port = self.address.rpartition(":")
        if not colon or not port.isdigit():
            message = f"{self.address!r} is not host:port"
            raise ValueError(message)
        return host.removeprefix("[").removesuffix("]") or None, int(port)

    def is_loopback(self) -> bool:
        """Whether only this machine (or pod) can reach it."""
        host, _ = self.host_port()
        try:
            return host == "localhost" or (host is not None and ip_address(host).is_loopback)
        except ValueError:
            return False


@dataclass(slots=True)
class ReloadCounters:
    """How often certificates were read again. Plain numbers that report reads."""

    ok: int = 0
    failed: int = 0
    """Files that changed into something unusable; the pair before them is still served."""


@dataclass(slots=True)
class Certificates:
    """A server context whose certificate and client CA can be exchanged while it serves.

    Two traps made it so. `load_cert_chain` on a context in use breaks it when the pair does not match, and
    `load_verify_locations` only ever adds, so that clients of a removed CA still get in. Hence a fresh
    context each time, which the front one hands to every new handshake. And a third: a resumed session skips
    the client's certificate, whatever CA is gone; hence TLS 1.3 without tickets, where nothing can be
    resumed.
    """

    files: TlsFiles
    unusable: bool = field(default=False, init=False)
    """Whether the files that are there now cannot be used, and those before are served on."""
    front: ssl.SSLContext = field(init=False)
    _current: ssl.SSLContext = field(init=False)
    _seen: bytes = field(init=False)

    def __post_init__(self) -> None:
        self._seen = self._digest()
        self._current = self._build()
        # The front's own verify mode counts at the handshake (it is copied before the exchange), so it is
        # built in the same way; its certificates are never shown.
        self.front = self._build()
        self.front.sni_callback = self._exchange

    def reload(self) -> bool | None:
        """Read the files if they have changed.

        Returns:
            True if new ones are served from now on, False if they are unusable (said once), None if nothing
            changed.
        """
        try:
            seen = self._digest()
        except OSError as error:
            # Some tools write a file by taking it away first; that is a change like any other.
            seen = repr(error).encode()
        if seen == self._seen:
            return None
        # Taken before the files are loaded: if they change in between, the next look sees it.
        self._seen = seen
        try:
            self._current = self._build()
            self.unusable = False
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            self.unusable = True
            _log.error("certificate %s cannot be used, the one before stays: %s", self.files.cert_file, error)
            return False
        return True

    def _exchange(
        self, sslobject: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _front: ssl.SSLContext
    ) -> None:
        sslobject.context = self._current

    def _digest(self) -> bytes:
        files = (self.files.cert_file, self.files.key_file, self.files.client_ca_file)
        digests = [hashlib.sha256(read_regular(file)).digest() for file in files if file is not None]
        return b"".join(digests)

    def _build(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        # No h2 here: a client that offers both falls back to 1.1.
        context.set_alpn_protocols(["http/1.1"])
        cert_file, key_file, ca_file = self.files.cert_file, self.files.key_file, self.files.client_ca_file
        # OpenSSL would open whatever stands there.
        self._digest()
        try:
            # An empty password makes a locked key an error; without one, OpenSSL would ask on the terminal.
            context.load_cert_chain(cert_file, key_file, password="")
        except ssl.SSLError as error:
            what = "expected a PEM certificate and its unlocked key"
            raise OSError(f"cert_file {cert_file}, key_file {key_file}: {what}, got: {error}") from error
        if ca_file is not None:
            try:
                context.load_verify_locations(ca_file)
            except ssl.SSLError as error:
                raise OSError(f"client_ca_file {ca_file}: expected PEM certificates, got: {error}") from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context


async def _elsewhere(request: web.Request) -> web.Response:
    """Say in JSON what this listener has, to who asked for something else."""
    here, allowed = [], set[str]()
    for resource in request.app.router.resources():
        if resource is not request.match_info.route.resource:
            here.append(resource.canonical)
            allowed |= (await resource.resolve(request))[1]
    if allowed:
        text = f"{request.path} takes {' and '.join(sorted(allowed))}, not {request.method}"
        return web.json_response({"error": text}, status=405, headers={"Allow": ",".join(sorted(allowed))})
    text = f"nothing at {request.path}; this listener has {', '.join(here) or 'nothing'}"
    return web.json_response({"error": text}, status=404)


class Listeners:
    """All listening sockets of the daemon.

    Args:
        specs: what to listen on.
        routes: by role; a role without routes serves nothing.
        check_s: how often certificate files are looked at.
        grace_s: how long a request that has begun may go on, its body still arriving too, once stopping has begun.
        silent_s: how long a connection may wait for a (whole) request header.
        connections: how many each listener may have open.
    """

    def __init__(
        self,
        specs: Sequence[ListenerSpec],
        routes: Mapping[str, Iterable[web.AbstractRouteDef]],
        *,
        check_s: float = CHECK_S,
        grace_s: float = GRACE_S,
        silent_s: float = SILENT_S,
        connections: int = CONNECTIONS,
    ) -> None:
        self._specs = tuple(specs)
        self._routes = {role: tuple(given) for role, given in routes.items()}
        self._check_s = check_s
        self._grace_s = grace_s
        self._silent_s = silent_s
        self._connections = connections
        self._runners: list[web.AppRunner] = []
        self._gates: list[Gate] = []
        self._certificates: list[tuple[Certificates, web.AppRunner]] = []
        self._outdated: set[RequestHandler] = set()
        self._stopping = False
        self.reloads = ReloadCounters()
        self.refused = ConnectionCounters()
        self.refused_handshakes = no_refusals()
        """By reason. Plain numbers that report reads."""
        self.ready = asyncio.Event()
        self.paused: Callable[[], str] = lambda: ""
        """Who has paused us, since when and why; empty while nobody has."""
        self.observing: Callable[[], str] = lambda: ""
        """What is only observed, and why; empty while we act everywhere."""

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The bound host and port of each listener, in the order given; a port 0 has become a real one."""
        return [(str(runner.addresses[0][0]), int(runner.addresses[0][1])) for runner in self._runners]

    def certificate_not_reloaded(self) -> bool:
        """Say whether a listener still serves a certificate that was to be replaced, and could not be."""
        return any(certificates.unusable for certificates, _ in self._certificates)

    async def run(self) -> None:
        """Listen until cancelled, reading certificates again when they change; then stop.

        Raises:
            CannotListen: an address cannot be bound, or a certificate not be read.
        """
        await self.start()
        try:
            while True:
                await asyncio.sleep(self._check_s)
                self.check_certificates()
        finally:
            await self.stop()

    async def start(self) -> None:
        """Bind all addresses; on failure none stays bound.

        Raises:
            CannotListen: an address cannot be bound, or a certificate not be read.
        """
        try:
            for index, spec in enumerate(self._specs):
                try:
                    await self._listen(spec)
                except OSError as error:
                    raise CannotListen.at(f"listeners[{index}]", spec.address, error) from error
        except BaseException:
            await self.stop()
            raise
        self.ready.set()

    async def stop(self) -> None:
        """Refuse new connections, answer what was asked or is being asked, close; all within one grace."""
        self.ready.clear()
        self._stopping = True
        runners, self._runners, self._certificates = self._runners, [], []
        gates, self._gates = self._gates, []
        # 1. No listener takes another connection, before the first of them waits for its answers.
        for runner in runners:
            for site in list(runner.sites):
                await site.stop()
        # 2. What came before that is read: the loop sees it in its next turn and hands it on in the one after.
        for _ in range(2):
            await asyncio.sleep(0)
        async with asyncio.TaskGroup() as group:
            # 3. Idle connections are closed at once, the others with their answer.
            ends = [
                group.create_task(connection.end(), name="listeners.end")
                for runner in runners
                if runner.server is not None
                for connection in runner.server.connections
                if isinstance(connection, Connection)
            ]
            if ends:
                _, late = await asyncio.wait(ends, timeout=self._grace_s * (1 - LAST_FRAC))
                for end in late:
                    end.cancel()
            # 4. What has not ended by then is cut off, and who has not even said hello.
            for gate in gates:
                gate.end_handshakes()
            for runner in runners:
                group.create_task(runner.cleanup(), name="listeners.stop")

    def check_certificates(self) -> None:
        """Read certificates and client CAs again where their files have changed."""
        for certificates, runner in self._certificates:
            outcome = certificates.reload()
            if outcome is False:
                self.reloads.failed += 1
            elif outcome is True:
                self.reloads.ok += 1
                _log.info("certificate %s was read again", certificates.files.cert_file)
                # A client of a removed CA must not keep its connection: older ones end after their next answer.
                if runner.server is not None:
                    self._outdated = {each for each in self._outdated if each.transport is not None}
                    self._outdated.update(runner.server.connections)

    async def _end_last(self, request: web.Request, response: web.StreamResponse) -> None:
        if self._stopping or request.protocol in self._outdated:
            self._outdated.discard(request.protocol)
            response.force_close()
            # The headers stand already when this is called.
            response.headers["Connection"] = "close"

    async def _tell_inaction(self, request: web.Request, response: web.StreamResponse) -> None:
        # People ask there, and programs that have no place for it in the body; kube-scheduler would only drop it.
        if response.status == HTTPStatus.MISDIRECTED_REQUEST:
            return  # to whoever that was, nothing
        if not request.path.startswith(API):
            return
        if paused := self.paused():
            response.headers[PAUSED_HEADER] = quote(paused, safe=SAFE)
        elif observing := self.observing():
            response.headers[OBSERVING_HEADER] = quote(observing, safe=SAFE)

    def _secured(self, address: str, context: ssl.SSLContext) -> Callable[[Connection], Handshake]:
        refusals = Refusals(address, self.refused_handshakes)
        return lambda connection: Handshake(connection, context, refusals)

    async def _listen(self, spec: ListenerSpec) -> None:
        host, port = spec.host_port()
        app = web.Application()
        app[LOOPBACK] = spec.is_loopback()
        app.on_response_prepare.append(self._end_last)
        app.on_response_prepare.append(self._tell_inaction)
        for role in sorted(spec.serves):
            routes = self._routes.get(role, ())
            # Only what people ask: kube-scheduler's calls are to cost nothing more.
            app.add_routes(guarded(routes, host or "") if role == "api" and spec.is_loopback() else routes)
        # Last: it takes what no other route does.
        app.router.add_route("*", "/{path:.*}", _elsewhere)
        async with AsyncExitStack() as undo:
            certificates = Certificates(spec.tls) if spec.tls is not None else None
            runner = web.AppRunner(
                app,
                handle_signals=False,
                # aiohttp waits so long twice, for the answer and then for the handler; and we have waited before.
                shutdown_timeout=self._grace_s * LAST_FRAC / 2,
            )
            undo.push_async_callback(runner.cleanup)
            await runner.setup()
            if runner.server is None:
                raise RuntimeError("a runner that was set up has a server")
            make = partial(
                Connection,
                runner.server,
                loop=asyncio.get_running_loop(),
                logger=HttpLog(self.refused),
                silent_s=self._silent_s,
            )
            secured = self._secured(spec.address, certificates.front) if certificates is not None else None
            gate = Gate(make, spec.address, self._connections, self.refused, secured)
            await Site(runner, gate, host, port).start()
            undo.pop_all()
        self._runners.append(runner)
        self._gates.append(gate)
        if certificates is not None:
            self._certificates.append((certificates, runner))
