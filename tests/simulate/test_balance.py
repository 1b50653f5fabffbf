"""The balance benchmark measures what docs/model.md says, and sees what it is there to see."""

from __future__ import annotations

from itertools import takewhile
from statistics import fmean

import pytest

from benchmarks._placers import LeastLoaded, LeastVariance, RandomChoice
from benchmarks.balance import World
from scheduler.simulate.traces import Trace, TraceNode, TraceTask, load_trace
from scheduler.simulate.workload import RunTimes, WorkloadModel

MEAN_RUNS = 6


def run_world(trace: Trace, kind: type[RandomChoice | LeastLoaded], load_frac: float = 0.7) -> World:
    plain = WorkloadModel(trace, load_frac=load_frac, speed_per_s=1.0, seed=1)
    model = WorkloadModel(
        trace,
        load_frac=load_frac,
        speed_per_s=plain.mean_run_s / 60.0,
        seed=1,
        run_times=RunTimes.EXPONENTIAL,
    )
    arrivals = takewhile(lambda each: each.at_s <= MEAN_RUNS * 60.0, model.arrivals())
    world = World(model, kind(trace, 1), 1)
    world.run(model.fill(), arrivals, MEAN_RUNS)
    return world


@pytest.fixture(scope="module")
def trace() -> Trace:
    return load_trace(nodes=30)


def test_only_what_comes_after_three_mean_runs_counts(trace: Trace) -> None:
    assert len(run_world(trace, RandomChoice).spreads) == (MEAN_RUNS - 3) * 60


def test_the_same_seed_measures_the_same(trace: Trace) -> None:
    assert run_world(trace, LeastLoaded).spreads == run_world(trace, LeastLoaded).spreads


def test_measured_load_spreads_more_evenly_than_chance_and_no_one_beats_the_floor(trace: Trace) -> None:
    worlds = [run_world(trace, kind) for kind in (RandomChoice, LeastLoaded, LeastVariance)]
    for world in worlds:
        assert all(low <= spread + 1e-9 for low, spread in zip(world.floors, world.spreads, strict=True))
    by_chance, ours, _ = (fmean(world.spreads) for world in worlds)
    assert ours < by_chance


def test_pods_that_fill_their_nodes_leave_nothing_to_balance() -> None:
    nodes = tuple(
        TraceNode(name=f"n{i}", cpu_milli=64_000, memory_mib=65_536, gpus=8, model="T4") for i in range(20)
    )
    task = TraceTask(
        name="t", cpu_milli=1000, memory_mib=1024, gpus=8, gpu_milli=1000, models=(), qos="BE", run_s=600.0
    )
    world = run_world(Trace(nodes=nodes, tasks=(task,), source="test"), LeastVariance)
    assert world.floors == pytest.approx(world.spreads)
    assert fmean(world.spreads) > 0.1
