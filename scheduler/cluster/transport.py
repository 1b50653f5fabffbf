"""One HTTP request to the API server: sessions, time limits, 429, 401, and errors by what the caller should do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import ssl
from typing import TYPE_CHECKING

import aiohttp
import msgspec

from scheduler.cluster.api_request import Counters, Limits, Target
from scheduler.cluster.objects import Status
from scheduler.cluster.server_clock import ServerClock
from scheduler.core.errors import (
    ApiConflict,
    ApiForbidden,
    ApiGone,
    ApiNotFound,
    ApiRejected,
    ApiUnavailable,
    ClusterError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from scheduler.cluster.access import Access, Credentials
    from scheduler.core.clock import Clock

MERGE_PATCH = "application/merge-patch+json"
METHODS = {
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}
# Sent where a server says 429 but not for how long.
DEFAULT_RETRY_AFTER_S = 1.0
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT, GONE, INVALID, TOO_MANY = 401, 403, 404, 409, 410, 422, 429
FAULT = 500
_STATUS = msgspec.json.Decoder(Status)
# 403 is what an authorizer says of whoever asks (`User "…" cannot …`), and what admission says of this one object. 500
# is what a server in need says, and one that cannot reach the webhook that this object needs; others need none.
_BY_ADMISSION = re.compile(
    r"denied (the )?request| is forbidden: (?!.*User \")|failed calling (admission )?webhook", re.DOTALL
)


class Transport:
    """Three sessions, so that watches do not use up the calls' connections, nor a burst the Lease's."""

    def __init__(
        self,
        credentials: Credentials,
        clock: Clock,
        *,
        limits: Limits | None = None,
        counters: Counters | None = None,
    ) -> None:
        self.clock = clock
        self.server_clock = ServerClock(clock)
        self.limits = limits or Limits()
        self.counters = counters or Counters()
        self.last_contact_mono_s: float | None = None
        """When the server last answered or sent a byte; None = never."""
        self.forbidden: dict[tuple[str, str], str] = {}
        """By verb and resource: what the server would not let us do when we last tried, for a person."""
        self._credentials = credentials
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def open(self) -> None:
        """Make the sessions; needs a running loop.

        Raises:
            ConfigError: the credentials cannot be read, so that no call later finds that out.
        """
        await self._credentials.access()
        connect_s = self.limits.connect_timeout_s
        for name, connections, timeout in (
            # The watches' connector has no limit: each watch holds a connection, and the default of 100 is shared.
            (
                "watch",
                0,
                aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=self.limits.silence_s),
            ),
            ("call", 32, aiohttp.ClientTimeout(total=self.limits.page_timeout_s, sock_connect=connect_s)),
            ("lease", 2, aiohttp.ClientTimeout(total=self.limits.lease_timeout_s, sock_connect=connect_s)),
        ):
            self._sessions[name] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=connections),
                timeout=timeout,
                headers={"User-Agent": "wattbalance", "Accept-Encoding": "gzip"},
                # Authorization is set per request; cookies would pin us to one API server.
                cookie_jar=aiohttp.DummyCookieJar(),
            )

    async def close(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    def heard(self) -> None:
        """Note that the server lives."""
        self.last_contact_mono_s = self.clock.mono_s()

    async def call(
        self,
        verb: str,
        target: Target,
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
        accept: str = "application/json",
        session: str = "call",
        timeout_s: float | None = None,
    ) -> bytes:
        """Send one request and read its whole answer.

        Args:
            verb: the RBAC verb.
            target: what it is about.
            params: the query.
            body: encoded as JSON; a patch goes as a merge-patch.
            accept: the media types wanted.
            session: `call` or `lease`.
            timeout_s: for the call and its repetitions after 429; None means the limits' own.

        Raises:
            ClusterError: one of its kinds. ApiUnavailable after a write: the outcome is unknown.
        """
        limit_s = timeout_s if timeout_s is not None else self.limits.call_timeout_s
        ends_mono_s = self.clock.mono_s() + limit_s
        with self._translated(verb, target, limit_s):
            async with asyncio.timeout(limit_s):
                while True:
                    try:
                        response = await self._open(
                            verb, target, params, body, accept=accept, session=session
                        )
                    except ApiUnavailable as error:
                        # 429 means that the request was not carried out, so any verb may be repeated.
                        wait_s = error.retry_after_s or DEFAULT_RETRY_AFTER_S
                        if error.status != TOO_MANY or self.clock.mono_s() + wait_s >= ends_mono_s:
                            raise
                        # Jitter, or all who were turned away together come back together.
                        await asyncio.sleep(wait_s * random.uniform(1.0, 1.2))  # noqa: S311 - not a secret
                        continue
                    async with response:
                        answer = await response.read()
                    self.heard()
                    return answer

    @contextlib.asynccontextmanager
    async def stream(
        self, target: Target, *, params: Mapping[str, str], accept: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open a watch; whatever goes wrong in it, silence too, is raised as ClusterError."""
        silence_s = self.limits.silence_s
        with self._translated("watch", target, silence_s):
            response = await self._open("watch", target, params, None, accept=accept, session="watch")
            try:
                yield response
            finally:
                # Closed, not drained: the rest of a watch never ends.
                response.close()

    @contextlib.contextmanager
    def _translated(self, verb: str, target: Target, limit_s: float) -> Iterator[None]:
        try:
            yield
        # First, since aiohttp's own timeouts are both.
        except TimeoutError as error:
            self.counters.errors[verb, target.resource, "timeout"] += 1
            raise ApiUnavailable(f"{verb} {target.path}: no answer within {limit_s:g} s") from error
        except aiohttp.ClientError as error:
            self.counters.errors[verb, target.resource, "connection"] += 1
            raise ApiUnavailable(f"{verb} {target.path}: {_cause(error)}") from error

    async def _open(
        self,
        verb: str,
        target: Target,
        params: Mapping[str, str] | None,
        body: object,
        *,
        accept: str,
        session: str,
    ) -> aiohttp.ClientResponse:
        """Send the request; the answer comes back with its body unread, or is raised if it is an error."""
        access = await self._credentials.access()
        try:
            response = await self._send(access, verb, target, params, body, accept=accept, session=session)
            if response.status == UNAUTHORIZED:
                renewed = await self._credentials.reload(access)
                if renewed is not access:
                    response.release()
                    response = await self._send(
                        renewed, verb, target, params, body, accept=accept, session=session
                    )
        except aiohttp.ClientSSLError:
            # The cluster's CA may have been replaced: read it again for the next attempt.
            await self._credentials.reload(access)
            raise
        if response.status < 500:
            self.heard()
        if response.status < 300 or response.status in (NOT_FOUND, CONFLICT, GONE, INVALID):
            # What is not there, or is another by now, was allowed: rights are looked at first.
            self.forbidden.pop((verb, target.rbac_resource), None)
        if response.status < 300:
            return response
        async with response:
            raise self._error(verb, target, response, await response.read())

    async def _send(
        self,
        access: Access,
        verb: str,
        target: Target,
        params: Mapping[str, str] | None,
        body: object,
        *,
        accept: str,
        session: str,
    ) -> aiohttp.ClientResponse:
        if session not in self._sessions:
            raise ApiUnavailable(f"{verb} {target.path}: the connections are closed")
        self.counters.requests[verb] += 1
        headers = {"Accept": accept}
        if token := await access.token():
            if not token.isprintable():
                # A token file of two lines, or half written: aiohttp's ValueError would end the process.
                raise ApiUnavailable(
                    f"{verb} {target.path}: expected a token of one line, got another character"
                )
            headers["Authorization"] = token
        data = None
        if body is not None:
            headers["Content-Type"] = MERGE_PATCH if verb == "patch" else "application/json"
            data = msgspec.json.encode(body)
        asked_mono_s = self.clock.mono_s()
        response = await self._sessions[session].request(
            METHODS[verb],
            access.host + target.path,
            params=params,
            data=data,
            headers=headers,
            # Per request, so that a CA that was read again counts at once.
            ssl=access.ssl_context if access.ssl_context is not None else True,
            server_hostname=access.tls_server_name,
            proxy=access.proxy,
            # A redirect would carry the token to wherever it points.
            allow_redirects=False,
        )
        if response.status < FAULT:
            # A server in need, or what stands before it, may say anything.
            self.server_clock.see(response.headers.get("Date", ""), asked_mono_s)
        return response

    def _error(
        self, verb: str, target: Target, response: aiohttp.ClientResponse, answer: bytes
    ) -> ClusterError:
        code = response.status
        self.counters.errors[verb, target.resource, str(code)] += 1
        if code < 400:
            where = response.headers.get("Location", "nowhere")[:200]
            return ApiUnavailable(
                f"{verb} {target.path}: HTTP {code}: a redirect to {where}, which would get our token and is not "
                "followed: give the API server's own address",
                status=code,
            )
        said = status_of(answer).message or answer[:200].decode(errors="replace").strip()
        text = f"{verb} {target.path}: HTTP {code}: {said}"
        if code in (FORBIDDEN, FAULT) and _BY_ADMISSION.search(said):
            return ApiRejected(text, status=code)
        if code in (FORBIDDEN, UNAUTHORIZED):
            if code == FORBIDDEN:
                text = f"{target.rule(verb)} (the server said: {said})"
            else:
                text = f"{text}; the token or certificate is not accepted"
            self.forbidden[verb, target.rbac_resource] = text
            return ApiForbidden(text, status=code)
        if code == NOT_FOUND:
            return ApiNotFound(text, status=code)
        # A wrong uid in a patch is `Invalid` in some versions, `Conflict` in others: both mean another object.
        if code == CONFLICT or (code == INVALID and "metadata.uid" in said):
            return ApiConflict(text, status=code)
        if code == GONE:
            return ApiGone(text, status=code)
        if code == TOO_MANY or code >= 500:
            self.counters.throttled += code == TOO_MANY
            return ApiUnavailable(text, status=code, retry_after_s=_retry_after_s(response))
        return ApiRejected(text, status=code)


def _cause(error: aiohttp.ClientError) -> str:
    """Say what went wrong in a connection, without aiohttp's picture of the SSL context."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"{error.host}:{error.port} cannot be trusted: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        # asyncio's own text of a refused connection leaves out that it was refused.
        plain = cause.errno is not None and cause.errno > 0 and not isinstance(cause, ssl.SSLError)
        text = os.strerror(cause.errno or 0) if plain else cause.strerror or str(cause)
        return f"cannot connect to {error.host}:{error.port}: {text}"
    return str(error) or type(error).__name__


def status_of(answer: bytes | msgspec.Raw) -> Status:
    """Decode a metav1.Status; anything else is an empty one."""
    try:
        return _STATUS.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Status()


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    value = response.headers.get("Retry-After", "")
    # Seconds; the form with a date is not used by API servers.
    return float(value) if value.isascii() and value.isdigit() else None
