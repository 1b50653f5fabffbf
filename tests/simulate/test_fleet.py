"""The simulated agents speak to a real broker; what they send is read by the daemon's own subscriber."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from msgspec import UNSET

from scheduler.core.clock import SystemClock
from scheduler.simulate.broker import running_broker
from scheduler.simulate.fleet import Fleet, TooFewFiles, interval_for, inventory_of, raise_file_limit
from scheduler.simulate.traces import TraceNode
from scheduler.simulate.utilisation import LoadModel
from scheduler.telemetry.bus import BrokerSettings, NodePublisher, TelemetrySubscriber
from scheduler.telemetry.sample import Inventory, Sample

if TYPE_CHECKING:
    import aiomqtt


def make_nodes(count: int) -> list[TraceNode]:
    return [
        TraceNode(name=f"n{i}", cpu_milli=8000, memory_mib=65536, gpus=1 + i % 4, model="T4")
        for i in range(count)
    ]


class Recorder:
    """A handler that keeps everything."""

    def __init__(self) -> None:
        self.seen: list[Sample] = []
        self.inventories: dict[str, Inventory] = {}
        self.online: dict[str, bool] = {}
        self.refused: Counter[str] = Counter()

    def inventory(self, node: str, payload_hash: str, inventory: Inventory, now_mono_s: float) -> None:
        self.inventories[node] = inventory

    def inventory_cleared(self, node: str, now_mono_s: float) -> None:
        self.inventories.pop(node, None)

    def samples(self, batch: Sequence[tuple[str, Sample, float]]) -> None:
        self.seen.extend(sample for _, sample, _ in batch)

    def status(self, node: str, online: bool, now_mono_s: float) -> None:
        self.online[node] = online

    def dropped(self, reason: str, count: int = 1) -> None:
        self.refused[reason] += count


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_daemon_reads_every_node_and_hears_when_the_fleet_leaves() -> None:
    nodes = make_nodes(20)
    load = LoadModel(nodes, np.random.default_rng(1))
    load.start(3, 4, 0.8)
    recorder, clock = Recorder(), SystemClock()
    async with running_broker() as broker:
        settings = BrokerSettings(url=broker.url)
        reader = TelemetrySubscriber(settings, cluster="demo", handler=recorder, clock=clock)
        fleet = Fleet(settings, cluster="demo", nodes=nodes, load=load, clock=clock, interval_s=0.2)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(reader.run())
            await reader.wait_connected()
            sending = group.create_task(fleet.run())
            await until(
                lambda: min(Counter(s.node for s in recorder.seen).get(n.name, 0) for n in nodes) >= 3
            )
            sending.cancel()
            await until(lambda: recorder.online == {node.name: False for node in nodes})
            reading.cancel()
    assert 0 < fleet.offered <= fleet.due
    # On a busy machine a node's sample may still wait when its next one comes; nothing else is dropped.
    assert set(recorder.refused) <= {"overwritten"}
    assert recorder.inventories == {node.name: inventory_of(node) for node in nodes}
    busy = [sample for sample in recorder.seen if sample.node == "n3"][-1]
    # T4: 10 W idle, 70 W limit; utilisation 0.8, give or take five standard deviations of the noise.
    assert all(value is not None and abs(value - 0.8) < 0.15 for value in busy.util_frac)
    assert all(
        power_w == pytest.approx(10 + 60 * util, abs=0.1)
        for power_w, util in zip(busy.power_w, busy.util_frac, strict=True)
        if power_w is not None and util is not None
    )
    # What is there to be looked at follows from watts, utilisation and being at work (docs/model.md).
    assert busy.sm_clock_mhz == [1590.0] * 4
    assert busy.temp_c == pytest.approx(
        [30 + 50 * power_w / 70 for power_w in busy.power_w if power_w], abs=0.1
    )
    want_bytes = [0.8 * util * 16 * 2**30 for util in busy.util_frac if util]
    assert busy.mem_used_bytes == pytest.approx(want_bytes, abs=1)
    assert busy.mem_util_frac == pytest.approx([util / 2 for util in busy.util_frac if util], abs=0.002)
    idle = [sample for sample in recorder.seen if sample.node == "n7"]
    assert idle[-1].sm_clock_mhz == [300.0] * 4
    assert idle[-1].mem_used_bytes == [0] * 4
    energy = [sample.energy_j[0] for sample in idle]
    assert energy == sorted(energy, key=float)  # type: ignore[arg-type]  # never None here
    # Wall time: idle at 10 W for as long as each sample spans.
    for before, after in pairwise(idle):
        if after.seq == before.seq + 1:
            spent_j = after.energy_j[0] - before.energy_j[0]  # type: ignore[operator]  # likewise
            assert spent_j == pytest.approx(10 * after.span_s, rel=0.02, abs=0.01)


async def test_slow_fields_come_first_and_then_rest() -> None:
    nodes = make_nodes(1)
    load, recorder, clock = LoadModel(nodes, np.random.default_rng(1)), Recorder(), SystemClock()
    async with running_broker() as broker:
        settings = BrokerSettings(url=broker.url)
        reader = TelemetrySubscriber(settings, cluster="demo", handler=recorder, clock=clock)
        fleet = Fleet(settings, cluster="demo", nodes=nodes, load=load, clock=clock, interval_s=0.1)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(reader.run())
            await reader.wait_connected()
            sending = group.create_task(fleet.run())
            await fleet.wait_connected()
            await until(lambda: len(recorder.seen) >= 3)
            sending.cancel()
            reading.cancel()
    # A real agent sends limits each time and what was asked for rarely.
    assert all(sample.limit_w == [70.0] for sample in recorder.seen)
    assert all(sample.limit_requested_w in (UNSET, [70.0]) for sample in recorder.seen)
    assert [sample.seq for sample in recorder.seen] == sorted({sample.seq for sample in recorder.seen})
    assert sum(sample.limit_requested_w is not UNSET for sample in recorder.seen) <= 1


class OutgoingEnds:
    """A client whose publish ends when a test says so, waiting as aiomqtt's does."""

    def __init__(self) -> None:
        self.sent = asyncio.Event()
        self.confirmed: asyncio.Future[None] = asyncio.Future()

    async def publish(self, *_: object, **__: object) -> None:
        self.sent.set()
        await asyncio.wait_for(self.confirmed, 60)


async def test_an_agent_that_is_cancelled_as_its_sample_goes_out_ends() -> None:
    settings = BrokerSettings(url="mqtt://127.0.0.1:1")
    publisher = NodePublisher(settings, cluster="demo", node="n", clock=SystemClock())
    client = OutgoingEnds()
    publisher.offer(b"sample")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(publisher._publish(cast("aiomqtt.Client", client)))
        await client.sent.wait()
        # Both in one turn of the loop: Python 3.11's wait_for then tells of the end alone.
        client.confirmed.set_result(None)
        task.cancel()
        await asyncio.wait({task}, timeout=60)
        ended = task.done()
        task.cancel()
    assert ended


def test_a_big_fleet_stretches_the_interval() -> None:
    assert interval_for(200) == 1.0
    assert interval_for(1213) == pytest.approx(1213 / 400)


def test_a_hard_limit_that_is_too_low_is_said() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("no hard limit on this machine")
    with pytest.raises(TooFewFiles, match="ulimit -Hn"):
        raise_file_limit(hard)


def test_the_soft_limit_is_raised_to_what_the_nodes_need() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        raise_file_limit(300)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
