"""Wakes pods that we refused, once they fit: by a changed annotation on the pod itself, a few a second.

A refused pod waits for an event of the cluster, at the latest for some minutes. What we refuse for, Kubernetes cannot
see, so it tells nobody when that ends. A change of the pod itself makes kube-scheduler of every version try exactly
this pod again, and no node is written. Who waits, and who would fit, is in decision/refused.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Protocol, Self

from scheduler.cluster.kubernetes import KubernetesCluster
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.port import ClusterPort
from scheduler.config_nudge import NudgeSettings
from scheduler.config_settings import Settings
from scheduler.core.clock import Clock
from scheduler.core.log import kv
from scheduler.core.nouns import PREFIX
from scheduler.decision.decider import Decider, Outcome
from scheduler.decision.refused import Choice, Refused
from scheduler.extender.verbs import Verbs
from scheduler.knowledge import Knowledge
from scheduler.leadership import Leadership
from scheduler.pod_writes import FAILED, FORBIDDEN, GONE, REJECTED, WRITTEN, PodWrites

log = logging.getLogger(__name__)

RETRY_ANNOTATION = PREFIX + "retry"
# Pods that wait when we begin to lead may have met nobody, or somebody before us: kube-scheduler asks about most of
# them by itself within its longest back-off (3 s as we print it).
INHERITED_S = 5.0
# How often the store is looked at while anybody waits: 0.05 ms of it at 5,000 nodes.
LOOK_S = 0.1
# Judging holds the loop no longer than this at a time.
TURN_S = 0.002
# Where we may not write, or nobody answers, the next try is not the next pod's. What is wrong with one pod (an
# admission plugin's no, annotations that are full) is no word on the next, and that pod has its turn much later.
REFUSED_AGAIN_S = 60.0
FAILED_AGAIN_S = 1.0
# Writes without an answer yet: a slow API server shall not set the pace, nor get a crowd.
MOST_OPEN = 16
# Of whom it is known when they were woken last; as many as decisions are.
MOST_KEPT = 10_000
# A number that somebody else wrote there has no more digits than this.
MOST_DIGITS = 9


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
    """

    def __init__(
        self,
        cluster: ClusterPort,
        decider: Decider,
        clock: Clock,
        settings: Callable[[], NudgeSettings],
        may_act: Callable[[], bool],
    ) -> None:
        self.results: Counter[str] = Counter(dict.fromkeys((WRITTEN, GONE, FAILED), 0))
        """written | gone (the pod) | failed; zeros too: a series that is not there cannot be watched."""
        self.last_unix_s: OrderedDict[str, float] = OrderedDict()
        """When each pod was woken last."""
        self._refused = Refused(decider)
        self._decisions = decider.log
        self._clock = clock
        self._settings = settings
        self._may_act = may_act
        self._writes = PodWrites(cluster, self.results, "pods cannot be woken", lambda: settings().most_per_s)
        self._inherited: tuple[str, ...] = ()
        self._inherited_mono_s = 0.0
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(MOST_OPEN)
        self._trouble = ""
        """Why writing is not gone on with for now; empty while it is."""

    @classmethod
    def of(cls, running: Running) -> Self:
        """Those of a daemon, tied to what it hears."""
        nudges = cls(
            running.cluster,
            running.decider,
            running.clock,
            lambda: running.settings.nudge,
            lambda: running.leadership.may_act() and running.knowledge.not_ready() is None,
        )
        running.decider.on_outcome = nudges.see
        if running.verbs.binder is not None:
            running.verbs.binder.on_paused = nudges.see_unbound
        return nudges

    @property
    def waiting(self) -> int:
        """How many pods wait for us that we refused."""
        return len(self._refused)

    def see(self, outcome: Outcome, now_mono_s: float) -> None:
        """Take a decision of filter."""
        self._refused.see(outcome, now_mono_s)
        if self._refused:
            self._wake.set()

    def see_unbound(self, uid: str) -> None:
        """A Binding of this pod was refused since somebody has paused us."""
        self._refused.see_unbound(uid, self._clock.mono_s())
        self._wake.set()

    def inherit(self, uids: Iterable[str]) -> None:
        """Pods wait though we have just begun to lead: those about which nobody asks soon are woken once they fit."""
        self._inherited = tuple(uids)
        self._inherited_mono_s = self._clock.mono_s() + INHERITED_S
        self._wake.set()

    def _take_inherited(self) -> None:
        if self._inherited and self._clock.mono_s() >= self._inherited_mono_s:
            for uid in self._inherited:
                if self._decisions.of_pod(uid) is None:
                    self._refused.see_unbound(uid, self._clock.mono_s())
            self._inherited = ()

    async def run(self) -> None:
        """Wake for ever; costs nothing while nobody waits."""
        while True:
            await self._wake.wait()
            while self._refused or self._inherited:
                await asyncio.sleep(LOOK_S)
                self._take_inherited()
                await self.wake()
            self._wake.clear()

    async def wake(self) -> None:
        """Wake those who fit now, one after the other, at the pace; an answer is not waited for before the next."""
        self._trouble = ""
        async with asyncio.TaskGroup() as group:
            while self._may_wake() and not self._trouble:
                await self._slots.acquire()
                choice = await self._find()
                # Others had their turn since.
                if choice is None or not self._may_wake():
                    self._slots.release()
                    break
                self._refused.take(choice, self._clock.mono_s() + float(self._settings().again_s))
                group.create_task(self._nudge(choice), name=f"pods.wake[{choice.pod.uid}]")
                await self._writes.pause()
        if self._trouble:
            await asyncio.sleep(REFUSED_AGAIN_S if self._trouble == FORBIDDEN else FAILED_AGAIN_S)

    def _may_wake(self) -> bool:
        return self._settings().enabled and self._may_act()

    async def _find(self) -> Choice | None:
        steps = self._refused.find(self._clock.mono_s())
        began_mono_s = self._clock.mono_s()
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found: Choice | None = end.value
                return found
            if self._clock.mono_s() - began_mono_s > TURN_S:
                await asyncio.sleep(0)
                began_mono_s = self._clock.mono_s()

    async def _nudge(self, choice: Choice) -> None:
        pod, count = choice.pod, _count(choice.pod) + 1
        try:
            result = await self._writes.write(pod, {RETRY_ANNOTATION: str(count)})
        finally:
            self._slots.release()
        if result != WRITTEN:
            # Longer than the pause: else the first in the queue would be tried for ever, and nobody beside it.
            rest_s = 2 * REFUSED_AGAIN_S if result in {REJECTED, FORBIDDEN} else 0.0
            self._refused.not_woken(choice, self._clock.mono_s() + rest_s)
            if result in {FAILED, FORBIDDEN}:
                self._trouble = result
            return
        self._refused.woken(choice)
        self.last_unix_s[pod.uid] = self._clock.unix_s()
        self.last_unix_s.move_to_end(pod.uid)
        if len(self.last_unix_s) > MOST_KEPT:
            self.last_unix_s.popitem(last=False)
        waited_s = round(choice.waited_s, 1)
        log.info(
            "woke a pod",
            extra=kv(pod=f"{pod.namespace}/{pod.name}", fits=choice.node, waited_s=waited_s, retry=count),
        )


def _count(pod: PodFacts) -> int:
    """How often it was woken, by whichever replica."""
    said = (pod.meta.annotations or {}).get(RETRY_ANNOTATION, "")
    return int(said) if said.isascii() and said.isdigit() and len(said) <= MOST_DIGITS else 0
