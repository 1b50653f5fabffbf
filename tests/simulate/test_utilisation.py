"""The load and power model holds what docs/model.md states."""

from __future__ import annotations

import numpy as np
import pytest

from scheduler.core.nouns import Workload
from scheduler.simulate.traces import TraceNode, load_trace
from scheduler.simulate.utilisation import (
    GPU_MODELS,
    LoadModel,
    draw_mean_util,
    gpu_model,
    weighted_std,
)


def make_node(name: str, gpus: int, model: str = "G3") -> TraceNode:
    return TraceNode(name=name, cpu_milli=96_000, memory_mib=393_216, gpus=gpus, model=model)


def test_every_model_of_the_trace_is_in_the_table() -> None:
    assert {node.model for node in load_trace().nodes} <= set(GPU_MODELS)
    assert gpu_model("never seen") == GPU_MODELS["G2"]


@pytest.mark.parametrize(
    ("workload", "want_low", "want_high"),
    [(Workload.TRAINING, 0.9, 1.0), (Workload.BATCH, 0.9, 1.0), (Workload.INFERENCE, 0.25, 0.45)],
)
def test_means_are_uniform_in_their_class(workload: Workload, want_low: float, want_high: float) -> None:
    rng = np.random.default_rng(1)
    draws = np.array([draw_mean_util(workload, rng) for _ in range(4000)])
    assert want_low <= draws.min()
    assert draws.max() <= want_high
    # Five standard deviations of the mean of 4,000 uniform draws.
    assert draws.mean() == pytest.approx((want_low + want_high) / 2, abs=5 * 0.2 / 12**0.5 / 4000**0.5)


def test_watts_lie_between_idle_and_limit_in_proportion() -> None:
    load = LoadModel([make_node("a", 8), make_node("b", 1, "T4")], np.random.default_rng(1))
    assert load.power_w[1].tolist() == [10.0] + [0.0] * 7
    indices = load.start(0, 3, 0.5)
    assert indices == (0, 1, 2)
    want_w = 50 + 350 * load.util_frac[0, 0]
    assert load.power_w[0, 0] == pytest.approx(want_w)
    assert load.power_w[0, 3] == 50.0
    load.stop(0, indices, 0.5)
    assert (load.power_w[0] == 50.0).all()


def test_noise_has_its_spread_and_its_memory() -> None:
    load = LoadModel([make_node(f"n{i}", 8) for i in range(100)], np.random.default_rng(1))
    for row in range(100):
        load.start(row, 8, 0.5)
    before = load.util_frac.copy()
    load.advance(1.0)
    after = load.util_frac
    assert float(after.std()) == pytest.approx(0.03, rel=0.1)
    assert float(np.corrcoef(before.ravel(), after.ravel())[0, 1]) == pytest.approx(0.9, abs=0.03)


def test_the_noise_does_not_depend_on_how_time_is_cut() -> None:
    load = LoadModel([make_node(f"n{i}", 8) for i in range(200)], np.random.default_rng(1))
    for row in range(200):
        load.start(row, 8, 0.5)
    before = load.util_frac.copy()
    for _ in range(20):
        load.advance(0.05)
    assert float(load.util_frac.std()) == pytest.approx(0.03, rel=0.1)
    assert float(np.corrcoef(before.ravel(), load.util_frac.ravel())[0, 1]) == pytest.approx(0.9, abs=0.03)


def test_utilisation_stays_within_bounds_and_idle_gpus_stay_idle() -> None:
    load = LoadModel([make_node("a", 8), make_node("b", 2)], np.random.default_rng(1))
    load.start(0, 8, 1.0)
    for _ in range(50):
        load.advance(1.0)
        assert load.util_frac.min() >= 0.0
        assert load.util_frac.max() <= 1.0
        assert (load.util_frac[1] == 0.0).all()
    assert load.node_util_frac()[0] == pytest.approx(load.util_frac[0].mean())


def test_energy_is_the_power_that_was_drawn() -> None:
    load = LoadModel([make_node("a", 2)], np.random.default_rng(1))
    want_j = np.zeros((1, 2))
    load.start(0, 1, 0.7)
    for span_s in (1.0, 0.5, 2.0):
        want_j = want_j + load.power_w * span_s
        load.advance(span_s)
    assert load.energy_j == pytest.approx(want_j)


def test_a_gpu_is_never_given_twice() -> None:
    load = LoadModel([make_node("a", 2)], np.random.default_rng(1))
    load.start(0, 1, 0.5)
    with pytest.raises(ValueError, match="1 GPUs with room, 2 asked"):
        load.start(0, 2, 0.5)
    assert load.start(0, 1, 0.5) == (1,)


def test_the_padding_of_small_nodes_is_no_gpu() -> None:
    load = LoadModel([make_node("a", 8), make_node("b", 1)], np.random.default_rng(1))
    with pytest.raises(ValueError, match="GPUs with room"):
        load.start(1, 2, 0.5)
    assert load.gpu_counts.tolist() == [8, 1]


def test_the_spread_weighs_nodes_by_their_gpus() -> None:
    assert weighted_std(np.array([1.0, 0.0]), np.array([3, 1])) == pytest.approx((3 / 16) ** 0.5)
    assert weighted_std(np.array([0.4, 0.4]), np.array([3, 1])) == pytest.approx(0.0)
