"""NvmlDevices when drivers misbehave: hung calls, lost GPUs, a driver that goes away, events. On the stub."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

from scheduler.core.clock import ManualClock
from scheduler.core.errors import DeviceTimeout, DriverMismatch, DriverUnavailable, NoPermission
from scheduler.core.nouns import DeviceState
from scheduler.device.nvml import NvmlDevices
from scheduler.device.nvml_gpu import FIND_EVERY_S
from scheduler.device.protocol import MEASURED_FIELDS
from tests.device.conftest import DEADLINE_S
from tests.fakes.nvml_stub.stub import DOUBLE_BIT_ECC_EVENT, NvmlStub

NOT_SUPPORTED, NO_PERMISSION, NOT_LOADED, LOST, MISMATCH, UNKNOWN = 3, 4, 9, 15, 18, 999
# Far longer than any test: a hang ends when the test heals it, never by itself.
FOR_EVER_MS = 3_600_000


async def until(condition: Callable[[], bool]) -> None:
    """Yield to threads until something holds; the suite's own timeout ends a wait for what never comes."""
    while not condition():
        await asyncio.sleep(0.002)


# Hangs.


async def test_a_hung_gpu_costs_one_thread_and_comes_back_by_itself(
    nvml: NvmlDevices, stub: NvmlStub
) -> None:
    await nvml.open()
    stub.fault(2, "fields", hang_ms=FOR_EVER_MS)
    for _ in range(5):
        readings = await nvml.read()
        assert [reading.state for reading in readings].count(DeviceState.HUNG) == 1
    assert nvml.counters.timeouts == 1
    assert nvml.counters.abandoned_threads == 1
    stub.clear_faults()
    await until(lambda: nvml.counters.abandoned_threads == 0)
    assert all(reading.state is DeviceState.OK for reading in await nvml.read())


async def test_the_late_answer_of_a_hung_call_is_dropped(
    nvml: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    """A late energy value would look like a counter that ran backwards."""
    await nvml.open()
    await nvml.read()
    stub.fault(0, "energy", hang_ms=FOR_EVER_MS)
    stub.fault(0, "field_energy", NOT_SUPPORTED)
    await nvml.read()
    stub.clear_faults()
    await until(lambda: nvml.counters.abandoned_threads == 0)
    clock.advance(1.0)
    reading = (await nvml.read())[0]
    assert (reading.state, reading.energy_epoch) == (DeviceState.OK, 0)


@pytest.mark.alone
async def test_a_slow_driver_is_not_a_hung_one(nvml: NvmlDevices, stub: NvmlStub) -> None:
    """Sixteen calls of a third of the deadline each take longer than the deadline; none is hung."""
    await nvml.open()
    for function in ("fields", "utilisation", "memory_v2", "temperature", "clock", "event_reasons"):
        stub.fault(0, function, hang_ms=int(DEADLINE_S * 300))
    readings = await nvml.read()
    assert [reading.state for reading in readings] == [DeviceState.OK] * 8
    assert nvml.counters.timeouts == 0


@pytest.mark.slow
@pytest.mark.alone
async def test_a_driver_that_hangs_on_all_gpus_does_not_make_one_read_wait_for_each(
    nvml: NvmlDevices, stub: NvmlStub
) -> None:
    await nvml.open()
    for gpu in range(8):
        stub.fault(gpu, "all", hang_ms=FOR_EVER_MS)
    hung = []
    for _ in range(4):
        readings = await nvml.read()
        hung.append([reading.state for reading in readings].count(DeviceState.HUNG))
        assert all(
            reading.faults == tuple((name, "timeout") for name in MEASURED_FIELDS) for reading in readings
        )
    assert hung == [2, 4, 6, 8]
    assert nvml.counters.abandoned_threads == 8
    await nvml.read()
    assert nvml.counters.abandoned_threads == 8


async def test_a_limit_that_hangs_marks_the_gpu_and_frees_the_writer(
    nvml: NvmlDevices, stub: NvmlStub
) -> None:
    infos = await nvml.open()
    stub.fault(1, "set_limit", hang_ms=FOR_EVER_MS)
    with pytest.raises(DeviceTimeout):
        await nvml.set_limit(infos[1].uuid, 200.0)
    assert await nvml.set_limit(infos[0].uuid, 200.0) == 200.0
    assert (await nvml.read())[1].state is DeviceState.HUNG
    stub.clear_faults()
    await until(lambda: nvml.counters.abandoned_threads == 0)
    assert (await nvml.read())[1].state is DeviceState.OK


async def test_a_gpu_that_hangs_while_it_is_described_leaves_the_others(
    nvml: NvmlDevices, stub: NvmlStub
) -> None:
    stub.fault(4, "name", hang_ms=FOR_EVER_MS)
    infos = await nvml.open()
    assert [bool(info.model) for info in infos] == [gpu != 4 for gpu in range(8)]
    assert (await nvml.read())[4].state is DeviceState.HUNG


async def test_a_driver_that_hangs_at_start_is_unavailable_and_costs_one_thread(
    nvml: NvmlDevices, stub: NvmlStub
) -> None:
    stub.fault(None, "init", hang_ms=FOR_EVER_MS)
    for _ in range(3):
        with pytest.raises(DriverUnavailable):
            await nvml.open()
    assert nvml.counters.abandoned_threads == 1
    stub.clear_faults()
    await until(lambda: nvml.counters.abandoned_threads == 0)
    assert len(await nvml.open()) == 8


async def test_close_does_not_wait_for_a_hung_call(nvml: NvmlDevices, stub: NvmlStub) -> None:
    await nvml.open()
    stub.fault(0, "all", hang_ms=FOR_EVER_MS)
    await nvml.read()
    await nvml.close()
    # The call is still open: had close() waited for it, we would not be here.
    assert nvml.counters.abandoned_threads == 1


def test_a_process_with_a_hung_call_still_ends(stub: NvmlStub) -> None:
    """An executor's thread would be joined at exit, so for ever."""
    program = """
import asyncio
from scheduler.core.clock import SystemClock
from scheduler.device.nvml import NvmlDevices
from scheduler.device.nvml_gpu import FIND_EVERY_S
async def main():
    devices = NvmlDevices(SystemClock(), deadline_s=0.3)
    await devices.open()
    print([str(reading.state) for reading in await devices.read()])
    await devices.close()
asyncio.run(main())
"""
    stub.fault(3, "utilisation", hang_ms=FOR_EVER_MS)
    environment = {**os.environ, **stub.env(), "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == str(["hung" if gpu == 3 else "ok" for gpu in range(8)])
    assert done.stderr == ""


# Lost GPUs and lost drivers.


@pytest.mark.parametrize("code", [15, 16, 28])
async def test_each_code_of_a_gone_gpu_means_lost(nvml: NvmlDevices, stub: NvmlStub, code: int) -> None:
    await nvml.open()
    stub.fault(0, "temperature", code)
    assert (await nvml.read())[0].state is DeviceState.LOST


async def test_unknown_errors_all_over_mean_lost_but_one_does_not(nvml: NvmlDevices, stub: NvmlStub) -> None:
    await nvml.open()
    stub.fault(0, "all", UNKNOWN)
    stub.fault(1, "temperature", UNKNOWN)
    readings = await nvml.read()
    assert readings[0].state is DeviceState.LOST
    assert readings[1].state is DeviceState.OK
    assert dict(readings[1].faults) == {"temp_c": "unknown"}


async def test_a_gpu_that_is_lost_at_start_keeps_its_place(nvml: NvmlDevices, stub: NvmlStub) -> None:
    stub.fault(7, "handle_by_index", LOST)
    infos = await nvml.open()
    assert len(infos) == 8
    assert infos[7].uuid == "GPU-index-7"
    assert [reading.state for reading in await nvml.read()] == [DeviceState.OK] * 7 + [DeviceState.LOST]


async def test_a_gpu_that_hangs_while_it_is_looked_for_leaves_the_others_and_gets_its_name_later(
    nvml: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    stub.fault(3, "handle_by_index", hang_ms=FOR_EVER_MS)
    infos = await nvml.open()
    assert [bool(info.model) for info in infos] == [gpu != 3 for gpu in range(8)]
    assert infos[3].uuid == "GPU-index-3"
    readings = await nvml.read()
    assert [reading.state for reading in readings].count(DeviceState.OK) == 7
    assert readings[3].state is DeviceState.HUNG
    stub.clear_faults()
    await until(lambda: nvml.counters.abandoned_threads == 0)
    clock.advance(FIND_EVERY_S)
    reading = (await nvml.read())[3]
    info = nvml.hardware.devices[3]
    assert (reading.state, reading.power_w) == (DeviceState.OK, 252.5)
    assert (info.uuid, info.model) == (reading.uuid, infos[0].model)
    assert reading.uuid.endswith("a003")
    # Its events come too.
    await until(lambda: stub.listeners == 8)
    stub.xid(3, 79)
    await until(lambda: nvml.counters.xids == 1)
    assert (await nvml.read())[3].xid == 79


async def test_a_gpu_that_was_lost_at_start_is_looked_for_again_in_time(
    nvml: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    stub.fault(7, "handle_by_index", LOST)
    await nvml.open()
    await nvml.read()
    stub.clear_faults()
    assert (await nvml.read())[7].state is DeviceState.LOST
    clock.advance(FIND_EVERY_S)
    assert (await nvml.read())[7].state is DeviceState.OK


@pytest.mark.parametrize("code", [NOT_LOADED, 12, 1, 13, UNKNOWN])
async def test_no_driver_is_unavailable_and_may_come_later(
    nvml: NvmlDevices, stub: NvmlStub, code: int
) -> None:
    stub.fault(None, "init", code)
    with pytest.raises(DriverUnavailable):
        await nvml.open()
    stub.clear_faults()
    assert len(await nvml.open()) == 8


async def test_a_driver_that_goes_away_while_it_is_opened_is_unavailable(
    nvml: NvmlDevices, stub: NvmlStub
) -> None:
    stub.fault(5, "name", NOT_LOADED)
    with pytest.raises(DriverUnavailable):
        await nvml.open()
    assert await nvml.read() == ()
    stub.clear_faults()
    assert len(await nvml.open()) == 8


async def test_a_version_mismatch_says_so_at_start_and_later(nvml: NvmlDevices, stub: NvmlStub) -> None:
    stub.fault(None, "init", MISMATCH)
    with pytest.raises(DriverMismatch):
        await nvml.open()
    stub.clear_faults()
    await nvml.open()
    stub.fault(0, "utilisation", MISMATCH)
    with pytest.raises(DriverMismatch):
        await nvml.read()


async def test_no_exception_of_the_binding_leaks_even_as_a_cause(nvml: NvmlDevices, stub: NvmlStub) -> None:
    infos = await nvml.open()
    stub.fault(0, "set_limit", NO_PERMISSION)
    with pytest.raises(NoPermission) as caught:
        await nvml.set_limit(infos[0].uuid, 200.0)
    error: BaseException | None = caught.value
    while error is not None:
        assert not isinstance(error, pynvml.NVMLError)
        hash(error)
        error = error.__cause__ or error.__context__


async def test_a_reloaded_driver_is_opened_anew_and_gpus_are_found_by_uuid(
    nvml: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    infos = await nvml.open()
    await nvml.read()
    stub.fault(0, "utilisation", NOT_LOADED)
    away = await nvml.read()
    assert {reading.state for reading in away} == {DeviceState.UNKNOWN}
    # Indices 0 and 1 swap, the last GPU is not found again, the counters start anew and limits are the default.
    stub.clear_faults()
    stub.set(0, "uuid", 0xA001)
    stub.set(1, "uuid", 0xA000)
    stub.set(1, "power_instant_mw", 111_000)
    stub.set_count(7)
    for gpu in range(7):
        stub.set(gpu, "energy_mj", 0)
        stub.set(gpu, "limit_requested_mw", 350_000)
    clock.advance(1.0)
    readings = await nvml.read()
    assert [reading.uuid for reading in readings] == [info.uuid for info in infos]
    assert readings[0].power_w == 111.0
    assert readings[7].state is DeviceState.LOST
    assert [reading.energy_epoch for reading in readings[:7]] == [1] * 7
    assert [reading.limit_requested_w for reading in readings[:7]] == [350.0] * 7
    assert nvml.counters.reopens == 1


async def test_a_driver_that_stays_away_is_asked_for_with_a_back_off(
    nvml: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    await nvml.open()
    stub.fault(0, "utilisation", NOT_LOADED)
    stub.fault(None, "init", NOT_LOADED)
    for _ in range(10):
        assert {reading.state for reading in await nvml.read()} == {DeviceState.UNKNOWN}
    stub.clear_faults()
    # Asked at once, then after one second: within that second it is not found.
    assert {reading.state for reading in await nvml.read()} == {DeviceState.UNKNOWN}
    clock.advance(1.0)
    assert {reading.state for reading in await nvml.read()} == {DeviceState.OK}


# Events.


async def test_an_applications_xid_is_counted_but_no_fault_of_the_gpu(
    nvml: NvmlDevices, stub: NvmlStub
) -> None:
    await nvml.open()
    await until(lambda: stub.listeners == 8)
    stub.xid(0, 31)
    stub.xid(1, 48)
    await until(lambda: nvml.counters.xids == 1)
    assert nvml.counters.ignored_xids == 1
    assert [reading.xid for reading in (await nvml.read())[:2]] == [None, 48]


async def test_a_double_bit_error_event_counts_as_its_xid(nvml: NvmlDevices, stub: NvmlStub) -> None:
    await nvml.open()
    await until(lambda: stub.listeners == 8)
    stub.xid(0, 12345, DOUBLE_BIT_ECC_EVENT)
    await until(lambda: nvml.counters.xids == 1)
    assert (await nvml.read())[0].xid == 48


async def test_a_gpu_without_events_leaves_the_others_theirs(nvml: NvmlDevices, stub: NvmlStub) -> None:
    stub.set(0, "event_types", 1)
    stub.fault(1, "register_events", NOT_SUPPORTED)
    await nvml.open()
    await until(lambda: stub.listeners == 6)
    stub.xid(2, 79)
    await until(lambda: nvml.counters.xids == 1)
    assert (await nvml.read())[2].xid == 79


async def test_an_xid_is_forgotten_when_the_driver_is_opened_anew(nvml: NvmlDevices, stub: NvmlStub) -> None:
    await nvml.open()
    await until(lambda: stub.listeners == 8)
    stub.xid(0, 79)
    await until(lambda: nvml.counters.xids == 1)
    await nvml.close()
    await nvml.open()
    assert (await nvml.read())[0].xid is None
