"""The load and power model of simulated GPUs: docs/model.md states it and its sources.

Shapes: everything is `(nodes, gpus)`, padded to the largest node; padding has no GPU and stays at zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.core.nouns import Workload
from scheduler.simulate.traces import TraceNode

FloatArray = NDArray[np.float64]

# Mean utilisation of a task's GPUs, uniform between the two. Source: docs/model.md.
MEAN_UTIL_FRAC: dict[Workload, tuple[float, float]] = {
    Workload.TRAINING: (0.9, 1.0),
    Workload.BATCH: (0.9, 1.0),
    Workload.INFERENCE: (0.25, 0.45),
}
NOISE_SD_FRAC = 0.03
# Correlation of the noise with itself one second earlier: a bump lasts about ten seconds. A guess.
NOISE_KEPT_FRAC_PER_S = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuModel:
    """What a model draws and holds."""

    idle_w: float
    limit_w: float
    memory_bytes: int
    limit_min_w: float


_GIB = 2**30
# idle_w and limit_w: the table of the PWR paper (CCGrid '25), which takes G2 for an A10 and G3 for an A100.
# Memory and lowest limit: vendors' data sheets of those cards.
GPU_MODELS: dict[str, GpuModel] = {
    "V100M16": GpuModel(idle_w=30, limit_w=300, memory_bytes=16 * _GIB, limit_min_w=100),
    "V100M32": GpuModel(idle_w=30, limit_w=300, memory_bytes=32 * _GIB, limit_min_w=100),
    "P100": GpuModel(idle_w=25, limit_w=250, memory_bytes=16 * _GIB, limit_min_w=125),
    "T4": GpuModel(idle_w=10, limit_w=70, memory_bytes=16 * _GIB, limit_min_w=60),
    "A10": GpuModel(idle_w=30, limit_w=150, memory_bytes=24 * _GIB, limit_min_w=100),
    "G2": GpuModel(idle_w=30, limit_w=150, memory_bytes=24 * _GIB, limit_min_w=100),
    "G3": GpuModel(idle_w=50, limit_w=400, memory_bytes=80 * _GIB, limit_min_w=100),
}
# A model that the table lacks counts as the commonest one of the trace.
OTHER_MODEL = "G2"


def gpu_model(name: str) -> GpuModel:
    """The table's row of a model."""
    return GPU_MODELS.get(name, GPU_MODELS[OTHER_MODEL])


def draw_mean_util(workload: Workload, rng: np.random.Generator) -> float:
    """One task's mean utilisation: the same on each of its GPUs, for as long as it runs."""
    low, high = MEAN_UTIL_FRAC[workload]
    return float(rng.uniform(low, high))


class LoadModel:
    """What every GPU of a simulated cluster is doing. Watts and joules are of the time that `advance` is told."""

    def __init__(self, nodes: Sequence[TraceNode], rng: np.random.Generator) -> None:
        counts = self._counts = np.array([node.gpus for node in nodes], dtype=np.int64)
        shape = (len(nodes), int(counts.max(initial=0)))
        self.exists: NDArray[np.bool_] = np.arange(shape[1])[None, :] < counts[:, None]
        self._replicas = np.array([node.replicas for node in nodes], dtype=np.int64)
        self._held = np.zeros(shape, dtype=np.int64)
        models = [gpu_model(node.model) for node in nodes]
        self.idle_w: FloatArray = (
            np.array([m.idle_w for m in models], dtype=np.float64)[:, None] * self.exists
        )
        self.limit_w: FloatArray = (
            np.array([m.limit_w for m in models], dtype=np.float64)[:, None] * self.exists
        )
        self._span_w = self.limit_w - self.idle_w
        self.busy: NDArray[np.bool_] = np.zeros(shape, dtype=np.bool_)
        self.util_frac: FloatArray = np.zeros(shape)
        self.power_w: FloatArray = self.idle_w.copy()
        self.energy_j: FloatArray = np.zeros(shape)
        self._mean_frac: FloatArray = np.zeros(shape)
        self._rng = rng
        # The noise starts where it stays: drawn from its long-run distribution, not from zero.
        self._noise_frac: FloatArray = rng.normal(0.0, NOISE_SD_FRAC, shape)

    @property
    def allocated(self) -> FloatArray:
        """How much of each node's GPUs pods hold, in GPUs, `(nodes,)`."""
        return np.asarray(self._held.sum(axis=1) / self._replicas, dtype=np.float64)

    @property
    def gpu_counts(self) -> NDArray[np.int64]:
        """GPUs per node."""
        return self._counts

    def start(self, row: int, gpus: int, mean_util_frac: float) -> tuple[int, ...]:
        """Let a task run on those GPUs of a node that fewest share, and say which those are.

        The first of them where several are alike, as the device plugin hands them out. A replica keeps its part of
        the GPU as busy as the task is.

        Raises:
            ValueError: The node has not that much room: the caller has overcommitted it.
        """
        there = np.flatnonzero(self.exists[row] & (self._held[row] < self._replicas[row]))
        taken = there[np.argsort(self._held[row, there], kind="stable")][:gpus]
        if len(taken) < gpus:
            raise ValueError(f"node row {row} has {len(taken)} GPUs with room, {gpus} asked")
        self._hold(row, taken, 1, mean_util_frac)
        return tuple(taken.tolist())

    def stop(self, row: int, indices: tuple[int, ...], mean_util_frac: float) -> None:
        """The task on these GPUs has ended."""
        self._hold(row, np.array(indices, dtype=np.intp), -1, mean_util_frac)

    def _hold(self, row: int, indices: NDArray[np.intp], sign: int, mean_util_frac: float) -> None:
        self._held[row, indices] += sign
        self._mean_frac[row, indices] += sign * mean_util_frac / self._replicas[row]
        self.busy[row] = self._held[row] > 0
        # Sums of what came and went leave rounding behind.
        self._mean_frac[row, ~self.busy[row]] = 0.0
        self._settle(row)

    def advance(self, span_s: float) -> None:
        """Let time pass: energy is what was drawn until now, then the noise moves on."""
        self.energy_j += self.power_w * span_s
        kept_frac = NOISE_KEPT_FRAC_PER_S**span_s
        fresh = self._rng.normal(0.0, NOISE_SD_FRAC, self._noise_frac.shape)
        self._noise_frac = kept_frac * self._noise_frac + math.sqrt(1.0 - kept_frac**2) * fresh
        self._settle(slice(None))

    def node_util_frac(self) -> FloatArray:
        """Mean utilisation of each node's GPUs, `(nodes,)`."""
        return np.asarray(self.util_frac.sum(axis=1) / np.maximum(self._counts, 1), dtype=np.float64)

    def _settle(self, rows: int | slice) -> None:
        # For one row this runs at every start and end of a task: plain ufuncs, since np.clip costs as much as all.
        util = self._mean_frac[rows] + self._noise_frac[rows]
        np.maximum(util, 0.0, out=util)
        np.minimum(util, 1.0, out=util)
        util *= self.busy[rows]
        self.util_frac[rows] = util
        util *= self._span_w[rows]
        util += self.idle_w[rows]
        self.power_w[rows] = util


def weighted_std(values: FloatArray, weights: NDArray[np.int64]) -> float:
    """Standard deviation across nodes, each node counted by its GPUs: 0 is perfect balance."""
    total = float(weights.sum())
    off = values - float(values @ weights) / total
    return math.sqrt(float((off * off) @ weights) / total)
