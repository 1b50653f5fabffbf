"""NvmlDevices on the stub of libnvidia-ml: the contract, and each trap of the binding and of drivers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pynvml
import pytest

from scheduler.core import errors
from scheduler.core.clock import ManualClock
from scheduler.core.errors import (
    DeviceTimeout,
    DeviceUnknown,
    DriverMismatch,
    DriverUnavailable,
    NoPermission,
)
from scheduler.core.nouns import DeviceState
from scheduler.device.nvml import NvmlDevices
from scheduler.device.nvml_codes import ERRORS, THROTTLES, error_of, fault_of, throttle_names
from scheduler.device.protocol import MEASURED_FIELDS, DevicePort, FieldFault, Throttle
from tests.contracts.device_contract import Bench, DeviceContract, DeviceFaultContract
from tests.fakes.nvml_stub.stub import DOUBLE_BIT_ECC_EVENT, NvmlStub

NOT_SUPPORTED, NO_PERMISSION, NOT_LOADED, NOT_FOUND, LOST, MISMATCH, NO_DATA, UNKNOWN = (
    3,
    4,
    9,
    13,
    15,
    18,
    21,
    999,
)
# Far longer than any test: a hang ends when the test heals it, never by itself.
FOR_EVER_MS = 3_600_000
# Stub calls take microseconds; long enough that a busy machine is not taken for a hung driver.
DEADLINE_S = 0.4


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def devices(stub: NvmlStub, clock: ManualClock) -> AsyncIterator[NvmlDevices]:
    devices = NvmlDevices(clock, deadline_s=DEADLINE_S, open_deadline_s=DEADLINE_S, event_wait_ms=10)
    try:
        yield devices
    finally:
        await devices.close()
        stub.clear_faults()


FUNCTIONS_OF = {
    "util_frac": ("utilisation",),
    "temp_c": ("temperature", "temperature_v"),
    "mem_used_bytes": ("memory", "memory_v2"),
    "throttle": ("event_reasons", "throttle_reasons"),
    "limit_w": ("limit",),
    "remapped_rows": ("remapped",),
}


class StubHands:
    def __init__(self, stub: NvmlStub, clock: ManualClock) -> None:
        self._stub = stub
        self.pass_time = clock.advance

    def raise_xid(self, gpu: int, xid: int) -> None:
        # The event thread registers on its own time, and nobody is told of what came before that.
        while self._stub.listeners < self._stub.gpus:
            time.sleep(0.002)
        self._stub.xid(gpu, xid)

    def lose(self, gpu: int) -> None:
        self._stub.fault(gpu, "all", LOST)

    def hang(self, gpu: int) -> None:
        self._stub.fault(gpu, "all", hang_ms=FOR_EVER_MS)

    def recover(self, gpu: int) -> None:
        self._stub.fault(gpu, "all")

    def unsupport(self, gpu: int, name: str) -> None:
        for function in FUNCTIONS_OF[name]:
            self._stub.fault(gpu, function, NOT_SUPPORTED)

    def reset_energy(self, gpu: int) -> None:
        self._stub.set(gpu, "energy_mj", 5)


@pytest.fixture
def bench(devices: NvmlDevices, stub: NvmlStub, clock: ManualClock) -> Bench:
    return Bench(devices=devices, hands=StubHands(stub, clock))


class TestNvmlContract(DeviceContract):
    pass


class TestNvmlFaultContract(DeviceFaultContract):
    pass


async def until(condition: Callable[[], bool]) -> None:
    """Yield to threads until something holds; the suite's own timeout ends a wait for what never comes."""
    while not condition():
        await asyncio.sleep(0.002)


def test_it_is_a_device_port(devices: NvmlDevices) -> None:
    port: DevicePort = devices
    assert port is devices


def test_every_code_of_the_binding_has_an_error_of_ours() -> None:
    want_codes = {
        value
        for name, value in vars(pynvml).items()
        if name.startswith("NVML_ERROR_") and isinstance(value, int)
    }
    assert len(want_codes) == 31
    assert set(ERRORS) == want_codes
    for code in want_codes:
        error = error_of(code, "call")
        assert type(error).__module__ == errors.__name__
        assert fault_of(error) in FieldFault
    assert isinstance(error_of(12345, "call"), DeviceUnknown)


@pytest.mark.parametrize(
    ("code", "want_fault"),
    [
        *((code, "not_supported") for code in (3, 13, 25)),
        *((code, "lost") for code in (15, 16, 28)),
        *((code, "no_data") for code in (6, 21, 27)),
        *((code, "unknown") for code in (2, 999)),
        (4, "no_permission"),
        (10, "timeout"),
    ],
)
def test_a_code_becomes_a_reason_of_the_closed_set(code: int, want_fault: str) -> None:
    assert fault_of(error_of(code, "call")) == want_fault


def test_every_throttle_bit_of_the_binding_has_a_name() -> None:
    prefixes = ("nvmlClocksThrottleReason", "nvmlClocksEventReason")
    bits = {
        value
        for name, value in vars(pynvml).items()
        if name.startswith(prefixes) and isinstance(value, int) and value.bit_count() == 1
    }
    assert bits == set(THROTTLES)
    assert throttle_names(0x4 | 0x40 | 1 << 40) == (
        Throttle.SW_POWER_CAP,
        Throttle.HW_THERMAL,
        Throttle.OTHER,
    )


async def test_every_unit_is_converted(devices: NvmlDevices, stub: NvmlStub) -> None:
    infos = await devices.open()
    stub.set(0, "ecc_uncorrected", 7)
    reading = (await devices.read())[0]
    assert infos[0].uuid == "GPU-00000000-0000-4000-8000-00000000a000"
    assert infos[0].model == "NVIDIA A100-SXM4-80GB"
    assert infos[0].pci_bus_id == "00000000:10:00.0"
    assert (infos[0].limit_min_w, infos[0].limit_max_w, infos[0].limit_default_w) == (100.0, 400.0, 400.0)
    assert infos[0].memory_total_bytes == 80 * 1024**3
    assert infos[0].mig_enabled is False
    assert infos[0].can_set_limit is True
    assert devices.driver_version == "580.95.05"
    assert reading.power_w == 252.5
    assert (reading.limit_w, reading.limit_requested_w) == (400.0, 400.0)
    assert reading.energy_j == 1000.0
    assert (reading.util_frac, reading.mem_util_frac) == (0.6, 0.3)
    assert reading.mem_used_bytes == 10 * 1024**3
    assert reading.temp_c == 55.0
    assert (reading.sm_clock_mhz, reading.mem_clock_mhz) == (1410.0, 1593.0)
    assert reading.throttle == ("sw_power_cap",)
    assert (reading.ecc_corrected, reading.ecc_uncorrected, reading.remapped_rows) == (0, 7, 3)
    assert reading.faults == ()


async def test_power_falls_back_from_instant_to_average_to_power_usage(
    devices: NvmlDevices, stub: NvmlStub
) -> None:
    await devices.open()
    seen = [(await devices.read())[0].power_w]
    stub.fault(0, "field_power_instant", NOT_SUPPORTED)
    seen.append((await devices.read())[0].power_w)
    # How drivers older than a field id answer it.
    stub.fault(0, "field_power_average", 2)
    seen.append((await devices.read())[0].power_w)
    stub.fault(0, "power", NOT_SUPPORTED)
    last = (await devices.read())[0]
    assert [*seen, last.power_w] == [252.5, 251.0, 250.0, None]
    assert dict(last.faults) == {"power_w": "not_supported"}


async def test_an_absurd_power_is_no_data(devices: NvmlDevices, stub: NvmlStub) -> None:
    await devices.open()
    stub.set(0, "power_instant_mw", 4_000_000_000)
    reading = (await devices.read())[0]
    assert reading.power_w is None
    assert dict(reading.faults)["power_w"] == "no_data"


async def test_older_drivers_are_asked_by_the_older_names(devices: NvmlDevices, stub: NvmlStub) -> None:
    for function in ("memory_v2", "event_reasons", "fields"):
        stub.fault(0, function, NOT_FOUND)
    await devices.open()
    reading = (await devices.read())[0]
    assert reading.throttle == ("sw_power_cap",)
    # v1 counts what the driver reserves as used.
    assert reading.mem_used_bytes == 10 * 1024**3 + 512 * 1024**2
    assert reading.power_w == 250.0
    assert reading.energy_j == 1000.0
    assert reading.faults == ()


async def test_newer_drivers_are_asked_by_the_newer_name(devices: NvmlDevices, stub: NvmlStub) -> None:
    stub.fault(0, "temperature", 26)
    await devices.open()
    assert (await devices.read())[0].temp_c == 55.0


async def test_what_is_not_supported_is_asked_again_after_an_hour(
    devices: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    await devices.open()
    stub.fault(0, "utilisation", NOT_SUPPORTED)
    await devices.read()
    stub.fault(0, "utilisation")
    clock.advance(3599.0)
    reading = (await devices.read())[0]
    assert dict(reading.faults) == {"util_frac": "not_supported", "mem_util_frac": "not_supported"}
    clock.advance(2.0)
    assert (await devices.read())[0].util_frac == 0.6


async def test_a_passing_failure_is_asked_again_at_once(devices: NvmlDevices, stub: NvmlStub) -> None:
    await devices.open()
    stub.fault(0, "utilisation", NO_DATA)
    assert dict((await devices.read())[0].faults)["util_frac"] == "no_data"
    stub.fault(0, "utilisation")
    assert (await devices.read())[0].util_frac == 0.6


async def test_slow_fields_are_read_every_ten_seconds(
    devices: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    await devices.open()
    await devices.read()
    stub.set(0, "remapped_correctable", 9)
    stub.set(0, "power_instant_mw", 300_000)
    clock.advance(9.0)
    before = stub.calls
    reading = (await devices.read())[0]
    fast_calls = stub.calls - before
    assert (reading.power_w, reading.remapped_rows) == (300.0, 3)
    clock.advance(1.0)
    before = stub.calls
    assert (await devices.read())[0].remapped_rows == 11
    assert stub.calls - before > fast_calls


async def test_an_out_of_band_cap_shows_in_the_enforced_limit_only(
    devices: NvmlDevices, stub: NvmlStub
) -> None:
    stub.set(0, "out_of_band_cap_mw", 300_000)
    await devices.open()
    reading = (await devices.read())[0]
    assert (reading.limit_w, reading.limit_requested_w) == (300.0, 400.0)


async def test_mig_leaves_utilisation_unknown(devices: NvmlDevices, stub: NvmlStub) -> None:
    stub.set(0, "mig", 1)
    infos = await devices.open()
    reading = (await devices.read())[0]
    assert infos[0].mig_enabled is True
    assert reading.state is DeviceState.OK
    assert reading.util_frac is None
    assert dict(reading.faults)["util_frac"] == "not_supported"
    assert reading.power_w == 252.5


# Energy.


async def test_a_missing_counter_is_replaced_by_integrated_power(
    devices: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    for function in ("field_energy", "energy"):
        stub.fault(0, function, NOT_SUPPORTED)
    await devices.open()
    stub.set(0, "power_instant_mw", 100_000)
    first = (await devices.read())[0]
    clock.advance(2.0)
    stub.set(0, "power_instant_mw", 200_000)
    second = (await devices.read())[0]
    assert (first.energy_j, second.energy_j) == (0.0, 300.0)
    assert first.energy_epoch == second.energy_epoch
    assert second.faults == ()


async def test_a_counter_that_fails_once_is_not_replaced_by_a_guess(
    devices: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    await devices.open()
    await devices.read()
    for function in ("field_energy", "energy"):
        stub.fault(0, function, UNKNOWN)
    clock.advance(1.0)
    missing = (await devices.read())[0]
    stub.clear_faults()
    stub.set(0, "energy_mj", 1_500_000)
    clock.advance(1.0)
    after = (await devices.read())[0]
    assert missing.energy_j is None
    assert dict(missing.faults) == {"energy_j": "unknown"}
    assert (after.energy_j, after.energy_epoch) == (1500.0, 0)


# Limits.


async def test_a_refused_limit_is_an_error_and_not_the_v2_setters_success(
    devices: NvmlDevices, stub: NvmlStub
) -> None:
    """The binding's v2 setter drops the return code: it would report success here."""
    infos = await devices.open()
    stub.fault(0, "set_limit", NO_PERMISSION)
    with pytest.raises(NoPermission):
        await devices.set_limit(infos[0].uuid, 200.0)
    assert stub.get(0, "limit_requested_mw") == 400_000
    stub.clear_faults()
    with pytest.raises(DeviceUnknown):
        await devices.set_limit(infos[0].uuid, 50.0)
    assert stub.get(0, "limit_requested_mw") == 400_000
    assert devices.counters.failed_sets == 2


def test_the_v2_setter_still_has_its_trap(stub: NvmlStub) -> None:
    """If this fails, the binding was repaired and the warning in nvml_gpu.py may go."""
    pynvml.nvmlInitWithFlags(0)
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        stub.fault(0, "set_limit", NO_PERMISSION)
        assert pynvml.nvmlDeviceSetPowerManagementLimit_v2(handle, pynvml.NVML_POWER_SCOPE_GPU, 200_000) == 0
        stub.clear_faults()
        pynvml.nvmlDeviceSetPowerManagementLimit_v2(handle, pynvml.NVML_POWER_SCOPE_GPU, 50_000)
        assert stub.get(0, "limit_requested_mw") == 400_000
    finally:
        pynvml.nvmlShutdown()


async def test_set_limit_returns_what_the_device_says_afterwards(
    devices: NvmlDevices, stub: NvmlStub
) -> None:
    infos = await devices.open()
    stub.set(0, "ignore_sets", 1)
    assert await devices.set_limit(infos[0].uuid, 200.0) == 400.0


async def test_a_limit_is_rounded_down_to_milliwatts(devices: NvmlDevices, stub: NvmlStub) -> None:
    infos = await devices.open()
    assert await devices.set_limit(infos[0].uuid, 200.0009) == 200.0
    # 0.1 + 0.2 style noise must not cost a milliwatt.
    assert await devices.set_limit(infos[0].uuid, 299.9999999999) == 300.0


async def test_a_process_without_permission_is_read_only(devices: NvmlDevices, stub: NvmlStub) -> None:
    stub.fault(0, "set_limit", NO_PERMISSION)
    infos = await devices.open()
    assert [info.can_set_limit for info in infos] == [False] + [True] * 7


async def test_the_probe_for_permission_leaves_the_limit_alone(devices: NvmlDevices, stub: NvmlStub) -> None:
    stub.set(0, "limit_requested_mw", 321_000)
    await devices.open()
    assert stub.get(0, "sets") == 1
    assert stub.get(0, "limit_requested_mw") == 321_000


async def test_without_the_probe_nothing_is_written(stub: NvmlStub, clock: ManualClock) -> None:
    devices = NvmlDevices(clock, probe_write=False, event_wait_ms=10)
    infos = await devices.open()
    await devices.read()
    await devices.close()
    assert not any(info.can_set_limit for info in infos)
    assert [stub.get(gpu, "sets") for gpu in range(8)] == [0] * 8


# Hangs.


async def test_a_hung_gpu_costs_one_thread_and_comes_back_by_itself(
    devices: NvmlDevices, stub: NvmlStub
) -> None:
    await devices.open()
    stub.fault(2, "fields", hang_ms=FOR_EVER_MS)
    for _ in range(5):
        readings = await devices.read()
        assert [reading.state for reading in readings].count(DeviceState.HUNG) == 1
    assert devices.counters.timeouts == 1
    assert devices.counters.abandoned_threads == 1
    stub.clear_faults()
    await until(lambda: devices.counters.abandoned_threads == 0)
    assert all(reading.state is DeviceState.OK for reading in await devices.read())


async def test_the_late_answer_of_a_hung_call_is_dropped(
    devices: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    """A late energy value would look like a counter that ran backwards."""
    await devices.open()
    await devices.read()
    stub.fault(0, "energy", hang_ms=FOR_EVER_MS)
    stub.fault(0, "field_energy", NOT_SUPPORTED)
    await devices.read()
    stub.clear_faults()
    await until(lambda: devices.counters.abandoned_threads == 0)
    clock.advance(1.0)
    reading = (await devices.read())[0]
    assert (reading.state, reading.energy_epoch) == (DeviceState.OK, 0)


async def test_a_slow_driver_is_not_a_hung_one(devices: NvmlDevices, stub: NvmlStub) -> None:
    """Sixteen calls of a third of the deadline each take longer than the deadline; none is hung."""
    await devices.open()
    for function in ("fields", "utilisation", "memory_v2", "temperature", "clock", "event_reasons"):
        stub.fault(0, function, hang_ms=int(DEADLINE_S * 300))
    readings = await devices.read()
    assert [reading.state for reading in readings] == [DeviceState.OK] * 8
    assert devices.counters.timeouts == 0


async def test_a_driver_that_hangs_on_all_gpus_does_not_make_one_read_wait_for_each(
    devices: NvmlDevices, stub: NvmlStub
) -> None:
    await devices.open()
    for gpu in range(8):
        stub.fault(gpu, "all", hang_ms=FOR_EVER_MS)
    hung = []
    for _ in range(4):
        readings = await devices.read()
        hung.append([reading.state for reading in readings].count(DeviceState.HUNG))
        assert all(
            reading.faults == tuple((name, "timeout") for name in MEASURED_FIELDS) for reading in readings
        )
    assert hung == [2, 4, 6, 8]
    assert devices.counters.abandoned_threads == 8
    await devices.read()
    assert devices.counters.abandoned_threads == 8


async def test_a_limit_that_hangs_marks_the_gpu_and_frees_the_writer(
    devices: NvmlDevices, stub: NvmlStub
) -> None:
    infos = await devices.open()
    stub.fault(1, "set_limit", hang_ms=FOR_EVER_MS)
    with pytest.raises(DeviceTimeout):
        await devices.set_limit(infos[1].uuid, 200.0)
    assert await devices.set_limit(infos[0].uuid, 200.0) == 200.0
    assert (await devices.read())[1].state is DeviceState.HUNG
    stub.clear_faults()
    await until(lambda: devices.counters.abandoned_threads == 0)
    assert (await devices.read())[1].state is DeviceState.OK


async def test_a_gpu_that_hangs_while_it_is_described_leaves_the_others(
    devices: NvmlDevices, stub: NvmlStub
) -> None:
    stub.fault(4, "name", hang_ms=FOR_EVER_MS)
    infos = await devices.open()
    assert [bool(info.model) for info in infos] == [gpu != 4 for gpu in range(8)]
    assert (await devices.read())[4].state is DeviceState.HUNG


async def test_a_driver_that_hangs_at_start_is_unavailable_and_costs_one_thread(
    devices: NvmlDevices, stub: NvmlStub
) -> None:
    stub.fault(None, "init", hang_ms=FOR_EVER_MS)
    for _ in range(3):
        with pytest.raises(DriverUnavailable):
            await devices.open()
    assert devices.counters.abandoned_threads == 1
    stub.clear_faults()
    await until(lambda: devices.counters.abandoned_threads == 0)
    assert len(await devices.open()) == 8


async def test_close_does_not_wait_for_a_hung_call(devices: NvmlDevices, stub: NvmlStub) -> None:
    await devices.open()
    stub.fault(0, "all", hang_ms=FOR_EVER_MS)
    await devices.read()
    await devices.close()
    # The call is still open: had close() waited for it, we would not be here.
    assert devices.counters.abandoned_threads == 1


def test_a_process_with_a_hung_call_still_ends(stub: NvmlStub) -> None:
    """An executor's thread would be joined at exit, so for ever."""
    program = """
import asyncio
from scheduler.core.clock import SystemClock
from scheduler.device.nvml import NvmlDevices
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
async def test_each_code_of_a_gone_gpu_means_lost(devices: NvmlDevices, stub: NvmlStub, code: int) -> None:
    await devices.open()
    stub.fault(0, "temperature", code)
    assert (await devices.read())[0].state is DeviceState.LOST


async def test_unknown_errors_all_over_mean_lost_but_one_does_not(
    devices: NvmlDevices, stub: NvmlStub
) -> None:
    await devices.open()
    stub.fault(0, "all", UNKNOWN)
    stub.fault(1, "temperature", UNKNOWN)
    readings = await devices.read()
    assert readings[0].state is DeviceState.LOST
    assert readings[1].state is DeviceState.OK
    assert dict(readings[1].faults) == {"temp_c": "unknown"}


async def test_a_gpu_that_is_lost_at_start_keeps_its_place(devices: NvmlDevices, stub: NvmlStub) -> None:
    stub.fault(7, "handle_by_index", LOST)
    infos = await devices.open()
    assert len(infos) == 8
    assert infos[7].uuid == "GPU-index-7"
    assert [reading.state for reading in await devices.read()] == [DeviceState.OK] * 7 + [DeviceState.LOST]


@pytest.mark.parametrize("code", [NOT_LOADED, 12, 1, 13, UNKNOWN])
async def test_no_driver_is_unavailable_and_may_come_later(
    devices: NvmlDevices, stub: NvmlStub, code: int
) -> None:
    stub.fault(None, "init", code)
    with pytest.raises(DriverUnavailable):
        await devices.open()
    stub.clear_faults()
    assert len(await devices.open()) == 8


async def test_a_version_mismatch_says_so_at_start_and_later(devices: NvmlDevices, stub: NvmlStub) -> None:
    stub.fault(None, "init", MISMATCH)
    with pytest.raises(DriverMismatch):
        await devices.open()
    stub.clear_faults()
    await devices.open()
    stub.fault(0, "utilisation", MISMATCH)
    with pytest.raises(DriverMismatch):
        await devices.read()


async def test_no_exception_of_the_binding_leaks_even_as_a_cause(
    devices: NvmlDevices, stub: NvmlStub
) -> None:
    infos = await devices.open()
    stub.fault(0, "set_limit", NO_PERMISSION)
    with pytest.raises(NoPermission) as caught:
        await devices.set_limit(infos[0].uuid, 200.0)
    error: BaseException | None = caught.value
    while error is not None:
        assert not isinstance(error, pynvml.NVMLError)
        hash(error)
        error = error.__cause__ or error.__context__


async def test_a_reloaded_driver_is_opened_anew_and_gpus_are_found_by_uuid(
    devices: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    infos = await devices.open()
    await devices.read()
    stub.fault(0, "utilisation", NOT_LOADED)
    away = await devices.read()
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
    readings = await devices.read()
    assert [reading.uuid for reading in readings] == [info.uuid for info in infos]
    assert readings[0].power_w == 111.0
    assert readings[7].state is DeviceState.LOST
    assert [reading.energy_epoch for reading in readings[:7]] == [1] * 7
    assert [reading.limit_requested_w for reading in readings[:7]] == [350.0] * 7
    assert devices.counters.reopens == 1


async def test_a_driver_that_stays_away_is_asked_for_with_a_back_off(
    devices: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    await devices.open()
    stub.fault(0, "utilisation", NOT_LOADED)
    stub.fault(None, "init", NOT_LOADED)
    for _ in range(10):
        assert {reading.state for reading in await devices.read()} == {DeviceState.UNKNOWN}
    stub.clear_faults()
    # Asked at once, then after one second: within that second it is not found.
    assert {reading.state for reading in await devices.read()} == {DeviceState.UNKNOWN}
    clock.advance(1.0)
    assert {reading.state for reading in await devices.read()} == {DeviceState.OK}


# Events.


async def test_an_applications_xid_is_counted_but_no_fault_of_the_gpu(
    devices: NvmlDevices, stub: NvmlStub
) -> None:
    await devices.open()
    await until(lambda: stub.listeners == 8)
    stub.xid(0, 31)
    stub.xid(1, 48)
    await until(lambda: devices.counters.xids == 1)
    assert devices.counters.ignored_xids == 1
    assert [reading.xid for reading in (await devices.read())[:2]] == [None, 48]


async def test_a_double_bit_error_event_counts_as_its_xid(devices: NvmlDevices, stub: NvmlStub) -> None:
    await devices.open()
    await until(lambda: stub.listeners == 8)
    stub.xid(0, 12345, DOUBLE_BIT_ECC_EVENT)
    await until(lambda: devices.counters.xids == 1)
    assert (await devices.read())[0].xid == 48


async def test_a_gpu_without_events_leaves_the_others_theirs(devices: NvmlDevices, stub: NvmlStub) -> None:
    stub.set(0, "event_types", 1)
    stub.fault(1, "register_events", NOT_SUPPORTED)
    await devices.open()
    await until(lambda: stub.listeners == 6)
    stub.xid(2, 79)
    await until(lambda: devices.counters.xids == 1)
    assert (await devices.read())[2].xid == 79


async def test_an_xid_is_forgotten_when_the_driver_is_opened_anew(
    devices: NvmlDevices, stub: NvmlStub
) -> None:
    await devices.open()
    await until(lambda: stub.listeners == 8)
    stub.xid(0, 79)
    await until(lambda: devices.counters.xids == 1)
    await devices.close()
    await devices.open()
    assert (await devices.read())[0].xid is None


def test_the_adapter_needs_no_heavy_library() -> None:
    """Each of these adds 11 to 12 MiB to an agent that is allowed 40."""
    program = (
        "import sys, scheduler.device.nvml, scheduler.device.simulated\n"
        "print([name for name in ('numpy', 'aiohttp', 'pydantic') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
