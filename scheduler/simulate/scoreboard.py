"""What a run came to: pure accumulators that are told instants, and the summary that is made of them.

Nothing here reads a clock or a socket. Watts and joules are those of the world's wall time; only the summary
multiplies by the speed, and calls the result simulated kWh.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from scheduler.simulate.utilisation import LoadModel, weighted_std
from scheduler.simulate.workload import Arrival, Counted, Placed, Room, WorkloadModel

_J_PER_KWH = 3.6e6
# Log-spaced bounds of latencies, 10 us to 100 s, sixteen a decade: percentiles to within 8 %, in constant memory.
_BUCKETS_PER_DECADE = 16
_LOWEST_S = 1e-5
_DECADES = 7


class Latencies:
    """Percentiles of many durations without keeping them."""

    def __init__(self) -> None:
        self._counts = [0] * (_BUCKETS_PER_DECADE * _DECADES + 1)
        self.count = 0
        self.most_s = 0.0

    def add(self, duration_s: float) -> None:
        """Count one."""
        place = math.ceil(math.log10(max(duration_s, _LOWEST_S) / _LOWEST_S) * _BUCKETS_PER_DECADE)
        self._counts[min(place, len(self._counts) - 1)] += 1
        self.count += 1
        self.most_s = max(self.most_s, duration_s)

    def percentile_s(self, frac: float) -> float | None:
        """Upper bound of the bucket that holds it; None while nothing was counted."""
        left = math.ceil(frac * self.count)
        for place, count in enumerate(self._counts):
            left -= count
            if left <= 0 and self.count:
                return min(_LOWEST_S * 10 ** (place / _BUCKETS_PER_DECADE), self.most_s)
        return None


class OverTime:
    """Time-weighted means of what a cluster's GPUs do."""

    def __init__(self, load: LoadModel, *, settle_s: float = 0.0, sites: Sequence[str] = ()) -> None:
        self._load = load
        self._settle_s = settle_s
        self._settled_s = 0.0
        self._settled_std_s = 0.0
        self._sites = {site: np.array([other == site for other in sites]) for site in sorted(set(sites))}
        self._site_s = dict.fromkeys(self._sites, 0.0)
        self._weights = load.gpu_counts
        self._gpus = int(self._weights.sum())
        self._span_s = 0.0
        self._std_s = 0.0
        self._allocated_s = 0.0
        self._util_s = 0.0
        self._start_j = float(load.energy_j.sum())

    def observe(self, span_s: float) -> None:
        """Take the present state as what held for the last `span_s` seconds."""
        self._span_s += span_s
        std_s = weighted_std(self._load.node_util_frac(), self._weights) * span_s
        self._std_s += std_s
        if self._span_s > self._settle_s:
            self._settled_s += span_s
            self._settled_std_s += std_s
        for site, rows in self._sites.items():
            held_frac = float(self._load.allocated[rows].sum()) / max(int(self._weights[rows].sum()), 1)
            self._site_s[site] += held_frac * span_s
        self._allocated_s += self.allocated_frac * span_s
        self._util_s += self.util_frac * span_s

    @property
    def allocated_frac(self) -> float:
        """GPUs that tasks hold, now; parts of them added up."""
        return float(self._load.allocated.sum()) / max(self._gpus, 1)

    @property
    def util_frac(self) -> float:
        """Mean utilisation over all GPUs, now."""
        return float(self._load.util_frac.sum()) / max(self._gpus, 1)

    @property
    def power_w(self) -> float:
        """Drawn by all GPUs, now."""
        return float(self._load.power_w.sum())

    def summary(self) -> ClusterSummary:
        """Means so far."""
        span_s = max(self._span_s, 1e-9)
        return ClusterSummary(
            allocated_frac=self._allocated_s / span_s,
            util_frac=self._util_s / span_s,
            std_frac=self._std_s / span_s,
            settled_std_frac=self._settled_std_s / self._settled_s if self._settled_s else None,
            site_allocated_frac={site: held_s / span_s for site, held_s in self._site_s.items()},
            empty_nodes=int((~self._load.busy.any(axis=1)).sum()),
            energy_j=float(self._load.energy_j.sum()) - self._start_j,
            node_util_frac=tuple(self._load.node_util_frac().tolist()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSummary:
    """Means over a run of one cluster."""

    allocated_frac: float
    util_frac: float
    std_frac: float
    """GPU-weighted standard deviation across nodes of instantaneous utilisation, averaged over time."""
    settled_std_frac: float | None
    """The same without the time that the start takes to fade; None before that."""
    site_allocated_frac: Mapping[str, float]
    empty_nodes: int
    """Without a pod, at the end."""
    energy_j: float
    """Wall time's."""
    node_util_frac: tuple[float, ...]
    """Of each node, at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The present, for the progress view."""

    elapsed_s: float
    arrived: int
    placed: int
    waiting: int
    finished: int
    allocated_frac: float
    util_frac: float
    power_w: float
    decisions_per_s: float
    latencies_s: Mapping[str, tuple[float | None, float | None, float | None]]
    behind_s: float
    """For how long the oldest pod waits that no cycle has reached yet."""
    broker_silent_s: float = 0.0
    """For how long the broker has not answered, so that readings are unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A whole run."""

    elapsed_s: float
    speed_per_s: float
    arrived: int
    placed: int
    placed_by_class: Mapping[str, int]
    waiting: int
    finished: int
    rejected: Mapping[str, int]
    decisions: int
    decisions_per_s: float
    latencies_s: Mapping[str, tuple[float | None, float | None, float | None]]
    """By verb: p50, p95, p99, as the scheduler saw them."""
    settle_s: float
    """Three mean run times: from then on the spread is settled."""
    ours: ClusterSummary
    random: ClusterSummary | None
    """The same arrivals placed by random choice."""
    random_waiting: int
    counted: Counted | None
    node_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Things that a reader of the figures must know."""

    @property
    def simulated_kwh(self) -> float:
        """What the jobs would have drawn in their own, unhurried time."""
        return self.ours.energy_j * self.speed_per_s / _J_PER_KWH


_PERCENTILES = (0.5, 0.95, 0.99)


@dataclass(slots=True)
class Scoreboard:
    """Told what happens; instants are monotonic seconds of the caller's clock."""

    load: LoadModel
    node_names: tuple[str, ...]
    speed_per_s: float
    start_mono_s: float
    settle_s: float = 0.0
    sites: tuple[str, ...] = ()
    counted: Counted | None = None
    shadow: RandomShadow | None = None
    arrived: int = 0
    placed: int = 0
    finished: int = 0
    decisions: int = 0
    behind_s: float = 0.0
    most_behind_s: float = 0.0
    broker_silent_s: float = 0.0
    placed_by_class: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    _latencies: dict[str, Latencies] = field(default_factory=dict)
    _over_time: OverTime = field(init=False)
    _last_mono_s: float = field(init=False)

    def __post_init__(self) -> None:
        """Begin now."""
        self._over_time = OverTime(self.load, settle_s=self.settle_s, sites=self.sites)
        if self.shadow is not None:
            self.shadow.settle(self.settle_s, self.sites)
        self._last_mono_s = self.start_mono_s

    def on_arrival(self, arrival: Arrival, now_mono_s: float) -> None:
        """A pod was created; the shadow gets it too."""
        self.arrived += 1
        if self.shadow is not None:
            self.shadow.arrive(arrival, now_mono_s - self.start_mono_s)

    def on_placed(self, arrival: Arrival) -> None:
        """A pod was bound."""
        self.placed += 1
        self.placed_by_class[arrival.job.workload.value] += 1

    def on_behind(self, behind_s: float) -> None:
        """How long the oldest pod waits that was never tried."""
        self.behind_s = behind_s
        self.most_behind_s = max(self.most_behind_s, behind_s)

    def on_finished(self) -> None:
        """A pod has ended."""
        self.finished += 1

    def on_call(self, verb: str, duration_s: float) -> None:
        """The extender answered; a filter call is a decision."""
        self._latencies.setdefault(verb, Latencies()).add(duration_s)
        if verb == "filter":
            self.decisions += 1

    def tick(self, now_mono_s: float) -> None:
        """Look at the cluster; call it about once a second."""
        span_s, self._last_mono_s = now_mono_s - self._last_mono_s, now_mono_s
        self._over_time.observe(span_s)
        if self.shadow is not None:
            self.shadow.advance(now_mono_s - self.start_mono_s)

    def live(self, now_mono_s: float) -> Live:
        """The present."""
        elapsed_s = max(now_mono_s - self.start_mono_s, 1e-9)
        return Live(
            elapsed_s=elapsed_s,
            arrived=self.arrived,
            placed=self.placed,
            waiting=self.arrived - self.placed,
            finished=self.finished,
            allocated_frac=self._over_time.allocated_frac,
            util_frac=self._over_time.util_frac,
            power_w=self._over_time.power_w,
            decisions_per_s=self.decisions / elapsed_s,
            latencies_s=self._percentiles(),
            behind_s=self.behind_s,
            broker_silent_s=self.broker_silent_s,
        )

    def summary(self, now_mono_s: float, notes: tuple[str, ...] = ()) -> Summary:
        """The run until now."""
        now = self.live(now_mono_s)
        return Summary(
            elapsed_s=now.elapsed_s,
            speed_per_s=self.speed_per_s,
            arrived=self.arrived,
            placed=self.placed,
            placed_by_class=dict(sorted(self.placed_by_class.items())),
            waiting=now.waiting,
            finished=self.finished,
            rejected=dict(self.rejected.most_common()),
            decisions=self.decisions,
            decisions_per_s=now.decisions_per_s,
            latencies_s=now.latencies_s,
            settle_s=self.settle_s,
            ours=self._over_time.summary(),
            random=self.shadow.summary() if self.shadow is not None else None,
            random_waiting=self.shadow.waiting if self.shadow is not None else 0,
            counted=self.counted,
            node_names=self.node_names,
            notes=notes,
        )

    def _percentiles(self) -> dict[str, tuple[float | None, float | None, float | None]]:
        low, middle, high = _PERCENTILES
        return {
            verb: (found.percentile_s(low), found.percentile_s(middle), found.percentile_s(high))
            for verb, found in sorted(self._latencies.items())
        }


class RandomShadow:
    """The same nodes, the same start, the same arrivals; each pod goes to a random node where it fits at once.

    A pod that fits nowhere waits and is tried again, oldest first, whenever one has ended.
    """

    def __init__(self, model: WorkloadModel, load: LoadModel, fill: list[Placed], seed: int) -> None:
        self._load = load
        self._room = Room(model.trace)
        self._rng = np.random.default_rng([seed, 3])
        self._ends: list[tuple[float, int, int, Arrival, tuple[int, ...]]] = []
        self._queue: list[Arrival] = []
        self._turn = 0
        self._now_s = 0.0
        self._over_time = OverTime(load)
        rows = {node.name: row for row, node in enumerate(model.trace.nodes)}
        for placed in fill:
            self._run(placed.arrival, rows[placed.node], 0.0)

    def settle(self, settle_s: float, sites: Sequence[str]) -> None:
        """Count as the scoreboard does; before the first look."""
        self._over_time = OverTime(self._load, settle_s=settle_s, sites=sites)

    @property
    def waiting(self) -> int:
        """Pods that fit nowhere."""
        return len(self._queue)

    def arrive(self, arrival: Arrival, now_s: float) -> None:
        """One more pod, at an instant since the start."""
        self._end_until(now_s)
        fitting = self._room.fitting(arrival.job)
        if fitting.size:
            self._run(arrival, int(self._rng.choice(fitting)), now_s)
        else:
            self._queue.append(arrival)

    def advance(self, now_s: float) -> None:
        """Let time pass and look."""
        self._end_until(now_s)
        span_s, self._now_s = now_s - self._now_s, now_s
        self._load.advance(span_s)
        self._over_time.observe(span_s)

    def summary(self) -> ClusterSummary:
        """Means so far."""
        return self._over_time.summary()

    def _end_until(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            end_s, _, row, arrival, indices = heapq.heappop(self._ends)
            self._load.stop(row, indices, arrival.mean_util_frac)
            self._room.give_back(row, arrival.job)
            # Those that wait fitted nowhere before, so this node is the only choice they have; and they start when
            # the room came free, not when somebody looked.
            waiting, self._queue = self._queue, []
            for other in waiting:
                if self._room.fits(row, other.job):
                    self._run(other, row, end_s)
                else:
                    self._queue.append(other)

    def _run(self, arrival: Arrival, row: int, start_s: float) -> None:
        self._room.take(row, arrival.job)
        indices = self._load.start(row, arrival.gpus, arrival.mean_util_frac)
        self._turn += 1
        heapq.heappush(self._ends, (start_s + arrival.run_s, self._turn, row, arrival, indices))
