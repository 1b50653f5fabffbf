"""What every DevicePort must do; run on the stub of NVML, on the simulated devices and on a real GPU."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Protocol

import pytest

from scheduler.core.errors import DeviceError, DeviceTimeout, GpuLost
from scheduler.core.nouns import DeviceState
from scheduler.device.protocol import MEASURED_FIELDS, Ancestor, DevicePort, FieldFault, Reading, Throttle

# Longer than any adapter lets pass between two looks at what seldom changes.
SLOW_EVERY_S = 10.0
# For what a thread does at once if it does it at all; a busy machine may take its time.
PATIENCE_S = 120.0


class Hands(Protocol):
    """How a test breaks a device that can be broken; fields by their names in Reading."""

    def pass_time(self, by_s: float) -> None: ...

    def lose(self, gpu: int) -> None: ...

    def hang(self, gpu: int) -> None: ...

    def recover(self, gpu: int) -> None: ...

    def unsupport(self, gpu: int, name: str) -> None: ...

    def reset_energy(self, gpu: int) -> None: ...

    def raise_xid(self, gpu: int, xid: int) -> None: ...

    def set_mig(self, gpu: int, *, enabled: bool) -> None: ...

    def set_constraints(self, gpu: int, limit_min_w: float, limit_max_w: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    devices: DevicePort
    hands: Hands


def assert_sound(reading: Reading) -> None:
    """Whatever is known lies where it can lie, and whatever is unknown has a reason."""
    for name in MEASURED_FIELDS:
        value = getattr(reading, name)
        if value is None:
            assert name in dict(reading.faults), f"{name} is unknown without a reason"
        elif name != "throttle":
            assert math.isfinite(value), name
            assert value >= 0, name
    assert {fault for _, fault in reading.faults} <= set(FieldFault)
    assert set(reading.throttle or ()) <= set(Throttle)
    for util in (reading.util_frac, reading.mem_util_frac):
        assert util is None or util <= 1.0


class DeviceContract:
    """Holds on any device, a real one too; subclasses give the fixture `devices`."""

    async def test_open_names_each_device_once(self, devices: DevicePort) -> None:
        infos = await devices.open()
        assert infos
        assert len({info.uuid for info in infos}) == len(infos)
        assert [info.index for info in infos] == list(range(len(infos)))
        for info in infos:
            assert info.model
            assert info.power_domain
            low, high = info.limit_min_w, info.limit_max_w
            assert low is None or high is None or 0 < low <= high

    async def test_hardware_is_what_open_found_with_driver_and_links(self, devices: DevicePort) -> None:
        infos = await devices.open()
        hardware = devices.hardware
        assert hardware.devices == infos
        assert hardware.driver
        pairs = [(link.first, link.second) for link in hardware.links]
        assert set(pairs) <= set(combinations(range(len(infos)), 2))
        assert len(set(pairs)) == len(pairs)
        for link in hardware.links:
            assert link.ancestor is not None or link.nvlinks != 0, "of a link something is known"
            assert link.nvlinks is None or link.nvlinks >= 0
        await devices.read()
        assert devices.hardware == hardware, "nothing changed"

    async def test_read_answers_in_the_order_of_open(self, devices: DevicePort) -> None:
        want_uuids = [info.uuid for info in await devices.open()]
        readings = await devices.read()
        assert [reading.uuid for reading in readings] == want_uuids
        for reading in readings:
            assert reading.state is DeviceState.OK
            assert_sound(reading)

    async def test_energy_never_falls_within_an_epoch(self, devices: DevicePort) -> None:
        await devices.open()
        before = await devices.read()
        for _ in range(20):
            after = await devices.read()
            for old, new in zip(before, after, strict=True):
                if (
                    old.energy_j is not None
                    and new.energy_j is not None
                    and old.energy_epoch == new.energy_epoch
                ):
                    assert new.energy_j >= old.energy_j
            before = after

    async def test_memory_used_is_part_of_the_total(self, devices: DevicePort) -> None:
        infos = await devices.open()
        for info, reading in zip(infos, await devices.read(), strict=True):
            if info.memory_total_bytes is not None and reading.mem_used_bytes is not None:
                assert reading.mem_used_bytes <= info.memory_total_bytes

    async def test_a_limit_that_may_be_set_is_read_back(self, devices: DevicePort) -> None:
        """To its present value, so that a real GPU keeps what it had."""
        infos = await devices.open()
        for info, reading in zip(infos, await devices.read(), strict=True):
            if info.can_set_limit and reading.limit_requested_w is not None:
                want_w = reading.limit_requested_w
                assert await devices.set_limit(info.uuid, want_w) == pytest.approx(want_w)

    async def test_a_limit_beyond_the_constraints_is_refused_and_changes_nothing(
        self, devices: DevicePort
    ) -> None:
        infos = await devices.open()
        want_w = [reading.limit_requested_w for reading in await devices.read()]
        for info, limit_w in zip(infos, want_w, strict=True):
            if info.limit_max_w is None:
                continue
            try:
                with pytest.raises(DeviceError):
                    await devices.set_limit(info.uuid, info.limit_max_w * 2)
            except BaseException:
                # A driver that clamps has taken it: what fails here must not stay so on somebody's machine.
                if limit_w is not None:
                    await devices.set_limit(info.uuid, limit_w)
                raise
        assert [reading.limit_requested_w for reading in await devices.read()] == want_w

    async def test_an_unknown_uuid_is_a_lost_gpu(self, devices: DevicePort) -> None:
        await devices.open()
        with pytest.raises(GpuLost):
            await devices.set_limit("GPU-nobody", 200.0)

    async def test_close_may_be_called_twice_and_open_again(self, devices: DevicePort) -> None:
        want_infos = await devices.open()
        await devices.close()
        await devices.close()
        assert await devices.open() == want_infos
        assert all(reading.state is DeviceState.OK for reading in await devices.read())


class DeviceFaultContract:
    """Holds on devices that can be broken on purpose; subclasses give the fixture `bench`, eight GPUs."""

    async def test_set_limit_shows_in_the_next_reading(self, bench: Bench) -> None:
        infos = await bench.devices.open()
        await bench.devices.read()
        assert await bench.devices.set_limit(infos[2].uuid, 250.0) == 250.0
        want_w = [400.0] * 2 + [250.0] + [400.0] * 5
        assert [reading.limit_requested_w for reading in await bench.devices.read()] == want_w

    async def test_a_lost_gpu_tells_nothing_and_the_others_go_on(self, bench: Bench) -> None:
        infos = await bench.devices.open()
        bench.hands.lose(3)
        readings = await bench.devices.read()
        want_states = [DeviceState.LOST if gpu == 3 else DeviceState.OK for gpu in range(8)]
        assert [reading.state for reading in readings] == want_states
        assert all(getattr(readings[3], name) is None for name in MEASURED_FIELDS)
        assert dict(readings[3].faults) == dict.fromkeys(MEASURED_FIELDS, "lost")
        assert all(readings[gpu].power_w for gpu in range(8) if gpu != 3)
        with pytest.raises(GpuLost):
            await bench.devices.set_limit(infos[3].uuid, 200.0)

    async def test_a_lost_gpu_that_comes_back_is_read_again(self, bench: Bench) -> None:
        await bench.devices.open()
        bench.hands.lose(3)
        await bench.devices.read()
        bench.hands.recover(3)
        reading = (await bench.devices.read())[3]
        assert reading.state is DeviceState.OK
        assert reading.power_w is not None

    async def test_a_hung_gpu_is_unknown_by_timeout_and_the_others_go_on(self, bench: Bench) -> None:
        infos = await bench.devices.open()
        bench.hands.hang(5)
        readings = await bench.devices.read()
        want_states = [DeviceState.HUNG if gpu == 5 else DeviceState.OK for gpu in range(8)]
        assert [reading.state for reading in readings] == want_states
        assert dict(readings[5].faults) == dict.fromkeys(MEASURED_FIELDS, "timeout")
        assert all(readings[gpu].power_w for gpu in range(8) if gpu != 5)
        with pytest.raises(DeviceTimeout):
            await bench.devices.set_limit(infos[5].uuid, 200.0)

    @pytest.mark.parametrize(
        "name", ["util_frac", "temp_c", "mem_used_bytes", "throttle", "limit_w", "remapped_rows"]
    )
    async def test_an_unsupported_field_is_unknown_alone(self, bench: Bench, name: str) -> None:
        await bench.devices.open()
        bench.hands.unsupport(1, name)
        readings = await bench.devices.read()
        assert getattr(readings[1], name) is None
        assert dict(readings[1].faults)[name] == "not_supported"
        assert readings[1].state is DeviceState.OK
        assert readings[1].power_w is not None
        assert getattr(readings[0], name) is not None
        assert_sound(readings[1])

    async def test_a_counter_that_starts_anew_begins_an_epoch(self, bench: Bench) -> None:
        await bench.devices.open()
        before = (await bench.devices.read())[4]
        bench.hands.pass_time(1.0)
        bench.hands.reset_energy(4)
        after = await bench.devices.read()
        assert before.energy_j is not None
        assert after[4].energy_epoch == before.energy_epoch + 1
        assert after[4].energy_j is not None
        assert after[0].energy_epoch == before.energy_epoch

    async def test_an_xid_stays_on_its_gpu(self, bench: Bench) -> None:
        await bench.devices.open()
        bench.hands.raise_xid(6, 79)
        readings = await bench.devices.read()
        # By event from a real driver: some reads may pass before it comes.
        async with asyncio.timeout(PATIENCE_S):
            while readings[6].xid is None:
                readings = await bench.devices.read()
        assert [reading.xid for reading in readings] == [None] * 6 + [79, None]

    async def test_mig_and_the_range_of_limits_are_noticed_when_they_change(self, bench: Bench) -> None:
        infos = await bench.devices.open()
        await bench.devices.read()
        bench.hands.set_mig(2, enabled=True)
        bench.hands.set_constraints(5, 150.0, 350.0)
        bench.hands.pass_time(SLOW_EVERY_S)
        await bench.devices.read()
        want = list(infos)
        want[2] = replace(infos[2], mig_enabled=True)
        want[5] = replace(infos[5], limit_min_w=150.0, limit_max_w=350.0)
        assert bench.devices.hardware.devices == tuple(want)

    async def test_a_gpu_that_is_lost_is_still_part_of_the_hardware(self, bench: Bench) -> None:
        await bench.devices.open()
        want = bench.devices.hardware
        bench.hands.lose(3)
        bench.hands.pass_time(SLOW_EVERY_S)
        await bench.devices.read()
        assert bench.devices.hardware == want

    async def test_all_pairs_are_linked_and_halves_share_a_numa_node(self, bench: Bench) -> None:
        await bench.devices.open()
        links = {(link.first, link.second): link for link in bench.devices.hardware.links}
        assert set(links) == set(combinations(range(8), 2))
        assert {link.nvlinks for link in links.values()} == {12}
        far = {pair for pair, link in links.items() if link.ancestor is Ancestor.SYSTEM}
        assert far == {pair for pair in links if pair[0] < 4 <= pair[1]}
