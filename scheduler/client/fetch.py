"""Fetches JSON of the daemon's api face, without proxies: what it asks is on this machine's loopback, mostly."""

from __future__ import annotations

import http.client
import urllib.parse
from collections.abc import Mapping
from http import HTTPStatus
from typing import TypeVar

import msgspec

from scheduler.core.errors import SchedulerError
from scheduler.report.explanation import Explanation, NotFound
from scheduler.report.observation import ObserveReport
from scheduler.report.views import OBSERVING_HEADER, PAUSED_HEADER, NodeView

# The daemon answers in milliseconds; a port-forward across the world may take seconds.
PATIENCE_S = 15.0
# 5,000 nodes of 8 GPUs are 6 MB, and come in pages.
MOST_BYTES = 64 * 2**20
PAGE = 500

NEXT = (
    "Next: give --server the URL that `wattbalance demo` prints, or that of the listener that serves `api` (9441); or "
    "leave --server and WATTBALANCE_SERVER away to go through kubectl."
)

T = TypeVar("T")


class NoDaemon(SchedulerError):
    """Nothing that answers as a daemon does; the text says where, why, and what to try."""


class Unanswered(NoDaemon):
    """The address is there, and who answers is no daemon, or nobody does."""


class NoSuchPod(SchedulerError):
    """The daemon knows nothing of the pod; the text is its own."""


class Nodes(msgspec.Struct, frozen=True):
    """One page of nodes."""

    items: list[NodeView]
    next: str = msgspec.field(name="continue", default="")


class _RawNodes(msgspec.Struct, frozen=True):
    items: list[msgspec.Raw]


class _Error(msgspec.Struct, frozen=True):
    error: str


class Daemon:
    """One daemon's api face.

    Args:
        url: Such as `http://127.0.0.1:9441`.
        called: Its name in messages, where people know it by another than its URL.
        then: What to do where it does not answer.
    """

    def __init__(self, url: str, *, called: str = "", then: str = NEXT) -> None:
        self.url = url.rstrip("/")
        self._called = called or self.url
        self._then = f"\n{then}" if then else ""
        self.paused = ""
        """Who has paused the daemon, as its last answer said; empty if nobody."""
        self.observing = ""
        """What it only observes, and by what, as its last answer said; empty if nothing, or while it is paused."""
        self._parts = urllib.parse.urlsplit(self.url)

    def explain(self, namespace: str, pod: str) -> tuple[Explanation, bytes]:
        """What is known of a pod, and the same as it came.

        Raises:
            NoSuchPod: nothing is.
            NoDaemon: see `_get`.
        """
        path = f"/api/v1/explain/{_quoted(namespace)}/{_quoted(pod)}"
        status, body = self._get(path)
        if status == HTTPStatus.NOT_FOUND:
            raise NoSuchPod(self._decoded(body, NotFound).error)
        self._check(status, body)
        return self._decoded(body, Explanation), body

    def nodes(self, pool: str = "") -> tuple[list[NodeView], list[msgspec.Raw]]:
        """All nodes, or those of one pool, and the same as they came.

        Raises:
            NoDaemon: see `_get`.
        """
        views: list[NodeView] = []
        raw: list[msgspec.Raw] = []
        query: Mapping[str, str] = {"limit": str(PAGE)} | ({"pool": pool} if pool else {})
        after: Mapping[str, str] = {}
        while True:
            status, body = self._get(f"/api/v1/nodes?{urllib.parse.urlencode({**query, **after})}")
            self._check(status, body)
            page = self._decoded(body, Nodes)
            views += page.items
            raw += self._decoded(body, _RawNodes).items
            if not page.next:
                return views, raw
            after = {"continue": page.next}

    def observe(self, limit: int) -> tuple[ObserveReport, bytes]:
        """What observing has shown, with so many pods at most, and the same as it came.

        Raises:
            NoDaemon: see `_get`.
        """
        status, body = self._get(f"/api/v1/observe?limit={limit}")
        self._check(status, body)
        return self._decoded(body, ObserveReport), body

    def _get(self, path: str) -> tuple[int, bytes]:
        """GET a page: its status and body.

        Raises:
            NoDaemon: no connection, no whole answer in time, or too much of it.
        """
        parts = self._parts
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=PATIENCE_S)
        try:
            connection.request("GET", parts.path + path, headers={"Accept": "application/json"})
            answer = connection.getresponse()
            body = answer.read(MOST_BYTES + 1)
            # Read up to a size, it does not say by itself that the connection ended before, even among the headers.
            if not (answer.chunked or answer.length == 0 or len(body) > MOST_BYTES):
                raise http.client.IncompleteRead(body, answer.length)
            self.paused = urllib.parse.unquote(answer.getheader(PAUSED_HEADER, ""))
            self.observing = urllib.parse.unquote(answer.getheader(OBSERVING_HEADER, ""))
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            # The last is of a name that no host can have.
            why = str(error) or type(error).__name__
            if isinstance(error, http.client.IncompleteRead):
                why = "its answer breaks off in the middle"
            raise Unanswered(f"no daemon answers at {self._called}: {why}{self._then}") from error
        finally:
            connection.close()
        if len(body) > MOST_BYTES:
            raise Unanswered(
                f"{self._called} sends more than {MOST_BYTES >> 20} MiB: no daemon of ours{self._then}"
            )
        return answer.status, body

    def _check(self, status: int, body: bytes) -> None:
        if status != HTTPStatus.OK:
            told = self._decoded(body, _Error).error
            raise NoDaemon(f"{self._called} answers {status}: {told}")

    def _decoded(self, body: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise Unanswered(
                f"{self._called} answers, but not as the api of a daemon of this version does ({error}). "
                f"Compare `wattbalance version` with what /api/v1 says there{self._then}"
            ) from error


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")
