"""Simulated GPUs: the contract, and the physics that the demo shows."""

from __future__ import annotations

import pytest

from scheduler.core.clock import ManualClock
from scheduler.core.errors import NoPermission
from scheduler.device.protocol import DevicePort
from scheduler.device.simulated import SimulatedDevices, SimulatedModel
from tests.contracts.device_contract import Bench, DeviceContract, DeviceFaultContract

MODEL = SimulatedModel(idle_w=50.0, limit_min_w=100.0, limit_max_w=400.0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def devices(clock: ManualClock) -> SimulatedDevices:
    devices = SimulatedDevices(clock, MODEL, node="n1")
    for gpu in range(8):
        devices.set_utilisation(gpu, 0.5)
    clock.advance(1.0)
    return devices


class SimulatedHands:
    def __init__(self, devices: SimulatedDevices, clock: ManualClock) -> None:
        self.pass_time = clock.advance
        self.lose = devices.lose
        self.hang = devices.hang
        self.recover = devices.recover
        self.reset_energy = devices.reset_energy
        self.raise_xid = devices.raise_xid
        self.set_constraints = devices.set_constraints
        self._devices = devices

    def unsupport(self, gpu: int, name: str) -> None:
        self._devices.unsupport(gpu, name)

    def set_mig(self, gpu: int, *, enabled: bool) -> None:
        self._devices.set_mig(gpu, enabled=enabled)


@pytest.fixture
def bench(devices: SimulatedDevices, clock: ManualClock) -> Bench:
    return Bench(devices=devices, hands=SimulatedHands(devices, clock))


class TestSimulatedContract(DeviceContract):
    pass


class TestSimulatedFaultContract(DeviceFaultContract):
    pass


def test_it_is_a_device_port(devices: SimulatedDevices) -> None:
    port: DevicePort = devices
    assert port is devices


async def test_power_is_idle_plus_the_utilised_part_of_the_limit(devices: SimulatedDevices) -> None:
    infos = await devices.open()
    devices.set_utilisation(0, 0.5)
    devices.set_utilisation(1, 0.0)
    await devices.set_limit(infos[2].uuid, 150.0)
    devices.set_utilisation(2, 1.0)
    readings = await devices.read()
    assert [reading.power_w for reading in readings[:3]] == [50.0 + 350.0 * 0.5, 50.0, 150.0]


async def test_energy_is_what_was_drawn_between_changes(clock: ManualClock) -> None:
    devices = SimulatedDevices(clock, MODEL, gpus=1)
    clock.advance(10.0)
    devices.set_utilisation(0, 1.0)
    clock.advance(2.0)
    infos = await devices.open()
    await devices.set_limit(infos[0].uuid, 100.0)
    clock.advance(3.0)
    want_j = 10.0 * 50.0 + 2.0 * 400.0 + 3.0 * 100.0
    assert (await devices.read())[0].energy_j == pytest.approx(want_j)


async def test_a_callable_utilisation_is_integrated_by_trapezoid(clock: ManualClock) -> None:
    start = clock.mono_s()
    devices = SimulatedDevices(clock, MODEL, gpus=1, utilisation=lambda _, mono_s: (mono_s - start) / 10.0)
    clock.advance(10.0)
    reading = (await devices.read())[0]
    assert reading.util_frac == 1.0
    assert reading.energy_j == pytest.approx(10.0 * (50.0 + 400.0) / 2)


async def test_a_read_only_node_refuses_and_says_so(clock: ManualClock) -> None:
    devices = SimulatedDevices(clock, MODEL, gpus=1, can_set_limit=False)
    infos = await devices.open()
    assert not infos[0].can_set_limit
    with pytest.raises(NoPermission):
        await devices.set_limit(infos[0].uuid, 200.0)


def test_a_misspelt_field_is_refused(devices: SimulatedDevices) -> None:
    with pytest.raises(ValueError, match="power_w"):
        devices.unsupport(0, "watts")
