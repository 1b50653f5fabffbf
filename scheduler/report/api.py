"""The JSON API for people and the CLI: nodes, pods, decisions, and the page that describes them.

Errors are JSON too: `{"error": "…"}` with 400 for a bad query, 410 for a `continue` that has fallen out of the log.
"""

from __future__ import annotations

import asyncio
import html
from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from aiohttp import web

from scheduler.report.openapi import (
    EXPLAIN_PATH,
    EXPLAIN_TEXT,
    LISTS,
    OBSERVE_PATH,
    OBSERVE_TEXT,
    openapi,
)
from scheduler.report.paging import (
    BYTES_A_TURN,
    ITEMS_A_TURN,
    RECORDS_A_TURN,
    BadToken,
    Key,
    items_of,
    page_of,
    read_token,
    write_token,
)
from scheduler.report.queries import BadQuery, check_names, refusal, without_query
from scheduler.report.views import Decisions, NodeViews, PodViews

_encode = msgspec.json.Encoder().encode

LIMIT = 500
# A decision is about 2 KB: 100 of them are a page for a person.
DECISIONS_LIMIT = 100
MOST_LIMIT = 5000
PREFIX = "/api/v1"
DECISION_FILTERS = ("namespace", "pod", "uid", "result")


class Api:
    """Answers GET requests; changes nothing.

    Args:
        nodes: The nodes of the store.
        pods: Its pods.
        decisions: The decision log.
        version: Ours.
    """

    def __init__(self, nodes: NodeViews, pods: PodViews, decisions: Decisions, version: str) -> None:
        self._nodes = nodes
        self._pods = pods
        self._decisions = decisions
        self._openapi = _encode(openapi(version))
        self._index = index(version)
        self._links = _encode(links(version))

    def routes(self) -> list[web.RouteDef]:
        """Routes of a listener that serves `api`."""
        return [
            web.get("/", without_query(self._get_index)),
            web.get(PREFIX, without_query(self._get_links)),
            web.get(f"{PREFIX}/", without_query(self._get_links)),
            web.get(f"{PREFIX}/openapi.json", without_query(self._get_openapi)),
            web.get(f"{PREFIX}/nodes", self._get_nodes),
            web.get(f"{PREFIX}/pods", self._get_pods),
            web.get(f"{PREFIX}/decisions", self._get_decisions),
        ]

    async def _get_index(self, request: web.Request) -> web.Response:
        if "text/html" not in request.headers.get("Accept", ""):
            return await self._get_links(request)
        return web.Response(text=self._index, content_type="text/html")

    async def _get_links(self, _: web.Request) -> web.Response:
        return web.Response(body=self._links, content_type="application/json")

    async def _get_openapi(self, _: web.Request) -> web.Response:
        return web.Response(body=self._openapi, content_type="application/json")

    async def _get_nodes(self, request: web.Request) -> web.StreamResponse:
        def key_of(name: str) -> Key | None:
            return (name,) if not pool or self._nodes.node_pool(name) == pool else None

        def build(key: Key) -> bytes | None:
            node = self._nodes.node(key[0])
            return _encode(node) if node is not None else None

        try:
            query = checked(request, "nodes")
            pool = query.get("pool")
            limit, after = limit_of(query, LIMIT), after_of(query, 1)
        except (BadQuery, BadToken) as error:
            return refusal(HTTPStatus.BAD_REQUEST, str(error))
        keys, last = await page_of(self._nodes.node_names(), key_of, after, limit)
        return await _list(request, await items_of(keys, build), last)

    async def _get_pods(self, request: web.Request) -> web.StreamResponse:
        def key_of(uid: str) -> Key | None:
            if node and self._pods.pod_node(uid) != node:
                return None
            key = self._pods.pod_key(uid)
            return key if key is not None and (not namespace or key[0] == namespace) else None

        def build(key: Key) -> bytes | None:
            pod = self._pods.pod(key[2])
            return _encode(pod) if pod is not None else None

        try:
            query = checked(request, "pods")
            namespace, node = query.get("namespace"), query.get("node")
            limit, after = limit_of(query, LIMIT), after_of(query, 3)
        except (BadQuery, BadToken) as error:
            return refusal(HTTPStatus.BAD_REQUEST, str(error))
        keys, last = await page_of(self._pods.pod_uids(), key_of, after, limit)
        return await _list(request, await items_of(keys, build), last)

    async def _get_decisions(self, request: web.Request) -> web.StreamResponse:
        """Newest first; `continue` names the last decision that was shown."""
        try:
            query = checked(request, "decisions")
            limit, after = limit_of(query, DECISIONS_LIMIT), after_of(query, 2)
        except (BadQuery, BadToken) as error:
            return refusal(HTTPStatus.BAD_REQUEST, str(error))
        # A copy of references (0.1 ms for 10,000): the log goes on while we are asked.
        records = list(self._decisions.decisions())
        start = 0
        if after is not None:
            # Cycles are few to look through: no filter is asked here, and nothing is encoded.
            found = (at for at, each in enumerate(records) if (each.cycle, each.verb) == after)
            start = next(found, -1) + 1
            if not start:
                return refusal(HTTPStatus.GONE, "that decision is no longer kept: start without `continue`")
        asked_for = [(each, query[each]) for each in DECISION_FILTERS if each in query]
        items: list[bytes] = []
        last: Key | None = None
        for index in range(start, len(records)):
            record = records[index]
            if index % RECORDS_A_TURN == 0 or len(items) % ITEMS_A_TURN == ITEMS_A_TURN - 1:
                await asyncio.sleep(0)
            if any(getattr(record, field) != value for field, value in asked_for):
                continue
            if len(items) == limit:
                return await _list(request, items, last)
            items.append(b'{"name":' + _encode(record.pod) + b"," + _encode(record)[1:])
            last = (record.cycle, record.verb)
        return await _list(request, items, None)


def checked(request: web.Request, name: str) -> Mapping[str, str]:
    """Refuse what we do not know. An empty value filters nothing, as if it had not been given."""
    query = request.query
    known = {parameter.name: parameter for parameter in LISTS[name].parameters}
    check_names(request, known)
    for parameter in query:
        values = known[parameter].values
        if values and query[parameter] not in ("", *values):
            got = query[parameter][:60]
            raise BadQuery(f"{parameter}: expected one of {', '.join(values)}, got {got!r}")
    return {parameter: value for parameter, value in query.items() if value or parameter == "limit"}


def limit_of(query: Mapping[str, str], default: int) -> int:
    """Read `limit`; more than MOST_LIMIT is cut to it, as Kubernetes clients expect."""
    text = query.get("limit")
    if text is None:
        return default
    # isdecimal alone lets other scripts' digits through.
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) < 1:
        raise BadQuery(f"limit: expected a whole number from 1 to {MOST_LIMIT}, got {text[:60]!r}")
    return min(int(text), MOST_LIMIT)


def after_of(query: Mapping[str, str], length: int) -> Key | None:
    """Read `continue`."""
    token = query.get("continue")
    return read_token(token, length) if token else None


async def _list(request: web.Request, items: list[bytes], last: Key | None) -> web.StreamResponse:
    more = b',"continue":' + _encode(write_token(last)) if last is not None else b""
    size_bytes = sum(map(len, items)) + len(items)
    if size_bytes <= BYTES_A_TURN or request.method == "HEAD":
        body = b"".join((b'{"items":[', b",".join(items), b"]", more, b"}"))
        return web.Response(body=body, content_type="application/json")
    # To copy a page of 5,000 nodes to the kernel takes 4 ms; so it goes in parts.
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    part = bytearray(b'{"items":[')
    for index, item in enumerate(items):
        part += b"," + item if index else item
        if len(part) >= BYTES_A_TURN:
            await response.write(part)
            await asyncio.sleep(0)
            part = bytearray()
    await response.write(part + b"]" + more + b"}")
    return response


def links(version: str) -> dict[str, object]:
    """Say to a program, or to curl, what can be asked."""
    return {
        "version": version,
        "items": [
            {
                "name": name,
                "path": f"{PREFIX}/{name}",
                "text": about.text,
                "parameters": {each.name: each.text for each in about.parameters},
            }
            for name, about in LISTS.items()
        ],
        "explain": {"path": EXPLAIN_PATH, "text": EXPLAIN_TEXT},
        "observe": {"path": OBSERVE_PATH, "text": OBSERVE_TEXT},
        "openapi": f"{PREFIX}/openapi.json",
    }


def index(version: str) -> str:
    """Make the page that a browser sees first; it loads nothing."""
    rows = "".join(
        f'<li><a href="{PREFIX}/{name}">{PREFIX}/{name}</a>: {html.escape(about.text)} '
        f"({', '.join(f'<code>{each.name}</code>' for each in about.parameters)})</li>"
        for name, about in LISTS.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Wattbalance</title>'
        f"<h1>Wattbalance {html.escape(version)}</h1><ul>{rows}"
        f"<li><code>{EXPLAIN_PATH}</code>: {html.escape(EXPLAIN_TEXT)}</li>"
        f'<li><a href="{OBSERVE_PATH}">{OBSERVE_PATH}</a>: {html.escape(OBSERVE_TEXT)}</li>'
        f'<li><a href="{PREFIX}/openapi.json">{PREFIX}/openapi.json</a>: all of it, described</li>'
        '<li><a href="/metrics">/metrics</a>, <a href="/readyz">/readyz</a>: where this listener serves them</li>'
        "</ul></html>\n"
    )
