"""Arrivals, the initial fill, and the Kubernetes objects made of them."""

from __future__ import annotations

import itertools
from collections import Counter

import msgspec
import numpy as np
import pytest

from scheduler.cluster.objects import Node, Pod, quantity, requested
from scheduler.core.errors import TraceError
from scheduler.core.nouns import GPU_RESOURCE, Workload
from scheduler.simulate.manifests import node_object, pod_object, site_of
from scheduler.simulate.traces import Trace, TraceNode, TraceTask, load_trace
from scheduler.simulate.workload import Room, RunTimes, WorkloadModel


@pytest.fixture(scope="module")
def model() -> WorkloadModel:
    return WorkloadModel(load_trace(nodes=200), load_frac=0.85, speed_per_s=60.0, seed=7)


def make_task(name: str = "t", **changes: object) -> TraceTask:
    whole: dict[str, object] = {
        "name": name,
        "cpu_milli": 1000,
        "memory_mib": 1024,
        "gpus": 1,
        "gpu_milli": 1000,
        "models": (),
        "qos": "BE",
        "run_s": 100.0,
    }
    return TraceTask(**(whole | changes))  # type: ignore[arg-type]  # a builder


def make_model(*tasks: TraceTask, seed: int = 1) -> WorkloadModel:
    nodes = (TraceNode(name="a", cpu_milli=8000, memory_mib=65_536, gpus=4, model="T4"),)
    trace = Trace(nodes=nodes, tasks=tasks, source="test")
    return WorkloadModel(trace, load_frac=0.5, speed_per_s=10.0, seed=seed)


def test_the_same_seed_gives_the_same_arrivals_and_another_seed_others(model: WorkloadModel) -> None:
    again = WorkloadModel(model.trace, load_frac=0.85, speed_per_s=60.0, seed=7)
    other = WorkloadModel(model.trace, load_frac=0.85, speed_per_s=60.0, seed=8)
    first = list(itertools.islice(model.arrivals(), 50))
    assert first == list(itertools.islice(again.arrivals(), 50))
    assert [a.name for a in first] != [a.name for a in itertools.islice(other.arrivals(), 50)]
    assert model.fill() == again.fill()


def test_arrivals_offer_the_load_that_was_asked(model: WorkloadModel) -> None:
    # Three laps: each task comes three times, so only the gaps are random.
    laps = list(itertools.islice(model.arrivals(), 3 * model.counted.jobs))
    offered = sum(arrival.gpus * arrival.run_s for arrival in laps) / (laps[-1].at_s * model.trace.gpus)
    # The sum of 4,497 exponential gaps is off by 1/sqrt(4497) = 1.5 % (one standard deviation).
    assert offered == pytest.approx(0.85, rel=0.06)
    assert Counter(Counter(arrival.job.task.name for arrival in laps).values()) == {3: model.counted.jobs}
    assert len({arrival.name for arrival in laps}) == len(laps)


def test_run_times_are_clipped_and_divided_by_the_speed() -> None:
    model = make_model(make_task("a", run_s=1.0), make_task("b", run_s=600.0), make_task("c", run_s=1e6))
    runs = {arrival.job.task.name: arrival.run_s for arrival in itertools.islice(model.arrivals(), 3)}
    assert runs == {"a": 6.0, "b": 60.0, "c": 1440.0}
    assert model.counted.clipped == 2


def test_drawn_run_times_keep_the_mean_and_the_load_and_forget_the_task(model: WorkloadModel) -> None:
    drawn = WorkloadModel(
        model.trace, load_frac=0.85, speed_per_s=60.0, seed=7, run_times=RunTimes.EXPONENTIAL
    )
    laps = list(itertools.islice(drawn.arrivals(), 3 * drawn.counted.jobs))
    runs = np.array([arrival.run_s for arrival in laps])
    # An exponential's standard deviation is its mean; five standard errors of 4,497 draws are 7.5 %.
    assert runs.mean() == pytest.approx(model.mean_run_s, rel=0.075)
    assert runs.std() == pytest.approx(model.mean_run_s, rel=0.1)
    whole_nodes = [arrival.run_s for arrival in laps if arrival.gpus == 8]
    # 27 of them: 5 / sqrt(27) of the mean. In the trace they run 2.5 times as long as the others.
    assert np.mean(whole_nodes) == pytest.approx(model.mean_run_s, rel=0.97)
    offered = sum(arrival.gpus * arrival.run_s for arrival in laps) / (laps[-1].at_s * drawn.trace.gpus)
    assert offered == pytest.approx(0.85, rel=0.15)
    # No job is long by nature, so what is met running has as much before it as one that starts.
    left = [placed.arrival.run_s for placed in drawn.fill()]
    assert np.mean(left) == pytest.approx(drawn.mean_run_s, rel=5 / len(left) ** 0.5)


def test_what_is_left_out_or_changed_is_counted() -> None:
    model = make_model(
        make_task("cpu", gpus=0),
        make_task("share", gpu_milli=300),
        make_task("named", models=("T4",)),
        make_task("elsewhere", models=("A10",)),
        make_task("too-big", gpus=8),
    )
    counted = model.counted
    assert counted.jobs == 2
    assert counted.cpu_only_left_out == 1
    assert counted.no_such_model_left_out == 2
    assert (counted.shares_made_whole, counted.naming_a_model) == (1, 1)
    assert {job.gpus for job in model.jobs} == {1}


def test_a_trace_in_which_nothing_fits_is_refused() -> None:
    with pytest.raises(TraceError, match="no task"):
        make_model(make_task("cpu", gpus=0))


def test_four_tenths_are_inference_and_best_effort_is_batch(model: WorkloadModel) -> None:
    counts = Counter(job.workload for job in model.jobs)
    assert counts[Workload.INFERENCE] == pytest.approx(0.4 * model.counted.jobs, abs=1)
    assert all(job.task.qos == "LS" for job in model.jobs if job.workload is Workload.INFERENCE)
    assert {job.workload for job in model.jobs if job.task.qos == "BE"} == {Workload.BATCH}


def test_the_fill_reaches_the_load_and_fits_on_every_node(model: WorkloadModel) -> None:
    room = Room(model.trace)
    rows = {node.name: row for row, node in enumerate(model.trace.nodes)}
    fill = model.fill()
    for placed in fill:
        assert room.fits(rows[placed.node], placed.arrival.job)
        room.take(rows[placed.node], placed.arrival.job)
    assert sum(placed.arrival.gpus for placed in fill) == int(0.85 * model.trace.gpus)
    assert all(placed.arrival.run_s <= placed.arrival.job.run_s / 60.0 for placed in fill)


def test_the_fill_starts_in_a_steady_state() -> None:
    # One job in ten runs 100 times as long: it is 100/109 of the GPU time, so that much of what is met running.
    tasks = [make_task(f"t{i}", run_s=6000.0 if i == 0 else 60.0) for i in range(10)]
    nodes = tuple(
        TraceNode(name=f"n{i}", cpu_milli=64_000, memory_mib=65_536, gpus=8, model="T4") for i in range(200)
    )
    model = WorkloadModel(
        Trace(nodes=nodes, tasks=tuple(tasks), source="test"), load_frac=0.9, speed_per_s=1.0, seed=1
    )
    fill = model.fill()
    long_frac = sum(placed.arrival.job.run_s > 1000 for placed in fill) / len(fill)
    assert long_frac == pytest.approx(100 / 109, abs=0.03)
    assert float(np.mean([p.arrival.run_s / p.arrival.job.run_s for p in fill])) == pytest.approx(
        0.5, abs=0.05
    )


def test_room_gives_back_exactly_what_it_took(model: WorkloadModel) -> None:
    room, untouched = Room(model.trace), Room(model.trace)
    for job in model.jobs[:50]:
        row = int(room.fitting(job)[0])
        room.take(row, job)
        room.give_back(row, job)
    for column in ("cpu_milli", "memory_mib", "gpus", "pods"):
        assert (getattr(room, column) == getattr(untouched, column)).all()


def test_a_node_reads_back_as_the_daemon_reads_it() -> None:
    node = TraceNode(name="n1", cpu_milli=96_000, memory_mib=393_216, gpus=8, model="G2")
    read = msgspec.json.decode(msgspec.json.encode(node_object(node)), type=Node)
    assert read.metadata.name == "n1"
    assert read.metadata.labels is not None
    assert read.metadata.labels["nvidia.com/gpu.product"] == "G2"
    assert read.metadata.labels["site"] in {"dc-1", "aws-a"}
    allocatable = read.status.allocatable or {}
    assert quantity(allocatable["cpu"]) == 96.0
    assert quantity(allocatable["memory"]) == 393_216 * 2**20
    assert quantity(allocatable[GPU_RESOURCE]) == 8


def test_a_pod_asks_for_whole_gpus_and_requires_the_models_it_names() -> None:
    model = make_model(make_task("t", gpu_milli=300, models=("G2", "T4")))
    arrival = next(model.arrivals())
    made = pod_object(arrival, annotations={"wattbalance.io/pools": "dc-1"})
    read = msgspec.json.decode(msgspec.json.encode(made), type=Pod)
    assert requested(read.spec) == 1.0
    assert read.metadata.annotations == {
        "wattbalance.io/workload": arrival.job.workload.value,
        "wattbalance.io/pools": "dc-1",
    }
    want_expression = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["G2", "T4"]}
    want_terms = {"nodeSelectorTerms": [{"matchExpressions": [want_expression]}]}
    want_affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": want_terms}}
    assert msgspec.json.decode(msgspec.json.encode(made))["spec"]["affinity"] == want_affinity
    assert (read.spec.node_name, read.status.phase) == ("", "Pending")


def test_a_pod_of_the_fill_runs_already() -> None:
    arrival = next(make_model(make_task("t")).arrivals())
    read = msgspec.json.decode(msgspec.json.encode(pod_object(arrival, node="a")), type=Pod)
    assert (read.spec.node_name, read.status.phase) == ("a", "Running")
    assert read.spec.affinity is None


def test_about_a_fifth_of_the_nodes_are_in_the_cloud_and_stay_there() -> None:
    sites = {node.name: site_of(node) for node in load_trace().nodes}
    cloud_frac = sum(site == "aws-a" for site in sites.values()) / len(sites)
    # 300 draws of 0.2: four standard deviations are 0.09.
    assert abs(cloud_frac - 0.2) < 0.09
    assert sites == {node.name: site_of(node) for node in load_trace(nodes=300).nodes}
