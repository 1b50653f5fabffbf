"""How evenly load lies on the nodes: random choice, in turn, fewest pods, and least-loaded on measured load.

    python -m benchmarks.balance [--seeds 10] [--nodes 200] [--loads 0.7,0.85] [--run-times exponential,trace]
                                 [--mean-runs 20] [--retry-s 0] [--ablation] [--trace-dir DIR]

On a virtual clock, with the store, the policies and the decider that the daemon runs. docs/model.md states the load
model, the arrivals and what is measured. All choices of one seed get the same start and the same arrivals.

With `--retry-s` a pod that waits is tried again that often, as under kube-scheduler's backoff (in the demo 1 to 3 s),
instead of the instant there is room for it: for comparing with a run of the demo.
"""

from __future__ import annotations

import argparse
import heapq
import math
import statistics
import time
from collections import deque
from collections.abc import Iterable
from itertools import count, takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks._measure import verdict
from benchmarks._placers import (
    AllKnowing,
    FewestPods,
    InTurn,
    LeastLoaded,
    LeastVariance,
    MeasuredAlone,
    Placer,
    RandomChoice,
)
from scheduler.simulate.traces import Trace, load_trace
from scheduler.simulate.utilisation import LoadModel, weighted_std
from scheduler.simulate.workload import Arrival, Placed, Room, RunTimes, WorkloadModel

MEAN_RUN_S = 60.0
LAG_S = 2
WARM_RUNS = 3
# The targets of docs/benchmarks.md, by load: the most that least-loaded's spread may be of random choice's.
MOST_RATIO = {0.7: 0.5, 0.85: 0.6}
PLACERS: dict[str, type[RandomChoice | LeastLoaded]] = {
    "random": RandomChoice,
    "in turn": InTurn,
    "fewest pods": FewestPods,
    "least-loaded": LeastLoaded,
    "all-knowing": AllKnowing,
    "least variance": LeastVariance,
}
ABLATED = {"no pending load": MeasuredAlone}


class World:
    """One cluster on a virtual clock."""

    def __init__(self, model: WorkloadModel, placer: Placer, seed: int, retry_s: int = 0) -> None:
        trace = model.trace
        self.retry_s = retry_s
        self.placer = placer
        self.room = Room(trace)
        # The same seed for all: only the choices differ.
        self.load = LoadModel(trace.nodes, np.random.default_rng([seed, 4]))
        self.weights = self.load.gpu_counts
        self.largest = int(self.weights.max())
        self.ends: list[tuple[float, int, int, Arrival, tuple[int, ...]]] = []
        self.queue: deque[Arrival] = deque()
        self.least_asked = math.inf
        """GPUs, of those in the queue: most that waits wants more than is free, so most ends need no look at it."""
        self.turns = count()
        self.most_waiting = 0
        self.taken_whole: set[int] = set()
        """Rows of the largest nodes that one pod has to itself."""
        self.spreads: list[float] = []
        self.floors: list[float] = []

    def run(self, fill: Iterable[Placed], arrivals: Iterable[Arrival], mean_runs: int) -> None:
        """Run, and note the spread of every second after the warm-up."""
        rows = {node.name: row for row, node in enumerate(self.room.trace.nodes)}
        for placed in fill:
            self._start(placed.arrival, rows[placed.node], 0.0)
        coming = iter(arrivals)
        upcoming = next(coming, None)
        delayed: deque[NDArray[np.float64]] = deque()
        for second in range(1, int(mean_runs * MEAN_RUN_S) + 1):
            while True:
                comes_s = upcoming.at_s if upcoming else math.inf
                ends_s = self.ends[0][0] if self.ends else math.inf
                if min(comes_s, ends_s) > second:
                    break
                if ends_s <= comes_s or upcoming is None:
                    self._end()
                else:
                    self._arrive(upcoming, comes_s)
                    upcoming = next(coming, None)
            if self.retry_s and second % self.retry_s == 0:
                self._retry(float(second))
            self.load.advance(1.0)
            delayed.append(self.load.util_frac.copy())
            if len(delayed) > LAG_S:
                self.placer.measured(delayed.popleft(), float(second))
            if second > WARM_RUNS * MEAN_RUN_S:
                util_frac = self.load.node_util_frac()
                self.spreads.append(weighted_std(util_frac, self.weights))
                self.floors.append(self._floor(util_frac))

    def _floor(self, util_frac: NDArray[np.float64]) -> float:
        """The spread if all load but that of the pods which fill a largest node lay perfectly evenly.

        Such a pod takes one of the largest nodes wherever it goes, and makes it as busy as itself. So no placing,
        nor any moving, of the pods that run at this instant spreads them less.
        """
        whole = list(self.taken_whole)
        weights = self.weights
        rest = float(util_frac @ weights) - float(util_frac[whole] @ weights[whole])
        even = np.full(len(util_frac), rest / max(int(weights.sum()) - int(weights[whole].sum()), 1))
        even[whole] = util_frac[whole]
        return weighted_std(even, weights)

    def _arrive(self, arrival: Arrival, now_s: float) -> None:
        fitting = self.room.fitting(arrival.job)
        if fitting.size:
            self._start(arrival, self.placer.choose(arrival, fitting, now_s), now_s)
        else:
            self.queue.append(arrival)
            self.least_asked = min(self.least_asked, arrival.gpus)
            self.most_waiting = max(self.most_waiting, len(self.queue))

    def _end(self) -> None:
        end_s, _, row, arrival, indices = heapq.heappop(self.ends)
        self.load.stop(row, indices, arrival.mean_util_frac)
        self.room.give_back(row, arrival.job)
        self.taken_whole.discard(row)
        self.placer.ended(arrival, row, end_s)
        # What waits fitted nowhere until now, so this node is the only choice.
        if self.retry_s or self.least_asked > self.room.gpus[row]:
            return
        for _ in range(len(self.queue)):
            other = self.queue.popleft()
            if self.room.fits(row, other.job):
                self._start(other, row, end_s)
            else:
                self.queue.append(other)
        self.least_asked = min((other.gpus for other in self.queue), default=math.inf)

    def _retry(self, now_s: float) -> None:
        waiting, self.queue = self.queue, deque()
        for arrival in waiting:
            self._arrive(arrival, now_s)

    def _start(self, arrival: Arrival, row: int, now_s: float) -> None:
        self.room.take(row, arrival.job)
        indices = self.load.start(row, arrival.gpus, arrival.mean_util_frac)
        if arrival.gpus == self.largest:
            self.taken_whole.add(row)
        self.placer.started(arrival, row, now_s)
        heapq.heappush(self.ends, (now_s + arrival.run_s, next(self.turns), row, arrival, indices))


def main() -> None:
    """Print one table for each kind of run times and each load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--loads", default="0.7,0.85")
    parser.add_argument("--run-times", default="exponential,trace")
    parser.add_argument("--mean-runs", type=int, default=20, help="length of a run, warm-up included")
    parser.add_argument("--retry-s", type=int, default=0, help="how often a waiting pod is tried; 0: at once")
    parser.add_argument("--ablation", action="store_true", help="least-loaded without pending load, too")
    parser.add_argument("--trace-dir", type=Path, help="whole lists, instead of the built-in slice")
    args = parser.parse_args()
    trace = load_trace(nodes=args.nodes, trace_dir=args.trace_dir)
    print(
        f"{len(trace.nodes)} nodes, {trace.gpus} GPUs, {trace.source}; mean run {MEAN_RUN_S:g} s, lag {LAG_S} s;"
        f" {args.mean_runs} mean runs, of which the first {WARM_RUNS} do not count"
    )
    print("GPU-weighted standard deviation across nodes of instantaneous utilisation, mean over time")
    for run_times in (RunTimes(part) for part in args.run_times.split(",")):
        for load_frac in (float(part) for part in args.loads.split(",")):
            placers = PLACERS | (ABLATED if args.ablation else {})
            _compare(trace, run_times, load_frac, args.seeds, args.mean_runs, placers, args.retry_s)
    print(f"\n{time.process_time():.0f} s of CPU")


def _compare(
    trace: Trace,
    run_times: RunTimes,
    load_frac: float,
    seeds: int,
    mean_runs: int,
    placers: dict[str, type[RandomChoice | LeastLoaded]],
    retry_s: int,
) -> None:
    plain = WorkloadModel(trace, load_frac=1.0, speed_per_s=1.0, seed=0)
    spreads: dict[str, list[float]] = {name: [] for name in placers}
    floors: dict[str, list[float]] = {name: [] for name in placers}
    waiting: dict[str, int] = dict.fromkeys(placers, 0)
    for seed in range(seeds):
        model = WorkloadModel(
            trace,
            load_frac=load_frac,
            speed_per_s=plain.mean_run_s / MEAN_RUN_S,
            seed=seed,
            run_times=run_times,
        )
        fill = model.fill()
        arrivals = list(takewhile(lambda each: each.at_s <= mean_runs * MEAN_RUN_S, model.arrivals()))
        for name, kind in placers.items():
            world = World(model, kind(trace, seed), seed, retry_s)
            world.run(fill, arrivals, mean_runs)
            spreads[name].append(statistics.fmean(world.spreads))
            floors[name].append(statistics.fmean(world.floors))
            waiting[name] = max(waiting[name], world.most_waiting)
    print(f"\nload {load_frac:g}, run times: {run_times.value}, {seeds} seeds")
    print(
        f"  {'':16}{'spread':>8}{'± s.d.':>9}{'of random':>11}{'± s.d.':>9}{'floor':>9}{'most waiting':>14}"
    )
    ratios: dict[str, float] = {}
    for name, values in spreads.items():
        each = [mine / other for mine, other in zip(values, spreads["random"], strict=True)]
        ratios[name] = statistics.fmean(each)
        print(
            f"  {name:16}{statistics.fmean(values):8.4f}{_sd(values):9.4f}{ratios[name]:11.3f}{_sd(each):9.3f}"
            f"{statistics.fmean(floors[name]):9.4f}{waiting[name]:14}",
            flush=True,
        )
    at = f"load {load_frac:g}, run times {run_times.value}: least-loaded over"
    if load_frac in MOST_RATIO:
        verdict(f"{at} random", ratios["least-loaded"], MOST_RATIO[load_frac])
    for rival in ("in turn", "fewest pods"):
        verdict(f"{at} {rival}", ratios["least-loaded"] / ratios[rival], 1.0)


def _sd(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
