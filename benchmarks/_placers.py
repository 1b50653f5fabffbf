"""Ways to choose a node, for benchmarks/balance.py: the rivals, and the daemon's own store, policy and decider."""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.intents import Intents
from scheduler.cluster.objects import Node, Pod
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.cluster.snapshot import Snapshot
from scheduler.cluster.store import Store, StoreSettings
from scheduler.core.nouns import Placement, PodRequest, Workload
from scheduler.decision.decider import Decider
from scheduler.policy import registry
from scheduler.policy.base import Filter, Score, ScoreArray
from scheduler.policy.profiles import NamedFilter, Profile, Weighted
from scheduler.simulate.fleet import inventory_of
from scheduler.simulate.manifests import node_object, pod_object
from scheduler.simulate.traces import Trace
from scheduler.simulate.workload import Arrival
from scheduler.telemetry.sample import SCHEMA_VERSION, Sample

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
        return int(fitting[self.rng.integers(len(fitting))])

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
        fewest = fitting[counts == counts.min()]
        return int(fewest[self.rng.integers(len(fewest))])


class AllKnowing(RandomChoice):
    """Our rule with what each task will really use, and without lag: greedy, so a mark to compare with, no bound."""

    own = 1.0
    """How much of the pod's own load counts."""

    def __init__(self, trace: Trace, seed: int) -> None:
        super().__init__(trace, seed)
        self.gpus = np.array([node.gpus for node in trace.nodes], np.float64)
        self.load = np.zeros(len(trace.nodes))

    def choose(self, arrival: Arrival, fitting: Rows, now_s: float) -> int:
        after = self.load[fitting] + self.own * arrival.gpus * arrival.mean_util_frac
        return int(fitting[np.argmin(after / self.gpus[fitting])])

    def started(self, arrival: Arrival, row: int, now_s: float) -> None:
        self.load[row] += arrival.gpus * arrival.mean_util_frac

    def ended(self, arrival: Arrival, row: int, now_s: float) -> None:
        self.load[row] -= arrival.gpus * arrival.mean_util_frac


class LeastVariance(AllKnowing):
    """All-knowing, and each time the node that leaves the least GPU-weighted variance behind.

    A load d on a node of g GPUs at utilisation u adds 2d(u - mean) + d²/g to the sum of squares, and moves the mean
    alike wherever it goes: so the least (load + d/2) / g is best.
    """

    own = 0.5


class LeastLoaded:
    """The daemon's own store, filters, policy and decider."""

    def __init__(self, trace: Trace, seed: int) -> None:
        self.trace = trace
        self.store = Store(StoreSettings(expected_loads=EXPECTED_LOADS), Intents())
        filters = [(name, registry.build(name, {})) for name in registry.known()]
        profiles = {
            workload: Profile(
                name=workload.value,
                workload=workload,
                placement=Placement.DECISIVE,
                expected_load=EXPECTED_LOADS[workload],
                scores=(Weighted("least-loaded", 1.0, self._policy()),),
            )
            for workload in Workload
        }
        named = tuple(NamedFilter(name, policy) for name, policy in filters if isinstance(policy, Filter))
        self.decider = Decider(self.store, profiles, named, instance="bench")
        for node in trace.nodes:
            made = msgspec.json.decode(msgspec.json.encode(node_object(node)), type=Node)
            self.store.apply(Changed(Kind.NODE, made), 0.0)
            self.store.see_inventory(node.name, inventory_of(node))
        self.store.apply(Listed(Kind.NODE, frozenset(self.store.nodes)), 0.0)
        self.to_store = np.array([self.store.rows[node.name] for node in trace.nodes], np.intp)
        self.from_store = {int(row): index for index, row in enumerate(self.to_store)}
        self.pods: dict[str, Pod] = {}
        self.states = [["ok"] * node.gpus for node in trace.nodes]
        self.unknown: list[list[float | None]] = [[None] * node.gpus for node in trace.nodes]
        self.seq = 0

    def choose(self, arrival: Arrival, fitting: Rows, now_s: float) -> int:
        if Kind.POD not in self.store.synced:
            # The first listing is over: whatever binds from now on is load to come, not load that was there.
            self.store.apply(Listed(Kind.POD, frozenset(self.store.pods)), now_s)
        pod = self.pods[arrival.name] = _pod(arrival)
        self.store.apply(Changed(Kind.POD, pod), now_s)
        request = self.store.request(pod, 0.0, self.decider.profile_facts)
        outcome = self.decider.place(request, self.to_store[fitting], now_s, now_s)
        (kept,) = outcome.kept.tolist()
        return self.from_store[kept]

    def started(self, arrival: Arrival, row: int, now_s: float) -> None:
        pod = self.pods.get(arrival.name) or _pod(arrival)
        spec = msgspec.structs.replace(pod.spec, node_name=self.trace.nodes[row].name)
        bound = msgspec.structs.replace(pod, spec=spec)
        self.pods[arrival.name] = bound
        self.store.apply(Changed(Kind.POD, bound), now_s)

    def ended(self, arrival: Arrival, row: int, now_s: float) -> None:
        self.store.apply(Gone(Kind.POD, self.pods.pop(arrival.name)), now_s)

    def measured(self, util_frac: NDArray[np.float64], now_s: float) -> None:
        self.seq += 1
        batch = []
        for node, util, state, unknown in zip(
            self.trace.nodes, util_frac.tolist(), self.states, self.unknown, strict=True
        ):
            sample = Sample(
                v=SCHEMA_VERSION,
                node=node.name,
                agent="a",
                boot="b",
                seq=self.seq,
                unix_s=now_s,
                span_s=1.0,
                inventory="",
                state=state,
                power_w=unknown,
                util_frac=util[: node.gpus],
                energy_j=unknown,
            )
            batch.append((node.name, sample, now_s))
        self.store.see_samples(batch)

    def _policy(self) -> Score:
        policy = registry.build("least-loaded", {})
        assert isinstance(policy, Score)
        return policy


class MeasuredAlone(LeastLoaded):
    """Ours without pending load: what came and went lately is seen only once it is measured."""

    def _policy(self) -> Score:
        return _WithoutPending(super()._policy())


class _WithoutPending:
    def __init__(self, policy: Score) -> None:
        self._policy = policy

    def score(self, request: PodRequest, snapshot: Snapshot) -> ScoreArray:
        none = np.zeros_like(snapshot.pending_load)
        return self._policy.score(request, snapshot.replace(pending_load=none))


def _pod(arrival: Arrival) -> Pod:
    made = pod_object(arrival)
    metadata = made["metadata"]
    assert isinstance(metadata, dict)
    metadata["uid"] = arrival.name
    return msgspec.json.decode(msgspec.json.encode(made), type=Pod)
