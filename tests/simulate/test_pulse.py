"""The pulse of the demo's broker, over a real one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from scheduler.core.clock import SystemClock
from scheduler.simulate import pulse as pulses
from scheduler.simulate.pulse import BrokerPulse
from tests.brokers import run_mosquitto
from tests.telemetry.bus_tools import eventually, running

# A third of what the demo has; a test that is late waits for what comes then.
SILENT_S = 1.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulses, "SILENT_S", SILENT_S)
    monkeypatch.setattr(pulses, "PING_EVERY_S", SILENT_S / 3)


async def test_a_frozen_broker_is_silent_until_it_goes_on(tmp_path: Path) -> None:
    with run_mosquitto(tmp_path) as broker:
        pulse = BrokerPulse(broker.host, broker.port, SystemClock())
        async with running(pulse.run()):
            # Longer than it may be silent, so that something must have been heard.
            await asyncio.sleep(1.5 * SILENT_S)
            await eventually(lambda: pulse.silent_s == 0)
            broker.freeze()
            try:
                await eventually(lambda: pulse.silent_s > SILENT_S)
            finally:
                broker.thaw()
            await eventually(lambda: pulse.silent_s == 0)
        assert pulse.most_silent_s > SILENT_S


async def test_a_broker_that_comes_back_is_heard_again(tmp_path: Path) -> None:
    with run_mosquitto(tmp_path) as broker:
        pulse = BrokerPulse(broker.host, broker.port, SystemClock())
        async with running(pulse.run()):
            broker.stop()
            await eventually(lambda: pulse.silent_s > SILENT_S)
            broker.start()
            await eventually(lambda: pulse.silent_s == 0)
