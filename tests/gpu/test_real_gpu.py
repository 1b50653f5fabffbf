"""The device contract on this machine's own GPUs: `make test-gpu`. Limits are only ever set to what they are."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from scheduler.core.clock import SystemClock
from scheduler.core.errors import DeviceError
from scheduler.device.nvml import NvmlDevices
from tests.contracts.device_contract import DeviceContract
from tests.fakes.nvml_stub.stub import NvmlStub

pytestmark = pytest.mark.gpu


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


class TestRealGpuContract(DeviceContract):
    pass


async def test_a_sound_gpu_tells_its_power_energy_and_temperature(devices: NvmlDevices) -> None:
    for reading in await devices.read():
        assert reading.power_w
        assert reading.energy_j
        assert reading.temp_c
    assert devices.hardware.driver
