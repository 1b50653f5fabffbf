"""The HTTP face of a simulated API server: routes, verbs, refusals."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import cast

import msgspec
from aiohttp import web

from scheduler.core.errors import (
    ApiForbidden,
    ApiGone,
    ApiNotFound,
    ApiRejected,
    ApiUnavailable,
    ClusterError,
)
from scheduler.simulate import apiserver_rules as rules
from scheduler.simulate.apiserver_discovery import document
from scheduler.simulate.apiserver_faults import Faults
from scheduler.simulate.apiserver_lists import ListOptions, Lists
from scheduler.simulate.apiserver_rules import JsonObject, Resource
from scheduler.simulate.apiserver_select import selector
from scheduler.simulate.apiserver_store import Store, Table, typed
from scheduler.simulate.apiserver_watch import Watch, WatchOptions, padding

_BODY_MAX_BYTES = 3 * 1024 * 1024
_WATCH_DEFAULT_S = 1800.0
_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
}
_STRATEGIC = "application/strategic-merge-patch+json"
_MERGE = "application/merge-patch+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """What a path names. `name` is empty for a collection."""

    table: Table
    namespace: str
    name: str
    subresource: str

    @property
    def kind(self) -> str:
        return self.table.resource.plural

    @property
    def asked(self) -> str:
        return f"{self.kind}/{self.subresource}" if self.subresource else self.kind


@dataclass(slots=True, kw_only=True)
class HttpFace:
    """Answers requests from a store; `handle` is what aiohttp calls."""

    store: Store
    lists: Lists
    faults: Faults
    token: str
    hidden_groups: frozenset[str]
    bookmark_every_s: float
    watch_list: bool
    spread: random.Random
    requests: dict[tuple[str, str], int] = field(default_factory=dict)
    served: set[asyncio.Transport] = field(default_factory=set)
    watched: set[asyncio.Transport] = field(default_factory=set)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, or play a fault on it."""
        transport = request.transport
        if transport is not None and transport not in self.served:
            self.served = {known for known in self.served if not known.is_closing()} | {transport}
        await self.faults.pass_freeze()
        if self.faults.slow_s > 0:
            await asyncio.sleep(self.faults.slow_s)
        try:
            response = await self._route(request)
        except ClusterError as error:
            response = _refusal(error)
        if not response.prepared:
            response.headers["Date"] = self.store.date()
        return response

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path in ("/readyz", "/livez", "/healthz"):
            return web.Response(text="ok")
        if self.faults.unauthorized or (
            self.token and request.headers.get("Authorization") != f"Bearer {self.token}"
        ):
            raise ApiForbidden("Unauthorized", status=401)
        served = [
            table.resource
            for table in self.store.tables.values()
            if table.resource.group not in self.hidden_groups
        ]
        if (found := document(path, served, self.store.minor)) is not None:
            return _json(msgspec.json.encode(found))
        target = self._target(path, served)
        if target is None:
            return web.Response(status=404, text="404 page not found\n")
        return await self._resource(request, target)

    def _target(self, path: str, served: list[Resource]) -> _Target | None:
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "v1"]:
            group, rest = "", parts[2:]
        elif parts[0] == "apis" and len(parts) > 3 and parts[2] == "v1":
            group, rest = parts[1], parts[3:]
        else:
            return None
        if group not in {resource.group for resource in served}:
            return None
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces" and rest[2] != "status":
            namespace, rest = rest[1], rest[2:]
        table = self.store.tables.get(rest[0]) if rest else None
        known = (["status"] if table is not None and table.resource.status else []) + ["binding"] * (
            rest[0] == "pods"
        )
        if (
            table is None
            or table.resource.group != group
            or len(rest) > 3
            or (rest[2:] and rest[2] not in known)
        ):
            raise ApiNotFound("the server could not find the requested resource", status=404)
        name, subresource = (*rest[1:], "", "")[:2]
        return _Target(table=table, namespace=namespace, name=name, subresource=subresource)

    async def _resource(self, request: web.BaseRequest, target: _Target) -> web.StreamResponse:
        verb = _verb(request, target)
        counted = (verb, target.asked)
        self.requests[counted] = self.requests.get(counted, 0) + 1
        self._refuse_by_fault(verb, target)
        partial = "as=PartialObjectMetadata" in request.headers.get("Accept", "")
        if verb == "watch":
            return await self._watch(request, target, partial=partial)
        if verb == "list":
            return self._list(request, target, partial=partial)
        if verb == "get":
            data = self.store.data(target.kind, target.name, target.namespace)
            return self._answer(target, data, partial=partial)
        if target.subresource == "binding" and verb == "create":
            return await self._bind(request, target)
        if verb == "delete":
            return await self._delete(request, target)
        obj = await _body(request)
        if verb == "create" and not target.subresource and not target.name:
            _complete(obj, target, "")
            created = self.store.create(target.kind, obj)
            return self._answer(target, self._encoded(target, created), status=201)
        status = target.subresource == "status"
        key = self.store.key(target.kind, target.name, target.namespace)
        existed = key in target.table.objects
        if verb == "update":
            _complete(obj, target, target.name)
            changed = self.store.update(target.kind, obj, status=status)
        elif verb == "patch":
            _check_patch(request.content_type, obj)
            changed = self.store.patch(target.kind, target.name, target.namespace, obj, status=status)
        else:
            raise ApiRejected("the server does not allow this method on the requested resource", status=405)
        # A change may have been the last thing that held a deleted object.
        gone = key not in target.table.objects
        data = msgspec.json.encode(changed) if gone else self._encoded(target, changed)
        return self._answer(target, data, status=200 if existed else 201)

    def _refuse_by_fault(self, verb: str, target: _Target) -> None:
        faults, resource = self.faults, target.table.resource
        if faults.throttle_next > 0:
            faults.throttle_next -= 1
            raise ApiUnavailable(
                "too many requests, please try again later", status=429, retry_after_s=faults.retry_after_s
            )
        if faults.fail_next > 0:
            faults.fail_next -= 1
            raise ApiUnavailable("etcdserver: request timed out", status=500)
        if (verb, target.asked) in faults.forbidden:
            scope = f'in the namespace "{target.namespace}"' if target.namespace else "at the cluster scope"
            raise ApiForbidden(
                f'{resource.qualified} is forbidden: User "wattbalance" cannot {verb} resource "{target.asked}" '
                f'in API group "{resource.group}" {scope}',
                status=403,
            )

    def _encoded(self, target: _Target, obj: JsonObject) -> bytes:
        meta = obj["metadata"]
        return self.store.data(target.kind, meta["name"], meta.get("namespace", ""))

    def _answer(
        self, target: _Target, data: bytes, *, status: int = 200, partial: bool = False
    ) -> web.Response:
        body = typed(target.table.resource, data, partial=partial)
        if self.faults.pad_bytes:
            body = b"{" + padding(self.faults.pad_bytes) + body[1:]
        return _json(body, status=status)

    def _list(self, request: web.BaseRequest, target: _Target, *, partial: bool) -> web.Response:
        query = request.query
        token = query.get("continue", "")
        if token and self.faults.expire_continue:
            raise ApiGone(
                "The provided continue parameter is too old to display a consistent list result.", status=410
            )
        options = ListOptions(
            limit=int(query.get("limit") or 0),
            token=token,
            rv=query.get("resourceVersion", ""),
            partial=partial,
            namespace=target.namespace,
            select=selector(_fields(query.get("fieldSelector", ""), target), query.get("labelSelector", "")),
        )
        gzip = "gzip" in request.headers.get("Accept-Encoding", "")
        body, packed = self.lists.page(target.table, options, gzip=gzip, pad_bytes=self.faults.pad_bytes)
        return _json(body, encoding="gzip" if packed else "")

    async def _watch(self, request: web.BaseRequest, target: _Target, *, partial: bool) -> web.StreamResponse:
        query = request.query
        initial = query.get("sendInitialEvents") == "true"
        if query.get("resourceVersionMatch") and not (initial and self.watch_list):
            raise ApiRejected(
                "ListOptions.meta.k8s.io is invalid: resourceVersionMatch: Forbidden: "
                "resourceVersionMatch is forbidden for watch",
                status=422,
            )
        rv = query.get("resourceVersion", "")
        if rv and not rv.isdigit():
            raise ClusterError(f'resourceVersion: Invalid value: "{rv}"', status=500)
        timeout_s = float(query.get("timeoutSeconds") or 0)
        options = WatchOptions(
            rv="" if initial and self.watch_list else rv,
            partial=partial,
            bookmarks=query.get("allowWatchBookmarks") in ("1", "true"),
            # Without the match an old server ignores the wish, and sends no end of the initial events.
            initial_events=initial and self.watch_list,
            timeout_s=timeout_s or _WATCH_DEFAULT_S * (1 + self.spread.random()),
            bookmark_every_s=self.bookmark_every_s,
            namespace=target.namespace,
            select=selector(_fields(query.get("fieldSelector", ""), target), query.get("labelSelector", "")),
        )
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Date": self.store.date()})
        response.enable_chunked_encoding()
        await response.prepare(request)
        transport = cast("asyncio.Transport", request.transport)
        self.watched.add(transport)
        try:
            await Watch(self.store, target.table, self.faults, options).serve(response)
        except ConnectionError:
            pass  # The client is gone, which is how most watches end.
        finally:
            self.watched.discard(transport)
        return response

    async def _bind(self, request: web.BaseRequest, target: _Target) -> web.Response:
        binding = await _body(request)
        if self.faults.lose_binds > 0:
            self.faults.lose_binds -= 1
            await _never()
        self.store.bind(target.name, target.namespace, binding)
        if self.faults.lose_bind_answers > 0:
            self.faults.lose_bind_answers -= 1
            await _never()
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
        return _json(msgspec.json.encode(status), status=201)

    async def _delete(self, request: web.BaseRequest, target: _Target) -> web.Response:
        options = await _body(request) if request.can_read_body else {}
        asked = request.query.get("gracePeriodSeconds", options.get("gracePeriodSeconds"))
        wanted = options.get("preconditions") or {}
        last = self.store.delete(
            target.kind,
            target.name,
            target.namespace,
            grace_s=None if asked is None else int(asked),
            uid=wanted.get("uid", ""),
            rv=wanted.get("resourceVersion", ""),
        )
        if target.kind == rules.PODS or last["metadata"].get("finalizers"):
            return self._answer(target, msgspec.json.encode(last))
        details = {"name": target.name, "kind": target.kind, "uid": last["metadata"]["uid"]}
        status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": details,
        }
        return _json(msgspec.json.encode(status))


def _verb(request: web.BaseRequest, target: _Target) -> str:
    if request.method == "GET":
        if request.query.get("watch") in ("1", "true"):
            return "watch"
        return "get" if target.name else "list"
    verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    verb = verbs.get(request.method)
    if verb is None or (verb != "create" and not target.name):
        raise ApiRejected("the server does not allow this method on the requested resource", status=405)
    return verb


def _fields(asked: str, target: _Target) -> str:
    """A GET or watch of one name is a selection by that name."""
    return f"metadata.name={target.name}" if target.name else asked


async def _body(request: web.BaseRequest) -> JsonObject:
    raw = await request.content.read(_BODY_MAX_BYTES + 1)
    while not request.content.at_eof():
        raw += await request.content.read(_BODY_MAX_BYTES + 1)
        if len(raw) > _BODY_MAX_BYTES:
            raise ApiRejected(f"Request entity too large: limit is {_BODY_MAX_BYTES}", status=413)
    try:
        return msgspec.json.decode(raw, type=JsonObject)
    except msgspec.DecodeError as error:
        raise ApiRejected(
            f"the object provided is unrecognized: json parse error: {error}", status=400
        ) from error


def _complete(obj: JsonObject, target: _Target, name: str) -> None:
    """The path names what the body may leave out, and the two must agree. Raises ApiRejected (400)."""
    meta = obj.setdefault("metadata", {})
    for part, value in (("name", name), ("namespace", target.namespace)):
        if value and meta.setdefault(part, value) != value:
            raise ApiRejected(
                f"the {part} of the provided object does not match the one sent on the request", status=400
            )


def _check_patch(content_type: str, patch: JsonObject) -> None:
    if content_type == _MERGE:
        return
    # The two mean the same where no list is merged by key; kubectl label, cordon and taint send such patches.
    if content_type == _STRATEGIC and _replaces_lists(patch):
        return
    raise ApiRejected("415: Unsupported Media Type", status=415)


def _replaces_lists(patch: JsonObject) -> bool:
    """Whether every list in a strategic patch is one that Kubernetes replaces as a whole, as it does taints."""
    for key, value in patch.items():
        if key.startswith("$") or (isinstance(value, list) and key != "taints"):
            return False
        if isinstance(value, dict) and not _replaces_lists(value):
            return False
    return True


def _json(body: bytes, *, status: int = 200, encoding: str = "") -> web.Response:
    headers = {"Content-Encoding": encoding} if encoding else None
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def _refusal(error: ClusterError) -> web.Response:
    message, code = str(error), error.status or 500
    reason = "AlreadyExists" if code == 409 and message.endswith("already exists") else _REASONS.get(code, "")
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    response = _json(msgspec.json.encode(status), status=code)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(int(error.retry_after_s))
    return response


async def _never() -> None:
    await asyncio.Event().wait()
