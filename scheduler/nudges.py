"""Wakes pods that we refused, once they fit: by a changed annotation on the pod itself, a few a second.

A refused pod waits for an event of the cluster, at the latest for some minutes. What we refuse for, Kubernetes cannot
see, so it tells nobody when that ends. A change of the pod itself makes kube-scheduler of every version try exactly
this pod again, and no node is written. Who waits, and who would fit, is in decision/refused.py.

What another replica refused, beside its own kube-scheduler or before we led, and what found nobody to ask, is found by
the status that kube-scheduler wrote on the pod (cluster/pod_status.py): whoever was asked, the leader wakes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from math import inf
from typing import Protocol, Self, TypeVar

from scheduler.cluster.annotation_size import fits
from scheduler.cluster.kubernetes import KubernetesCluster
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.port import ClusterPort
from scheduler.config_nudge import NudgeSettings
from scheduler.config_settings import Settings
from scheduler.core.clock import Clock
from scheduler.core.log import kv
from scheduler.core.units import parse_instant
from scheduler.decision.decider import Decider, Outcome
from scheduler.decision.refused import MOST_REFUSED, Refused
from scheduler.decision.waiters import Choice
from scheduler.extender.verbs import Verbs
from scheduler.knowledge import Knowledge
from scheduler.last_woken import MOST_DIGITS, RETRY_ANNOTATION, LastWoken
from scheduler.leadership import Leadership
from scheduler.pod_writes import FAILED, FORBIDDEN, GONE, REJECTED, WRITTEN, PodWrites

log = logging.getLogger(__name__)

# How often those are looked for that we did not refuse: 2 ms of it while 10,000 pods wait, in turns.
SEEK_S = 1.0
SEEN_A_TURN = 100
# How often the store is looked at while anybody waits: 0.05 ms of it at 5,000 nodes.
LOOK_S = 0.1
# Judging and looking hold the loop so long at a time and one step more, of 0.1 to 0.2 ms: for half a millisecond.
TURN_S = 0.0003
# What is wrong with one pod (an admission plugin's no, annotations that are full, a fault of the server's over it) is
# no word on the next: that pod has its turn later, each time it fails twice as much later, up to this.
MOST_REST_S = 60.0
# Several different pods in a row, and none between them that could be written: then it is not the pods. The next try is
# not the next pod's while nobody answers, and much later where we may not write.
SEVERAL = 3
REFUSED_AGAIN_S = 60.0
FAILED_AGAIN_S = 1.0
# A pod that takes no annotation takes none soon.
REJECTED_AGAIN_S = 120.0
# Who has woken a pod, where we have not.
ELSEWHERE = "elsewhere"
# Writes without an answer yet: a slow API server shall not set the pace, nor get a crowd.
MOST_OPEN = 16
# Of whom it is known when they were woken last; as many as decisions are.
MOST_KEPT = 10_000
# Who takes the lead waits so long: what the one before has written is there by then, and both together keep the pace.
FIRST_S = 1.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """When a pod has its turn to be woken, and what it waits for until then; told by explain (waking.py)."""

    known: bool
    """Whether it waits for us, as far as is known here."""
    why: str = ""
    """Why it is not tried for now: written (by us) | elsewhere (woken by somebody else) | failed | rejected |
    forbidden; empty if it may be."""
    until_mono_s: float | None = None
    """Until when."""
    of_all: bool = False
    """Whether that holds up everybody."""
    has_room: bool = True
    """Whether its annotations have room for one more."""
    before: int | None = None
    """How many that fit, too, are before it; None if it fits nowhere."""


class Running(Protocol):
    """What of a daemon they need."""

    settings: Settings
    clock: Clock
    decider: Decider
    cluster: KubernetesCluster
    leadership: Leadership
    knowledge: Knowledge
    verbs: Verbs


class Nudges:
    """Hears of every decision of filter without waiting; `run` wakes.

    Args:
        cluster: where to.
        decider: whose decisions, and by whose opinion a pod fits.
        clock: for the pace.
        settings: those in force.
        may_act: whether this replica leads and acts, and knows enough.
        scheduler_names: whose pods come past us.
    """

    def __init__(
        self,
        cluster: ClusterPort,
        decider: Decider,
        clock: Clock,
        settings: Callable[[], NudgeSettings],
        may_act: Callable[[], bool],
        scheduler_names: Callable[[], Collection[str]],
    ) -> None:
        self.results: Counter[str] = Counter(dict.fromkeys((WRITTEN, GONE, FAILED), 0))
        """written | gone (the pod) | failed; zeros too: a series that is not there cannot be watched."""
        self.last_unix_s: OrderedDict[str, float] = OrderedDict()
        """When each pod was woken last."""
        self.binds = False
        """Whether we bind pods that kube-scheduler leaves to us: who waits for that is woken only then."""
        self._refused = Refused(decider)
        self._store = decider.store
        self._clock = clock
        self._settings = settings
        self._may_act = may_act
        self._scheduler_names = scheduler_names
        self._writes = PodWrites(cluster, self.results, "pods cannot be woken", lambda: settings().most_per_s)
        self._last = LastWoken(clock)
        self._acts = False
        self._sought_mono_s = -inf
        self._failures: dict[str, float] = {}
        """How long each pod that could not be written was left alone after that."""
        self._results: dict[str, str] = {}
        """What came of waking a pod last, where that was not written."""
        self._in_a_row: dict[str, None] = {}
        """Pods that could not be written since one was."""
        self._slots = asyncio.Semaphore(MOST_OPEN)
        self._trouble = ""
        """Why writing is not gone on with for now; empty while it is."""
        self._trouble_until_mono_s: float | None = None

    @classmethod
    def of(cls, running: Running) -> Self:
        """Those of a daemon, tied to what it hears."""
        nudges = cls(
            running.cluster,
            running.decider,
            running.cluster.server_clock,
            lambda: running.settings.nudge,
            lambda: running.leadership.may_act() and running.knowledge.not_ready() is None,
            lambda: running.settings.scheduler_names,
        )
        running.decider.on_outcome = nudges.see
        nudges.binds = running.verbs.binder is not None
        if running.verbs.binder is not None:
            running.verbs.binder.on_paused = nudges.see_unbound
        return nudges

    @property
    def waiting(self) -> int:
        """How many pods wait for us that were refused."""
        return len(self._refused)

    def turn(self, pod: PodFacts) -> Turn:
        """Say when a pod that waits is woken once it fits, and what hinders that."""
        uid, now_mono_s = pod.uid, self._clock.mono_s()
        known = uid in self._refused or (len(self._refused) < MOST_REFUSED and self._is_ours(pod))
        has_room = pod.annotations_bytes is None or fits(
            pod.annotations_bytes, pod.meta.annotations or {}, {RETRY_ANNOTATION: "0" * MOST_DIGITS}
        )
        if self._trouble:
            until_mono_s = self._trouble_until_mono_s
            return Turn(
                known=known, why=self._trouble, until_mono_s=until_mono_s, of_all=True, has_room=has_room
            )
        theirs_mono_s = self._last.rests_until_mono_s(pod, float(self._settings().again_s))
        until_mono_s = max(self._refused.rests_until_mono_s(uid), theirs_mono_s)
        if until_mono_s <= now_mono_s:
            before = self._refused.before(uid, now_mono_s)
            return Turn(known=known, has_room=has_room, before=before)
        why = self._results.get(uid) or (ELSEWHERE if theirs_mono_s > now_mono_s else WRITTEN)
        return Turn(known=known, why=why, until_mono_s=until_mono_s, has_room=has_room)

    def see(self, outcome: Outcome, now_mono_s: float) -> None:
        """Take a decision of filter."""
        self._refused.see(outcome, now_mono_s)

    def see_unbound(self, uid: str) -> None:
        """A Binding of this pod was refused since somebody has paused us."""
        self._refused.see_unbound(uid, self._clock.mono_s())

    async def run(self) -> None:
        """Wake for ever; costs next to nothing while nobody waits."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.wake()

    async def wake(self) -> None:
        """Wake those who fit now, one after the other, at the pace; an answer is not waited for before the next."""
        self._trouble, self._trouble_until_mono_s = "", None
        await self._begin()
        async with asyncio.TaskGroup() as group:
            while self._may_wake() and not self._trouble:
                await self._slots.acquire()
                choice = await self._next()
                # Others had their turn since.
                if choice is None or not self._may_wake():
                    self._slots.release()
                    break
                self._refused.take(choice, self._clock.mono_s() + float(self._settings().again_s))
                group.create_task(self._nudge(choice), name=f"pods.wake[{choice.pod.uid}]")
                await self._writes.pause()
        if self._trouble:
            pause_s = REFUSED_AGAIN_S if self._trouble == FORBIDDEN else FAILED_AGAIN_S
            self._trouble_until_mono_s = self._clock.mono_s() + pause_s
            await asyncio.sleep(pause_s)

    async def _begin(self) -> None:
        """Who begins to act may do so just after another has: it has no write to spare yet."""
        before, self._acts = self._acts, self._may_wake()
        if self._acts and not before:
            await asyncio.sleep(FIRST_S)
            await self._writes.pause()

    def _may_wake(self) -> bool:
        return self._settings().enabled and self._may_act()

    async def _next(self) -> Choice | None:
        """Find whom to wake. Those whom another replica has just woken are on their way."""
        while (choice := await self._find()) is not None:
            again_s = float(self._settings().again_s)
            until_mono_s = self._last.rests_until_mono_s(choice.pod, again_s)
            if until_mono_s <= self._clock.mono_s():
                return choice
            self._refused.take(choice, until_mono_s)
            await asyncio.sleep(0)
        return None

    async def _find(self) -> Choice | None:
        now_mono_s = self._clock.mono_s()
        if now_mono_s - self._sought_mono_s >= SEEK_S:
            self._sought_mono_s = now_mono_s
            await self._in_turns(self._seek())
        if not self._refused:
            return None
        return await self._in_turns(self._refused.find(self._clock.mono_s()))

    def _seek(self) -> Generator[None, None, None]:
        """Find pods that wait for one of us, and were not refused by us."""
        for index, facts in enumerate(list(self._store.waiting.values())):
            if self._is_ours(facts) and facts.uid not in self._refused:
                self._take_on(facts)
                yield
            elif index % SEEN_A_TURN == 0:
                yield
        for uid in [uid for uid in self._failures if uid not in self._store.waiting]:
            del self._failures[uid]
        for uid in [uid for uid in self._results if uid not in self._store.waiting]:
            del self._results[uid]

    def _is_ours(self, facts: PodFacts) -> bool:
        """Whether a pod's status says that one of us refused it, or that nobody answered, and another try may help."""
        helps = facts.refused and (self.binds or not facts.lacks_binder)
        return helps and facts.scheduler_name in self._scheduler_names()

    def _take_on(self, facts: PodFacts) -> None:
        if self._store.reservations.get(facts.uid) is not None:
            # It is on its way; its status says so once it is bound.
            return
        unix_s = self._clock.unix_s()
        self._refused.see_elsewhere(
            facts, max(unix_s - _created_unix_s(facts, unix_s), 0.0), self._clock.mono_s()
        )

    async def _in_turns(self, steps: Generator[None, None, T]) -> T:
        began_mono_s = self._clock.mono_s()
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: T = end.value
                return result
            if self._clock.mono_s() - began_mono_s > TURN_S:
                await asyncio.sleep(0)
                began_mono_s = self._clock.mono_s()

    async def _nudge(self, choice: Choice) -> None:
        pod, retry = choice.pod, self._last.write(choice.pod)
        try:
            result = await self._writes.write(pod, {RETRY_ANNOTATION: retry})
        finally:
            self._slots.release()
        if result != WRITTEN:
            self._not_woken(choice, result)
            return
        self._in_a_row.clear()
        self._failures.pop(pod.uid, None)
        self._results.pop(pod.uid, None)
        self._refused.woken(choice, self._clock.mono_s())
        self.last_unix_s[pod.uid] = self._clock.unix_s()
        self.last_unix_s.move_to_end(pod.uid)
        if len(self.last_unix_s) > MOST_KEPT:
            self.last_unix_s.popitem(last=False)
        waited_s = round(choice.waited_s, 1)
        log.info(
            "woke a pod",
            extra=kv(pod=f"{pod.namespace}/{pod.name}", fits=choice.node, waited_s=waited_s, retry=retry),
        )

    def _not_woken(self, choice: Choice, result: str) -> None:
        uid, rest_s = choice.pod.uid, 0.0
        if result != GONE:
            self._results[uid] = result
        if result in {GONE, REJECTED}:
            # The server is there, and lets us write.
            self._in_a_row.clear()
            rest_s = REJECTED_AGAIN_S if result == REJECTED else 0.0
        else:
            rest_s = self._rest_s(uid)
            self._in_a_row[uid] = None
            if len(self._in_a_row) >= SEVERAL:
                self._trouble = result
                self._failures.clear()
        self._refused.not_woken(choice, self._clock.mono_s() + rest_s)

    def _rest_s(self, uid: str) -> float:
        """How long a pod that could not be written is left alone."""
        before_s = self._failures.get(uid)
        rest_s = float(self._settings().again_s) if before_s is None else min(2 * before_s, MOST_REST_S)
        self._failures[uid] = rest_s
        return rest_s


def _created_unix_s(pod: PodFacts, else_unix_s: float) -> float:
    try:
        return parse_instant(pod.meta.creation_timestamp or "")
    except ValueError:
        return else_unix_s
