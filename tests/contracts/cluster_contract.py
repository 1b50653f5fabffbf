"""What KubernetesCluster and Elector promise, on any API server: the real kube-apiserver and the simulated one.

A test module inherits `ClusterContract` and offers a fixture `server`. What a test needs in the cluster it asks of
`server.world`, in Kubernetes' own manifests and paths; `ApiWorld` does that over HTTP, a simulated server may do it
directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self, cast
from urllib.parse import urlsplit

import aiohttp
import pytest

from scheduler.cluster.api_request import Limits, Target
from scheduler.cluster.kubernetes import KubernetesCluster
from scheduler.cluster.lease_record import LeaseTimes
from scheduler.cluster.objects import ConfigMap, Node, Partial, Pod
from scheduler.cluster.port import Changed, ClusterEvent, EventNote, Gone, Kind, Listed, Only
from scheduler.cluster.reflector import Pace
from scheduler.cluster.transport import Transport
from scheduler.core.clock import Clock, ManualClock, SystemClock
from scheduler.core.errors import ApiConflict, ApiNotFound, ApiRejected
from scheduler.pause_orders import Orders
from tests.controlplane import collection_path, node_manifest, pod_manifest
from tests.fakes.server_credentials import from_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from scheduler.cluster.access import Credentials

Json = dict[str, object]

QUICK_PACE = Pace(first_s=0.05, most_s=0.2, refused_s=0.2, refused_required_s=0.2)
QUICK_LEASE = LeaseTimes(lease_s=2.0, deadline_s=1.2, retry_s=0.2, release_s=1.0)
# Only so that a broken promise ends the test instead of hanging it.
HANG_S = 120.0
CLOCK = SystemClock()


class World(Protocol):
    """The rest of the cluster: users, controllers and kubelets."""

    async def call(self, method: str, path: str, body: Json | None = None) -> Json:
        """Do anything with full rights, by Kubernetes paths; PATCH is a merge-patch."""
        ...


@dataclass(frozen=True)
class ApiWorld:
    """A World over HTTP, with an administrator's token."""

    url: str
    token: str
    ca_file: Path | None = None

    async def call(self, method: str, path: str, body: Json | None = None) -> Json:
        """One request; an error status fails the test."""
        async with aiohttp.ClientSession() as session:
            return await self.send(session, method, path, body)

    async def send(self, session: aiohttp.ClientSession, method: str, path: str, body: Json | None) -> Json:
        """Likewise over a given session."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        context = ssl.create_default_context(cafile=self.ca_file) if self.ca_file else True
        async with session.request(
            method,
            self.url + path,
            json=body,
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": kind},
            ssl=context,
        ) as answer:
            data = await answer.json()
            assert answer.status < 300, data
            return cast("Json", data)


@dataclass(frozen=True)
class Server:
    """Where the API server is, who we are there, and the world around it."""

    url: str
    token: str
    world: World
    ca_file: Path | None = None
    namespace: str = "wattbalance"
    """Our own: the Lease is there."""

    def cluster(
        self, *, limits: Limits | None = None, url: str = "", clock: Clock = CLOCK
    ) -> KubernetesCluster:
        """A new adapter; use as `async with`. `url` leads to it by another way."""
        credentials = from_server(url or self.url, token=self.token, ca_file=self.ca_file, clock=clock)
        return KubernetesCluster(
            credentials, clock, instance="test-0", limits=limits, pace=QUICK_PACE, probe_every_s=0.5
        )

    @contextlib.asynccontextmanager
    async def as_administrator(self) -> AsyncIterator[tuple[Transport, Credentials]]:
        """Requests of a person with all rights."""
        assert isinstance(self.world, ApiWorld)
        credentials = from_server(self.url, token=self.world.token, ca_file=self.world.ca_file, clock=CLOCK)
        transport = Transport(credentials, CLOCK)
        await transport.open()
        try:
            yield transport, credentials
        finally:
            await transport.close()


class Relay:
    """A wire to the server that can go dead: connected and silent, as with a lost route."""

    def __init__(self, url: str) -> None:
        split = urlsplit(url)
        self._host, self._port = split.hostname or "127.0.0.1", split.port or 443
        self._scheme = split.scheme
        self._flows = asyncio.Event()
        self._flows.set()
        self.url = ""
        self._writers: list[asyncio.StreamWriter] = []
        self._accepted = 0

    def sever(self) -> None:
        """From now on no byte passes."""
        self._flows.clear()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Accept connections while the block runs."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"{self._scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            self._flows.set()
            for writer in self._writers:
                writer.close()
            async with asyncio.timeout(HANG_S):
                while self._accepted:
                    await asyncio.sleep(0.005)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted += 1
        self._writers.append(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            self._writers.append(far_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far_writer))
                group.create_task(self._pump(far_reader, writer))
            await far_writer.wait_closed()
            await writer.wait_closed()
        except* OSError:
            pass
        finally:
            self._accepted -= 1

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
        writer.close()


@dataclass
class Follower:
    """What a watch has said so far."""

    events: list[ClusterEvent] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def read(self, events: AsyncIterator[ClusterEvent]) -> None:
        """Collect, for ever."""
        async for event in events:
            async with self.news:
                self.events.append(event)
                self.news.notify_all()

    async def until(self, wanted: Callable[[ClusterEvent], bool]) -> ClusterEvent:
        """The first event that satisfies, already there or to come."""
        async with asyncio.timeout(HANG_S), self.news:
            await self.news.wait_for(lambda: any(wanted(event) for event in self.events))
        return next(event for event in self.events if wanted(event))

    async def listed(self, count: int = 1) -> Listed:
        """The `count`-th complete list."""
        async with asyncio.timeout(HANG_S), self.news:
            await self.news.wait_for(lambda: len(self._lists()) >= count)
        return self._lists()[count - 1]

    def _lists(self) -> list[Listed]:
        return [event for event in self.events if isinstance(event, Listed)]


@contextlib.asynccontextmanager
async def following(
    cluster: KubernetesCluster, kind: Kind, only: Only | None = None
) -> AsyncIterator[Follower]:
    """Follow a kind, or one object of it, while the block runs."""
    follower = Follower()
    async with beside(follower.read(cluster.watch(kind, only))):
        yield follower


@contextlib.asynccontextmanager
async def beside(*works: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run coroutines while the block runs, then cancel them."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
        yield
        for task in tasks:
            task.cancel()


async def eventually(fact: Callable[[], bool]) -> None:
    """Wait for something that another task brings about."""
    async with asyncio.timeout(HANG_S):
        while not fact():
            await asyncio.sleep(0.02)


def changed(
    name: str, fact: Callable[[Node | Pod | Partial], bool] = lambda _: True
) -> Callable[[ClusterEvent], bool]:
    """Matches `Changed` of an object by name and a fact about it."""
    return lambda event: (
        isinstance(event, Changed) and event.object.metadata.name == name and fact(event.object)
    )


def gone(name: str) -> Callable[[ClusterEvent], bool]:
    """Matches `Gone` of an object by name."""
    return lambda event: isinstance(event, Gone) and event.object.metadata.name == name


async def make_namespace(server: Server) -> str:
    """A namespace of the test's own."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    await server.world.call(
        "POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    )
    return name


async def make_pod(server: Server, namespace: str, name: str) -> str:
    """An unbound pod; returns its uid."""
    made = await server.world.call(
        "POST", f"/api/v1/namespaces/{namespace}/pods", pod_manifest(name, namespace=namespace)
    )
    return str(cast("Json", made["metadata"])["uid"])


async def make_node(server: Server) -> str:
    """A ready node with eight GPUs; returns its name."""
    name = f"node-{uuid.uuid4().hex[:8]}"
    await server.world.call("POST", "/api/v1/nodes", node_manifest(name))
    return name


async def remove_pod(server: Server, namespace: str, name: str) -> None:
    """Delete without grace, as if a kubelet had let it go."""
    await server.world.call("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds=0")


class ClusterContract:
    """Inherit, and offer the fixture `server`."""

    async def test_watch_lists_everything_and_then_follows_each_change(self, server: Server) -> None:
        space = await make_namespace(server)
        uid = await make_pod(server, space, "old")
        async with server.cluster() as cluster, following(cluster, Kind.POD) as pods:
            first = await pods.listed()
            assert uid in first.keys
            await make_pod(server, space, "new")
            await pods.until(changed("new"))
            path = f"/api/v1/namespaces/{space}/pods/new"
            await server.world.call("PATCH", path, {"metadata": {"labels": {"a": "b"}}})
            await pods.until(changed("new", lambda pod: (pod.metadata.labels or {}).get("a") == "b"))
            await remove_pod(server, space, "new")
            await pods.until(gone("new"))
            assert Kind.POD in cluster.synced
            assert not cluster.counters.relists[Kind.POD]

    async def test_a_long_list_comes_in_pages_and_is_complete(self, server: Server) -> None:
        space = await make_namespace(server)
        want_count = 301
        gate = asyncio.Semaphore(16)
        uids: set[str] = set()

        async def make(number: int) -> None:
            async with gate:
                uids.add(await make_pod(server, space, f"p{number}"))

        async def unmake(number: int) -> None:
            async with gate:
                await remove_pod(server, space, f"p{number}")

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(want_count):
                    group.create_task(make(number))
            limits = Limits(page_size=100)
            async with server.cluster(limits=limits) as cluster, following(cluster, Kind.POD) as pods:
                listed = await pods.listed()
                assert uids <= listed.keys
                assert len(uids) == want_count
                # Others' pods may be there too.
                assert cluster.counters.requests["list"] >= 4
                want_seen = {event.object.metadata.uid for event in pods.events if isinstance(event, Changed)}
                assert uids <= want_seen
        finally:
            async with asyncio.TaskGroup() as group:
                for number in range(len(uids)):
                    group.create_task(unmake(number))

    async def test_nodes_carry_their_gpus_and_are_keyed_by_name(self, server: Server) -> None:
        name = await make_node(server)
        async with server.cluster() as cluster, following(cluster, Kind.NODE) as nodes:
            assert name in (await nodes.listed()).keys
            event = await nodes.until(changed(name))
            assert isinstance(event, Changed)
            assert isinstance(event.object, Node)
            assert (event.object.status.allocatable or {})["nvidia.com/gpu"] == "8"
            await server.world.call("PATCH", f"/api/v1/nodes/{name}", {"spec": {"unschedulable": True}})
            await nodes.until(
                changed(name, lambda node: isinstance(node, Node) and node.spec.unschedulable is True)
            )
            await server.world.call("DELETE", f"/api/v1/nodes/{name}")
            await nodes.until(gone(name))

    async def test_namespaces_and_owners_come_as_their_metadata(self, server: Server) -> None:
        space = await make_namespace(server)
        want = {"wattbalance.io/workload": "training"}
        await server.world.call("PATCH", f"/api/v1/namespaces/{space}", {"metadata": {"annotations": want}})
        template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "none"}]}}
        job: Json = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "train", "namespace": space, "annotations": want},
            "spec": {"template": template},
        }
        await server.world.call("POST", collection_path(job), job)
        async with (
            server.cluster() as cluster,
            following(cluster, Kind.NAMESPACE) as spaces,
            following(cluster, Kind.JOB) as jobs,
        ):
            assert space in (await spaces.listed()).keys
            of_space = await spaces.until(changed(space))
            of_job = await jobs.until(
                lambda e: isinstance(e, Changed) and e.object.metadata.namespace == space
            )
            for event in (of_space, of_job):
                assert isinstance(event, Changed)
                assert isinstance(event.object, Partial)
                assert (event.object.metadata.annotations or {}).items() >= want.items()
            assert isinstance(of_job, Changed)
            assert of_job.object.metadata.uid in (await jobs.listed()).keys

    async def test_of_one_object_nothing_but_it_is_told(self, server: Server) -> None:
        # By the name that the shipped role allows to read.
        name, path = "wattbalance-pause", f"/api/v1/namespaces/{server.namespace}/configmaps"

        async def make(named: str, **data: str) -> str:
            body: Json = {"metadata": {"name": named}, "data": dict(data)}
            made = await server.world.call("POST", path, body)
            return str(cast("Json", made["metadata"])["uid"])

        other = f"other-{uuid.uuid4().hex[:8]}"
        uid = await make(name, reason="a drill")
        only = Only(server.namespace, name)
        async with server.cluster() as cluster, following(cluster, Kind.CONFIGMAP, only) as found:
            assert (await found.listed()).keys == {uid}
            event = await found.until(changed(name))
            assert isinstance(event, Changed)
            assert isinstance(event.object, ConfigMap)
            assert event.object.data == {"reason": "a drill"}
            await make(other)
            await server.world.call("PATCH", f"{path}/{name}", {"data": {"reason": "another"}})
            await found.until(
                changed(name, lambda each: isinstance(each, ConfigMap) and each.data == {"reason": "another"})
            )
            await server.world.call("DELETE", f"{path}/{name}")
            await found.until(gone(name))
            await server.world.call("DELETE", f"{path}/{other}")
            again = await make(name)
            await found.until(changed(name, lambda each: each.metadata.uid == again))
            await server.world.call("DELETE", f"{path}/{name}")
            want_names = {name}
            seen = {each.object.metadata.name for each in found.events if not isinstance(each, Listed)}
            assert seen == want_names
            assert not cluster.counters.relists[Kind.CONFIGMAP]

    async def test_a_pause_is_made_once_and_ended_by_its_own_uid_only(self, server: Server) -> None:
        space = await make_namespace(server)
        async with server.as_administrator() as (transport, credentials):
            orders = Orders(transport, credentials, space)
            first = await orders.pause("a drill")
            assert first.done
            assert first.paused is not None
            assert (first.paused.reason, bool(first.paused.since)) == ("a drill", True)
            assert "no replica has led" in first.lonely
            again = await orders.pause("another")
            assert (again.done, again.paused) == (False, first.paused)
            target = Target(resource="configmaps", namespace=space, name="wattbalance-pause")
            with pytest.raises(ApiConflict):
                await transport.call("delete", target, body={"preconditions": {"uid": str(uuid.uuid4())}})
            assert await orders.standing() == first.paused
            ended = await orders.resume()
            assert (ended.done, ended.paused) == (True, first.paused)
            ended = await orders.resume()
            assert (ended.done, ended.paused) == (False, None)
            with pytest.raises(ApiNotFound, match="namespace absent does not exist"):
                await Orders(transport, credentials, "absent").pause("a drill")

    @pytest.mark.parametrize("data", [{"a": 5}, {"a b": "x"}], ids=["no text", "odd key"])
    async def test_bad_data_of_a_configmap_are_rejected(self, data: Json, server: Server) -> None:
        async with server.as_administrator() as (transport, _):
            target = Target(resource="configmaps", namespace="default")
            with pytest.raises(ApiRejected):
                await transport.call("create", target, body={"metadata": {"name": "bad"}, "data": data})

    async def test_bind_sets_node_and_annotations_in_one_write(self, server: Server) -> None:
        space, node = await make_namespace(server), await make_node(server)
        uid = await make_pod(server, space, "p")
        async with server.cluster() as cluster:
            await cluster.bind(
                space, "p", uid, node, {"wattbalance.io/decision": "{}", "wattbalance.io/term": "3"}
            )
            pod = await cluster.get_pod(space, "p")
        assert pod.spec.node_name == node
        assert (pod.metadata.annotations or {})["wattbalance.io/decision"] == "{}"
        assert (pod.metadata.annotations or {})["wattbalance.io/term"] == "3"

    async def test_a_second_bind_is_a_conflict_even_to_the_same_node(self, server: Server) -> None:
        space, node = await make_namespace(server), await make_node(server)
        uid = await make_pod(server, space, "p")
        async with server.cluster() as cluster:
            await cluster.bind(space, "p", uid, node, {})
            for other in (node, "elsewhere"):
                with pytest.raises(ApiConflict):
                    await cluster.bind(space, "p", uid, other, {})
            assert (await cluster.get_pod(space, "p")).spec.node_name == node

    async def test_binding_a_pod_that_is_gone_says_so(self, server: Server) -> None:
        space, node = await make_namespace(server), await make_node(server)
        async with server.cluster() as cluster:
            with pytest.raises(ApiNotFound):
                await cluster.bind(space, "ghost", str(uuid.uuid4()), node, {})
            with pytest.raises(ApiNotFound):
                await cluster.get_pod(space, "ghost")

    async def test_a_node_that_does_not_exist_is_accepted_so_the_caller_must_check(
        self, server: Server
    ) -> None:
        space = await make_namespace(server)
        uid = await make_pod(server, space, "p")
        async with server.cluster() as cluster:
            await cluster.bind(space, "p", uid, "no-such-node", {})
            assert (await cluster.get_pod(space, "p")).spec.node_name == "no-such-node"

    async def test_a_pod_made_anew_under_the_same_name_is_not_bound_by_an_old_uid(
        self, server: Server
    ) -> None:
        space, node = await make_namespace(server), await make_node(server)
        old_uid = await make_pod(server, space, "p")
        await remove_pod(server, space, "p")
        await make_pod(server, space, "p")
        async with server.cluster() as cluster:
            with pytest.raises(ApiConflict):
                await cluster.bind(space, "p", old_uid, node, {})
            assert (await cluster.get_pod(space, "p")).spec.node_name == ""
            with pytest.raises(ApiConflict):
                await cluster.annotate_pod(space, "p", old_uid, {"a": "b"})

    async def test_annotations_and_labels_are_merged_and_none_removes(self, server: Server) -> None:
        space = await make_namespace(server)
        uid = await make_pod(server, space, "p")
        async with server.cluster() as cluster:
            await cluster.annotate_pod(space, "p", uid, {"x.io/a": "1", "x.io/b": "2"})
            await cluster.annotate_pod(space, "p", uid, {"x.io/a": None})
            await cluster.label_pod(space, "p", {"wattbalance.io/role": "leader"})
            pod = await cluster.get_pod(space, "p")
            assert pod.metadata.annotations == {"x.io/b": "2"}
            assert pod.metadata.labels == {"wattbalance.io/role": "leader"}
            await cluster.label_pod(space, "p", {"wattbalance.io/role": None})
            assert not (await cluster.get_pod(space, "p")).metadata.labels
            with pytest.raises(ApiNotFound):
                await cluster.annotate_pod(space, "ghost", uid, {"a": "b"})

    async def test_repeated_events_become_one_series(self, server: Server) -> None:
        space = await make_namespace(server)
        uid = await make_pod(server, space, "p")
        note = EventNote(
            kind="Pod", namespace=space, name="p", uid=uid, reason="WaitingForPool", note="n" * 2000
        )
        async with server.cluster() as cluster, beside(cluster.run()):
            cluster.note(note)
            await eventually(lambda: cluster.counters.events_written == 1)
            for _ in range(3):
                cluster.note(note)
            # Three repetitions need one patch.
            path = f"/apis/events.k8s.io/v1/namespaces/{space}/events"
            async with asyncio.timeout(HANG_S):
                while (got := await self._series_counts(server, path)) != [4]:
                    await asyncio.sleep(0.05)
            assert got == [4]
            assert cluster.counters.events_written == 2
            assert not cluster.counters.events_dropped.total()

    async def _series_counts(self, server: Server, path: str) -> list[int]:
        items = cast("list[Json]", (await server.world.call("GET", path))["items"])
        return [cast("int", cast("Json", item.get("series") or {"count": 1})["count"]) for item in items]

    async def test_the_lease_is_taken_over_with_a_higher_term_after_the_leader_stops_renewing(
        self, server: Server
    ) -> None:
        await self._drop_lease(server)
        # Moved by the test alone: a machine that stalls loses no lease.
        clock = ManualClock()
        times = LeaseTimes(retry_s=0.1)
        terms: list[tuple[str, int]] = []

        async def lead(name: str, term: int) -> None:
            terms.append((name, term))
            await asyncio.Event().wait()

        async with (
            Relay(server.url).running() as relay,
            server.cluster(url=relay.url, limits=Limits(lease_timeout_s=0.5), clock=clock) as one,
            server.cluster(clock=clock) as two,
        ):
            a = one.elector(namespace=server.namespace, identity="a-1", times=times)
            b = two.elector(namespace=server.namespace, identity="b-2", times=times)
            async with beside(a.run(lambda term: lead("a", term))):
                await eventually(lambda: a.is_leading(clock.mono_s()))
                async with beside(b.run(lambda term: lead("b", term))):
                    await eventually(lambda: b.leader == "a-1")
                    assert not b.is_leading(clock.mono_s())
                    # a cannot reach the server any more: it must stop before b may begin.
                    relay.sever()
                    async with asyncio.timeout(HANG_S):
                        while not b.is_leading(clock.mono_s()):
                            clock.advance(0.5)
                            assert not (a.is_leading(clock.mono_s()) and b.is_leading(clock.mono_s()))
                            await asyncio.sleep(0.02)
                    assert not a.is_leading(clock.mono_s())
                    assert b.term == a.term + 1
        assert [name for name, _ in terms] == ["a", "b"]

    async def test_a_lease_handed_back_is_taken_at_once(self, server: Server) -> None:
        await self._drop_lease(server)
        long = LeaseTimes(lease_s=600.0, deadline_s=300.0, retry_s=0.1, release_s=60.0)

        async def lead(_: int) -> None:
            await asyncio.Event().wait()

        async with server.cluster() as cluster:
            a = cluster.elector(namespace=server.namespace, identity="a-1", times=long)
            b = cluster.elector(namespace=server.namespace, identity="b-2", times=long)
            async with beside(a.run(lead)):
                await eventually(lambda: a.is_leading(CLOCK.mono_s()))
                want_term = a.term + 1
            assert not a.is_leading(CLOCK.mono_s())
            async with beside(b.run(lead)):
                await eventually(lambda: b.is_leading(CLOCK.mono_s()))
                assert b.term == want_term

    async def _drop_lease(self, server: Server) -> None:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{server.namespace}/leases/wattbalance"
        with contextlib.suppress(AssertionError):
            await server.world.call("DELETE", path)

    async def test_a_living_server_is_heard_of_although_nothing_happens(self, server: Server) -> None:
        async with server.cluster() as cluster, beside(cluster.run()):
            await eventually(lambda: cluster.last_contact_mono_s is not None)
            first = cluster.last_contact_mono_s
            await eventually(lambda: cluster.last_contact_mono_s != first)

    async def test_the_servers_clock_is_known_where_ours_is_wrong(self, server: Server) -> None:
        class AnHourAhead(SystemClock):
            def unix_s(self) -> float:
                return super().unix_s() + 3600.0

        for clock, want_off in ((CLOCK, False), (AnHourAhead(), True)):
            async with server.cluster(clock=clock) as cluster:
                for _ in range(3):
                    with pytest.raises(ApiNotFound):
                        await cluster.get_pod("default", "absent")
                assert cluster.server_clock.is_off() is want_off
                # Date leaves a second open; more than that is a machine that stood still between the two readings.
                assert abs(cluster.server_clock.unix_s() - CLOCK.unix_s()) < 60
