"""Connections: how many a listener keeps, how long one may say or take nothing, and whose faults are logged.

Go keeps a connection for 90 s after its last answer, and may keep one that it opened and never used. So a silent
connection has 120 s, and one with half a header gets no other limit: who wants to hold a connection need not
send that half. What bounds the harm is their number, at which the one that has been silent longest makes room.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from scheduler.handshakes import Handshake

_log = logging.getLogger(__name__)

SILENT_S = 120.0  # longer than Go's 90 s: the client must be the one that closes an idle connection
LINGER_S = 1.0  # how long the rest of a refused body is read, so that its sender gets to see the answer
STUCK_S = 30.0  # an answer of which the client takes nothing for so long ends its connection
# kube-scheduler keeps a handful, a browser six. Four listeners stay at half of the usual 1,024 open files.
CONNECTIONS = 128


@dataclass(slots=True)
class ConnectionCounters:
    """What listeners closed before any room was asked. Plain numbers that report reads."""

    crowded: int = 0
    """Connections that made room for others, or found none."""
    malformed: int = 0
    """Requests that are not HTTP."""


class Connection(RequestHandler):
    """aiohttp's connection, which also says whether a request has begun on it, and ends after its answer.

    aiohttp's own shutdown drops whatever comes in once it has begun, so that a request whose body is still on its way
    would get no answer. It has no public word for what its connections are doing; the tests hold it to these.
    """

    __slots__ = ("_half_header", "_lost")

    def __init__(
        self,
        server: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        logger: logging.LoggerAdapter[logging.Logger],
        silent_s: float,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # aiohttp's own application gives it so
            logger=logger,  # type: ignore[arg-type]  # aiohttp asks it for what both have
            keepalive_timeout=silent_s,
            lingering_time=LINGER_S,
            # Nobody who asks us compresses, and 100 KB can be made to unfold into 100 MB.
            auto_decompress=False,
        )
        self._half_header = False
        self._lost = asyncio.Event()

    @property
    def silent(self) -> bool:
        """Whether no request is being read or answered; half a header may have come."""
        return not self._request_count or (self._waiter is not None and not self._waiter.done())

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has come since the last answer."""
        return self.silent and not self._half_header

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        super().data_received(data)
        # What makes a header whole ends the silence.
        self._half_header = self.silent

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note the end."""
        super().connection_lost(exc)
        self._lost.set()

    async def end(self) -> None:
        """Close: at once where nothing was asked, else after the answer, which is waited for without a limit.

        The rest of the request may still be arriving. Who calls this sees to it that an answer from now on says that it
        is the last (`Connection: close`), which ends the connection too.
        """
        if self.idle:
            # Not `close()`: that ends the idle handler and leaves its socket open, with nobody behind it.
            self.force_close()
            return
        request = self._current_request
        arriving = request is not None and not request.content.is_eof()
        if not (arriving or self._half_header or self._messages):
            # All has come. It would drop what comes from now on.
            self.close()
        if self._task_handler is not None:
            await asyncio.wait([self._task_handler])
        # What is left of the answer goes out; who does not say goodbye is not waited for.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._lost.wait(), LINGER_S)

    def silent_until_s(self) -> float:
        """Say at which instant of the loop it will have been silent for too long; 0 for who never asked anything."""
        return self._next_keepalive_close_time if self._request_count else 0.0


@dataclass(frozen=True, slots=True)
class _Coming:
    """What a connection goes through before it can be asked: the loop's task that accepts it, then the handshake."""

    accepting: asyncio.Task[object] | None
    handshake: Handshake | None

    @property
    def going_on(self) -> bool:
        return (self.accepting is not None and not self.accepting.done()) or (
            self.handshake is not None and not self.handshake.over
        )

    def end(self) -> None:
        if self.accepting is not None:
            self.accepting.cancel()
        if self.handshake is not None:
            self.handshake.abort()


class Gate:
    """Lets so many connections in and no more: beyond that, each that comes sends another away.

    Without it, whoever opens connections and says nothing takes every file that the process may open, those to the
    API server and the broker too. First goes who never asked anything, the earliest first, TLS handshakes
    included; then who has been idle longest. While all are being answered, the one that comes is refused.
    """

    def __init__(
        self,
        make: Callable[[], Connection],
        address: str,
        connections: int,
        counters: ConnectionCounters,
        secured: Callable[[Connection], Handshake] | None = None,
    ) -> None:
        self._make = make
        self._address = address
        self._connections = connections
        self._counters = counters
        self._secured = secured
        # In the order they came.
        self._open: dict[Connection, _Coming] = {}

    def __call__(self) -> Connection | Handshake:
        """Make the protocol of a connection that was just accepted; the loop calls this."""
        self._open = {
            connection: coming
            for connection, coming in self._open.items()
            if connection.transport is not None or coming.going_on
        }
        if len(self._open) >= self._connections:
            self._make_room()
        connection = self._make()
        handshake = self._secured(connection) if self._secured is not None else None
        self._open[connection] = _Coming(asyncio.current_task(), handshake)
        return handshake or connection

    def end_handshakes(self) -> None:
        """End what has been accepted and cannot be asked yet."""
        for connection, coming in self._open.items():
            if connection.transport is None and coming.going_on:
                coming.end()

    def _make_room(self) -> None:
        if not self._counters.crowded:
            _log.warning("%s has %d connections: silent ones are closed", self._address, self._connections)
        self._counters.crowded += 1
        silent = [each for each in self._open if each.silent]
        if not silent:
            accepting = asyncio.current_task()
            if accepting is not None:
                accepting.cancel()
            return
        first = min(silent, key=Connection.silent_until_s)
        coming = self._open.pop(first)
        if first.transport is not None:
            # Not `close()`: that ends the idle handler and leaves its socket open, with nobody behind it.
            first.force_close()
        else:
            coming.end()


class Site(web.BaseSite):
    """aiohttp's TCPSite, behind a gate, and with a limit on answers that nobody takes."""

    def __init__(self, runner: web.AppRunner, gate: Gate, host: str | None, port: int) -> None:
        super().__init__(runner)
        self._gate = gate
        self._host = host
        self._port = port

    @property
    def name(self) -> str:
        """Where it listens."""
        return f"{self._host or ''}:{self._port}"

    async def start(self) -> None:
        """Bind and listen.

        Raises:
            OSError: the address cannot be bound.
        """
        await super().start()
        # Without its `ssl`, which would say nothing of a refused handshake: the gate's protocols do that.
        server = await asyncio.get_running_loop().create_server(
            self._gate, self._host, self._port, backlog=self._backlog
        )
        self._server = server
        if sys.platform == "linux":
            for listening in server.sockets:
                # Inherited by what is accepted. The kernel's own clock: it costs an answer nothing.
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STUCK_S * 1000))


class HttpLog(logging.LoggerAdapter[logging.Logger]):
    """aiohttp's log, where a client's fault is counted and not told with a traceback each time."""

    def __init__(self, counters: ConnectionCounters) -> None:
        super().__init__(logging.getLogger("aiohttp.server"), {})
        self._counters = counters

    def exception(self, msg: object, *args: object, exc_info: object = True, **_: object) -> None:
        """Log an error of ours."""
        error = exc_info if isinstance(exc_info, BaseException) else sys.exc_info()[1]
        if isinstance(error, HttpProcessingError | web.RequestPayloadError):
            self._counters.malformed += 1
            return
        self.error(msg, *args, exc_info=error)
