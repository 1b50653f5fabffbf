"""When an epoch of energy ends, and what is never added."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.device.energy import LONGEST_GAP_S, EnergyMeter


def test_a_counter_that_falls_begins_an_epoch() -> None:
    meter = EnergyMeter(400.0)
    assert [meter.counted(100.0, 0.0), meter.epoch] == [100.0, 0]
    assert [meter.counted(150.0, 1.0), meter.epoch] == [150.0, 0]
    assert [meter.counted(10.0, 2.0), meter.epoch] == [10.0, 1]


def test_a_counter_that_jumps_beyond_what_the_gpu_can_draw_begins_an_epoch() -> None:
    meter = EnergyMeter(400.0)
    meter.counted(0.0, 0.0)
    # 1.5 times the limit for the step and a second of slack: 1,200 J.
    meter.counted(1200.0, 1.0)
    assert meter.epoch == 0
    meter.counted(1200.0 + 1201.0, 2.0)
    assert meter.epoch == 1


def test_a_gap_too_long_to_guess_over_begins_an_epoch() -> None:
    meter = EnergyMeter(400.0)
    meter.integrated(100.0, 0.0)
    assert meter.integrated(100.0, LONGEST_GAP_S) == pytest.approx(100.0 * LONGEST_GAP_S)
    assert meter.integrated(100.0, 2 * LONGEST_GAP_S + 0.1) == 0.0
    assert meter.epoch == 1


def test_unknown_power_is_bridged_if_it_comes_back_soon() -> None:
    meter = EnergyMeter(400.0)
    meter.integrated(100.0, 0.0)
    assert meter.integrated(None, 1.0) is None
    assert meter.integrated(200.0, 2.0) == pytest.approx(300.0)


def test_a_counter_that_appears_begins_an_epoch_and_so_does_one_that_goes() -> None:
    meter = EnergyMeter(400.0)
    meter.integrated(100.0, 0.0)
    meter.counted(1e6, 1.0)
    assert meter.epoch == 1
    assert meter.integrated(100.0, 2.0) == 0.0
    assert meter.epoch == 2


STEP = st.tuples(
    st.sampled_from(["count", "integrate"]),
    st.one_of(st.none(), st.floats(0.0, 1e6)),
    st.floats(0.0, 100.0),
)


@given(st.lists(STEP, max_size=50))
def test_within_an_epoch_energy_never_falls_and_never_exceeds_what_can_be_drawn(
    steps: list[tuple[str, float | None, float]],
) -> None:
    meter, mono_s = EnergyMeter(400.0), 0.0
    last: tuple[int, float, float] | None = None
    for kind, value, pause_s in steps:
        mono_s += pause_s
        if kind == "count":
            energy_j: float | None = meter.counted(value or 0.0, mono_s)
        else:
            energy_j = meter.integrated(value, mono_s)
        if energy_j is None:
            continue
        if last is not None and last[0] == meter.epoch:
            step_j = energy_j - last[1]
            assert 0.0 <= step_j <= 1.5 * 400.0 * (mono_s - last[2] + 1.0) + 1e-6
        last = (meter.epoch, energy_j, mono_s)
