"""A simulated Kubernetes API server on loopback: as much of the API as `serve`, kubectl and the tests need.

Plain HTTP, a bearer token if one is set. The world in the same process uses the same objects without HTTP, through
`ApiServer.create`, `get`, `subscribe` and so on. What can go wrong is switched by `ApiServer.faults`.
Behaviour was compared with kube-apiserver 1.20.2; `minor` chooses the version played.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import cast

from aiohttp import web

from scheduler.core.clock import Clock
from scheduler.core.errors import ApiUnavailable
from scheduler.simulate.apiserver_faults import Faults
from scheduler.simulate.apiserver_http import HttpFace
from scheduler.simulate.apiserver_lists import Lists
from scheduler.simulate.apiserver_rules import JsonObject
from scheduler.simulate.apiserver_store import Hook, Store


class ApiServer:
    """The server and its objects.

    Args:
        clock: for creation times.
        minor: plays Kubernetes 1.`minor`: which resources, fields and preconditions it knows.
        token: the bearer token that requests must carry; none if empty.
        hidden_groups: API groups that answer 404, e.g. `apps`.
        window_events: how many events behind a watch may start, for each resource.
        bookmark_every_s: kube-apiserver's is a minute; tests are shorter.
        watch_list: answers `sendInitialEvents`, as 1.32 does and 1.33 does not.
        seed: for uids, generated names and watch times.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        minor: int = 32,
        token: str = "",
        hidden_groups: frozenset[str] = frozenset(),
        window_events: int = 10_000,
        bookmark_every_s: float = 60.0,
        watch_list: bool = False,
        seed: int = 0,
    ) -> None:
        self.faults = Faults()
        self.minor = minor
        self._store = Store(clock, minor=minor, window_events=window_events, seed=seed)
        self._lists = Lists(self._store)
        self._face = HttpFace(
            store=self._store,
            lists=self._lists,
            faults=self.faults,
            token=token,
            hidden_groups=hidden_groups,
            bookmark_every_s=bookmark_every_s,
            watch_list=watch_list,
            spread=random.Random(seed),
        )
        self._runner: web.ServerRunner | None = None
        self._site: web.TCPSite | None = None
        self._host = "127.0.0.1"
        self._port = 0

    # The world's side, without HTTP. Everything is synchronous and done when it returns.

    def create(self, kind: str, obj: JsonObject) -> JsonObject:
        """See `Store.create`."""
        return self._store.create(kind, obj)

    def update(self, kind: str, obj: JsonObject, *, status: bool = False) -> JsonObject:
        """See `Store.update`."""
        return self._store.update(kind, obj, status=status)

    def patch(
        self, kind: str, name: str, namespace: str, patch: JsonObject, *, status: bool = False
    ) -> JsonObject:
        """See `Store.patch`."""
        return self._store.patch(kind, name, namespace, patch, status=status)

    def delete(self, kind: str, name: str, namespace: str = "", *, grace_s: int | None = None) -> JsonObject:
        """See `Store.delete`."""
        return self._store.delete(kind, name, namespace, grace_s=grace_s)

    def bind(
        self,
        name: str,
        namespace: str,
        node: str,
        *,
        uid: str = "",
        annotations: dict[str, str] | None = None,
    ) -> None:
        """Bind a pod. Raises ApiConflict or ApiNotFound."""
        meta = {"name": name, "uid": uid, "annotations": annotations or {}}
        self._store.bind(name, namespace, {"metadata": meta, "target": {"kind": "Node", "name": node}})

    def get(self, kind: str, name: str, namespace: str = "") -> JsonObject:
        """See `Store.get`."""
        return self._store.get(kind, name, namespace)

    def list(self, kind: str) -> list[JsonObject]:
        """See `Store.list`."""
        return self._store.list(kind)

    def count(self, kind: str) -> int:
        """See `Store.count`."""
        return self._store.count(kind)

    def subscribe(self, kind: str, hook: Hook, *, replay: bool = True) -> Callable[[], None]:
        """See `Store.subscribe`."""
        return self._store.subscribe(kind, hook, replay=replay)

    # Life and faults.

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 takes a free one."""
        self._host, self._port = host, port
        # Watches outlive any wish for a quiet shutdown, so it does not wait for them.
        self._runner = web.ServerRunner(
            web.Server(self._face.handle, handler_cancellation=True, access_log=None), shutdown_timeout=0.1
        )
        await self._runner.setup()
        await self.accept()

    async def stop(self) -> None:
        """Close everything."""
        self.faults.frozen = False
        self._abort(self._face.served)
        if self._runner is not None:
            await self._runner.cleanup()
        self._runner = self._site = None

    @property
    def requests(self) -> dict[tuple[str, str], int]:
        """Requests by (verb, resource), refused ones too."""
        return self._face.requests

    @property
    def watches(self) -> int:
        """Open watches."""
        return len(self._face.watched)

    @property
    def port(self) -> int:
        """The port listened on; it stays the same through `refuse` and `accept`."""
        return self._port

    @property
    def url(self) -> str:
        """The address for a kubeconfig."""
        return f"http://{self._host}:{self._port}"

    async def accept(self) -> None:
        """Listen again after `refuse`."""
        if self._runner is None:
            raise ApiUnavailable("the simulated API server is not started")
        if self._site is not None:
            return
        self._site = web.TCPSite(self._runner, self._host, self._port, reuse_address=True)
        await self._site.start()
        self._port = cast("tuple[str, int]", self._runner.addresses[0])[1]

    async def refuse(self) -> None:
        """Close the port and every connection, as a killed API server does; `accept` brings it back."""
        if self._site is not None:
            await self._site.stop()
            self._site = None
        self._abort(self._face.served)

    def drop_watches(self) -> None:
        """Cut every open watch off in the middle of its stream."""
        self._abort(self._face.watched)

    def expire_lists(self) -> None:
        """Let every continue token handed out so far be too old."""
        self._lists.expire()

    def forget_events(self) -> None:
        """Let every version handed out so far be too old to watch from."""
        self._store.forget_events()

    @staticmethod
    def _abort(transports: set[asyncio.Transport]) -> None:
        for transport in list(transports):
            transport.abort()
        transports.clear()
