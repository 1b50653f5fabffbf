"""Which of the pods that wait may ask for something else than when they were put into a group. Pure.

What a pod asks for is made of the pod, of the words of its owners and its namespace, of its age where a pool opens by
it, and of the configuration. While none of these has changed it need not be made again: of 10,000 pods that wait, an
owner that comes to say something concerns its own.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from heapq import heappop, heappush
from math import inf

from scheduler.cluster.pods import PodFacts
from scheduler.decision.decider import Decider
from scheduler.decision.waiters import Waiter

# Pods compared in a step: a tenth of a millisecond.
PODS_A_STEP = 500


class Regrouping:
    """Keeps those that are to be put into a group, anew or for the first time.

    Args:
        decider: by whose profiles and filters they are judged.
        pods: who waits, by uid; kept by somebody else.
    """

    def __init__(self, decider: Decider, pods: Mapping[str, Waiter]) -> None:
        self.due: dict[str, None] = {}
        """Uids, in the order in which they came."""
        self._decider = decider
        self._store = decider.store
        self._pods = pods
        self._hear: dict[str, set[str]] = {}
        """Owner or namespace -> pods for which its words count."""
        self._ages: list[tuple[float, str]] = []
        """A heap of the instants at which a pool opens to a pod by its age alone."""
        self._judged_by: tuple[object, ...] = ()
        self._generation = 0

    def joined(self, uid: str, pod: Waiter, facts: PodFacts | None, older_mono_s: float) -> None:
        """A pod was put into a group by what is known of it now; the next pool opens to it by its age then."""
        self.due.pop(uid, None)
        pod.facts = facts
        voices = self._store.intents.voices(facts.meta) if facts is not None else ()
        if voices != pod.voices:
            self._hear_no_more(uid, pod)
            pod.voices = voices
            for voice in voices:
                self._hear.setdefault(voice, set()).add(uid)
        if older_mono_s < inf and older_mono_s != pod.older_mono_s:
            pod.older_mono_s = older_mono_s
            heappush(self._ages, (older_mono_s, uid))

    def forget(self, uid: str, pod: Waiter) -> None:
        """A pod waits no more, or from now on as another."""
        self.due.pop(uid, None)
        self._hear_no_more(uid, pod)

    def _hear_no_more(self, uid: str, pod: Waiter) -> None:
        for voice in pod.voices:
            heard_by = self._hear[voice]
            heard_by.discard(uid)
            if not heard_by:
                del self._hear[voice]
        pod.voices = ()

    def look(self, now_mono_s: float, *, every: bool) -> Generator[None, None, bool]:
        """See who is due since the last look; returns whether all are judged by other rules than before.

        Args:
            now_mono_s: The instant.
            every: Whether to look through what is known of the pods themselves, too: Kubernetes lets kube-scheduler
                try a pod again that has changed, so that there is no hurry.
        """
        if otherwise := self._is_judged_otherwise():
            self.due.update(dict.fromkeys(self._pods))
            yield
        self._hear_changes()
        while self._ages and self._ages[0][0] <= now_mono_s:
            _, uid = heappop(self._ages)
            if uid in self._pods:
                self._pods[uid].older_mono_s = inf
                self.due[uid] = None
        if every:
            yield from self._compare()
        return otherwise

    def _is_judged_otherwise(self) -> bool:
        decider, store = self._decider, self._store
        before = self._judged_by
        now = (decider.filters, decider.profiles, store.intents.settings, store.settings)
        self._judged_by = now
        return len(before) != len(now) or any(a is not b and a != b for a, b in zip(before, now, strict=True))

    def _hear_changes(self) -> None:
        intents = self._store.intents
        changed = intents.changed_since(self._generation)
        self._generation = intents.generation
        if changed is None:
            self.due.update(dict.fromkeys(self._pods))
            return
        for voice in changed:
            self.due.update(dict.fromkeys(self._hear.get(voice, ())))

    def _compare(self) -> Generator[None, None, None]:
        """Find pods that were changed, are gone, or were not known to the watch yet."""
        uids, waiting = list(self._pods), self._store.waiting
        for start in range(0, len(uids), PODS_A_STEP):
            for uid in uids[start : start + PODS_A_STEP]:
                pod = self._pods.get(uid)
                if pod is not None and (pod.facts is None or waiting.get(uid) is not pod.facts):
                    self.due[uid] = None
            yield
