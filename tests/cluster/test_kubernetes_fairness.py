"""The Lease goes through when nothing else does: a session of its own here, a priority of its own there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import yaml

from scheduler.cluster.api_request import Limits
from scheduler.cluster.lease_record import LeaseTimes
from scheduler.cluster.port import Kind
from scheduler.core.clock import ManualClock, SystemClock
from scheduler.simulate.apiserver import ApiServer
from tests.cluster.test_kubernetes_traps import Script, a_list, a_watch
from tests.contracts.cluster_contract import (
    ApiWorld,
    Server,
    beside,
    eventually,
    following,
    make_namespace,
    make_pod,
)
from tests.controlplane import WHY_NOT, ControlPlane, assets
from tests.e2e.system import ACCOUNT, ACCOUNT_GROUPS, LEASE

FLOW_SCHEMA = Path(__file__).parents[2] / "deploy" / "flowschema.yaml"
# Real seconds between attempts; leases end on a clock that nobody moves but the test.
TIMES = LeaseTimes(lease_s=15.0, deadline_s=10.0, retry_s=0.02)
# As many calls as the session for them has connections, and more.
BURST = 40


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    """A simulated server with our namespace."""
    api = ApiServer(SystemClock(), token="t")
    api.create("namespaces", {"metadata": {"name": "wattbalance"}})
    await api.start()
    try:
        yield api
    finally:
        await api.stop()


async def forever(_: int) -> None:
    """Lead until cancelled."""
    await asyncio.Event().wait()


async def test_calls_that_hang_do_not_keep_the_lease_from_being_renewed(api: ApiServer) -> None:
    server = Server(api.url, "t", ApiWorld(api.url, "t"))
    space = await make_namespace(server)
    await make_pod(server, space, "p")
    async with server.cluster(limits=Limits(call_timeout_s=60.0)) as cluster:
        leading = cluster.elector(namespace="wattbalance", identity="a", times=TIMES)
        async with beside(leading.run(forever)), following(cluster, Kind.POD) as pods:
            await pods.listed()
            await eventually(lambda: leading.leader == "a")
            # From now on each Binding is carried out by nobody and answered by nobody.
            api.faults.lose_binds = BURST
            async with asyncio.TaskGroup() as group:
                calls = [
                    group.create_task(cluster.bind(space, "p", "u", "n", {}), name=f"bind[{n}]")
                    for n in range(BURST)
                ]
                await eventually(lambda: api.requests.get(("create", "pods/binding"), 0) >= 30)
                before = api.requests["update", "leases"]
                await eventually(lambda: api.requests["update", "leases"] >= before + 5)
                # And watches have connections of their own too.
                await make_pod(server, space, "seen")
                await eventually(lambda: cluster.counters.watch_events[Kind.POD] >= 1)
                for call in calls:
                    call.cancel()
            assert leading.losses == 0


async def test_a_killed_server_ends_leading_and_one_that_is_back_is_led_again(api: ApiServer) -> None:
    clock = ManualClock()
    server = Server(api.url, "t", ApiWorld(api.url, "t"))
    ended: list[int] = []

    async def lead(term: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(term)

    async with server.cluster() as cluster:
        cluster.transport.clock = clock
        leading = cluster.elector(namespace="wattbalance", identity="a", times=TIMES)
        async with beside(leading.run(lead)):
            await eventually(lambda: leading.is_leading(clock.mono_s()))
            await api.refuse()
            await eventually(lambda: cluster.counters.errors["update", "leases", "connection"] >= 3)
            # Refused connections alone are no reason to stop at once.
            assert leading.is_leading(clock.mono_s())
            clock.advance(TIMES.deadline_s)
            assert not leading.is_leading(clock.mono_s())
            await eventually(lambda: ended == [1])
            await api.accept()
            await eventually(lambda: leading.is_leading(clock.mono_s()))
            assert leading.term == 2


async def test_no_list_and_no_watch_asks_for_initial_events() -> None:
    # Off in some versions, and ignored without an end mark in old ones.
    script = Script(lists=[a_list()], watches=[a_watch()])
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.listed()
        await eventually(lambda: bool(script.queries("watch")))
    asked = [query for what in ("list", "watch") for query in script.queries(what)]
    assert not [query for query in asked if "sendInitialEvents" in query or "resourceVersionMatch" in query]


@pytest.mark.e2e
@pytest.mark.skipif(assets() is None, reason=WHY_NOT)
async def test_the_shipped_flow_schema_gives_the_lease_a_priority_of_its_own() -> None:
    manifest = yaml.safe_load(FLOW_SCHEMA.read_text())
    with ControlPlane(users={ACCOUNT: ACCOUNT_GROUPS}) as plane:
        old = plane.request("GET", "/version")
        assert isinstance(old, dict)
        if int(str(old["minor"]).rstrip("+")) < 23:
            manifest["apiVersion"] = "flowcontrol.apiserver.k8s.io/v1beta1"
        path = f"/apis/{manifest['apiVersion']}/flowschemas"
        made = plane.request("POST", path, manifest)
        assert isinstance(made, dict)
        metadata = made["metadata"]
        assert isinstance(metadata, dict)

        async def schema_of(url: str) -> str:
            headers = {"Authorization": f"Bearer {plane.token(ACCOUNT)}"}
            async with (
                aiohttp.ClientSession() as session,
                session.get(plane.url + url, headers=headers, ssl=False) as answer,
            ):
                return answer.headers.get("X-Kubernetes-Pf-Flowschema-Uid", "")

        async with asyncio.timeout(60):
            while await schema_of(LEASE) != metadata["uid"]:
                await asyncio.sleep(0.1)
        # Nothing else of ours comes by it.
        assert await schema_of("/api/v1/pods") != metadata["uid"]
