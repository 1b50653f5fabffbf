"""The same contract on the simulated API server, as an old and as a new Kubernetes, and with its faults switched on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from scheduler.cluster.api_request import Limits
from scheduler.cluster.port import Kind
from scheduler.core.clock import SystemClock
from scheduler.core.errors import ApiForbidden, ApiUnavailable
from scheduler.simulate.apiserver import ApiServer
from tests.contracts.cluster_contract import (
    ApiWorld,
    ClusterContract,
    Server,
    changed,
    eventually,
    following,
    make_namespace,
    make_node,
    make_pod,
)

TOKEN = "t"


@dataclass
class Simulated:
    """The server and our way to it."""

    api: ApiServer
    server: Server


@pytest.fixture(params=[20, 32], ids=["1.20", "1.32"])
async def simulated(request: pytest.FixtureRequest) -> AsyncIterator[Simulated]:
    """A server of some version."""
    minor: int = request.param
    api = ApiServer(SystemClock(), minor=minor, token=TOKEN)
    api.create("namespaces", {"metadata": {"name": "wattbalance"}})
    await api.start()
    try:
        yield Simulated(api, Server(api.url, TOKEN, ApiWorld(api.url, TOKEN)))
    finally:
        await api.stop()


@pytest.fixture
def server(simulated: Simulated) -> Server:
    """What the contract asks for."""
    return simulated.server


class TestOnSimulatedServer(ClusterContract):
    """Everything of the contract."""


async def test_dropped_watches_are_resumed_without_a_list(simulated: Simulated) -> None:
    server = simulated.server
    space = await make_namespace(server)
    async with server.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.listed()
        await make_pod(server, space, "a")
        await pods.until(changed("a"))
        simulated.api.drop_watches()
        await make_pod(server, space, "b")
        await pods.until(changed("b"))
        assert not cluster.counters.relists[Kind.POD]


async def test_a_server_that_refuses_connections_and_comes_back_is_found_again(simulated: Simulated) -> None:
    server = simulated.server
    space = await make_namespace(server)
    async with server.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.listed()
        await simulated.api.refuse()
        await eventually(lambda: cluster.counters.errors["watch", "pods", "connection"] >= 2)
        await simulated.api.accept()
        await make_pod(server, space, "b")
        await pods.until(changed("b"))


async def test_an_expired_watch_is_listed_anew_and_misses_nothing(simulated: Simulated) -> None:
    server = simulated.server
    space = await make_namespace(server)
    async with server.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.listed()
        simulated.api.faults.expire_watches = True
        simulated.api.drop_watches()
        await make_pod(server, space, "missed")
        await pods.until(changed("missed"))
        simulated.api.faults.expire_watches = False
        await make_pod(server, space, "next")
        await pods.until(changed("next"))
        assert cluster.counters.relists[Kind.POD] >= 1


async def test_a_bind_whose_answer_is_lost_is_found_done_when_the_pod_is_read(simulated: Simulated) -> None:
    server = simulated.server
    space, node = await make_namespace(server), await make_node(server)
    uid = await make_pod(server, space, "p")
    simulated.api.faults.lose_bind_answers = 1
    async with server.cluster(limits=Limits(call_timeout_s=0.5)) as cluster:
        # On a machine that stalls the time may be over before the request came.
        while simulated.api.faults.lose_bind_answers:
            with pytest.raises(ApiUnavailable):
                await cluster.bind(space, "p", uid, node, {})
    async with server.cluster() as cluster:
        assert (await cluster.get_pod(space, "p")).spec.node_name == node


async def test_throttling_is_waited_out(simulated: Simulated) -> None:
    server = simulated.server
    space = await make_namespace(server)
    await make_pod(server, space, "p")
    simulated.api.faults.throttle_next = 1
    async with server.cluster() as cluster:
        assert (await cluster.get_pod(space, "p")).metadata.name == "p"
        assert cluster.counters.throttled == 1


async def test_a_verb_that_is_taken_away_is_named(simulated: Simulated) -> None:
    server = simulated.server
    space = await make_namespace(server)
    uid = await make_pod(server, space, "p")
    simulated.api.faults.forbidden.add(("create", "pods/binding"))
    async with server.cluster() as cluster:
        with pytest.raises(ApiForbidden, match=r'resources: \["pods/binding"\], verbs: \["create"\]'):
            await cluster.bind(space, "p", uid, "n", {})


async def test_padded_objects_over_512_kib_are_listed_and_watched(simulated: Simulated) -> None:
    server = simulated.server
    space = await make_namespace(server)
    await make_pod(server, space, "old")
    simulated.api.faults.pad_bytes = 700_000
    async with server.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.until(changed("old"))
        await make_pod(server, space, "new")
        await pods.until(changed("new"))
