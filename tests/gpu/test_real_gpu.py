"""The device contract on this machine's own GPUs, and nvidia-smi as the witness: `make test-gpu`.

Nothing is changed: limits are only ever set to what they are, or to what must be refused. What a machine cannot show
(a virtual GPU has no power sensor, MIG hides utilisation) is asked for and skipped aloud, never passed over.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scheduler.core.clock import SystemClock
from scheduler.core.errors import DeviceError
from scheduler.core.nouns import DeviceState
from scheduler.device.nvml import NvmlDevices
from scheduler.device.protocol import MEASURED_FIELDS
from tests.contracts.device_contract import DeviceContract
from tests.fakes.nvml_stub.stub import NvmlStub

# Alone also for the process: one that never loads the stub.
pytestmark = [pytest.mark.gpu, pytest.mark.alone]

# What nvidia-smi is asked: each of these changes at human pace at most, so that two looks can agree.
FACTS = (
    *("uuid", "name", "driver_version", "pci.bus_id", "mig.mode.current", "memory.total"),
    *("power.limit", "power.min_limit", "power.max_limit", "power.default_limit"),
)
# One answer of nvidia-smi for "not on this GPU" among several ("[N/A]", "[Not Supported]", "[Unknown Error]").
ABSENT = "["


@pytest.fixture
async def devices() -> AsyncIterator[NvmlDevices]:
    if NvmlStub.was_loaded:
        # The loader finds a library by its soname among those already there: these tests would pass on the stub.
        pytest.skip("SKIPPED ALOUD: the stub was loaded into this process; run `make test-gpu` by itself")
    devices = NvmlDevices(SystemClock())
    try:
        await devices.open()
    except DeviceError as error:
        pytest.skip(f"SKIPPED ALOUD: no GPU to be read here: {error}")
    try:
        yield devices
    finally:
        await devices.close()


def witness(*queries: str) -> dict[str, dict[str, str]]:
    """Ask nvidia-smi; by UUID, without what it says is not on this GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        pytest.skip("SKIPPED ALOUD: no nvidia-smi to compare with")
    done = subprocess.run(
        [program, f"--query-gpu={','.join(queries)}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        pytest.skip(f"SKIPPED ALOUD: nvidia-smi: {done.stdout}{done.stderr}")
    rows = [
        dict(zip(queries, row, strict=True))
        for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    ]
    return {
        row["uuid"]: {name: value for name, value in row.items() if not value.startswith(ABSENT)}
        for row in rows
    }


class TestRealGpuContract(DeviceContract):
    pass


async def test_what_a_gpu_is_agrees_with_nvidia_smi(devices: NvmlDevices) -> None:
    seen = await asyncio.to_thread(witness, *FACTS)
    infos = {info.uuid: info for info in devices.hardware.devices}
    assert set(infos) == set(seen)
    readings = {reading.uuid: reading for reading in await devices.read()}
    for uuid, facts in seen.items():
        info = infos[uuid]
        assert facts["driver_version"] == devices.hardware.driver
        assert facts["name"] == info.model
        assert facts["pci.bus_id"].upper() == info.pci_bus_id
        assert (
            facts.get("mig.mode.current", "None")
            == {True: "Enabled", False: "Disabled", None: "None"}[info.mig_enabled]
        )
        ours = {
            "power.limit": readings[uuid].limit_requested_w,
            "power.min_limit": info.limit_min_w,
            "power.max_limit": info.limit_max_w,
            "power.default_limit": info.limit_default_w,
        }
        for name, value_w in ours.items():
            # It prints two decimals.
            want_w = pytest.approx(float(facts[name]), abs=0.01) if name in facts else None
            assert value_w == want_w, name
        if "memory.total" in facts:
            assert info.memory_total_bytes is not None
            # It prints whole MiB, without what the driver reserves in newer versions.
            assert info.memory_total_bytes / 2**20 == pytest.approx(float(facts["memory.total"]), rel=0.02)


async def test_what_a_gpu_does_agrees_with_nvidia_smi(devices: NvmlDevices) -> None:
    """Between two looks before and after: clocks and watts of an idle GPU move too, so the bounds are wide."""
    queries = ("uuid", "temperature.gpu", "power.draw", "memory.used", "clocks.sm", "clocks.mem")
    before = await devices.read()
    seen = await asyncio.to_thread(witness, *queries)
    after = await devices.read()
    for first, second in zip(before, after, strict=True):
        facts = seen[first.uuid]
        for name, field, unit, slack in (
            ("temperature.gpu", "temp_c", 1.0, 5.0),
            ("power.draw", "power_w", 1.0, 60.0),
            ("memory.used", "mem_used_bytes", 2**20, 2.0**31),
            ("clocks.sm", "sm_clock_mhz", 1.0, 2000.0),
            ("clocks.mem", "mem_clock_mhz", 1.0, 4000.0),
        ):
            ours = [getattr(reading, field) for reading in (first, second)]
            if name not in facts:
                assert None in ours, f"{field}: nvidia-smi has no {name}"
                continue
            assert None not in ours, f"{field}: nvidia-smi has a {name}: {facts[name]}"
            assert min(ours) - slack <= float(facts[name]) * unit <= max(ours) + slack, field


async def test_a_sound_gpu_tells_its_power_energy_and_temperature(devices: NvmlDevices) -> None:
    for info, reading in zip(devices.hardware.devices, await devices.read(), strict=True):
        if dict(reading.faults).get("power_w") == "not_supported":
            pytest.skip(f"SKIPPED ALOUD: {info.model} has no power sensor, as virtual GPUs have none")
        assert reading.power_w
        assert reading.energy_j
        assert reading.temp_c


async def test_what_is_not_told_is_what_such_a_gpu_cannot_tell(devices: NvmlDevices) -> None:
    """Never "unknown": a reason that we have no name for would be one to find out about."""
    await devices.read()
    for info, reading in zip(devices.hardware.devices, await devices.read(), strict=True):
        want_reasons = {"not_supported", "no_data", "no_permission"}
        assert {why for _, why in reading.faults} <= want_reasons, reading.faults
        if info.mig_enabled:
            assert reading.util_frac is None
        known = [name for name in MEASURED_FIELDS if getattr(reading, name) is not None]
        print(f"{info.model}: {len(known)} of {len(MEASURED_FIELDS)} fields; {dict(reading.faults)}")


async def test_the_counter_of_energy_counts_what_is_drawn(devices: NvmlDevices) -> None:
    before = await devices.read()
    # Counters move in steps; two seconds are some dozens of them.
    await asyncio.sleep(2.0)
    after = await devices.read()
    for first, second in zip(before, after, strict=True):
        if first.energy_j is None or second.energy_j is None or first.power_w is None:
            pytest.skip(f"SKIPPED ALOUD: no energy or power: {first.faults}")
        assert second.energy_epoch == first.energy_epoch
        mean_w = (second.energy_j - first.energy_j) / (second.mono_s - first.mono_s)
        # Within a factor, since power moves meanwhile; a unit that is mistaken is a thousand off.
        assert first.power_w / 3 <= mean_w <= first.power_w * 3


async def test_reading_costs_the_driver_what_is_printed_here(devices: NvmlDevices) -> None:
    """A figure to look at (`-s`), not a limit: it says how much a real driver adds to what the stub takes."""
    took_s = []
    for _ in range(50):
        readings = await devices.read()
        assert all(reading.state is DeviceState.OK for reading in readings)
        took_s.append(devices.counters.last_read_s)
    took_s.sort()
    print(f"{len(readings)} GPUs: median {took_s[25] * 1e3:.2f} ms a read, longest {took_s[-1] * 1e3:.2f} ms")
    assert devices.counters.timeouts == 0
    assert devices.counters.abandoned_threads == 0


async def test_the_command_prints_the_same_gpus(devices: NvmlDevices) -> None:
    def run() -> str:
        command = [sys.executable, "-m", "scheduler.cli", "agent", "--once", "--json"]
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=300
        )
        return done.stdout

    found = json.loads(await asyncio.to_thread(run))
    assert [gpu["uuid"] for gpu in found["gpus"]] == [info.uuid for info in devices.hardware.devices]
    assert found["driver"] == devices.hardware.driver
