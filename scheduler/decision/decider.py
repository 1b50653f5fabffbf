"""From a pod and candidate rows to an outcome: judge, promise, record. Used by the extender and by simulations alike.

Plain synchronous code; `now` is handed in. The store is changed only through its own methods.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.objects import Node
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.reservations import RENEWALS, SEVERAL
from scheduler.cluster.store import Store
from scheduler.cluster.vacancies import NOBODY
from scheduler.core.nouns import Placement, PodRequest, Reason, Workload
from scheduler.decision.cycle import (
    BAND_FULL,
    Judgement,
    PolicyFailures,
    Rows,
    best_rows,
    judge,
    near_best,
)
from scheduler.decision.observed_pools import ObservedPools
from scheduler.decision.reach import Reach
from scheduler.decision.record import PREEMPT, DecisionLog, DecisionRecord, Ranked, Weighed
from scheduler.policy.base import POOL_CODES
from scheduler.policy.profiles import NamedFilter, Profile

BEST_KEPT = 10
# Results with which a record names a node.
ONE_NODE = frozenset({"placed", "full_by_our_count", "observed"})


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What filter should answer. `kept` are rows; empty if no node fits."""

    request: PodRequest
    judgement: Judgement
    kept: Rows
    placement: Placement
    result: str
    reserved: bool
    record: DecisionRecord


class Decider:
    """Owns profiles, filters and the decision log; asks the store for state and promises.

    `instance` is this process's own, short: after a failover the log has decisions of both.
    """

    def __init__(
        self,
        store: Store,
        profiles: dict[Workload, Profile],
        filters: tuple[NamedFilter, ...],
        *,
        instance: str,
    ) -> None:
        self.store = store
        self.instance = instance
        self.log = DecisionLog()
        self.failures = PolicyFailures()
        self.results: Counter[tuple[str, str, str]] = Counter()
        """(verb, profile, result) -> count."""
        self.disagreements = 0
        """Nodes offered with room that our count says are full."""
        self.on_no_fit: Callable[[DecisionRecord, PodRequest], None] | None = None
        """Told of each filter decision that left no node."""
        self.on_observed: Callable[[Outcome, float], None] | None = None
        """Told of each filter decision that was left to kube-scheduler, since its place is only observed."""
        self.on_outcome: Callable[[Outcome, float], None] | None = None
        """Told of each filter decision, with its instant; within the decision's turn."""
        self._cycle = 0
        self._strangers: list[str] = []
        self.use(profiles, filters)

    def use(self, profiles: dict[Workload, Profile], filters: tuple[NamedFilter, ...]) -> None:
        """Take other profiles and filters, once the store has its pools; counts and records stay as they are."""
        self.profiles = profiles
        self.filters = filters
        self._profile_facts = {w: (p.name, p.expected_load) for w, p in profiles.items()}
        self.reason_texts = reason_texts(self.store.pool_names)
        self._observed = ObservedPools(self.store.settings.pools)
        self._reach = Reach(self.store.settings.pools, filters)

    @property
    def profile_facts(self) -> dict[Workload, tuple[str, float]]:
        """Workload -> (profile name, expected load), as Store.request wants it."""
        return self._profile_facts

    def judge(
        self,
        request: PodRequest,
        rows: Rows,
        now_mono_s: float,
        strangers: Sequence[Node] = (),
        *,
        held_on: str = "",
        gone: Mapping[str, Collection[str]] = NOBODY,
        beside: Iterable[PodFacts] = (),
        failures: PolicyFailures | None = None,
    ) -> Judgement:
        """Judge candidates at this instant, changing nothing but the passing of time.

        `strangers` are nodes that the store does not know, judged from the object sent; their rows count on from
        the snapshot's. For what-ifs: `held_on`, `gone` and `beside` are as in Store.snapshot_for; `failures` counts
        policies that fail, instead of our own count.
        """
        store = self.store
        store.tick(now_mono_s)
        last = [
            store.rows[n] for n in store.reservations.last_choices(request.uid, now_mono_s) if n in store.rows
        ]
        own = store.reservations.get(request.uid)
        # Without a promise of ours, the node for which kube-scheduler has others make room.
        promised = store.rows.get(request.nominated_node if own is None else own.node, -1)
        if own is not None and own.renewals >= RENEWALS:
            promised = -1
        snapshot = store.snapshot_for(request, held_on=held_on, gone=gone, beside=beside)
        if strangers:
            snapshot = store.with_strangers(snapshot, strangers, request)
        counted = self.failures if failures is None else failures
        return judge(
            request,
            rows,
            self._reach.applied(request, snapshot, store.known_nodes(snapshot.rows, strangers), counted),
            self.profiles[request.workload],
            self.filters,
            counted,
            last_choices=np.array(last, np.intp) if last else None,
            promised_row=promised,
        )

    def place(
        self,
        request: PodRequest,
        rows: Rows,
        now_mono_s: float,
        unix_s: float,
        strangers: Sequence[Node] = (),
        *,
        unknown: int = 0,
        observe: bool = False,
    ) -> Outcome:
        """Decide where one pod may go, promise it if the choice is ours, and keep the record.

        `unknown` is how many more nodes were offered of which nobody knows anything but the name: they are in the
        record only. With `observe` nothing is promised: the record says what would have been.
        """
        profile = self.profiles[request.workload]
        judgement = self.judge(request, rows, now_mono_s, strangers)
        self.disagreements += int(np.count_nonzero(judgement.full))
        self._strangers = [node.metadata.name for node in strangers]
        # Before the promise: the snapshot is a live view, and the record says what the choice was made by.
        best = self._ranked(judgement)
        if observe:
            chosen = [judgement.choice] if judgement.choice >= 0 else []
            kept, result, reserved = np.array(chosen, np.intp), "observed", False
        else:
            kept, result, reserved = self._answer(request, judgement, profile, now_mono_s)
        record = self._record(
            "filter",
            request,
            judgement,
            result,
            unix_s,
            best=best,
            reserved=reserved,
            unknown=unknown,
        )
        if result == "no_fit" and self.on_no_fit is not None:
            self.on_no_fit(record, request)
        outcome = Outcome(request, judgement, kept, profile.placement, result, reserved, record)
        if result == "observed" and self.on_observed is not None:
            self.on_observed(outcome, now_mono_s)
        if self.on_outcome is not None:
            self.on_outcome(outcome, now_mono_s)
        return outcome

    def is_observed(self, node: str) -> bool:
        """Whether a node is in a pool that is only observed."""
        row = self.store.rows.get(node)
        return row is not None and bool(self._observed.rows(self.store.snapshot)[row])

    def drop_observed_promises(self, now_mono_s: float) -> None:
        """Take back what is promised on nodes that were acted on before, and are only observed now."""
        for held in self.store.reservations.made_before(inf):
            if self.is_observed(held.node):
                self.store.release(held.uid, now_mono_s)

    def _answer(
        self, request: PodRequest, judgement: Judgement, profile: Profile, now_mono_s: float
    ) -> tuple[Rows, str, bool]:
        observed = self._observed.left_alone(judgement)
        if len(observed):
            self.store.release(request.uid, now_mono_s)
            return observed, "observed", False
        if judgement.choice < 0:
            self.store.release(request.uid, now_mono_s)
            return np.empty(0, np.intp), "no_fit", False
        if profile.placement is Placement.ADVISORY:
            return np.flatnonzero(judgement.peers), "advised", False
        if request.preferences is not None and request.preferences.not_weighed(judgement.policies):
            near = near_best(judgement)
            tired = SEVERAL in self.store.reservations.last_choices(request.uid, now_mono_s)
            if len(near) > 1 and not tired:
                # Which of them kube-scheduler takes is not ours to know, so nothing is promised.
                self.store.release(request.uid, now_mono_s)
                self.store.reservations.note_choice(request.uid, SEVERAL, now_mono_s)
                return near, "passed_soft", False
        kept = np.array([judgement.choice], np.intp)
        node = self._name(judgement.choice)
        if judgement.best_band >= BAND_FULL:
            self.store.release(request.uid, now_mono_s)
            self.store.reservations.note_choice(request.uid, node, now_mono_s)
            return kept, "full_by_our_count", False
        if not request.units:
            # A device of a kind that kube-scheduler alone counts: there is nothing to promise.
            self.store.reservations.note_choice(request.uid, node, now_mono_s)
            return kept, "placed", False
        return kept, "placed", self.store.reserve(request, node, now_mono_s)

    def scores(
        self, request: PodRequest, rows: Rows, now_mono_s: float, unix_s: float, *, unknown: int = 0
    ) -> NDArray[np.float64]:
        """Total scores in [0, 1] for prioritize, shape (candidates,), and a record of them."""
        profile = self.profiles[request.workload]
        previous = self.log.of_pod(request.uid)
        observed = self._observed.rows(self.store.snapshot)[rows]
        if len(rows) and observed.all():
            self.results["prioritize", profile.name, "observed"] += 1
            return np.zeros(len(rows))
        judgement = self.judge(request, rows, now_mono_s)
        if previous is not None and previous.result == "passed_soft":
            # The pod's own soft preferences choose among equals: our opinion was the filter.
            self.results["prioritize", profile.name, "passed_soft"] += 1
            return np.zeros(len(rows))
        best = self._ranked(judgement)
        self._record(
            "prioritize",
            request,
            judgement,
            "advised",
            unix_s,
            best=best,
            reserved=False,
            unknown=unknown,
        )
        scores = judgement.total[rows]
        if np.count_nonzero(judgement.codes):
            scores[judgement.codes[rows] > 0] = 0.0
        scores[observed] = 0.0
        return scores

    def acceptable(
        self,
        request: PodRequest,
        rows: Rows,
        now_mono_s: float,
        unix_s: float,
        *,
        victims: Mapping[str, Collection[str]] = NOBODY,
        unknown: int = 0,
        observe: bool = False,
    ) -> tuple[NDArray[np.bool_], DecisionRecord]:
        """For preempt: which candidates pass all filters, shape (candidates,), bool, and a record of them.

        Never reserves or reorders. kube-scheduler has counted the victims' GPUs free; what only we can see is all that
        may say no. That is judged without the `victims` (uids, by node). `unknown` is how many more candidates there
        were of which nobody knows anything but the name.
        """
        judgement = self.judge(request, rows, now_mono_s, gone=victims)
        # Of what is only observed, every candidate stays.
        accepted: NDArray[np.bool_] = (judgement.codes[rows] == 0) | self._observed.rows(judgement.snapshot)[
            rows
        ]
        result = "observed" if observe else "accepted" if accepted.any() else "no_fit"
        record = self._record(
            PREEMPT,
            request,
            judgement,
            result,
            unix_s,
            best=self._ranked(judgement),
            reserved=False,
            unknown=unknown,
        )
        return accepted, record

    def pass_by(self, verb: str, request: PodRequest, why: str) -> None:
        """Count a question about a pod that is not ours to place: nothing is judged, promised or kept of it."""
        self.results[verb, self.profiles[request.workload].name, why] += 1

    def _name(self, row: int) -> str:
        names = self.store.names
        if row < self.store.snapshot.rows:
            return names[row] or ""
        return self._strangers[row - self.store.snapshot.rows]

    def _record(
        self,
        verb: str,
        request: PodRequest,
        judgement: Judgement,
        result: str,
        unix_s: float,
        *,
        best: tuple[Ranked, ...],
        reserved: bool,
        unknown: int,
    ) -> DecisionRecord:
        profile = self.profiles[request.workload]
        self._cycle += 1
        self.results[verb, profile.name, result] += 1
        reasons: dict[str, int] = {}
        if np.count_nonzero(judgement.codes):
            counts = np.bincount(judgement.codes[judgement.failed])
            reasons = {self.reason_texts[code]: int(counts[code]) for code in np.flatnonzero(counts).tolist()}
        if unknown:
            reasons[Reason.UNKNOWN_NODE.text] = unknown
        fitting = judgement.fitting
        if verb == PREEMPT:
            # Room is made for the pod: a node that is full, or that it was not bound to before, is as good as any.
            fitting = int(np.count_nonzero(judgement.offered)) - len(judgement.failed)
        elif judgement.last is not None and judgement.last.any():
            reasons[Reason.CHOSEN_BEFORE_NOT_BOUND.text] = int(np.count_nonzero(judgement.last))
        one_node = verb != PREEMPT and judgement.choice >= 0 and result in ONE_NODE
        record = DecisionRecord(
            cycle=f"{self.instance}-{self._cycle:x}",
            unix_s=unix_s,
            verb=verb,
            namespace=request.namespace,
            pod=request.name,
            uid=request.uid,
            profile=profile.name,
            placement=profile.placement.value,
            gpus=request.gpus,
            resources=dict(request.units),
            asked=int(np.count_nonzero(judgement.offered)) + unknown,
            fitting=fitting,
            chosen=self._name(judgement.choice) if one_node else "",
            result=result,
            reserved=reserved,
            reasons=reasons,
            policies=tuple(map(Weighed, judgement.policies, judgement.weights)),
            best=best,
        )
        self.log.add(record)
        return record

    def _ranked(self, judgement: Judgement) -> tuple[Ranked, ...]:
        best = best_rows(judgement, BEST_KEPT)
        pool_names = self.store.pool_names
        # Gathered as columns, then told row by row: a dozen numpy calls instead of a hundred.
        raw = np.array([score[best] for score in judgement.scores], np.float64)
        # Tuples of what the collector does not track are not tracked either: 10,000 records cost it nothing.
        return tuple(
            Ranked(self._name(row), total, pool_names[pool], free_gpus, tuple(scores))
            for row, total, pool, free_gpus, scores in zip(
                best.tolist(),
                judgement.total[best].tolist(),
                judgement.snapshot.pool[best].tolist(),
                judgement.snapshot.free_gpus[best].tolist(),
                raw.T.tolist() if judgement.scores else [[]] * len(best),
                strict=True,
            )
        )


def reason_texts(pool_names: list[str]) -> list[str]:
    """Text of every reason code, 256 of them: constant strings, one per pool that can be waited for."""
    texts = ["unknown reason"] * 256
    for reason in Reason:
        texts[reason] = reason.text
    for index, name in enumerate(pool_names):
        texts[POOL_CODES + index] = f"{Reason.WAITING_FOR_POOL.text} {name}"
    return texts
