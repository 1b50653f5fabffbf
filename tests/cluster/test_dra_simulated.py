"""DRA's kinds on the simulated API server: followed where it has them, and no fault where it has not."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import pytest

from scheduler.cluster.dra import Devices
from scheduler.cluster.dra_objects import ResourceSlice
from scheduler.cluster.port import Changed, Kind
from scheduler.core.clock import SystemClock
from scheduler.simulate.apiserver import ApiServer
from tests.cluster.test_kubernetes_traps import Script, a_list, a_watch, answers
from tests.contracts.cluster_contract import ApiWorld, Server, eventually, following
from tests.contracts.dra_contract import DraContract
from tests.dra import gpu, slice_manifest, whole

DRA = (Kind.RESOURCESLICE, Kind.RESOURCECLAIM, Kind.DEVICECLASS)
NOT_SERVED = answers({"kind": "Status", "message": "the server could not find it", "code": 404}, 404)


@pytest.fixture
async def api(request: pytest.FixtureRequest) -> AsyncIterator[ApiServer]:
    """A server of 1.34, or of the version that the test names."""
    api = ApiServer(SystemClock(), minor=getattr(request, "param", 34), token="t")
    await api.start()
    try:
        yield api
    finally:
        await api.stop()


@pytest.fixture
def server(api: ApiServer) -> Server:
    """What the contract asks for."""
    return Server(api.url, "t", ApiWorld(api.url, "t"))


class TestOnSimulatedServer(DraContract):
    """Everything of the contract."""


@pytest.mark.parametrize("api", [20, 33], indirect=True)
async def test_a_server_without_them_is_no_fault(server: Server) -> None:
    async with (
        server.cluster() as cluster,
        following(cluster, Kind.RESOURCESLICE),
        following(cluster, Kind.RESOURCECLAIM),
        following(cluster, Kind.DEVICECLASS),
    ):
        await eventually(lambda: cluster.absent == set(DRA))
        assert not cluster.refused


async def test_a_role_without_them_is_a_fault_that_is_named(api: ApiServer, server: Server) -> None:
    api.faults.forbidden |= {("list", "resourceclaims")}
    async with server.cluster() as cluster, following(cluster, Kind.RESOURCECLAIM) as claims:
        await eventually(lambda: Kind.RESOURCECLAIM in cluster.refused)
        assert not cluster.absent
        api.faults.forbidden.clear()
        await claims.listed()
        await eventually(lambda: not cluster.refused)


async def test_that_it_has_none_is_said_once_and_a_group_that_comes_with_an_upgrade_is_found(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    # Each time in three versions.
    script = Script(lists=[NOT_SERVED] * 9 + [a_list()], watches=[a_watch()])
    async with script.cluster() as cluster, following(cluster, Kind.RESOURCESLICE) as slices:
        await eventually(lambda: Kind.RESOURCESLICE in cluster.absent)
        await slices.listed()
        await eventually(lambda: not cluster.absent)
    lines = [each for each in caplog.records if "has no resourceslices" in each.getMessage()]
    assert [each.levelno for each in lines] == [logging.INFO]


async def test_slices_of_a_server_that_has_the_beta_only_are_read() -> None:
    manifest = slice_manifest(devices=[gpu(0), gpu(1)])
    manifest["metadata"] |= {"uid": "u", "resourceVersion": "7"}
    manifest["spec"]["devices"] = [
        {"name": device.pop("name"), "basic": device} for device in manifest["spec"]["devices"]
    ]
    script = Script(lists=[NOT_SERVED, NOT_SERVED, a_list(manifest)], watches=[a_watch()])
    async with script.cluster() as cluster, following(cluster, Kind.RESOURCESLICE) as slices:
        await slices.listed()
        assert not cluster.absent
    (found,) = [event.object for event in slices.events if isinstance(event, Changed)]
    assert isinstance(found, ResourceSlice)
    devices = Devices()
    devices.see(found, gone=False)
    assert whole(devices, "n1") == 2
