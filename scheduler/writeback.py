"""Writes our decision on pods that kube-scheduler bound by it, newest first and a few a second.

Never on a pod that waits: there each change of the pod would make kube-scheduler try it anew. Where we bind, the
decision travels in the Binding (extender/binder.py), and there is nothing left to write. On 1.32 and later any change
of a bound pod lets kube-scheduler try refused pods again, hence the pace.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable

from scheduler.cluster.pods import PodFacts
from scheduler.cluster.port import ClusterPort
from scheduler.core.nouns import DECISION_ANNOTATION
from scheduler.decision.record import DecisionLog, decision_annotation, is_annotated
from scheduler.pod_writes import PodWrites

# Those that wait; the oldest go first. A thousand are 50 s of writing at the default pace.
MOST_WAITING = 1000


class WriteBack:
    """Notes bound pods without waiting; `run` writes.

    Args:
        cluster: where to.
        decisions: what was decided.
        may_write: whether this replica leads and acts.
        term: of its leading.
        most_per_s: how many to write a second at most: of a burst the decisions come later, and the API server does
            not notice.
    """

    def __init__(
        self,
        cluster: ClusterPort,
        decisions: DecisionLog,
        *,
        may_write: Callable[[], bool],
        term: Callable[[], int],
        most_per_s: Callable[[], float],
    ) -> None:
        self.results: Counter[str] = Counter()
        """written | gone | dropped (too many) | failed."""
        self._writes = PodWrites(cluster, self.results, "decisions cannot be written on pods", most_per_s)
        self._decisions = decisions
        self._may_write = may_write
        self._term = term
        self._waiting: OrderedDict[str, PodFacts] = OrderedDict()
        self._wake = asyncio.Event()

    def bound(self, pod: PodFacts) -> None:
        """A pod was bound. Nothing is noted of one without a decision of ours, or that carries it already."""
        record = self._decisions.of_pod(pod.uid)
        # What was only observed, while we were paused, is not what it was bound by.
        if not self._may_write() or record is None or record.result == "observed":
            return
        if is_annotated(record, pod.node, (pod.meta.annotations or {}).get(DECISION_ANNOTATION, "")):
            return
        self._waiting[pod.uid] = pod
        if len(self._waiting) > MOST_WAITING:
            self._waiting.popitem(last=False)
            self.results["dropped"] += 1
        self._wake.set()

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await self._wake.wait()
            while self._waiting:
                _, pod = self._waiting.popitem(last=True)
                await self._write(pod)
                await self._writes.pause()
            self._wake.clear()

    async def _write(self, pod: PodFacts) -> None:
        record = self._decisions.of_pod(pod.uid)
        if record is None or not self._may_write():
            return
        # One that failed is not tried again: the record and the log have it, and the next pod's may pass.
        await self._writes.write(pod, decision_annotation(record, pod.node, self._term()))
