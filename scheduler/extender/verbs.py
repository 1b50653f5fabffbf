"""What the four questions are answered with: question -> request and rows -> decision -> JSON.

filter, prioritize and preempt are plain synchronous code over memory. bind, off by default, awaits the API server.
Trust what was offered: for GPUs that kube-scheduler counts our count only orders nodes; only what it cannot see
(broken GPUs, quarantine, pools) removes one (docs/adr/0003).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from datetime import datetime

import msgspec
import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.objects import Node, Pod
from scheduler.cluster.port import ClusterPort
from scheduler.cluster.store import Store
from scheduler.core.clock import Clock
from scheduler.core.errors import ApiConflict, ApiNotFound, ApiUnavailable, ClusterError
from scheduler.core.log import kv
from scheduler.core.nouns import PREFIX, Placement, PodRequest, Reason
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
from scheduler.extender.wire import BadRequest, BindArgs, FilterArgs, PreemptArgs, rows_of

_log = logging.getLogger(__name__)

Rows = NDArray[np.intp]
NO_UID = "no-uid"
# How often, and how long apart, a pod is read after a bind whose outcome is unknown, within kube-scheduler's 5 s.
READS_AFTER_BIND = 3
READ_PAUSE_S = 0.3


class Fence:
    """Who may answer and act. app.py fills it in; the defaults are those of a lone, synced process."""

    def __init__(self) -> None:
        self.not_ready: Callable[[], str | None] = lambda: None
        """Why this replica does not know enough to answer; None if it does."""
        self.leads: Callable[[], bool] = lambda: True
        """Whether it may act now; asked before each act."""
        self.term: Callable[[], int] = lambda: 0


class Verbs:
    """ExtenderVerbs over the decider. `observe` means: decide and record, change nothing."""

    def __init__(
        self,
        decider: Decider,
        cluster: ClusterPort | None,
        clock: Clock,
        fence: Fence,
        *,
        observe: bool = False,
    ) -> None:
        self.decider = decider
        self.store: Store = decider.store
        self.cluster = cluster
        self.clock = clock
        self.fence = fence
        self.observe = observe
        self.binds: Counter[str] = Counter()
        """Results of bind: bound | already | conflict | gone | cordoned | unknown_node | not_leading | failed."""
        self._fragments: Fragments | None = None
        self._fragments_generation = -1

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
        """Decide. Decisive: the one chosen node. Advisory: the best rank's nodes. None left: a reason for each."""
        request = self._request(args.pod)
        if not request.uid and self._placement(request) is Placement.DECISIVE:
            raise BadRequest(NO_UID, "metadata.uid is missing, which decisive placement needs")
        rows, strangers = self._rows(args)
        known = rows >= 0
        outcome = self.decider.place(
            request,
            rows if known.all() else rows[known],
            self.clock.mono_s(),
            self.clock.unix_s(),
            strangers,
            observe=self.observe,
        )
        self._log_decision(outcome.record)
        if self.observe:
            return filter_all_answer(args)
        failed, unresolvable = self._failed(outcome)
        if args.nodes is not None:
            return self._nodes_answer(args, rows, outcome, failed)
        unknown = (
            []
            if outcome.kept.size and outcome.placement is Placement.DECISIVE
            else _missing(args.names, known)
        )
        return filter_answer(
            self._answers(),
            kept_rows=outcome.kept,
            failed_rows=failed,
            failed_codes=outcome.judgement.codes[failed],
            unresolvable=unresolvable,
            unknown_names=unknown,
            unknown_text=Reason.UNKNOWN_NODE.text,
            nominated=request.nominated_node,
        )

    def _failed(self, outcome: Outcome) -> tuple[Rows, NDArray[np.bool_]]:
        """Rows to name as failed, and for which of them preemption cannot help.

        Once a node is chosen, nothing is named: kube-scheduler only takes the list that comes back. The pod's own
        nominated node stays preemptible, so that the pod waits for it.
        """
        if outcome.kept.size and outcome.placement is Placement.DECISIVE:
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
        """Score what is left, 0 to 10; nodes that we do not know score 0. In observe mode all score 0."""
        request = self._request(args.pod)
        rows, _ = self._rows(args)
        known = (rows >= 0) & (rows < self.store.snapshot.rows)
        unknown = _missing(args.names, known)
        # kube-scheduler adds up what it is told of one host.
        rows = _once(rows[known] if unknown else rows, self.store.snapshot.rows)
        scores = np.zeros(len(rows), np.float64)
        if not self.observe:
            scores = self.decider.scores(request, rows, self.clock.mono_s(), self.clock.unix_s())
        return prioritize_answer(self._answers(), rows, scaled(scores.astype(np.float32)), unknown)

    def preempt(self, args: PreemptArgs) -> bytes | bytearray:
        """Keep the candidates that we would accept; victims unchanged; never add, reserve or reorder."""
        names = list(args.victims)
        if self.observe:
            return preempt_answer(args.victims)
        rows = rows_of(names, self.store.rows)
        known = rows >= 0
        accepted = np.zeros(len(names), bool)
        accepted[known] = self.decider.acceptable(self._request(args.pod), rows[known], self.clock.mono_s())
        kept = {name: args.victims[name] for name, good in zip(names, accepted.tolist(), strict=True) if good}
        return preempt_answer(kept)

    # --- bind ----------------------------------------------------------------------------------------------------

    async def bind(self, args: BindArgs) -> bytes | bytearray:
        """Post the Binding. Twice is success; an outcome that is unknown is looked up before the promise goes."""
        result, error = await self._bind(args)
        self.binds[result] += 1
        _log.info(
            "bind", extra=kv(pod=f"{args.namespace}/{args.name}", node=args.node, result=result, error=error)
        )
        return bind_answer(error)

    async def _bind(self, args: BindArgs) -> tuple[str, str]:
        pod = f"{args.namespace}/{args.name}"
        if self.cluster is None or self.observe:
            return "failed", "bind is off: remove bindVerb from kube-scheduler's extender configuration"
        refused = self._why_not_bind(args, pod)
        if refused is not None:
            return refused
        record = self.decider.log.of_pod(args.uid)
        score = next((r.score for r in record.best if r.node == args.node), None) if record else None
        decision = {
            "node": args.node,
            "profile": record.profile if record else "",
            "score": score,
            "cycle": record.cycle if record else "",
            "term": self.fence.term(),
        }
        annotations = {PREFIX + "decision": msgspec.json.encode(decision).decode()}
        try:
            await self.cluster.bind(args.namespace, args.name, args.uid, args.node, annotations)
        except ApiNotFound:
            self.store.release(args.uid, self.clock.mono_s())
            return "gone", f"pod {pod} is gone"
        except (ApiConflict, ApiUnavailable):
            return await self._after_bind(self.cluster, args)
        except ClusterError as error:
            self.store.release(args.uid, self.clock.mono_s())
            return "failed", str(error)
        return "bound", ""

    def _why_not_bind(self, args: BindArgs, pod: str) -> tuple[str, str] | None:
        """What memory says against the Binding, or that it is done already; None if nothing."""
        held = self.store.pods.get(args.uid)
        if held is not None and held.node:
            if held.node == args.node:
                return "already", ""
            return "conflict", f"pod {pod} is bound to {held.node} already"
        row = self.store.rows.get(args.node)
        if row is None:
            # The API server would accept it (a Binding's target is not checked).
            return "unknown_node", f"node {args.node} is gone"
        if self.store.snapshot.cordoned[row]:
            return "cordoned", f"node {args.node} was cordoned meanwhile"
        if not self.fence.leads():
            return "not_leading", "this replica no longer leads; ask again"
        return None

    async def _after_bind(self, cluster: ClusterPort, args: BindArgs) -> tuple[str, str]:
        """Read what became of a Binding that was refused or never answered."""
        pod = f"{args.namespace}/{args.name}"
        for attempt in range(READS_AFTER_BIND):
            try:
                found = await cluster.get_pod(args.namespace, args.name)
            except ApiNotFound:
                self.store.release(args.uid, self.clock.mono_s())
                return "gone", f"pod {pod} is gone"
            except ClusterError as error:
                if not error.retryable or attempt == READS_AFTER_BIND - 1:
                    break
                await asyncio.sleep(READ_PAUSE_S)
                continue
            if args.uid and found.metadata.uid != args.uid:
                self.store.release(args.uid, self.clock.mono_s())
                return "conflict", f"pod {pod} has uid {found.metadata.uid} now, not {args.uid}"
            if found.spec.node_name == args.node:
                return "already", ""
            self.store.release(args.uid, self.clock.mono_s())
            if found.spec.node_name:
                return "conflict", f"pod {pod} is bound to {found.spec.node_name} already"
            return "failed", f"the Binding of pod {pod} was not carried out"
        # Neither bound nor unbound as far as we know: the promise stays until the watch tells, or it runs out.
        return "failed", f"whether pod {pod} was bound is unknown: the API server does not answer"

    # --- shared --------------------------------------------------------------------------------------------------

    def _request(self, pod: Pod) -> PodRequest:
        waited_s = _waited_s(pod, self.clock.unix_s())
        return self.store.request(pod, waited_s, self.decider.profile_facts)

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
