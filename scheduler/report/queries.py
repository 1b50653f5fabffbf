"""What may stand behind the `?` of a path of the JSON API: what is not known is refused, wherever it stands.

A misspelt filter would silently show everything, or nothing. Probes and metrics are apart: who asks those adds
parameters of his own (`/readyz?verbose`, a scraper's `params`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus

import msgspec
from aiohttp import web

# As much of a hostile name as tells it from others.
MOST_SHOWN = 60

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class BadQuery(ValueError):
    """A query that cannot be answered; the text says what was expected."""


def check_names(request: web.Request, known: Iterable[str] = ()) -> None:
    """Refuse parameters that are not known, or come twice.

    Raises:
        BadQuery: there is one.
    """
    if not request.query_string:
        return
    names, query = list(known), request.query
    for name in query:
        if name not in names:
            raise BadQuery(f"unknown parameter {name[:MOST_SHOWN]!r}; known: {', '.join(names) or 'none'}")
        if len(query.getall(name)) > 1:
            raise BadQuery(f"{name}: given more than once")


def without_query(handler: Handler) -> Handler:
    """Answer only what asks for nothing but the path."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            check_names(request)
        except BadQuery as error:
            return refusal(HTTPStatus.BAD_REQUEST, str(error))
        return await handler(request)

    return answer


def refusal(status: HTTPStatus, text: str) -> web.Response:
    """Say what is wrong, as JSON."""
    body = msgspec.json.encode({"error": text})
    return web.Response(body=body, status=status, content_type="application/json")
