"""The agent's step by step, and the whole over a real broker."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler.core.aio import RetryDelays
from scheduler.core.clock import ManualClock, SystemClock
from scheduler.core.errors import ConfigError, DeviceError, DriverMismatch, DriverUnavailable
from scheduler.core.nouns import DeviceState
from scheduler.device.protocol import Ancestor, DeviceLink, FieldFault, unread
from scheduler.simulate.ports import free_port
from scheduler.telemetry.agent import Agent, AgentOptions, run_agent
from scheduler.telemetry.agent_metrics import FAMILIES, GPU_FIELDS
from scheduler.telemetry.bus import BrokerSettings, TelemetrySubscriber
from scheduler.telemetry.once import read_once, render_once
from scheduler.telemetry.sample import Inventory, Sample, decode_inventory, decode_sample, inventory_hash
from tests.brokers import run_mosquitto
from tests.telemetry.agent_tools import ScriptedDevices, make_info, make_reading
from tests.telemetry.bus_tools import Collector, eventually, running


class Desk:
    """An agent with a clock that is moved by hand; the publisher never runs, so its mail lies open."""

    def __init__(self, **options: object) -> None:
        self.clock = ManualClock()
        self.devices = ScriptedDevices(self.clock)
        whole: dict[str, object] = {"node": "n1", "sample_hz": 5.0} | options
        self.agent = Agent(
            AgentOptions(**whole),  # type: ignore[arg-type]  # Fields of a case.
            self.devices,
            self.clock,
            boot="boot-1",
            open_delays=RetryDelays([4.0], random_frac=lambda: 0.5),
        )

    async def ticks(self, count: int, by_s: float = 0.2) -> None:
        for _ in range(count):
            await self.agent.tick()
            self.clock.advance(by_s)

    def sample(self) -> Sample | None:
        payload, self.agent.publisher._sample = self.agent.publisher._sample, None
        return None if payload is None else decode_sample(payload, "n1")

    def inventory(self) -> tuple[str, Inventory]:
        payload = self.agent.publisher._inventory
        assert payload is not None
        return inventory_hash(payload), decode_inventory(payload, "n1")


async def test_five_looks_make_one_message_a_second() -> None:
    desk = Desk()
    got: list[int] = []
    for _ in range(26):
        await desk.ticks(1)
        if (sample := desk.sample()) is not None:
            got.append(sample.seq)
            assert sample.inventory == desk.inventory()[0]
            assert sample.span_s == pytest.approx(1.0)
    assert got == [1, 2, 3, 4, 5]


async def test_slow_reads_stretch_the_interval_instead_of_sending_emptiness() -> None:
    desk = Desk()
    await desk.ticks(1, by_s=0.0)
    spans_s: list[float] = []
    for _ in range(3):
        desk.clock.advance(2.5)
        await desk.agent.tick()
        sample = desk.sample()
        assert sample is not None
        assert sample.power_w == [200.0, 200.0]
        spans_s.append(sample.span_s)
    assert spans_s == [2.5, 2.5, 2.5]


async def test_without_a_driver_the_node_says_so_and_asks_again_later() -> None:
    desk = Desk()
    desk.devices.open_error = DriverUnavailable("libnvidia-ml.so.1 is missing")
    await desk.ticks(6)
    sample = desk.sample()
    assert sample is not None
    assert sample.state == []
    assert desk.inventory()[1].gpus == []
    assert desk.devices.opened == 1
    health = desk.agent.health_page()
    assert "driver: libnvidia-ml.so.1 is missing" in health.body
    assert health.status == 200, "a restart would not bring the driver"
    assert 'wattbalance_agent_driver_up{node="n1"} 0.0' in desk.agent.metrics_page().body

    desk.devices.open_error = None
    await desk.ticks(20)
    sample = desk.sample()
    assert sample is not None
    assert sample.power_w == [200.0, 200.0]
    assert len(desk.inventory()[1].gpus) == 2
    assert desk.devices.opened == 2
    assert "driver: ok" in desk.agent.health_page().body


async def test_a_driver_that_goes_away_is_opened_again() -> None:
    desk = Desk()
    await desk.ticks(3)
    desk.devices.read_error = DriverUnavailable("unloaded")
    await desk.ticks(3)
    assert desk.inventory()[1].gpus == []
    desk.devices.read_error = None
    await desk.ticks(25)
    assert len(desk.inventory()[1].gpus) == 2
    assert desk.agent.driver_error == ""


async def test_hardware_that_changes_is_published_again_and_samples_refer_to_it() -> None:
    desk = Desk()
    await desk.ticks(5)
    before, inventory = desk.inventory()
    assert (inventory.driver, inventory.gpus[1].mig_enabled) == ("580.95.05", None)
    desk.devices.infos = (make_info(0), make_info(1, mig_enabled=True, limit_max_w=350.0))
    await desk.ticks(1)
    after, inventory = desk.inventory()
    assert after != before
    assert (inventory.gpus[1].mig_enabled, inventory.gpus[1].limit_max_w) == (True, 350.0)
    sample = desk.sample()
    assert sample is not None
    assert sample.inventory == after
    assert sample.power_w == [200.0, 200.0]
    page = desk.agent.metrics_page().body
    assert 'wattbalance_gpu_mig_enabled{node="n1",gpu="1",uuid="GPU-1",model="Test GPU"} 1.0' in page


async def test_what_the_adapter_counts_is_on_the_page() -> None:
    desk = Desk()
    await desk.ticks(1)
    desk.devices.counters.timeouts, desk.devices.counters.xids = 3, 2
    desk.devices.counters.event_errors = 4
    page = desk.agent.metrics_page().body
    assert 'wattbalance_agent_driver_timeouts_total{node="n1"} 3.0' in page
    assert 'wattbalance_agent_xid_watch_errors_total{node="n1"} 4.0' in page
    assert 'wattbalance_agent_xids_total{node="n1"} 2.0' in page


async def test_a_replaced_driver_ends_the_process() -> None:
    desk = Desk()
    await desk.ticks(1)
    desk.devices.read_error = DriverMismatch("library 570, kernel 580")
    with pytest.raises(DriverMismatch):
        await desk.agent.tick()


async def test_a_read_that_hangs_makes_every_gpu_unknown_and_the_message_still_goes() -> None:
    desk = Desk(read_deadline_s=0.01)
    await desk.ticks(1)
    desk.devices.hang = True
    desk.clock.advance(2.0)
    await desk.ticks(1)
    # The first look was good; its mean is what the interval knows.
    assert desk.sample() is not None
    desk.clock.advance(2.0)
    await desk.ticks(1)
    sample = desk.sample()
    assert sample is not None
    assert (sample.state, sample.power_w) == (["unknown"] * 2, [None, None])
    assert sample.faults[0]["power_w"] == "timeout"  # type: ignore[index]  # Sent, since it changed.
    text = desk.agent.metrics_page().body
    assert 'wattbalance_agent_read_failures_total{node="n1"} 2.0' in text
    assert 'reason="timeout"' in text


async def test_an_error_of_the_whole_look_is_unknown_too() -> None:
    desk = Desk()
    await desk.ticks(1)
    desk.devices.read_error = DeviceError("odd")
    await desk.ticks(1)
    assert [reading.state for reading in desk.agent.readings] == [DeviceState.UNKNOWN] * 2


async def test_the_metrics_page_has_a_series_per_gpu_and_no_line_for_what_is_unknown() -> None:
    desk = Desk()
    desk.devices.make = lambda index: make_reading(index, temp_c=55.0 if index else None, sm_clock_mhz=1410.0)
    await desk.ticks(1)
    text = desk.agent.metrics_page().body
    labels = 'node="n1",gpu="1",uuid="GPU-1",model="Test GPU"'
    assert f"wattbalance_gpu_temperature_celsius{{{labels}}} 55.0\n" in text
    assert text.count("wattbalance_gpu_temperature_celsius{") == 1
    assert f"wattbalance_gpu_sm_clock_hertz{{{labels}}} 1410000000.0\n" in text
    assert f'wattbalance_gpu_state{{{labels},state="ok"}} 1.0\n' in text
    assert 'wattbalance_agent_read_seconds_bucket{node="n1",le="+Inf"} 1\n' in text


async def test_the_page_shows_what_is_declared_and_documented_and_nothing_else() -> None:
    desk = Desk()
    whole = dict.fromkeys((gauge.field for gauge in GPU_FIELDS), 1)
    desk.devices.make = lambda index: make_reading(
        index, **whole, throttle=("idle",), faults=(("ecc_corrected", "unknown"),)
    )
    desk.devices.infos = (make_info(0, mig_enabled=False),)
    await desk.ticks(1)
    lines = desk.agent.metrics_page().body.splitlines()
    shown = {tuple(line.split()[2:4]) for line in lines if line.startswith("# TYPE")}
    assert shown == {(family.name, family.kind) for family in FAMILIES}
    labels = {name for line in lines for name in re.findall(r'[{,](\w+)="', line)}
    assert labels <= {"node", "gpu", "uuid", "model", "state", "reason", "version", "le"}


async def test_health_fails_once_the_loop_stands_still() -> None:
    desk = Desk()
    await desk.ticks(1)
    assert desk.agent.health_page().status == 200
    desk.clock.advance(3600.0)
    page = desk.agent.health_page()
    assert page.status == 503
    assert "no reading finished for 3600 s" in page.body


async def test_a_whole_agent_over_a_real_broker(tmp_path: Path) -> None:
    with run_mosquitto(tmp_path) as broker:
        settings = BrokerSettings(url=broker.url)
        clock = SystemClock()
        devices = ScriptedDevices(clock)
        options = AgentOptions(
            node="n1", cluster="c1", broker=settings, interval_s=0.1, sample_hz=50.0, metrics_port=0
        )
        agent = Agent(options, devices, clock)
        collector = Collector()
        subscriber = TelemetrySubscriber(settings, cluster="c1", handler=collector, clock=clock)
        async with running(subscriber.run()):
            await asyncio.wait_for(subscriber.wait_connected(), 30)
            async with running(agent.run()):
                await eventually(lambda: len(collector.taken) >= 5)
                reader, writer = await asyncio.open_connection("127.0.0.1", agent.server.port)
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = await asyncio.wait_for(reader.read(), 30)
                writer.close()
                await writer.wait_closed()
            await eventually(lambda: ("n1", False) in collector.statuses)
    assert b'wattbalance_agent_broker_connected{node="n1"} 1.0' in answer
    assert [inventory.gpus[0].uuid for _, _, inventory in collector.inventories] == ["GPU-0"]
    assert collector.seqs() == sorted(collector.seqs())
    assert collector.taken[0][1].boot
    assert devices.closed == 1
    # On a machine that stalls a sample may still wait when the next one comes; nothing else is dropped.
    assert not set(collector.drops) - {"unknown_inventory", "overwritten"}
    assert abs(next(iter(subscriber.intake.skewed_s.values()), 0.0)) == 0.0


async def test_an_address_that_is_taken_ends_the_agent_with_the_reason() -> None:
    clock = SystemClock()
    port = free_port()
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", port)
    async with server:
        options = AgentOptions(
            node="n1", metrics_port=port, broker=BrokerSettings(url=f"mqtt://127.0.0.1:{free_port()}")
        )
        with pytest.raises(ExceptionGroup, match="unhandled") as caught:
            await asyncio.wait_for(run_agent(options, ScriptedDevices(clock), clock), 60)
    assert caught.group_contains(OSError, match="in use")


@pytest.mark.parametrize("field", ["interval_s", "sample_hz", "read_deadline_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_options_that_cannot_work_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        AgentOptions(node="n1", **{field: value})  # type: ignore[arg-type]  # Fields of a case.


async def test_once_reads_renders_and_lets_go() -> None:
    clock = ManualClock()
    devices = ScriptedDevices(clock)
    devices.links = (DeviceLink(first=0, second=1, ancestor=Ancestor.SYSTEM, nvlinks=18),)
    devices.make = lambda index: make_reading(
        index, temp_c=55.0, throttle=("sw_power_cap",), faults=(("mem_used_bytes", "not_supported"),)
    )
    found = await read_once(devices)
    assert devices.closed == 1
    decoded = json.loads(json.dumps(found))
    assert decoded["gpus"][1]["power_w"] == 200.0
    assert (decoded["driver"], decoded["topology"]) == ("580.95.05", {"0-1": "nvlink=18 system"})
    text = render_once(found)
    assert "200 W" in text
    assert "50 %" in text
    assert "55 °C" in text
    assert "sw_power_cap" in text
    assert "GPU 1: not supported: mem_used_bytes" in text
    assert text.endswith("\n\ndriver 580.95.05\n")


async def test_once_names_what_is_wrong_in_one_line_each() -> None:
    devices = ScriptedDevices(ManualClock(), gpus=3)
    bare = make_info(0, model="", memory_total_bytes=None)
    devices.infos = (bare, make_info(1, mig_enabled=True), make_info(2))
    lost = unread("GPU-0", 1000.0, DeviceState.LOST, FieldFault.LOST)
    readings = [lost, make_reading(1), make_reading(2, xid=79, ecc_uncorrected=2, remapped_rows=1)]
    devices.make = readings.__getitem__
    lines = render_once(await read_once(devices)).splitlines()
    assert lines[1].split() == ["0", "-", "lost", *["-"] * 7]
    assert [line for line in lines if line.startswith("GPU ")][1:] == [
        "GPU 0: tells nothing: lost",
        "GPU 1: divided by MIG",
        "GPU 2: XID 79",
        "GPU 2: uncorrected memory errors: 2",
        "GPU 2: remapped memory rows: 1",
    ]


async def test_once_keeps_its_lines_whatever_a_driver_tells() -> None:
    devices = ScriptedDevices(ManualClock(), gpus=2)
    devices.infos = (make_info(0, model="NVIDIA\nA100\x1b[2J"), make_info(1))
    found = await read_once(devices)
    lines = render_once(found | {"driver": "580\n95"}).splitlines()
    assert lines[1].split()[:3] == ["0", "NVIDIA?A100?[2J", "ok"]
    assert lines[2].split()[0] == "1"
    assert lines[-1] == "driver 580?95"


async def test_once_lets_go_of_a_driver_that_is_not_there() -> None:
    devices = ScriptedDevices(ManualClock())
    devices.open_error = DriverUnavailable("missing")
    with pytest.raises(DriverUnavailable):
        await read_once(devices)
    assert devices.closed == 1


def test_no_gpus_are_said_in_words() -> None:
    found = {"driver": "580.95.05", "gpus": [], "topology": {}}
    assert render_once(found) == "no GPUs found (driver 580.95.05)\n"


def test_the_agent_imports_nothing_heavy() -> None:
    script = (
        "import sys, scheduler.telemetry.agent, scheduler.telemetry.once\n"
        "heavy = {'numpy', 'aiohttp', 'pydantic', 'prometheus_client', 'kubernetes', 'yaml', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
