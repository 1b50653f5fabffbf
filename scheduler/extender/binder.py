"""Bindings of ours, where kube-scheduler leaves them to us (bindVerb): sent once, looked up when in doubt.

Twice is success. A Binding whose answer did not come may have been carried out, or be on its way still: the pod is
read, within the time that kube-scheduler waits; what is not known by then is looked up until it is. Until then the
pod's promise stays, so that its GPUs are not given to another.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from scheduler.cluster.annotation_size import annotations_bytes, fits
from scheduler.cluster.port import ClusterPort
from scheduler.cluster.store import Store
from scheduler.core.clock import Clock
from scheduler.core.errors import ApiConflict, ApiNotFound, ApiUnavailable, ClusterError
from scheduler.core.log import kv
from scheduler.decision.record import DecisionLog, decision_annotation
from scheduler.extender.wire import BindArgs

_log = logging.getLogger(__name__)

# kube-scheduler waits 5 s unless told otherwise, and nobody reads a later answer.
ANSWER_LIMIT_S = 3.5
# Of these, what the Binding may take; the rest is for looking up what became of it.
SEND_LIMIT_S = 2.0
READ_PAUSE_S = 0.3
# What a look at a pod may take before its Binding is sent, where that needs one.
COUNT_LIMIT_S = 0.3
LOOK_UP_EVERY_S = 1.0

Answer = tuple[str, str]
"""The result, and what kube-scheduler is told; nothing where the pod is bound."""


class Binder:
    """Sends Bindings, and remembers those whose outcome is unknown; run `run()` beside it."""

    def __init__(
        self,
        store: Store,
        decisions: DecisionLog,
        cluster: ClusterPort,
        clock: Clock,
        *,
        leads: Callable[[], bool],
        term: Callable[[], int],
        paused: Callable[[], str] = lambda: "",
        is_observed: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`paused` says who has paused us, and why; empty while nobody has.

        Onto a node that `is_observed` we bind as kube-scheduler asks, and leave no word of ours on the pod.
        """
        self.results: Counter[str] = Counter()
        """bound | already | conflict | gone | cordoned | unknown_node | not_leading | paused | failed | unknown."""
        self.unknown: dict[str, BindArgs] = {}
        """By uid: Bindings that were sent, and nobody knows what became of them."""
        self.on_paused: Callable[[str], None] | None = None
        """Told of each pod, by its uid, whose Binding was refused since somebody has paused us."""
        self._store = store
        self._decisions = decisions
        self._cluster = cluster
        self._clock = clock
        self._leads = leads
        self._term = term
        self._paused = paused
        self._is_observed = is_observed

    async def bind(self, args: BindArgs) -> str:
        """Bind a pod. Returns what to tell kube-scheduler: nothing if the pod is bound to that node."""
        result, error = self._why_not(args) or await self._bind(args)
        self.results[result] += 1
        if result == "paused" and self.on_paused is not None:
            self.on_paused(args.uid)
        _log.info(
            "bind", extra=kv(pod=f"{args.namespace}/{args.name}", node=args.node, result=result, error=error)
        )
        return error

    async def run(self) -> None:
        """Look up what is unknown, for ever."""
        while True:
            await asyncio.sleep(LOOK_UP_EVERY_S)
            for uid in list(self.unknown):
                self._hold(uid)
            for args in list(self.unknown.values()):
                if not await self._look_up(args):
                    # Nobody answers: the others need not ask.
                    break

    def _why_not(self, args: BindArgs) -> Answer | None:
        """What memory says against the Binding, or that it is done already; None if nothing."""
        pod = f"{args.namespace}/{args.name}"
        held = self._store.pods.get(args.uid)
        if held is not None and held.node:
            if held.node == args.node:
                return "already", ""
            return "conflict", f"pod {pod} is bound to {held.node} already"
        row = self._store.rows.get(args.node)
        if row is None:
            # The API server would accept it (a Binding's target is not checked).
            return "unknown_node", f"node {args.node} is gone"
        if self._store.snapshot.cordoned[row] and self._cordoned_since(args):
            return "cordoned", f"node {args.node} was cordoned meanwhile"
        return self._why_not_now()

    def _why_not_now(self) -> Answer | None:
        """Why we may not act; None if we may."""
        if paused := self._paused():
            # kube-scheduler binds nothing itself where it leaves that to us: its pods wait, and it should say for what.
            what_to_do = (
                "until `wattbalance resume` no pod is bound, unless bindVerb is taken out of kube-scheduler's"
            )
            return "paused", f"wattbalance is {paused}; {what_to_do} extender configuration"
        if not self._leads():
            return "not_leading", "this replica no longer leads; ask again"
        return None

    def _cordoned_since(self, args: BindArgs) -> bool:
        """Whether the node was cordoned after the question about this pod.

        Where it was before, kube-scheduler has seen that, and that the pod tolerates it.
        """
        decided = self._decisions.of_pod(args.uid)
        # Another replica's decision: nothing stays promised for longer than this.
        ago_s = self._store.settings.reservation_s
        if decided is not None:
            ago_s = self._clock.unix_s() - decided.unix_s
        return self._store.nodes[args.node].cordoned_mono_s > self._clock.mono_s() - ago_s

    async def _bind(self, args: BindArgs) -> Answer:
        pod = f"{args.namespace}/{args.name}"
        annotations = await self._annotations(args)
        try:
            async with asyncio.timeout(SEND_LIMIT_S):
                await self._cluster.bind(
                    args.namespace,
                    args.name,
                    args.uid,
                    args.node,
                    annotations,
                    may_send=lambda: self._why_not_now() is None,
                )
        except ApiNotFound:
            self._release(args)
            return "gone", f"pod {pod} is gone"
        except ApiConflict:
            return await self._after(args, sent=False)
        except (ApiUnavailable, TimeoutError):
            return await self._after(args, sent=True)
        except ClusterError as error:
            self._release(args)
            return self._why_not_now() or ("failed", str(error))
        return "bound", ""

    async def _annotations(self, args: BindArgs) -> dict[str, str]:
        """What the Binding leaves on the pod: nothing where that may be too much.

        The API server does not count what comes in a Binding, and takes no later write to a pod with too much, not even
        the kubelet's of its status. In a patch it does count: the write-back finds out what is still possible.
        """
        if self._is_observed(args.node):
            return {}
        decision = decision_annotation(self._decisions.of_pod(args.uid), args.node, self._term())
        try:
            why = "there is no room for it" if not await self._has_room(args, decision) else ""
        except (ClusterError, TimeoutError) as error:
            why = f"what is on the pod is not known: {str(error) or 'no answer in time'}"
        if not why:
            return decision
        pod = f"{args.namespace}/{args.name}"
        _log.info("no decision in the Binding", extra=kv(pod=pod, reason=why))
        return {}

    async def _has_room(self, args: BindArgs, decision: dict[str, str]) -> bool:
        """Raises ClusterError or TimeoutError where nobody knows."""
        facts = self._store.waiting.get(args.uid)
        if facts is not None and facts.annotations_bytes is not None:
            return fits(facts.annotations_bytes, facts.meta.annotations or {}, decision)
        # The watch has not told of it yet.
        async with asyncio.timeout(COUNT_LIMIT_S):
            meta = (await self._cluster.get_pod(args.namespace, args.name)).metadata
        held = meta.annotations or {}
        return fits(annotations_bytes(held), held, decision)

    async def _after(self, args: BindArgs, *, sent: bool) -> Answer:
        """Read what became of a Binding that was refused, or (`sent`) never answered."""
        pod = f"{args.namespace}/{args.name}"
        if sent:
            self.unknown[args.uid] = args
            self._hold(args.uid)
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S - SEND_LIMIT_S):
                while True:
                    try:
                        return await self._read(args, sent=sent)
                    except ApiUnavailable:
                        await asyncio.sleep(READ_PAUSE_S)
        except (ClusterError, TimeoutError):
            # Neither bound nor unbound as far as we know: run() goes on asking, and the promise stays until then.
            return "unknown", f"whether pod {pod} was bound is unknown: the API server does not answer"

    async def _read(self, args: BindArgs, *, sent: bool) -> Answer:
        """Read the pod and settle the matter. Raises ClusterError if it cannot be read."""
        pod = f"{args.namespace}/{args.name}"
        try:
            found = await self._cluster.get_pod(args.namespace, args.name)
        except ApiNotFound:
            self._release(args)
            return "gone", f"pod {pod} is gone"
        if args.uid and found.metadata.uid != args.uid:
            self._release(args)
            return "conflict", f"pod {pod} has uid {found.metadata.uid} now, not {args.uid}"
        if found.spec.node_name == args.node:
            self.unknown.pop(args.uid, None)
            return "already", ""
        if found.spec.node_name:
            self._release(args)
            return "conflict", f"pod {pod} is bound to {found.spec.node_name} already"
        if found.metadata.deletion_timestamp:
            # No Binding of it is taken any more, not even one that is still on its way.
            self._release(args)
            return "gone", f"pod {pod} is being deleted"
        self.unknown.pop(args.uid, None)
        if not sent:
            self._release(args)
        # What was sent may arrive after this reading: the promise runs out by itself, or serves the next attempt.
        return "failed", f"the Binding of pod {pod} was not carried out"

    async def _look_up(self, args: BindArgs) -> bool:
        """Try once to learn what became of a Binding. Returns whether somebody answered."""
        held = self._store.pods.get(args.uid)
        if held is not None and held.node:
            # The watch was faster.
            self.unknown.pop(args.uid, None)
            return True
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                result, _ = await self._read(args, sent=True)
        except (ClusterError, TimeoutError):
            return False
        _log.info(
            "bind looked up",
            extra=kv(pod=f"{args.namespace}/{args.name}", node=args.node, result=result),
        )
        return True

    def _hold(self, uid: str) -> None:
        reservations = self._store.reservations
        reservations.hold(uid, self._clock.mono_s() + reservations.reservation_s)

    def _release(self, args: BindArgs) -> None:
        self.unknown.pop(args.uid, None)
        self._store.release(args.uid, self._clock.mono_s())
