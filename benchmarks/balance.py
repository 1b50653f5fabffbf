"""How evenly load lies on the nodes: random choice, in turn, fewest pods, and least-loaded on measured load.

    python benchmarks/balance.py [--seeds 10] [--nodes 200] [--loads 0.7,0.85]

On a virtual clock, with the store, the policies and the decider that the daemon runs. docs/model.md states the load
model, the arrivals and what is measured. All choices of one seed get the same start and the same arrivals.
"""

from __future__ import annotations

import argparse
import heapq
import math
import statistics
from collections import deque
from collections.abc import Iterable
from itertools import count
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.intent import Intents
from scheduler.cluster.objects import Node, Pod
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.cluster.store import Store, StoreSettings
from scheduler.core.nouns import Placement, Workload
from scheduler.decision.decider import Decider
from scheduler.policy import registry
from scheduler.policy.base import Filter, Score
from scheduler.policy.profiles import NamedFilter, Profile, Weighted
from scheduler.simulate.fleet import inventory_of
from scheduler.simulate.manifests import node_object, pod_object
from scheduler.simulate.traces import Trace, load_trace
from scheduler.simulate.utilisation import LoadModel, weighted_std
from scheduler.simulate.workload import Arrival, Placed, Room, WorkloadModel
from scheduler.telemetry.sample import SCHEMA_VERSION, Sample

MEAN_RUN_S = 60.0
LAG_S = 2
WARM_RUNS = 3
MEASURED_RUNS = 7
# What a profile of the shipped example expects of one GPU.
EXPECTED_LOADS = {Workload.TRAINING: 0.9, Workload.BATCH: 0.9, Workload.INFERENCE: 0.4}

Rows = NDArray[np.intp]


class Placer(Protocol):
    """Chooses among the nodes that have room, and hears what happens."""

    def choose(self, arrival: Arrival, fitting: Rows, now_s: float) -> int:
        """A row of `fitting`."""
        ...

    def started(self, arrival: Arrival, row: int, now_s: float) -> None:
        """A pod runs."""
        ...

    def ended(self, arrival: Arrival, row: int, now_s: float) -> None:
        """A pod has ended."""
        ...

    def measured(self, util_frac: NDArray[np.float64], now_s: float) -> None:
        """Telemetry comes in, as old as the lag."""
        ...


class RandomChoice:
    """Any node that has room."""

    def __init__(self, trace: Trace, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 10])
        self.pods = np.zeros(len(trace.nodes), np.int64)
        self.last = -1

    def choose(self, arrival: Arrival, fitting: Rows, now_s: float) -> int:
        return int(self.rng.choice(fitting))

    def started(self, arrival: Arrival, row: int, now_s: float) -> None:
        self.pods[row] += 1

    def ended(self, arrival: Arrival, row: int, now_s: float) -> None:
        self.pods[row] -= 1

    def measured(self, util_frac: NDArray[np.float64], now_s: float) -> None:
        pass


class InTurn(RandomChoice):
    """The next node in the list that has room."""

    def choose(self, arrival: Arrival, fitting: Rows, now_s: float) -> int:
        later = fitting[fitting > self.last]
        self.last = int(later[0] if later.size else fitting[0])
        return self.last


class FewestPods(RandomChoice):
    """A node with the fewest pods that run there now; ties at random."""

    def choose(self, arrival: Arrival, fitting: Rows, now_s: float) -> int:
        counts = self.pods[fitting]
        return int(self.rng.choice(fitting[counts == counts.min()]))


class AllKnowing(RandomChoice):
    """Least loaded by what each task will really use, without lag: greedy, so a mark to compare with, no bound."""

    def __init__(self, trace: Trace, seed: int) -> None:
        super().__init__(trace, seed)
        self.gpus = np.array([node.gpus for node in trace.nodes], np.float64)
        self.load = np.zeros(len(trace.nodes))

    def choose(self, arrival: Arrival, fitting: Rows, now_s: float) -> int:
        after = self.load[fitting] + arrival.gpus * arrival.mean_util_frac
        return int(fitting[np.argmin(after / self.gpus[fitting])])

    def started(self, arrival: Arrival, row: int, now_s: float) -> None:
        self.load[row] += arrival.gpus * arrival.mean_util_frac

    def ended(self, arrival: Arrival, row: int, now_s: float) -> None:
        self.load[row] -= arrival.gpus * arrival.mean_util_frac


class LeastLoaded:
    """The daemon's own store, filters, policy and decider."""

    def __init__(self, trace: Trace, seed: int) -> None:
        self.trace = trace
        self.store = Store(StoreSettings(expected_loads=EXPECTED_LOADS), Intents())
        filters = [(name, registry.build(name, {})) for name in registry.known()]
        score = registry.build("least-loaded", {})
        assert isinstance(score, Score)
        profiles = {
            workload: Profile(
                name=workload.value,
                workload=workload,
                placement=Placement.DECISIVE,
                expected_load=EXPECTED_LOADS[workload],
                scores=(Weighted("least-loaded", 1.0, score),),
            )
            for workload in Workload
        }
        named = tuple(NamedFilter(name, policy) for name, policy in filters if isinstance(policy, Filter))
        self.decider = Decider(self.store, profiles, named)
        for node in trace.nodes:
            made = msgspec.json.decode(msgspec.json.encode(node_object(node)), type=Node)
            self.store.apply(Changed(Kind.NODE, made), 0.0)
            self.store.see_inventory(node.name, inventory_of(node))
        self.store.apply(Listed(Kind.NODE, frozenset(self.store.nodes)), 0.0)
        self.to_store = np.array([self.store.rows[node.name] for node in trace.nodes], np.intp)
        self.from_store = {int(row): index for index, row in enumerate(self.to_store)}
        self.seq = 0

    def choose(self, arrival: Arrival, fitting: Rows, now_s: float) -> int:
        pod = self._pod(arrival)
        self.store.apply(Changed(Kind.POD, pod), now_s)
        request = self.store.request(pod, 0.0, self.decider.profile_facts)
        outcome = self.decider.place(request, self.to_store[fitting], now_s, now_s)
        (kept,) = outcome.kept.tolist()
        return self.from_store[kept]

    def started(self, arrival: Arrival, row: int, now_s: float) -> None:
        self.store.apply(Changed(Kind.POD, self._pod(arrival, self.trace.nodes[row].name)), now_s)

    def ended(self, arrival: Arrival, row: int, now_s: float) -> None:
        self.store.apply(Gone(Kind.POD, self._pod(arrival, self.trace.nodes[row].name)), now_s)

    def measured(self, util_frac: NDArray[np.float64], now_s: float) -> None:
        self.seq += 1
        batch = []
        for row, node in enumerate(self.trace.nodes):
            util = util_frac[row, : node.gpus].tolist()
            sample = Sample(
                v=SCHEMA_VERSION,
                node=node.name,
                agent="a",
                boot="b",
                seq=self.seq,
                unix_s=now_s,
                span_s=1.0,
                inventory="",
                state=["ok"] * node.gpus,
                power_w=[None] * node.gpus,
                util_frac=util,
                energy_j=[None] * node.gpus,
            )
            batch.append((node.name, sample, now_s))
        self.store.see_samples(batch)

    def _pod(self, arrival: Arrival, node: str = "") -> Pod:
        made = pod_object(arrival, node=node)
        metadata = made["metadata"]
        assert isinstance(metadata, dict)
        metadata["uid"] = arrival.name
        return msgspec.json.decode(msgspec.json.encode(made), type=Pod)


class World:
    """One cluster on a virtual clock."""

    def __init__(self, model: WorkloadModel, placer: Placer, seed: int) -> None:
        trace = model.trace
        self.placer = placer
        self.room = Room(trace)
        # The same seed for all: only the choices differ.
        self.load = LoadModel(trace.nodes, np.random.default_rng([seed, 4]))
        self.ends: list[tuple[float, int, int, Arrival, tuple[int, ...]]] = []
        self.queue: deque[Arrival] = deque()
        self.turns = count()
        self.most_waiting = 0

    def run(self, fill: Iterable[Placed], arrivals: Iterable[Arrival], rows: dict[str, int]) -> float:
        """Run, and give the time-averaged spread after the warm-up."""
        for placed in fill:
            self._start(placed.arrival, rows[placed.node], 0.0)
        coming = iter(arrivals)
        upcoming = next(coming)
        delayed: deque[NDArray[np.float64]] = deque()
        spreads: list[float] = []
        weights = self.load.gpu_counts
        for second in range(1, int((WARM_RUNS + MEASURED_RUNS) * MEAN_RUN_S) + 1):
            while min(upcoming.at_s, self.ends[0][0] if self.ends else math.inf) <= second:
                if self.ends and self.ends[0][0] <= upcoming.at_s:
                    self._end()
                else:
                    self._arrive(upcoming, upcoming.at_s)
                    upcoming = next(coming)
            self.load.advance(1.0)
            delayed.append(self.load.util_frac.copy())
            if len(delayed) > LAG_S:
                self.placer.measured(delayed.popleft(), float(second))
            if second > WARM_RUNS * MEAN_RUN_S:
                spreads.append(weighted_std(self.load.node_util_frac(), weights))
        return statistics.fmean(spreads)

    def _arrive(self, arrival: Arrival, now_s: float) -> None:
        fitting = self.room.fitting(arrival.job)
        if fitting.size:
            self._start(arrival, self.placer.choose(arrival, fitting, now_s), now_s)
        else:
            self.queue.append(arrival)
            self.most_waiting = max(self.most_waiting, len(self.queue))

    def _end(self) -> None:
        end_s, _, row, arrival, indices = heapq.heappop(self.ends)
        self.load.stop(row, indices)
        self.room.give_back(row, arrival.job)
        self.placer.ended(arrival, row, end_s)
        # What waits fitted nowhere until now, so this node is the only choice.
        for _ in range(len(self.queue)):
            other = self.queue.popleft()
            if self.room.fits(row, other.job):
                self._start(other, row, end_s)
            else:
                self.queue.append(other)

    def _start(self, arrival: Arrival, row: int, now_s: float) -> None:
        self.room.take(row, arrival.job)
        indices = self.load.start(row, arrival.gpus, arrival.mean_util_frac)
        self.placer.started(arrival, row, now_s)
        heapq.heappush(self.ends, (now_s + arrival.run_s, next(self.turns), row, arrival, indices))


PLACERS: dict[str, type[RandomChoice | LeastLoaded]] = {
    "random": RandomChoice,
    "in turn": InTurn,
    "fewest pods": FewestPods,
    "least-loaded": LeastLoaded,
    "all-knowing": AllKnowing,
}
# The limits: least-loaded over random.
MOST_RATIO = {0.7: 0.5, 0.85: 0.6}


def main() -> None:
    """Print one table per load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--loads", default="0.7,0.85")
    args = parser.parse_args()
    trace = load_trace(nodes=args.nodes)
    rows = {node.name: row for row, node in enumerate(trace.nodes)}
    plain = WorkloadModel(trace, load_frac=1.0, speed_per_s=1.0, seed=0)
    speed_per_s = plain.mean_run_s / MEAN_RUN_S
    print(
        f"{len(trace.nodes)} nodes, {trace.gpus} GPUs, {trace.source}; mean run {MEAN_RUN_S:g} s, lag {LAG_S} s"
    )
    print("GPU-weighted standard deviation across nodes of instantaneous utilisation, mean over time")
    for load_frac in (float(part) for part in args.loads.split(",")):
        spreads: dict[str, list[float]] = {name: [] for name in PLACERS}
        waiting: dict[str, int] = dict.fromkeys(PLACERS, 0)
        for seed in range(args.seeds):
            model = WorkloadModel(trace, load_frac=load_frac, speed_per_s=speed_per_s, seed=seed)
            fill = model.fill()
            for name, kind in PLACERS.items():
                world = World(model, kind(trace, seed), seed)
                spreads[name].append(world.run(fill, model.arrivals(), rows))
                waiting[name] = max(waiting[name], world.most_waiting)
        print(f"\nload {load_frac:g}, {args.seeds} seeds")
        print(f"  {'':14}{'spread':>8}{'± s.d.':>9}{'of random':>11}{'± s.d.':>9}{'most waiting':>14}")
        for name, values in spreads.items():
            ratios = [mine / other for mine, other in zip(values, spreads["random"], strict=True)]
            print(
                f"  {name:14}{statistics.fmean(values):8.4f}{_sd(values):9.4f}"
                f"{statistics.fmean(ratios):11.3f}{_sd(ratios):9.3f}{waiting[name]:14}"
            )
        if load_frac in MOST_RATIO:
            print(f"  wanted: least-loaded at most {MOST_RATIO[load_frac]} of random, and below in turn")


def _sd(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
