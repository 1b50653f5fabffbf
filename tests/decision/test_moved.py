"""Columns of pods that stand elsewhere with us: means of what they measure, and sums by row."""

from __future__ import annotations

import numpy as np

from scheduler.decision.moved import Moved

UNKNOWN = float("nan")


def read(moved: Moved, *load_each: float) -> None:
    """What a bound GPU of each real row does; its watts are a hundred times that."""
    each = np.array(load_each)
    moved.measure(each, 100 * each)


def test_a_mean_is_of_the_readings_that_are_known() -> None:
    moved = Moved()
    slot = moved.add(0, 1, 2.0)
    for load in (0.2, UNKNOWN, 0.8):
        read(moved, load, UNKNOWN)
    assert np.allclose([moved.load[slot], moved.power_w[slot]], [1.0, 100.0])


def test_who_runs_on_a_node_that_went_is_read_nowhere() -> None:
    moved = Moved()
    lost, there = moved.add(-1, 0, 1.0), moved.add(1, 0, 1.0)
    read(moved, 0.25, 0.5)
    assert np.isnan(moved.load[lost])
    assert moved.load[there] == 0.5
    assert moved.sums(moved.ours, moved.load, 2).tolist() == [0.5, 0]


def test_a_slot_that_was_free_begins_anew() -> None:
    moved = Moved()
    slot = moved.add(0, 1, 4.0)
    for _ in range(3):
        read(moved, 1.0, 1.0)
    moved.free(slot)
    assert (len(moved), moved.gpus[slot]) == (0, 0)
    assert not moved.sums(moved.ours, moved.load, 2).any()
    assert moved.add(1, 0, 1.0) == slot
    assert np.isnan([moved.load[slot], moved.power_w[slot], moved.load_now[slot]]).all()
    read(moved, 1.0, 0.5)
    assert (moved.load[slot], moved.power_w[slot]) == (0.5, 50.0)
    assert len(moved) == 1


def test_there_is_a_slot_for_every_pod() -> None:
    moved = Moved()
    slots = [moved.add(number % 3, 0, 1.0) for number in range(1000)]
    assert len(set(slots)) == len(moved) == 1000
    read(moved, 0.0, 0.5, 1.0)
    assert moved.sums(moved.real, moved.load, 3).tolist() == [0, 166.5, 333]
