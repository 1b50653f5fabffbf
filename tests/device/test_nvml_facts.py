"""What a GPU is and how GPUs are connected, on the stub: what is read again, and what is not told."""

from __future__ import annotations

import asyncio

import pynvml
import pytest

from scheduler.core.clock import ManualClock
from scheduler.core.nouns import DeviceState
from scheduler.device.nvml import NvmlDevices
from scheduler.device.nvml_codes import ANCESTORS
from scheduler.device.protocol import Ancestor
from scheduler.device.threaded import LINKS_EVERY_S
from tests.fakes.nvml_stub.stub import NvmlStub

INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND, LOST, UNKNOWN = 2, 3, 13, 15, 999
# Far longer than any test: a hang ends when the test heals it, never by itself.
FOR_EVER_MS = 3_600_000
SLOW_EVERY_S = 10.0


def links_of(nvml: NvmlDevices) -> dict[tuple[int, int], tuple[Ancestor | None, int | None]]:
    return {(link.first, link.second): (link.ancestor, link.nvlinks) for link in nvml.hardware.links}


def test_every_level_of_the_binding_has_a_name() -> None:
    levels = {value for name, value in vars(pynvml).items() if name.startswith("NVML_TOPOLOGY_")}
    assert {level for level in levels if isinstance(level, int)} == set(ANCESTORS)


async def test_a_switch_joins_all_and_pairs_share_what_the_driver_says(nvml: NvmlDevices) -> None:
    await nvml.open()
    links = links_of(nvml)
    assert len(links) == 28
    assert links[0, 1] == (Ancestor.SWITCH, 12)
    assert links[0, 2] == (Ancestor.NUMA_NODE, 12)
    assert links[3, 4] == (Ancestor.SYSTEM, 12)


async def test_bridges_join_only_the_pairs_that_they_join(nvml: NvmlDevices, stub: NvmlStub) -> None:
    for gpu in range(8):
        stub.set(gpu, "nvlinks", 4)
        stub.set(gpu, "nvlink_peer", (gpu ^ 1) + 1)
    await nvml.open()
    links = links_of(nvml)
    want_nvlinks = {pair: 4 if pair[0] ^ 1 == pair[1] else 0 for pair in links}
    assert {pair: link[1] for pair, link in links.items()} == want_nvlinks


@pytest.mark.parametrize("code", [INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND])
async def test_a_gpu_without_nvlink_has_an_ancestor_only(
    nvml: NvmlDevices, stub: NvmlStub, code: int
) -> None:
    for gpu in range(8):
        stub.fault(gpu, "nvlink_state", code)
        stub.fault(gpu, "p2p", NOT_SUPPORTED)
    await nvml.open()
    assert links_of(nvml)[0, 1] == (Ancestor.SWITCH, 0)


async def test_links_whose_ends_are_not_told_are_taken_for_a_switchs(
    nvml: NvmlDevices, stub: NvmlStub
) -> None:
    for gpu in range(8):
        stub.fault(gpu, "nvlink_remote", NOT_SUPPORTED)
    stub.set(7, "nvlinks", 10)
    await nvml.open()
    links = links_of(nvml)
    assert (links[0, 1][1], links[0, 7][1]) == (12, 10)


async def test_links_that_cannot_be_judged_are_unknown_and_not_none(
    nvml: NvmlDevices, stub: NvmlStub
) -> None:
    stub.fault(0, "p2p", UNKNOWN)
    stub.fault(2, "nvlink_state", UNKNOWN)
    await nvml.open()
    links = links_of(nvml)
    assert links[0, 1][1] is None
    # The driver says that the two talk over NVLink, and not over how many.
    assert links[2, 3][1] is None
    assert links[4, 5][1] == 12


async def test_nothing_known_of_a_pair_is_not_a_link(nvml: NvmlDevices, stub: NvmlStub) -> None:
    for gpu in range(8):
        for function in ("ancestor", "p2p", "nvlink_state"):
            stub.fault(gpu, function, NOT_SUPPORTED)
    await nvml.open()
    assert nvml.hardware.links == ()


async def test_a_fabric_that_comes_up_later_is_seen(
    nvml: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    """NVSwitches carry nothing until their manager has set them up, which may be long after us."""
    for gpu in range(8):
        stub.set(gpu, "p2p_status", pynvml.NVML_P2P_STATUS_NOT_SUPPORTED)
    await nvml.open()
    assert links_of(nvml)[0, 1][1] == 0
    for gpu in range(8):
        stub.set(gpu, "p2p_status", 0)
    clock.advance(LINKS_EVERY_S)
    await nvml.read()
    assert links_of(nvml)[0, 1][1] == 12


async def test_a_gpu_that_hangs_or_is_lost_at_its_links_leaves_those_of_the_others(
    nvml: NvmlDevices, stub: NvmlStub
) -> None:
    stub.fault(3, "nvlink_state", hang_ms=FOR_EVER_MS)
    stub.fault(5, "nvlink_state", LOST)
    stub.fault(5, "ancestor", LOST)
    stub.fault(5, "p2p", LOST)
    infos = await nvml.open()
    assert all(info.model for info in infos)
    links = links_of(nvml)
    assert links[0, 1] == (Ancestor.SWITCH, 12)
    assert not any(3 in pair for pair in links)
    assert (await nvml.read())[3].state is DeviceState.HUNG


async def test_a_gpu_that_hung_at_start_is_described_once_it_answers(
    nvml: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    stub.fault(4, "name", hang_ms=FOR_EVER_MS)
    assert not (await nvml.open())[4].model
    stub.clear_faults()
    while nvml.counters.abandoned_threads:
        await asyncio.sleep(0.002)
    clock.advance(SLOW_EVERY_S)
    await nvml.read()
    info = nvml.hardware.devices[4]
    assert (info.model, info.limit_max_w, info.can_set_limit) == ("NVIDIA A100-SXM4-80GB", 400.0, True)


async def test_a_range_that_cannot_be_read_for_once_stays_what_it_was(
    nvml: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    await nvml.open()
    want = nvml.hardware
    stub.fault(0, "constraints", UNKNOWN)
    stub.fault(0, "mig", UNKNOWN)
    clock.advance(SLOW_EVERY_S)
    await nvml.read()
    assert nvml.hardware == want
    # But what the GPU no longer has, it no longer has.
    stub.fault(0, "constraints", NOT_SUPPORTED)
    clock.advance(SLOW_EVERY_S)
    await nvml.read()
    assert nvml.hardware.devices[0].limit_max_w is None
    assert nvml.hardware.devices[1] == want.devices[1]


async def test_a_wider_range_widens_what_the_energy_counter_may_do(
    nvml: NvmlDevices, stub: NvmlStub, clock: ManualClock
) -> None:
    await nvml.open()
    await nvml.read()
    stub.set(0, "limit_max_mw", 1_000_000)
    clock.advance(SLOW_EVERY_S)
    await nvml.read()
    clock.advance(1.0)
    # More than 1.5 × 400 W × 2 s, less than 1.5 × 1,000 W × 2 s.
    stub.set(0, "energy_mj", stub.get(0, "energy_mj") + 2_500_000)
    assert (await nvml.read())[0].energy_epoch == 0


async def test_a_closed_adapter_knows_of_no_hardware(nvml: NvmlDevices) -> None:
    await nvml.open()
    await nvml.close()
    assert (nvml.hardware.driver, nvml.hardware.devices, nvml.hardware.links) == ("", (), ())
