"""One open watch: a queue of events, written as chunked JSON lines until its time is over."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

from scheduler.simulate.apiserver_faults import Faults
from scheduler.simulate.apiserver_rules import JsonObject
from scheduler.simulate.apiserver_select import Test
from scheduler.simulate.apiserver_store import Event, Store, Table, frame, typed

# Kubernetes sends its last bookmark so long before a watch's time is over.
_LAST_BOOKMARK_S = 2.0
# A watcher that does not read is cut off rather than waited for, as by kube-apiserver.
_BACKLOG_MAX_EVENTS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """What a watch request asks."""

    rv: str
    partial: bool
    bookmarks: bool
    initial_events: bool
    timeout_s: float
    bookmark_every_s: float
    namespace: str
    select: Test | None


@dataclass(slots=True)
class Watch:
    """Follows one table for one client."""

    store: Store
    table: Table
    faults: Faults
    options: WatchOptions
    _queue: deque[Event] = field(default_factory=deque)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, response: web.StreamResponse) -> None:
        """Write until the time is over, the client is gone, or the version asked for is too old."""
        options, table = self.options, self.table
        loop = asyncio.get_running_loop()
        ends_mono_s = loop.time() + options.timeout_s
        start = options.rv if options.rv not in ("", "0") else None
        if start is not None and (self.faults.expire_watches or int(start) < table.forgotten_rv):
            await response.write(self._too_old(start))
            return
        first = self._replayed() if start is None else self._missed(int(start))
        asked_rv = self.store.rv if start is None else int(start)
        table.hooks.append(self._enqueue)
        try:
            if first and not self.faults.silent_watches:
                await response.write(self._padded(b"".join(first)))
            if options.initial_events:
                await response.write(self._bookmark(initial_end=True))
            await self._follow(response, ends_mono_s, asked_rv)
        finally:
            table.hooks.remove(self._enqueue)

    def _enqueue(self, event: Event) -> None:
        self._queue.append(event)
        self._wake.set()

    async def _follow(self, response: web.StreamResponse, ends_mono_s: float, after_rv: int) -> None:
        options = self.options
        loop = asyncio.get_running_loop()
        last_bookmark_mono_s = ends_mono_s - _LAST_BOOKMARK_S
        next_bookmark_mono_s = min(loop.time() + options.bookmark_every_s, last_bookmark_mono_s)
        while (now_mono_s := loop.time()) < ends_mono_s:
            due_mono_s = min(ends_mono_s, next_bookmark_mono_s if options.bookmarks else ends_mono_s)
            try:
                async with asyncio.timeout_at(max(due_mono_s, now_mono_s)):
                    await self._wake.wait()
            except TimeoutError:
                pass
            await self.faults.pass_freeze()
            self._wake.clear()
            if len(self._queue) > _BACKLOG_MAX_EVENTS:
                return
            lines = [line for event in self._drain() if event.rv > after_rv and (line := self._line(event))]
            if lines and not self.faults.silent_watches:
                await response.write(self._padded(b"".join(lines)))
            if options.bookmarks and loop.time() >= next_bookmark_mono_s:
                if not self.faults.silent_watches:
                    await response.write(self._bookmark())
                at_last = loop.time() >= last_bookmark_mono_s
                next_bookmark_mono_s = (
                    ends_mono_s
                    if at_last
                    else min(loop.time() + options.bookmark_every_s, last_bookmark_mono_s)
                )

    def _drain(self) -> list[Event]:
        events = list(self._queue)
        self._queue.clear()
        return events

    def _replayed(self) -> list[bytes]:
        """Everything there is, as ADDED."""
        events = [
            Event(self.table.resource, "ADDED", 0, key, data, None) for key, data in self.table.in_order()
        ]
        return [line for event in events if (line := self._line(event))]

    def _missed(self, rv: int) -> list[bytes]:
        return [line for event in self.table.since(rv) if (line := self._line(event))]

    def _line(self, event: Event) -> bytes:
        """The event as this watch sees it; empty if it does not. Entering a selection is ADDED, leaving DELETED."""
        options = self.options
        if options.namespace and not event.key.startswith(options.namespace + "/"):
            return b""
        if options.select is None:
            return event.frame(partial=options.partial)
        after = event.type != "DELETED" and options.select(event.object)
        before = event.before is not None and options.select(
            msgspec.json.decode(event.before, type=JsonObject)
        )
        if not (before or after):
            return b""
        as_type = "MODIFIED" if before and after else "ADDED" if after else "DELETED"
        return event.frame(partial=options.partial, as_type=as_type)

    def _bookmark(self, *, initial_end: bool = False) -> bytes:
        note = b',"annotations":{"k8s.io/initial-events-end":"true"}' if initial_end else b""
        meta = b'{"metadata":{"resourceVersion":"%d","creationTimestamp":null%s}}' % (self.store.rv, note)
        return frame("BOOKMARK", self.table.resource, meta, partial=self.options.partial)

    def _too_old(self, rv: str) -> bytes:
        message = f"too old resource version: {rv} ({self.table.forgotten_rv + 1})"
        status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": "Expired",
            "code": 410,
        }
        return msgspec.json.encode({"type": "ERROR", "object": status}) + b"\n"

    def _padded(self, lines: bytes) -> bytes:
        if not self.faults.pad_bytes:
            return lines
        return lines.replace(b'"object":{', b'"object":{' + padding(self.faults.pad_bytes))


def padding(size_bytes: int) -> bytes:
    """A field that no schema knows, for the front of an object."""
    return b'"padding":"' + b"x" * size_bytes + b'",'


def served(table: Table, data: bytes, faults: Faults, *, partial: bool) -> bytes:
    """An object as a GET answers it."""
    body = typed(table.resource, data, partial=partial)
    return b"{" + padding(faults.pad_bytes) + body[1:] if faults.pad_bytes else body
