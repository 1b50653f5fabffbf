"""NvmlDevices on the stub of libnvidia-ml: the contract, and each trap of the binding and of drivers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pynvml
import pytest

from scheduler.core import errors
from scheduler.core.clock import ManualClock
from scheduler.core.errors import (
    DeviceUnknown,
    NoPermission,
)
from scheduler.core.nouns import DeviceState
from scheduler.device.nvml import NvmlDevices
from scheduler.device.nvml_codes import ERRORS, THROTTLES, error_of, fault_of, throttle_names
from scheduler.device.protocol import DevicePort, FieldFault, Throttle
from scheduler.telemetry.collect import Collector, make_inventory
from scheduler.telemetry.sample import decode_inventory, decode_sample, encode
from tests.contracts.device_contract import PATIENCE_S, Bench, DeviceContract, DeviceFaultContract
from tests.fakes.nvml_stub.stub import NvmlStub

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
        ends_mono_s = time.monotonic() + PATIENCE_S
        while self._stub.listeners < self._stub.gpus:
            assert time.monotonic() < ends_mono_s, f"{self._stub.listeners} GPUs have somebody who listens"
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

    def set_mig(self, gpu: int, *, enabled: bool) -> None:
        self._stub.set(gpu, "mig", enabled)

    def set_constraints(self, gpu: int, limit_min_w: float, limit_max_w: float) -> None:
        self._stub.set(gpu, "limit_min_mw", limit_min_w * 1000)
        self._stub.set(gpu, "limit_max_mw", limit_max_w * 1000)


@pytest.fixture
def bench(nvml: NvmlDevices, stub: NvmlStub, clock: ManualClock) -> Bench:
    return Bench(devices=nvml, hands=StubHands(stub, clock))


@pytest.fixture
def devices(nvml: NvmlDevices) -> NvmlDevices:
    return nvml


class TestNvmlContract(DeviceContract):
    pass


class TestNvmlFaultContract(DeviceFaultContract):
    pass


def test_it_is_a_device_port(nvml: NvmlDevices) -> None:
    port: DevicePort = nvml
    assert port is nvml


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


async def test_every_unit_is_converted(nvml: NvmlDevices, stub: NvmlStub) -> None:
    infos = await nvml.open()
    stub.set(0, "ecc_uncorrected", 7)
    reading = (await nvml.read())[0]
    assert infos[0].uuid == "GPU-00000000-0000-4000-8000-00000000a000"
    assert infos[0].model == "NVIDIA A100-SXM4-80GB"
    assert infos[0].pci_bus_id == "00000000:10:00.0"
    assert (infos[0].limit_min_w, infos[0].limit_max_w, infos[0].limit_default_w) == (100.0, 400.0, 400.0)
    assert infos[0].memory_total_bytes == 80 * 1024**3
    assert infos[0].mig_enabled is False
    assert infos[0].can_set_limit is True
    assert nvml.hardware.driver == "580.95.05"
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
    nvml: NvmlDevices, stub: NvmlStub
) -> None:
    await nvml.open()
    seen = [(await nvml.read())[0].power_w]
    stub.fault(0, "field_power_instant", NOT_SUPPORTED)
    seen.append((await nvml.read())[0].power_w)
    # How drivers older than a field id answer it.
    stub.fault(0, "field_power_average", 2)
    seen.append((await nvml.read())[0].power_w)
    stub.fault(0, "power", NOT_SUPPORTED)
    last = (await nvml.read())[0]
    assert [*seen, last.power_w] == [252.5, 251.0, 250.0, None]
    assert dict(last.faults) == {"power_w": "not_supported"}


async def test_an_absurd_power_is_no_data(nvml: NvmlDevices, stub: NvmlStub) -> None:
    await nvml.open()
    stub.set(0, "power_instant_mw", 4_000_000_000)
    reading = (await nvml.read())[0]
    assert reading.power_w is None
    assert dict(reading.faults)["power_w"] == "no_data"


ALL_BITS_32, ALL_BITS_64 = 2**32 - 1, 2**64 - 1


@pytest.mark.parametrize(
    ("field", "value", "want_unknown"),
    [
        ("mem_used", ALL_BITS_64, "mem_used_bytes"),
        ("temp_c", ALL_BITS_32, "temp_c"),
        ("sm_clock_mhz", ALL_BITS_32, "sm_clock_mhz"),
        ("mem_clock_mhz", ALL_BITS_32, "mem_clock_mhz"),
        ("ecc_uncorrected", ALL_BITS_64, "ecc_uncorrected"),
        ("ecc_corrected", ALL_BITS_64, "ecc_corrected"),
        ("energy_mj", ALL_BITS_64, "energy_j"),
        ("limit_requested_mw", ALL_BITS_32, "limit_requested_w"),
    ],
)
async def test_what_no_gpu_can_say_is_no_data_and_the_rest_stands(
    nvml: NvmlDevices, stub: NvmlStub, field: str, value: int, want_unknown: str
) -> None:
    await nvml.open()
    stub.set(1, field, value)
    reading = (await nvml.read())[1]
    assert getattr(reading, want_unknown) is None
    assert dict(reading.faults)[want_unknown] == "no_data"
    assert (reading.state, reading.power_w) == (DeviceState.OK, 252.5)
    sample = Collector(node="n1", agent="a", boot="b")
    sample.add((reading,))
    # As a whole message the daemon takes it.
    assert decode_sample(encode(sample.close(1.0, 1.7e9)), "n1").power_w == [252.5]


async def test_what_no_gpu_can_be_is_unknown_and_the_inventory_is_taken(
    nvml: NvmlDevices, stub: NvmlStub
) -> None:
    stub.set(1, "mem_total", ALL_BITS_64)
    stub.set(2, "limit_max_mw", ALL_BITS_32)
    await nvml.open()
    inventory = decode_inventory(encode(make_inventory("n1", nvml.hardware, "1")), "n1")
    assert [gpu.memory_total_bytes for gpu in inventory.gpus[:3]] == [80 * 1024**3, None, 80 * 1024**3]
    assert [gpu.limit_max_w for gpu in inventory.gpus[:3]] == [400.0, 400.0, None]
    assert inventory.gpus[2].limit_min_w == 100.0


async def test_older_drivers_are_asked_by_the_older_names(nvml: NvmlDevices, stub: NvmlStub) -> None:
    for function in ("memory_v2", "event_reasons", "fields"):
        stub.fault(0, function, NOT_FOUND)
    await nvml.open()
    reading = (await nvml.read())[0]
    assert reading.throttle == ("sw_power_cap",)
    # v1 counts what the driver reserves as used.
    assert reading.mem_used_bytes == 10 * 1024**3 + 512 * 1024**2
    assert reading.power_w == 250.0
    assert reading.energy_j == 1000.0
    assert reading.faults == ()


async def test_newer_drivers_are_asked_by_the_newer_name(nvml: NvmlDevices, stub: NvmlStub) -> None:
    stub.fault(0, "temperature", 26)
    await nvml.open()
    assert (await nvml.read())[0].temp_c == 55.0


async def test_what_is_not_supported_is_asked_again_after_an_hour(
    nvml: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    await nvml.open()
    stub.fault(0, "utilisation", NOT_SUPPORTED)
    await nvml.read()
    stub.fault(0, "utilisation")
    clock.advance(3599.0)
    reading = (await nvml.read())[0]
    assert dict(reading.faults) == {"util_frac": "not_supported", "mem_util_frac": "not_supported"}
    clock.advance(2.0)
    assert (await nvml.read())[0].util_frac == 0.6


async def test_a_passing_failure_is_asked_again_at_once(nvml: NvmlDevices, stub: NvmlStub) -> None:
    await nvml.open()
    stub.fault(0, "utilisation", NO_DATA)
    assert dict((await nvml.read())[0].faults)["util_frac"] == "no_data"
    stub.fault(0, "utilisation")
    assert (await nvml.read())[0].util_frac == 0.6


async def test_slow_fields_are_read_every_ten_seconds(
    nvml: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    await nvml.open()
    await nvml.read()
    stub.set(0, "remapped_correctable", 9)
    stub.set(0, "power_instant_mw", 300_000)
    clock.advance(9.0)
    before = stub.calls
    reading = (await nvml.read())[0]
    fast_calls = stub.calls - before
    assert (reading.power_w, reading.remapped_rows) == (300.0, 3)
    clock.advance(1.0)
    before = stub.calls
    assert (await nvml.read())[0].remapped_rows == 11
    assert stub.calls - before > fast_calls


async def test_an_out_of_band_cap_shows_in_the_enforced_limit_only(nvml: NvmlDevices, stub: NvmlStub) -> None:
    stub.set(0, "out_of_band_cap_mw", 300_000)
    await nvml.open()
    reading = (await nvml.read())[0]
    assert (reading.limit_w, reading.limit_requested_w) == (300.0, 400.0)


async def test_mig_leaves_utilisation_unknown(nvml: NvmlDevices, stub: NvmlStub) -> None:
    stub.set(0, "mig", 1)
    infos = await nvml.open()
    reading = (await nvml.read())[0]
    assert infos[0].mig_enabled is True
    assert reading.state is DeviceState.OK
    assert reading.util_frac is None
    assert dict(reading.faults)["util_frac"] == "not_supported"
    assert reading.power_w == 252.5


# Energy.


async def test_a_missing_counter_is_replaced_by_integrated_power(
    nvml: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    for function in ("field_energy", "energy"):
        stub.fault(0, function, NOT_SUPPORTED)
    await nvml.open()
    stub.set(0, "power_instant_mw", 100_000)
    first = (await nvml.read())[0]
    clock.advance(2.0)
    stub.set(0, "power_instant_mw", 200_000)
    second = (await nvml.read())[0]
    assert (first.energy_j, second.energy_j) == (0.0, 300.0)
    assert first.energy_epoch == second.energy_epoch
    assert second.faults == ()


async def test_a_counter_that_fails_once_is_not_replaced_by_a_guess(
    nvml: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    await nvml.open()
    await nvml.read()
    for function in ("field_energy", "energy"):
        stub.fault(0, function, UNKNOWN)
    clock.advance(1.0)
    missing = (await nvml.read())[0]
    stub.clear_faults()
    stub.set(0, "energy_mj", 1_500_000)
    clock.advance(1.0)
    after = (await nvml.read())[0]
    assert missing.energy_j is None
    assert dict(missing.faults) == {"energy_j": "unknown"}
    assert (after.energy_j, after.energy_epoch) == (1500.0, 0)


# Limits.


async def test_a_refused_limit_is_an_error_and_not_the_v2_setters_success(
    nvml: NvmlDevices, stub: NvmlStub
) -> None:
    """The binding's v2 setter drops the return code: it would report success here."""
    infos = await nvml.open()
    stub.fault(0, "set_limit", NO_PERMISSION)
    with pytest.raises(NoPermission):
        await nvml.set_limit(infos[0].uuid, 200.0)
    assert stub.get(0, "limit_requested_mw") == 400_000
    stub.clear_faults()
    with pytest.raises(DeviceUnknown):
        await nvml.set_limit(infos[0].uuid, 50.0)
    assert stub.get(0, "limit_requested_mw") == 400_000


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


async def test_set_limit_returns_what_the_device_says_afterwards(nvml: NvmlDevices, stub: NvmlStub) -> None:
    infos = await nvml.open()
    stub.set(0, "ignore_sets", 1)
    assert await nvml.set_limit(infos[0].uuid, 200.0) == 400.0


async def test_a_limit_is_rounded_down_to_milliwatts(nvml: NvmlDevices, stub: NvmlStub) -> None:
    infos = await nvml.open()
    assert await nvml.set_limit(infos[0].uuid, 200.0009) == 200.0
    # 0.1 + 0.2 style noise must not cost a milliwatt.
    assert await nvml.set_limit(infos[0].uuid, 299.9999999999) == 300.0


async def test_a_process_without_permission_is_read_only(nvml: NvmlDevices, stub: NvmlStub) -> None:
    stub.fault(0, "set_limit", NO_PERMISSION)
    infos = await nvml.open()
    assert [info.can_set_limit for info in infos] == [False] + [True] * 7


async def test_the_probe_for_permission_leaves_the_limit_alone(nvml: NvmlDevices, stub: NvmlStub) -> None:
    stub.set(0, "limit_requested_mw", 321_000)
    await nvml.open()
    assert stub.get(0, "sets") == 1
    assert stub.get(0, "limit_requested_mw") == 321_000


async def test_without_the_probe_nothing_is_written(stub: NvmlStub, clock: ManualClock) -> None:
    nvml = NvmlDevices(clock, probe_write=False, event_wait_ms=10)
    infos = await nvml.open()
    await nvml.read()
    await nvml.close()
    assert not any(info.can_set_limit for info in infos)
    assert [stub.get(gpu, "sets") for gpu in range(8)] == [0] * 8


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
