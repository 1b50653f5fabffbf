"""Means, maxima, last counters and rare fields."""

from __future__ import annotations

import pytest
from msgspec import UNSET

from scheduler.core.nouns import DeviceState
from scheduler.device.protocol import (
    Ancestor,
    DeviceInfo,
    DeviceLink,
    FieldFault,
    Hardware,
    Reading,
    unread,
)
from scheduler.telemetry.collect import Collector, make_inventory
from scheduler.telemetry.sample import decode_inventory, decode_sample, encode
from tests.telemetry.agent_tools import make_info, make_reading

UNIX_S = 1_700_000_000.0


@pytest.fixture
def collector() -> Collector:
    made = Collector(node="n1", agent="a", boot="b")
    made.begin("hash", 1000.0)
    return made


def test_power_and_load_are_means_with_their_maxima_and_the_counter_is_the_last(collector: Collector) -> None:
    for power_w, util_frac, energy_j in ((100.0, 0.0, 10.0), (300.0, 1.0, 20.0), (200.0, 0.5, 30.0)):
        collector.add((make_reading(power_w=power_w, util_frac=util_frac, energy_j=energy_j),))
    sample = collector.close(1001.0, UNIX_S)
    assert (sample.power_w, sample.power_max_w) == ([200.0], [300.0])
    assert (sample.util_frac, sample.util_max_frac) == ([0.5], [1.0])
    assert sample.energy_j == [30.0]
    assert (sample.span_s, sample.seq, sample.state) == (1.0, 1, ["ok"])


def test_an_unknown_look_does_not_pull_a_mean_down(collector: Collector) -> None:
    collector.add((make_reading(power_w=300.0),))
    collector.add((make_reading(power_w=None, faults=(("power_w", "timeout"),)),))
    sample = collector.close(1001.0, UNIX_S)
    assert sample.power_w == [300.0]
    assert sample.faults == [{}]


def test_of_a_lost_gpu_nothing_is_told_and_its_neighbour_goes_on(collector: Collector) -> None:
    collector.add((make_reading(0), make_reading(1)))
    collector.add((unread("GPU-0", 1000.2, DeviceState.LOST, FieldFault.LOST), make_reading(1)))
    sample = collector.close(1001.0, UNIX_S)
    assert sample.state == ["lost", "ok"]
    assert (sample.power_w, sample.util_frac, sample.energy_j) == ([None, 200.0], [None, 0.5], [None, 1000.0])
    assert sample.faults != UNSET
    assert sample.faults[0]["power_w"] == "lost"
    assert "mem_clock_mhz" not in sample.faults[0], "not a field of the wire"


def test_rare_fields_come_at_first_then_every_ten_seconds_or_when_they_change(collector: Collector) -> None:
    def close(mono_s: float, xid: int | None = None) -> tuple[bool, bool]:
        collector.add((make_reading(xid=xid),))
        sample = collector.close(mono_s, UNIX_S)
        return sample.xid is not UNSET, sample.ecc_uncorrected is not UNSET

    assert close(1001.0) == (True, True)
    assert close(1002.0) == (False, False)
    assert close(1003.0, xid=79) == (True, False)
    assert close(1004.0, xid=79) == (False, False)
    assert close(1011.0, xid=79) == (True, True)
    assert close(1012.0, xid=79) == (False, False)


def test_a_new_epoch_travels_with_its_counter(collector: Collector) -> None:
    collector.add((make_reading(energy_j=500.0, energy_epoch=0),))
    collector.add((make_reading(energy_j=None, energy_epoch=1),))
    first = collector.close(1001.0, UNIX_S)
    assert (first.energy_j, first.energy_epoch) == ([500.0], [0])
    collector.add((make_reading(energy_j=2.0, energy_epoch=1),))
    second = collector.close(1002.0, UNIX_S)
    assert (second.energy_j, second.energy_epoch) == ([2.0], [1])


@pytest.mark.parametrize("power_w", [-5.0, 20_000.0, float("nan"), float("inf")])
def test_a_broken_sensor_is_unknown_and_does_not_spoil_the_message(
    collector: Collector, power_w: float
) -> None:
    collector.add((make_reading(0, power_w=power_w), make_reading(1)))
    payload = encode(collector.close(1001.0, UNIX_S))
    assert decode_sample(payload, "n1").power_w == [None, 200.0]


def test_throttling_at_any_time_of_the_interval_is_told(collector: Collector) -> None:
    collector.add((make_reading(throttle=("sw_power_cap",)),))
    collector.add((make_reading(throttle=()),))
    assert collector.close(1001.0, UNIX_S).throttle == [["sw_power_cap"]]


def test_a_node_without_gpus_still_sends_samples(collector: Collector) -> None:
    sample = decode_sample(encode(collector.close(1001.0, UNIX_S)), "n1")
    assert (sample.state, sample.power_w) == ([], [])


def test_what_the_agent_makes_the_daemon_takes(collector: Collector) -> None:
    whole = Reading(
        uuid="GPU-0",
        mono_s=1000.0,
        state=DeviceState.OK,
        power_w=301.239,
        limit_w=400.0,
        limit_requested_w=400.0,
        energy_j=123_456.789,
        util_frac=0.97,
        mem_util_frac=0.5,
        mem_used_bytes=2**34,
        temp_c=61.0,
        sm_clock_mhz=1410.0,
        throttle=("sw_power_cap",),
        ecc_uncorrected=0,
        remapped_rows=0,
        xid=None,
    )
    collector.add((whole,))
    sample = decode_sample(encode(collector.close(1001.0, UNIX_S)), "n1")
    assert (sample.energy_j, sample.limit_w, sample.temp_c) == ([123_456.789], [400.0], [61.0])
    assert sample.unix_s == UNIX_S


def make_hardware(*infos: DeviceInfo, **fields: object) -> Hardware:
    return Hardware(devices=infos, driver="580.95.05", **fields)  # type: ignore[arg-type]  # Fields of a case.


def test_an_inventory_may_set_limits_only_if_every_gpu_may() -> None:
    free, bound = make_info(0, can_set_limit=True), make_info(1)
    both = make_inventory("n1", make_hardware(free, make_info(1, can_set_limit=True)), "1")
    one = make_inventory("n1", make_hardware(free, bound), "1")
    none = make_inventory("n1", make_hardware(), "1")
    assert (both.can_set_limit, one.can_set_limit, none.can_set_limit) == (True, False, False)
    assert decode_inventory(encode(both), "n1") == both


def test_an_inventory_names_the_driver_and_how_the_gpus_are_connected() -> None:
    links = (
        DeviceLink(first=0, second=1, ancestor=Ancestor.SWITCH, nvlinks=18),
        DeviceLink(first=0, second=2, ancestor=Ancestor.SYSTEM, nvlinks=0),
        DeviceLink(first=1, second=2, ancestor=None, nvlinks=None),
    )
    infos = (make_info(index) for index in range(3))
    inventory = decode_inventory(encode(make_inventory("n1", make_hardware(*infos, links=links), "1")), "n1")
    assert inventory.driver == "580.95.05"
    assert inventory.topology == {"0-1": "nvlink=18 switch", "0-2": "system", "1-2": "nvlink=?"}
