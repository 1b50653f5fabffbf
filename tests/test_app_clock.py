"""A daemon whose clock is an hour ahead of the API server's: what is told of it, and how old pods are to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.core.clock import SystemClock
from tests.contracts.cluster_contract import eventually
from tests.test_app import cluster

HOUR_S = 3600.0


class AnHourBehind(SystemClock):
    """The API server's."""

    def unix_s(self) -> float:
        return super().unix_s() - HOUR_S


async def test_a_pod_is_as_old_as_the_api_server_says_and_the_difference_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = [
        {"name": "dc-1", "selector": {"site": "dc-1"}, "spill": {"after": "30m"}},
        {"name": "aws-a", "selector": {"site": "aws-a"}},
    ]
    async with cluster(tmp_path, monkeypatch, clock=AnHourBehind()) as world:
        world.add_node("near", site="dc-1")
        world.add_node("far", site="aws-a")
        world.add_pod("young")
        async with world.replica(pools=pools) as replica:
            await replica.knows("near", "far")
            await eventually(replica.daemon.cluster.server_clock.is_off)
            # By our clock it would have waited for its first pool for an hour.
            answer = await replica.filter(world.api.get("pods", "young", "default"), "far")
            assert answer["FailedNodes"] == {"far": "waiting for pool dc-1"}
            async with replica.session.get("/api/v1/explain/default/young") as told:
                assert (await told.json())["waited_s"] < HOUR_S / 2
            async with replica.session.get("/readyz") as told:
                assert "clock" in (await told.json())["degraded"]
            async with replica.session.get("/metrics") as told:
                lines = (await told.text()).splitlines()
    [offset] = [each for each in lines if each.startswith("wattbalance_api_clock_offset_seconds ")]
    assert float(offset.partition(" ")[2]) == pytest.approx(-HOUR_S, abs=60)
