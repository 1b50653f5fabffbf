"""The NVML stub, loaded into this process for one test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from scheduler.core.clock import ManualClock
from scheduler.device.nvml import NvmlDevices
from tests.fakes.nvml_stub.stub import NvmlStub, compiler

# Stub calls take microseconds; long enough that a busy machine is not taken for a hung driver.
DEADLINE_S = 0.4


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[NvmlStub]:
    if compiler() is None:
        pytest.skip("SKIPPED ALOUD: no C compiler, so the stub of libnvidia-ml cannot be built")
    stub = NvmlStub(tmp_path / "nvml")
    stub.load()
    try:
        yield stub
    finally:
        stub.unload()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def nvml(stub: NvmlStub, clock: ManualClock) -> AsyncIterator[NvmlDevices]:
    """The adapter on the stub, not open yet."""
    devices = NvmlDevices(clock, deadline_s=DEADLINE_S, open_deadline_s=DEADLINE_S, event_wait_ms=10)
    try:
        yield devices
    finally:
        await devices.close()
        stub.clear_faults()
