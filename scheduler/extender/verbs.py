"""What the four questions are answered with: question -> request and rows -> decision -> JSON.

filter, prioritize and preempt are plain synchronous code over memory. bind, off by default, awaits the API server.
Trust what was offered: for GPUs that kube-scheduler counts our count only orders nodes; only what it cannot see
(broken GPUs, quarantine, pools) removes one (docs/adr/0003).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.objects import Node, Pod
from scheduler.cluster.pods import asks_by_claims_only, asks_for_gpus
from scheduler.cluster.port import ClusterPort
from scheduler.cluster.store import Store
from scheduler.core.clock import Clock
from scheduler.core.log import kv
from scheduler.core.nouns import Placement, PodRequest, Reason
from scheduler.decision.decider import Decider, Outcome
from scheduler.decision.record import DecisionRecord
from scheduler.extender.answers import (
    Fragments,
    bind_answer,
    filter_all_answer,
    filter_answer,
    filter_nodes_answer,
    preempt_answer,
    prioritize_answer,
    scaled,
)
from scheduler.extender.binder import Binder
from scheduler.extender.no_binder import NoBinder
from scheduler.extender.wire import BadRequest, BindArgs, FilterArgs, PreemptArgs, rows_of

_log = logging.getLogger(__name__)

Rows = NDArray[np.intp]
NO_UID = "no-uid"


class Fence:
    """Who may answer and act. app.py fills it in; the defaults are those of a lone, synced process."""

    def __init__(self) -> None:
        self.not_ready: Callable[[], str | None] = lambda: None
        """Why this replica does not know enough to answer; None if it does."""
        self.leads: Callable[[], bool] = lambda: True
        """Whether it may act now; asked before each act."""
        self.term: Callable[[], int] = lambda: 0
        self.paused: Callable[[], str] = lambda: ""
        """Who has paused us, and why; empty while nobody has."""


class Verbs:
    """ExtenderVerbs over the decider. `observe` means: decide and record, change nothing; so does a pause."""

    def __init__(
        self,
        decider: Decider,
        cluster: ClusterPort | None,
        clock: Clock,
        fence: Fence,
        *,
        observe: bool = False,
        pods_clock: Clock | None = None,
    ) -> None:
        """`pods_clock` is the one by which pods were created; None: ours."""
        self.decider = decider
        self.store: Store = decider.store
        self.binder: Binder | None = None
        """What bind is answered with; None if it is off."""
        self.no_binder = NoBinder(clock, observe=observe)
        """What it is answered with then."""
        if cluster is not None and not observe:
            self.binder = Binder(
                self.store,
                decider.log,
                cluster,
                clock,
                leads=lambda: fence.leads(),  # noqa: PLW0108 - app.py sets it later
                term=lambda: fence.term(),  # noqa: PLW0108 - likewise
                paused=lambda: fence.paused(),  # noqa: PLW0108 - likewise
                is_observed=decider.is_observed,
            )
        self.clock = clock
        self._pods_clock = pods_clock or clock
        self.fence = fence
        self._observe = observe
        self._fragments: Fragments | None = None
        self._fragments_generation = -1

    def is_observing(self) -> bool:
        """Whether what is decided now changes nothing: by the configuration, or while somebody has paused us."""
        return self._observe or bool(self.fence.paused())

    @property
    def binds(self) -> Mapping[str, int]:
        """How often bind was answered, by result."""
        return self.binder.results if self.binder is not None else self.no_binder.results

    def may_answer(self, loopback: bool) -> str | None:  # noqa: FBT001 - the server's protocol
        """A replica that is not ready never answers; a standby only to its own kube-scheduler, over loopback."""
        not_ready = self.fence.not_ready()
        if not_ready is not None:
            return not_ready
        if not loopback and not self.fence.leads():
            return "standby: the leader answers (label wattbalance.io/role: leader)"
        return None

    # --- filter --------------------------------------------------------------------------------------------------

    def filter(self, args: FilterArgs) -> bytes | bytearray:
        """Decide. Decisive: the one chosen node. Advisory: the best rank's nodes. None left: a reason for each.

        A pod that is not ours to place gets back all that was offered.
        """
        if self._passes("filter", args.pod):
            return filter_all_answer(args)
        request = self._request(args.pod)
        if not request.uid and self._placement(request) is Placement.DECISIVE:
            raise BadRequest(NO_UID, "metadata.uid is missing, which decisive placement needs")
        rows, strangers = self._rows(args)
        known = rows >= 0
        unknown = _missing(args.names, known)
        observing = self.is_observing()
        outcome = self.decider.place(
            request,
            rows[known] if unknown else rows,
            self.clock.mono_s(),
            self.clock.unix_s(),
            strangers,
            unknown=len(unknown),
            observe=observing,
        )
        self._log_decision(outcome.record)
        if observing:
            return filter_all_answer(args)
        failed, unresolvable = self._failed(outcome)
        if args.nodes is not None:
            return self._nodes_answer(args, rows, outcome, failed)
        chosen = _names_no_failures(outcome)
        return filter_answer(
            self._answers(),
            kept_rows=outcome.kept,
            failed_rows=failed,
            failed_codes=outcome.judgement.codes[failed],
            unresolvable=unresolvable,
            unknown_names=() if chosen else unknown,
            unknown_text=Reason.UNKNOWN_NODE.text,
            nominated=request.nominated_node,
        )

    def _failed(self, outcome: Outcome) -> tuple[Rows, NDArray[np.bool_]]:
        """Rows to name as failed, and for which of them preemption cannot help.

        Once a node is chosen, nothing is named: kube-scheduler only takes the list that comes back. The pod's own
        nominated node stays preemptible, so that the pod waits for it.
        """
        if _names_no_failures(outcome):
            return np.empty(0, np.intp), np.empty(0, bool)
        failed = outcome.judgement.failed
        return failed, failed != self.store.rows.get(outcome.request.nominated_node, -1)

    def _nodes_answer(self, args: FilterArgs, rows: Rows, outcome: Outcome, failed: Rows) -> bytes:
        """Answer in the form that was asked: whole nodes, as they came."""
        if args.nodes is None:
            raise BadRequest(BadRequest.MISSING_FIELD, "Nodes")
        texts, codes = self.decider.reason_texts, outcome.judgement.codes
        positions = {row: position for position, row in enumerate(rows.tolist())}
        reasons = {args.names[positions[row]]: texts[codes[row]] for row in failed.tolist()}
        nominated = outcome.request.nominated_node
        never = {name: reason for name, reason in reasons.items() if name != nominated}
        kept = sorted(positions[row] for row in outcome.kept.tolist())
        return filter_nodes_answer(args.nodes, kept=kept, failed=reasons, unresolvable=never)

    def _rows(self, args: FilterArgs) -> tuple[Rows, list[Node]]:
        """Rows of the question, -1 for a name that nobody knows; nodes sent whole that we do not know."""
        rows = rows_of(args.names, self.store.rows)
        if args.nodes is None:
            return rows, []
        strangers: dict[str, Node] = {}
        row_of: dict[str, int] = {}
        for position in np.flatnonzero(rows < 0).tolist():
            name = args.names[position]
            rows[position] = row_of.setdefault(name, self.store.snapshot.rows + len(row_of))
            strangers.setdefault(name, args.nodes.nodes[position])
        return rows, list(strangers.values())

    # --- prioritize and preempt ----------------------------------------------------------------------------------

    def prioritize(self, args: FilterArgs) -> bytes | bytearray:
        """Score what is left, 0 to 10; nodes that we do not know score 0. While we observe, all score 0.

        So they do for a pod that is not ours to place: kube-scheduler's own scores choose.
        """
        ours = not self._passes("prioritize", args.pod)
        rows, _ = self._rows(args)
        known = (rows >= 0) & (rows < self.store.snapshot.rows)
        unknown = _missing(args.names, known)
        # kube-scheduler adds up what it is told of one host.
        rows = _once(rows[known] if unknown else rows, self.store.snapshot.rows)
        scores = np.zeros(len(rows), np.float64)
        if ours and not self.is_observing():
            request = self._request(args.pod)
            now_mono_s, unix_s = self.clock.mono_s(), self.clock.unix_s()
            scores = self.decider.scores(request, rows, now_mono_s, unix_s, unknown=len(unknown))
        return prioritize_answer(self._answers(), rows, scaled(scores.astype(np.float32)), unknown)

    def preempt(self, args: PreemptArgs) -> bytes | bytearray:
        """Keep the candidates that we would accept; victims unchanged; never add, reserve or reorder."""
        names = list(args.victims)
        if self._passes("preempt", args.pod):
            return preempt_answer(args.victims)
        rows = rows_of(names, self.store.rows)
        known = rows >= 0
        observing, accepted = self.is_observing(), np.zeros(len(names), bool)
        accepted[known], record = self.decider.acceptable(
            self._request(args.pod),
            rows[known],
            self.clock.mono_s(),
            self.clock.unix_s(),
            victims={name: each.uids for name, each in args.victims.items()},
            unknown=int(np.count_nonzero(~known)),
            observe=observing,
        )
        self._log_decision(record)
        if observing:
            return preempt_answer(args.victims)
        kept = {name: args.victims[name] for name, good in zip(names, accepted.tolist(), strict=True) if good}
        return preempt_answer(kept)

    # --- bind ----------------------------------------------------------------------------------------------------

    async def bind(self, args: BindArgs) -> bytes | bytearray:
        """Post the Binding. Twice is success; an outcome that is unknown is looked up before the promise goes."""
        if self.binder is None:
            return bind_answer(self.no_binder.bind(args))
        return bind_answer(await self.binder.bind(args))

    # --- shared --------------------------------------------------------------------------------------------------

    def _request(self, pod: Pod) -> PodRequest:
        waited_s = _waited_s(pod, self._pods_clock.unix_s())
        return self.store.request(pod, waited_s, self.decider.profile_facts)

    def _passes(self, verb: str, pod: Pod) -> bool:
        """Whether a pod is not ours to place; that is counted, and nothing kept of it.

        Without a GPU it is none of our business, and what claims ask for is kube-scheduler's to find.
        """
        also = self.store.settings.gpu_resources
        if asks_for_gpus(pod, also):
            return False
        why = "by_claim" if asks_by_claims_only(pod, also) else "no_gpu"
        self.decider.pass_by(verb, self._request(pod), why)
        return True

    def _placement(self, request: PodRequest) -> Placement:
        return self.decider.profiles[request.workload].placement

    def _answers(self) -> Fragments:
        if self._fragments is None or self._fragments_generation != self.store.generation:
            self._fragments = Fragments(self.store.names, self.decider.reason_texts)
            self._fragments_generation = self.store.generation
        return self._fragments

    @staticmethod
    def _log_decision(record: DecisionRecord) -> None:
        if _log.isEnabledFor(logging.INFO):
            _log.info("decision", extra=kv(decision=record))


def _names_no_failures(outcome: Outcome) -> bool:
    """Whether the nodes that are kept are all that is told."""
    return bool(outcome.kept.size) and (
        outcome.placement is Placement.DECISIVE or outcome.result == "observed"
    )


def _missing(names: list[str], known: NDArray[np.bool_]) -> list[str]:
    """Names without a row, each once."""
    return [] if known.all() else list(dict.fromkeys(names[at] for at in np.flatnonzero(~known).tolist()))


def _once(rows: Rows, count: int) -> Rows:
    """The same rows, none of them twice; as they came if there was none."""
    seen = np.zeros(count, bool)
    seen[rows] = True
    return rows if np.count_nonzero(seen) == len(rows) else seen.nonzero()[0]


def _waited_s(pod: Pod, unix_s: float) -> float:
    created = pod.metadata.creation_timestamp
    if not created:
        return 0.0
    try:
        return max(unix_s - datetime.fromisoformat(created).timestamp(), 0.0)
    except ValueError:
        return 0.0
