"""A small cluster behind the real verbs, and behind the real doors: what the tests of this room ask."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from scheduler.core.clock import ManualClock
from scheduler.core.nouns import GPU_RESOURCE, Placement, PoolSpec
from scheduler.extender.server import ExtenderCounters, ExtenderServer
from scheduler.extender.verbs import Fence, Verbs
from scheduler.extender.wire import BindArgs, read_filter, read_preempt
from scheduler.listeners import Listeners, ListenerSpec
from scheduler.report.families import Sources
from scheduler.report.metrics import MetricsPage
from scheduler.report.probes import metrics_routes
from tests.builders import make_decider, make_store, see_node
from tests.fakes.cluster import FakeCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

QUARANTINE = {"wattbalance.io/quarantine": "xid-79"}


class World:
    """Three nodes of eight GPUs, of which `bad` is in quarantine, and the verbs over them."""

    def __init__(
        self,
        placement: Placement = Placement.DECISIVE,
        *,
        observe: bool = False,
        spill_after_s: float | None = None,
    ) -> None:
        self.clock = ManualClock()
        # A pool that none of the nodes is in, and that has to be waited for.
        waited_for = PoolSpec(name="dc-1", selector={"site": "dc-1"}, spill_after_s=spill_after_s or 0.0)
        self.store = make_store((waited_for,) if spill_after_s is not None else ())
        for name in ("a", "b"):
            see_node(self.store, name)
        see_node(self.store, "bad", labels=QUARANTINE)
        self.decider = make_decider(self.store, placement)
        self.cluster = FakeCluster()
        self.fence = Fence()
        self.verbs = Verbs(self.decider, self.cluster, self.clock, self.fence, observe=observe)

    def filter(self, question: dict[str, object]) -> Any:
        return json.loads(self.verbs.filter(read_filter(json.dumps(question).encode())))

    def prioritize(self, question: dict[str, object]) -> Any:
        return json.loads(self.verbs.prioritize(read_filter(json.dumps(question).encode())))

    def preempt(self, question: dict[str, object]) -> Any:
        return json.loads(self.verbs.preempt(read_preempt(json.dumps(question).encode())))

    async def bind(self, node: str = "a", uid: str = "uid-p1", name: str = "p1") -> str:
        answer = await self.verbs.bind(BindArgs(namespace="team-a", name=name, uid=uid, node=node))
        error = json.loads(answer)["Error"]
        assert isinstance(error, str)
        return error

    def promise(self, node: str = "a") -> None:
        self.filter(by_names(node))
        assert self.store.reservations.get("uid-p1") is not None

    @property
    def promised(self) -> bool:
        return self.store.reservations.get("uid-p1") is not None


def pod(name: str = "p1", gpus: int = 1, uid: str | None = None, nominated: str = "") -> dict[str, object]:
    return {
        "metadata": {
            "name": name,
            "namespace": "team-a",
            "uid": f"uid-{name}" if uid is None else uid,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"containers": [{"name": "c", "resources": {"limits": {GPU_RESOURCE: str(gpus)}}}]},
        "status": {"nominatedNodeName": nominated},
    }


def by_names(*names: str, **fields: Any) -> dict[str, object]:
    return {"Pod": pod(**fields), "Nodes": None, "NodeNames": list(names)}


def whole(name: str, **labels: str) -> dict[str, object]:
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"podCIDR": "10.0.0.0/24"},
        "status": {"allocatable": {GPU_RESOURCE: "8"}, "nodeInfo": {"kernelVersion": "6"}},
    }


def by_nodes(*nodes: dict[str, object], **fields: Any) -> dict[str, object]:
    return {"Pod": pod(**fields), "Nodes": {"metadata": {}, "items": list(nodes)}, "NodeNames": None}


# --- the doors ------------------------------------------------------------------------------------------------------


class _NoNodes:
    def node_names(self) -> Sequence[str]:
        return []

    def node_pool(self, name: str) -> None:
        return None

    def node(self, name: str) -> None:
        return None


class Doors:
    """A world served by a real listener, together with its metrics."""

    def __init__(self, world: World, port: int, server: ExtenderServer) -> None:
        self.world = world
        self.port = port
        self._server = server

    def asking(self) -> int:
        """How many questions are being read or answered."""
        return len(self._server._answering)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Talk]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
        try:
            yield Talk(reader, writer)
        finally:
            writer.transport.abort()

    async def counted(self, name: str) -> dict[tuple[str, ...], float]:
        """The series of one family on the live page, by the values of their labels in the labels' order."""
        async with self.connect() as talk:
            _, _, page = await talk.ask_raw(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(page.decode())
            for sample in family.samples
            if sample.name == name
        }


class Talk:
    """One connection, HTTP/1.1 by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(
        self, verb: str, body: bytes | object, headers: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        """POST a body as kube-scheduler does. Gives status, headers, body."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST /scheduler/{verb} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        return await self.ask_raw(f"{head}Content-Length: {len(data)}\r\n{headers}\r\n".encode() + data)

    async def ask_raw(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        self.writer.write(request)
        return await self.answer()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 60)).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {key.lower(): value for key, value in (line.split(": ", 1) for line in lines)}
        body = await asyncio.wait_for(self.reader.readexactly(int(headers["content-length"])), 60)
        return int(first.split(" ")[1]), headers, body

    async def is_closed(self) -> bool:
        """Whether the server closes the connection, sooner or later."""
        try:
            return await asyncio.wait_for(self.reader.read(1), 60) == b""
        except ConnectionError:
            return True


@asynccontextmanager
async def served(world: World, address: str = "127.0.0.1:0") -> AsyncIterator[Doors]:
    before = asyncio.all_tasks()
    counters = ExtenderCounters()
    sources = Sources(
        extender_requests=lambda: counters.requests,
        extender_bad_requests=lambda: counters.refused,
        extender_full_node_requests=lambda: counters.full_nodes,
        extender_request_seconds=lambda: counters.latency,
    )
    server = ExtenderServer(world.verbs, counters, ManualClock())
    routes = {
        "extender": server.routes(),
        "metrics": metrics_routes(MetricsPage(sources, _NoNodes())),
    }
    spec = ListenerSpec(address=address, serves=frozenset(routes))
    listeners = Listeners([spec], routes, grace_s=0.5)
    await listeners.start()
    try:
        yield Doors(world, listeners.addresses[0][1], server)
    finally:
        await listeners.stop()
        if others := asyncio.all_tasks() - before:
            await asyncio.wait(others, timeout=60)
