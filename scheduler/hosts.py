"""Whom a question was meant for: on loopback, only what names this machine.

A page that somebody has open in a browser may ask 127.0.0.1, under a name of its own that it lets point there (DNS
rebinding): the browser then takes our answer for the page's. The name stands in the `Host` header, which no page can
change. Ports are not looked at: a port-forward has another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus

from aiohttp import web

from scheduler.report.queries import MOST_SHOWN, Handler, refusal

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
_HOST = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::[0-9]*)?")


def guarded(routes: Iterable[web.AbstractRouteDef], own: str) -> list[web.AbstractRouteDef]:
    """The same routes, which answer only who asks for this machine, or for the listener's own host."""
    known = LOOPBACK_HOSTS | {own.lower()}
    return [
        web.RouteDef(each.method, each.path, _guard(each.handler, known), each.kwargs)
        if isinstance(each, web.RouteDef)
        else each
        for each in routes
    ]


def host_of(header: str) -> str | None:
    """The host of `Host: host:port`, in small letters and without brackets; None if it is malformed."""
    match = _HOST.fullmatch(header.strip().lower())
    return match[1].strip("[]").removesuffix(".") if match is not None else None


def _guard(handler: Handler, known: frozenset[str]) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        # None at all comes from HTTP/1.0, which no browser speaks.
        for header in request.headers.getall("Host", ()):
            if host_of(header) not in known:
                names = ", ".join(f"[{each}]" if ":" in each else each for each in sorted(known))
                text = f"not for us: Host {header[:MOST_SHOWN]!r} is none of {names} (on any port)"
                return refusal(HTTPStatus.MISDIRECTED_REQUEST, text)
        return await handler(request)

    return answer
