"""The extender's HTTP face: read a body, hand it to the verbs, send what they say.

Nothing is awaited between question and answer but the body, and a bind. What the answers are is decided
behind `ExtenderVerbs`; here is decided only who gets one, and what a broken question costs: one answer and
one count.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from aiohttp import web

from scheduler.extender.answers import error_answer
from scheduler.extender.wire import (
    BadRequest,
    BindArgs,
    FilterArgs,
    PreemptArgs,
    read_bind,
    read_filter,
    read_preempt,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.web_protocol import RequestHandler

    from scheduler.core.clock import Clock

_log = logging.getLogger(__name__)

LOOPBACK = web.AppKey("loopback", bool)
"""Set on an application whose listener is bound to a loopback address; without it, it counts as reachable."""

BODY_LIMIT_BYTES = 64 * 2**20  # 5,000 full nodes are 48 MiB (docs: DESIGN 4.1)
BODIES_LIMIT_BYTES = 2 * BODY_LIMIT_BYTES
"""Of all bodies that are arriving at once: kube-scheduler sends one after the other."""
SMALL_BODY_BYTES = 2**20
"""Never refused for what others send; a question of 5,000 names is 154 KB."""
FIRST_SWEEP = 64
"""Connections remembered before closed ones are swept out; kube-scheduler keeps a handful."""
BODY_TIMEOUT_S = 10.0  # twice kube-scheduler's default httpTimeout: who is slower has given up

TELL_EVERY_S = 60.0
"""How often a refusal is logged, for each reason: a broken client repeats it a hundred times a second."""

BUCKETS_S = (0.00025, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Upper bounds of the latency histogram: fine around the 1.5 ms aimed for, up to the default httpTimeout."""


class ExtenderVerbs(Protocol):
    """What answers the four questions. The first three from memory, within one turn of the loop."""

    def filter(self, args: FilterArgs) -> bytes | bytearray:
        """Answer with an ExtenderFilterResult."""
        ...

    def prioritize(self, args: FilterArgs) -> bytes | bytearray:
        """Answer with a HostPriorityList."""
        ...

    def preempt(self, args: PreemptArgs) -> bytes | bytearray:
        """Answer with an ExtenderPreemptionResult."""
        ...

    async def bind(self, args: BindArgs) -> bytes | bytearray:
        """Answer with an ExtenderBindingResult, within a time limit of its own."""
        ...

    def may_answer(self, loopback: bool) -> str | None:  # noqa: FBT001 - a fact, one caller
        """Say why this replica may not answer now, over a loopback listener or another; None if it may."""
        ...


@dataclass(slots=True)
class Latency:
    """A plain histogram of one verb, read when metrics are scraped."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    """By bucket of `BUCKETS_S`, not cumulated; the last one is everything slower."""
    sum_s: float = 0.0

    def observe(self, seconds_s: float) -> None:
        """Count one request."""
        self.counts[bisect_left(BUCKETS_S, seconds_s)] += 1
        self.sum_s += seconds_s


@dataclass(slots=True)
class ExtenderCounters:
    """What the door has seen. Plain numbers that report reads; every key is from a closed set.

    Results: `ok`, `bad-request`, `too-large`, `too-many`, `slow-body`, `disconnected`, `unavailable`, `error`,
    `unknown-verb`.
    """

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By verb and result."""
    refused: Counter[str] = field(default_factory=Counter)
    """Questions that could not be answered, by reason: those of `BadRequest`, and the results beside `ok`."""
    full_nodes: int = 0
    """Questions that sent whole nodes, for which nodeCacheCapable must be true to get good answers."""
    latency: dict[str, Latency] = field(default_factory=dict)
    """By verb, from the head of the request to the answer built, answered ones only."""
    observe: Callable[[str, float, str], None] | None = None
    """Called with verb, seconds and result of each request, if set."""

    def count(self, verb: str, seconds_s: float, result: str) -> None:
        """Count one request under its result."""
        self.requests[verb, result] += 1
        if result == "ok":
            latency = self.latency.get(verb)
            if latency is None:
                latency = self.latency[verb] = Latency()
            latency.observe(seconds_s)
        if self.observe is not None:
            self.observe(verb, seconds_s, result)


class _Refused(Exception):
    """A request that gets another status than 200."""

    def __init__(
        self, status: HTTPStatus, result: str, reason: str, detail: str, *, close: bool = False
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.result = result
        self.reason = reason
        self.close = close


class ExtenderServer:
    """The four verbs as routes, and the connections that came through them.

    Args:
        verbs: what answers.
        counters: what is counted here.
        clock: for latencies.
        body_limit_bytes: a larger body is answered 413, as soon as it is announced or seen.
        body_timeout_s: a body that has not arrived by then is answered 408.
        bodies_limit_bytes: of all bodies that are arriving; one that would pass it, and is not small, is answered
            503.
    """

    def __init__(
        self,
        verbs: ExtenderVerbs,
        counters: ExtenderCounters,
        clock: Clock,
        *,
        body_limit_bytes: int = BODY_LIMIT_BYTES,
        body_timeout_s: float = BODY_TIMEOUT_S,
        bodies_limit_bytes: int = BODIES_LIMIT_BYTES,
    ) -> None:
        self._verbs = verbs
        self._counters = counters
        self._clock = clock
        self._body_limit_bytes = body_limit_bytes
        self._body_timeout_s = body_timeout_s
        self._bodies_limit_bytes = bodies_limit_bytes
        self._arriving_bytes = 0
        # aiohttp's handler takes no weak reference: closed ones are swept out when the set has doubled.
        self._connections: set[RequestHandler] = set()
        self._sweep_at = FIRST_SWEEP
        self._answering: set[RequestHandler] = set()
        # Connections that were told to close while they had a question; their answer says so.
        self._closing: set[RequestHandler] = set()
        self._warned_of_full_nodes = False
        self._told_mono_s: dict[str, float] = {}

    def routes(self, prefix: str = "/scheduler") -> list[web.RouteDef]:
        """Give the routes, POST only, under the prefix that kube-scheduler's `urlPrefix` ends in."""
        prefix = prefix.rstrip("/")
        return [
            web.post(f"{prefix}/filter", self._route("filter", self._filter)),
            web.post(f"{prefix}/prioritize", self._route("prioritize", self._prioritize)),
            web.post(f"{prefix}/preempt", self._route("preempt", self._preempt)),
            web.post(f"{prefix}/bind", self._route("bind", self._bind)),
            web.post(f"{prefix}/{{verb}}", self._route("other", self._other)),
        ]

    def close_connections(self) -> int:
        """Close every connection that an extender question came over, each after the answer it waits for.

        Called when this replica stops leading: Go's client would keep its connection to it for ever. Says how
        many.
        """
        connections = list(self._connections)
        self._connections.clear()
        for connection in connections:
            if connection in self._answering:
                self._closing.add(connection)
            else:
                # Not `close()`: that ends the idle handler and leaves its socket open, with nobody behind it.
                connection.force_close()
        return len(connections)

    def _remember(self, connection: RequestHandler) -> None:
        self._connections.add(connection)
        if len(self._connections) >= self._sweep_at:
            self._connections = {each for each in self._connections if each.transport is not None}
            self._closing = {each for each in self._closing if each.transport is not None}
            self._sweep_at = max(FIRST_SWEEP, 2 * len(self._connections))

    async def _filter(self, body: bytes) -> bytes | bytearray:
        return self._verbs.filter(self._seen(read_filter(body)))

    async def _prioritize(self, body: bytes) -> bytes | bytearray:
        return self._verbs.prioritize(self._seen(read_filter(body)))

    async def _preempt(self, body: bytes) -> bytes | bytearray:
        return self._verbs.preempt(read_preempt(body))

    async def _bind(self, body: bytes) -> bytes | bytearray:
        return await self._verbs.bind(read_bind(body))

    async def _other(self, _: bytes) -> bytes:
        raise _Refused(
            HTTPStatus.NOT_FOUND,
            "unknown-verb",
            "unknown-verb",
            "verbs are filter, prioritize, preempt and bind",
        )

    def _seen(self, args: FilterArgs) -> FilterArgs:
        if args.nodes is not None:
            self._counters.full_nodes += 1
            if not self._warned_of_full_nodes:
                self._warned_of_full_nodes = True
                _log.warning("kube-scheduler sends whole nodes: set nodeCacheCapable: true for this extender")
        return args

    def _route(
        self, verb: str, answer: Callable[[bytes], Awaitable[bytes | bytearray]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            start_mono_s = self._clock.mono_s()
            connection = request.protocol
            self._remember(connection)
            self._answering.add(connection)
            try:
                body = await self._body(request)
                # Asked after the body has come: leadership may have gone while it was on its way.
                why_not = self._verbs.may_answer(request.app.get(LOOPBACK, False))
                if why_not is None:
                    response, result = _json(HTTPStatus.OK, await answer(body)), "ok"
                else:
                    response, result = self._refusal(verb, _unavailable(why_not))
            except Exception as error:  # noqa: BLE001 - the boundary: nothing that comes in may stop us
                response, result = self._refusal(verb, error)
            finally:
                self._answering.discard(connection)
            if connection in self._closing:
                self._closing.discard(connection)
                response.force_close()
            self._counters.count(verb, self._clock.mono_s() - start_mono_s, result)
            return response

        return handle

    def _refusal(self, verb: str, error: Exception) -> tuple[web.Response, str]:
        if isinstance(error, BadRequest):
            status, result, reason = HTTPStatus.BAD_REQUEST, "bad-request", error.reason
        elif isinstance(error, _Refused):
            status, result, reason = error.status, error.result, error.reason
        else:
            _log.error("extender verb %s failed", verb, exc_info=error)
            status, result, reason = HTTPStatus.INTERNAL_SERVER_ERROR, "error", "error"
        self._counters.refused[reason] += 1
        text = str(error) if result != "error" else f"{verb} failed: {type(error).__name__}: {error}"
        if result not in ("error", "unavailable", "disconnected"):
            self._tell(verb, reason, text)
        response = _json(status, error_answer(text))
        if isinstance(error, _Refused) and error.close:
            response.force_close()
        return response, result

    def _tell(self, verb: str, reason: str, text: str) -> None:
        # kube-scheduler logs a status and no more, so that what it is about would stand nowhere.
        now_mono_s = self._clock.mono_s()
        told_mono_s = self._told_mono_s.get(reason)
        if told_mono_s is None or now_mono_s - told_mono_s >= TELL_EVERY_S:
            self._told_mono_s[reason] = now_mono_s
            _log.warning("extender verb %s was refused: %s", verb, text[:300])

    async def _body(self, request: web.Request) -> bytes:
        # Not request.read(): its limit belongs to the application, which other roles may share.
        limit_bytes = self._body_limit_bytes
        encodings = ",".join(request.headers.getall("Content-Encoding", ()))
        if any(each.strip().lower() not in ("", "identity") for each in encodings.split(",")):
            raise self._encoded(encodings)
        if (request.content_length or 0) > limit_bytes:
            raise self._too_large()
        chunks: list[bytes] = []
        seen_bytes = 0
        try:
            async with asyncio.timeout(self._body_timeout_s):
                async for chunk in request.content.iter_any():
                    seen_bytes += len(chunk)
                    self._arriving_bytes += len(chunk)
                    if seen_bytes > limit_bytes:
                        raise self._too_large()
                    if seen_bytes > SMALL_BODY_BYTES and self._arriving_bytes > self._bodies_limit_bytes:
                        raise self._too_many()
                    chunks.append(chunk)
        except TimeoutError:
            late = f"the body did not arrive within {self._body_timeout_s:g} s"
            raise _Refused(HTTPStatus.REQUEST_TIMEOUT, "slow-body", "slow-body", late, close=True) from None
        except ConnectionError as error:
            # Nobody is left to read this answer; it only has to be counted as what it is.
            raise _Refused(
                HTTPStatus.BAD_REQUEST, "disconnected", "disconnected", str(error), close=True
            ) from error
        except web.RequestPayloadError as error:
            raise BadRequest(BadRequest.NOT_JSON, f"broken body: {error}") from error
        finally:
            self._arriving_bytes -= seen_bytes
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _encoded(self, encodings: str) -> _Refused:
        # Nothing is unfolded (listeners.py); taken as it is, it would be called no UTF-8.
        text = f"Content-Encoding {encodings[:60]!r} is not supported: send the JSON as it is"
        return _Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "bad-request", "content-encoding", text, close=True
        )

    def _too_large(self) -> _Refused:
        text = f"the body is larger than {self._body_limit_bytes} bytes"
        return _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", "too-large", text, close=True)

    def _too_many(self) -> _Refused:
        text = f"bodies of more than {self._bodies_limit_bytes} bytes are arriving at once"
        return _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too-many", "too-many", text, close=True)


def _unavailable(why_not: str) -> _Refused:
    return _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "unavailable", why_not, close=True)


def _json(status: HTTPStatus, body: bytes | bytearray) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")
