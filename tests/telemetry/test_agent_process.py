"""The real `wattbalance agent`, a process of its own: the stub of libnvidia-ml below it, a real mosquitto above it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec import UNSET

from scheduler.core.clock import SystemClock
from scheduler.simulate.ports import free_port
from scheduler.telemetry.bus import BrokerSettings, TelemetrySubscriber
from scheduler.telemetry.sample import Sample
from tests.brokers import Broker, mosquitto_path, run_mosquitto
from tests.fakes.nvml_stub.stub import NvmlStub, compiler
from tests.telemetry.bus_tools import PATIENCE_S, Collector, eventually, running

# Little CPU, but some wait for what comes every ten seconds.
pytestmark = pytest.mark.slow

NOT_SUPPORTED, NOT_LOADED, LOST, MISMATCH = 3, 9, 15, 18
HW_THERMAL, SW_POWER_CAP = 0x40, 0x4
HANG_S = 30.0
# Ends when the test ends it.
FOR_EVER_MS = 3_600_000
CLUSTER = "c1"
MODEL = "NVIDIA A100-SXM4-80GB"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto_path() is None:
        pytest.skip("SKIPPED ALOUD: no mosquitto: scripts/install-debian installs it")
    (tmp_path / "broker").mkdir()
    with run_mosquitto(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def stub(tmp_path: Path) -> NvmlStub:
    if compiler() is None:
        pytest.skip("SKIPPED ALOUD: no C compiler, so the stub of libnvidia-ml cannot be built")
    return NvmlStub(tmp_path / "nvml")


@dataclass
class Agent:
    """A running agent, what it sends, and what its pages say."""

    process: subprocess.Popen[bytes]
    port: int
    collector: Collector
    log_file: Path
    _taken: int = 0
    _known: dict[str, object] = field(default_factory=dict)

    def page(self, path: str = "/metrics") -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return str(answer.read().decode())

    async def metric(self, name: str, gpu: int | None = None, **labels: str) -> float | None:
        """The value of the one series with these labels, or None."""
        want = ({} if gpu is None else {"gpu": str(gpu)}) | labels
        for line in (await asyncio.to_thread(self.page)).splitlines():
            if line.startswith(f"{name}{{"):
                text, value = line.rsplit(" ", 1)
                if want.items() <= dict(re.findall(r'(\w+)="([^"]*)"', text)).items():
                    return float(value)
        return None

    def column(self, name: str) -> list[object]:
        """The newest values of a field on the wire, of all GPUs; absent means unchanged."""
        for _, sample in self.collector.taken[self._taken :]:
            present = {key: getattr(sample, key) for key in Sample.__struct_fields__}
            self._known |= {key: value for key, value in present.items() if value is not UNSET}
        self._taken = len(self.collector.taken)
        values = self._known.get(name, [])
        assert isinstance(values, list)
        return values

    def on_wire(self, name: str, gpu: int) -> object:
        """The newest value of a field of one GPU; None too as long as nothing came."""
        values = self.column(name)
        return values[gpu] if values else None

    def reason(self, name: str, gpu: int) -> object:
        """Why a field of one GPU is null, on the wire."""
        faults = self.on_wire("faults", gpu)
        return faults.get(name) if isinstance(faults, dict) else None

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")


@contextlib.asynccontextmanager
async def run_agent(
    broker_url: str, environment: dict[str, str], folder: Path, *options: str
) -> AsyncIterator[Agent]:
    collector = Collector()
    subscriber = TelemetrySubscriber(
        BrokerSettings(url=broker_url), cluster=CLUSTER, handler=collector, clock=SystemClock()
    )
    port, log_file = free_port(), folder / "agent.log"
    command = ["agent", "--node", "n1", "--cluster", CLUSTER, "--broker", broker_url]
    async with running(subscriber.run()):
        await asyncio.wait_for(subscriber.wait_connected(), 60)
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "scheduler.cli", *command, "--listen", f"127.0.0.1:{port}", *options],
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
            )
        try:
            yield Agent(process, port, collector, log_file)
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)


@contextlib.contextmanager
def healed(stub: NvmlStub) -> Iterator[None]:
    """Let nothing hang in the stub any longer than the test."""
    try:
        yield
    finally:
        stub.clear_faults()


async def is_gone(agent: Agent, gpu: int, want_state: str, want_reason: str) -> None:
    """Wait until state and reason of a GPU that tells nothing are on the wire, and look for them in the metrics."""
    await eventually(lambda: agent.on_wire("state", gpu) == want_state)
    await eventually(lambda: agent.reason("power_w", gpu) == want_reason)
    assert agent.on_wire("power_w", gpu) is None
    assert await agent.metric("wattbalance_gpu_state", gpu, state=want_state) == 1.0
    assert await agent.metric("wattbalance_gpu_read_faults_total", gpu, reason=want_reason)
    assert await agent.metric("wattbalance_gpu_power_watts", gpu) is None


async def test_each_fault_is_on_the_wire_and_in_a_metric_and_the_other_gpus_go_on(
    broker: Broker, stub: NvmlStub, tmp_path: Path
) -> None:
    lost, unsupported, hung, xid, ecc, hot = range(1, 7)
    sound = (0, 7)
    with healed(stub):
        async with run_agent(broker.url, stub.env(), tmp_path) as agent:
            await eventually(lambda: agent.column("power_w") == [252.5] * 8)
            await eventually(lambda: stub.listeners == 8)
            stub.fault(lost, "all", LOST)
            stub.fault(unsupported, "utilisation", NOT_SUPPORTED)
            stub.fault(hung, "all", hang_ms=FOR_EVER_MS)
            over_s = asyncio.get_running_loop().time() + HANG_S
            stub.xid(xid, 79)
            stub.set(ecc, "ecc_uncorrected", 5)
            stub.set(ecc, "remapped_uncorrectable", 4)
            stub.set(hot, "throttle", HW_THERMAL)

            await is_gone(agent, lost, "lost", "lost")
            await is_gone(agent, hung, "hung", "timeout")
            assert await agent.metric("wattbalance_agent_driver_stuck_threads") == 1.0

            # A call that is not supported.
            await eventually(lambda: agent.reason("util_frac", unsupported) == "not_supported")
            assert agent.on_wire("util_frac", unsupported) is None
            assert agent.on_wire("state", unsupported) == "ok"
            assert agent.on_wire("power_w", unsupported) == 252.5
            found = await agent.metric(
                "wattbalance_gpu_read_faults_total", unsupported, reason="not_supported"
            )
            assert found
            assert await agent.metric("wattbalance_gpu_utilization_ratio", unsupported) is None

            # XID, ECC, remapped rows, throttling.
            await eventually(lambda: agent.on_wire("xid", xid) == 79)
            assert await agent.metric("wattbalance_gpu_last_xid", xid) == 79.0
            assert await agent.metric("wattbalance_agent_xids_total") == 1.0
            await eventually(lambda: agent.on_wire("ecc_uncorrected", ecc) == 5)
            assert agent.on_wire("remapped_rows", ecc) == 5
            assert await agent.metric("wattbalance_gpu_ecc_uncorrected_total", ecc) == 5.0
            assert await agent.metric("wattbalance_gpu_remapped_rows", ecc) == 5.0
            await eventually(lambda: agent.on_wire("throttle", hot) == ["hw_thermal"])
            assert await agent.metric("wattbalance_gpu_throttle", hot, reason="hw_thermal") == 1.0

            # All the while the sound ones are read.
            for gpu in sound:
                stub.set(gpu, "power_instant_mw", 99_000 + gpu)
            await eventually(lambda: [agent.on_wire("power_w", gpu) for gpu in sound] == [99.0, 99.007])
            assert [agent.on_wire("state", gpu) for gpu in sound] == ["ok", "ok"]
            assert agent.process.poll() is None

            # Both come back by themselves.
            await asyncio.sleep(over_s - asyncio.get_running_loop().time())
            stub.fault(hung, "all")
            stub.fault(lost, "all")
            await eventually(lambda: agent.on_wire("power_w", hung) == 252.5)
            assert agent.on_wire("state", hung) == "ok"
            await eventually(lambda: agent.on_wire("power_w", lost) == 252.5)
            assert await agent.metric("wattbalance_agent_driver_stuck_threads") == 0.0
            seqs = agent.collector.seqs("n1")
            assert seqs == sorted(set(seqs))


async def test_a_gpu_that_hangs_from_the_start_leaves_the_others(
    broker: Broker, stub: NvmlStub, tmp_path: Path
) -> None:
    stub.fault(2, "name", hang_ms=FOR_EVER_MS)
    with healed(stub):
        async with run_agent(broker.url, stub.env(), tmp_path) as agent:
            await eventually(lambda: agent.column("state") == ["ok", "ok", "hung"] + ["ok"] * 5, 120)
            [(_, _, inventory)] = agent.collector.inventories
            assert [gpu.model for gpu in inventory.gpus] == [MODEL, MODEL, ""] + [MODEL] * 5
            # Once it answers, its name goes out too.
            stub.clear_faults()
            await eventually(lambda: agent.collector.inventories[-1][2].gpus[2].model == MODEL)
            await eventually(lambda: agent.column("state") == ["ok"] * 8)


async def test_a_mode_that_is_switched_reaches_the_daemon_and_samples_go_on(
    broker: Broker, stub: NvmlStub, tmp_path: Path
) -> None:
    async with run_agent(broker.url, stub.env(), tmp_path) as agent:
        await eventually(lambda: agent.column("state") == ["ok"] * 8)
        _, _, inventory = agent.collector.inventories[0]
        assert (inventory.driver, inventory.gpus[1].mig_enabled) == ("580.95.05", False)
        assert inventory.topology["0-1"] == "nvlink=12 switch"
        assert len(inventory.topology) == 28
        stub.set(1, "mig", 1)
        stub.set(2, "limit_max_mw", 350_000)
        await eventually(lambda: agent.collector.inventories[-1][2].gpus[1].mig_enabled)
        await eventually(lambda: agent.collector.inventories[-1][2].gpus[2].limit_max_w == 350.0)
        # The driver does not tell how busy a divided GPU is.
        await eventually(lambda: agent.reason("util_frac", 1) == "not_supported")
        assert agent.on_wire("state", 1) == "ok"
        assert await agent.metric("wattbalance_gpu_mig_enabled", 1) == 1.0
        # On a machine that stalls a sample may still wait when the next one comes; nothing else is dropped.
        assert set(agent.collector.drops) <= {"overwritten"}


async def test_a_driver_that_is_not_loaded_is_said_everywhere_and_waited_for(
    broker: Broker, stub: NvmlStub, tmp_path: Path
) -> None:
    stub.fault(None, "init", NOT_LOADED)
    async with run_agent(broker.url, stub.env(), tmp_path) as agent:
        await eventually(lambda: agent.collector.taken)
        assert agent.column("state") == []
        assert agent.collector.inventories[0][2].gpus == []
        assert await agent.metric("wattbalance_agent_driver_up") == 0.0
        assert "nvidia-smi" in await asyncio.to_thread(agent.page, "/healthz")
        stub.clear_faults()
        await eventually(lambda: agent.column("state") == ["ok"] * 8)
        assert await agent.metric("wattbalance_agent_driver_up") == 1.0


async def test_a_driver_that_was_replaced_ends_the_process_with_the_reason(
    broker: Broker, stub: NvmlStub, tmp_path: Path
) -> None:
    async with run_agent(broker.url, stub.env(), tmp_path) as agent:
        await eventually(lambda: agent.column("state") == ["ok"] * 8)
        stub.fault(0, "utilisation", MISMATCH)
        want_exit = 1
        assert await asyncio.to_thread(agent.process.wait, 60) == want_exit
        assert "differ in version: restart this process" in agent.log
        await eventually(lambda: ("n1", False) in agent.collector.statuses)


async def test_a_hung_driver_does_not_hold_up_the_end(broker: Broker, stub: NvmlStub, tmp_path: Path) -> None:
    with healed(stub):
        async with run_agent(broker.url, stub.env(), tmp_path) as agent:
            await eventually(lambda: agent.column("state") == ["ok"] * 8)
            stub.fault(4, "all", hang_ms=FOR_EVER_MS)
            await eventually(lambda: agent.on_wire("state", 4) == "hung")
            agent.process.send_signal(signal.SIGTERM)
            # The call is still open: had the process waited for it, it would not end.
            assert await asyncio.to_thread(agent.process.wait, 60) == 0
            await eventually(lambda: ("n1", False) in agent.collector.statuses)


async def test_a_broker_that_is_stopped_and_started_is_found_again_and_the_loss_counted(
    broker: Broker, stub: NvmlStub, tmp_path: Path
) -> None:
    async with run_agent(broker.url, stub.env(), tmp_path) as agent:
        await eventually(lambda: agent.collector.seqs("n1"))
        before = agent.collector.seqs("n1")[-1]
        broker.stop()
        dropped = "wattbalance_agent_samples_dropped_total"
        while not await agent.metric(dropped):
            await asyncio.sleep(0.1)
        assert await agent.metric("wattbalance_agent_broker_connected") == 0.0
        assert "broker: ok" not in await asyncio.to_thread(agent.page, "/healthz")
        broker.start()
        # The broker kept nothing, so what comes was sent anew: that the node is there, what it has, what it does.
        agent.collector.inventories.clear()
        agent.collector.statuses.clear()
        await eventually(lambda: agent.collector.inventories and agent.collector.statuses)
        await eventually(lambda: agent.collector.seqs("n1")[-1] > before + 1)
        assert agent.collector.statuses[-1] == ("n1", True)
        assert await agent.metric("wattbalance_agent_broker_connects_total") == 2.0
        # Last will: a process that is killed says nothing, so the broker does.
        agent.process.kill()
        await eventually(lambda: ("n1", False) in agent.collector.statuses)


def test_without_a_driver_a_person_is_told_what_to_do(tmp_path: Path) -> None:
    """The loader finds a file by that name that is no library: as good as none, wherever this test runs."""
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    done = subprocess.run(
        [sys.executable, "-m", "scheduler.cli", "agent", "--once"],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert "install the NVIDIA driver" in line
    assert "NVIDIA_DRIVER_CAPABILITIES=utility" in line


async def test_an_address_that_is_taken_is_one_clear_line(
    broker: Broker, stub: NvmlStub, tmp_path: Path
) -> None:
    """A connection that was just being made must not be found by the collector after the loop has ended."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with run_agent(broker.url, stub.env(), tmp_path, "--listen", address) as agent:
            assert await asyncio.to_thread(agent.process.wait, PATIENCE_S) == 1
    lines = [line for line in agent.log.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, agent.log
    assert f"--listen ({address}): cannot be bound" in lines[0]
