"""A stand-in for kube-scheduler: one pod at a time, in-tree filters, then the extender, then an asynchronous bind.

It watches the simulated API server in the same process and calls the extender over HTTP by the real protocol.
Left out: preemption, pod affinity, spread constraints, volumes, host ports.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from scheduler.core.clock import Clock
from scheduler.core.errors import ClusterError
from scheduler.simulate.apiserver import ApiServer
from scheduler.simulate.apiserver_rules import NODES, PODS, JsonObject
from scheduler.simulate.apiserver_store import Event
from scheduler.simulate.fit import NodeTable, PodNeeds, amounts
from scheduler.simulate.kubescheduler_extender import ExtenderClient, ExtenderConfig, ExtenderFailed
from scheduler.simulate.requeue import EXTENDER, Cause, Happening, Queue, Rules, Waiting

_FINISHED = ("Succeeded", "Failed")
# The wait for work is cut into so long pieces at most: a clock that is handed in may run faster than time does.
_IDLE_MAX_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """How the stand-in behaves."""

    scheduler_name: str | None = None
    """Whose pods are placed; None places all."""
    extender: ExtenderConfig | None = None
    rules: Rules = Rules.V1_32
    initial_backoff_s: float = 1.0
    max_backoff_s: float = 10.0
    nodes_to_score_pct: int | None = 100
    """percentageOfNodesToScore; None is kube-scheduler's default, which stops its search early."""
    bind_delay_s: float = 0.0
    """How long a Binding takes, beside the next pods' cycles."""
    seed: int = 0
    """For ties."""


@dataclass(slots=True)
class SchedulerCounts:
    """What has happened so far."""

    attempts: int = 0
    placed: int = 0
    bind_failures: int = 0
    extender_errors: int = 0
    unschedulable: Counter[str] = field(default_factory=Counter)
    """Failed attempts by reason; an attempt counts under each of its reasons once."""


class KubeScheduler:
    """Places pods of a simulated API server.

    Args:
        server: whose pods and nodes; Bindings and conditions are written to it.
        clock: for backoff.
        config: how it behaves.
    """

    def __init__(self, server: ApiServer, clock: Clock, config: SchedulerConfig | None = None) -> None:
        self.config = config or SchedulerConfig()
        self.counts = SchedulerCounts()
        self.extender = None if self.config.extender is None else ExtenderClient(self.config.extender)
        self.queue = Queue(
            self.config.rules,
            initial_backoff_s=self.config.initial_backoff_s,
            max_backoff_s=self.config.max_backoff_s,
        )
        self._server = server
        self._clock = clock
        self._nodes = NodeTable()
        self._seen_nodes: dict[str, JsonObject] = {}
        # Pods that the API server has shown as bound; others that hold resources are assumed.
        self._confirmed: set[str] = set()
        self._random = np.random.default_rng(self.config.seed)
        self._search_from = 0
        self._wake = asyncio.Event()
        self._ends: list[Callable[[], None]] = []

    async def run(self) -> None:
        """Watch and schedule for ever."""
        self.watch()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._wake.clear()
                    if await self._cycle(group):
                        # The loop is the world's too.
                        await asyncio.sleep(0)
                        continue
                    await self._wait()
        finally:
            await self.close()

    async def settle(self) -> None:
        """Schedule until nothing is active, and wait for the binds; for clocks that move by hand."""
        if not self._ends:
            self.watch()
        async with asyncio.TaskGroup() as group:
            while await self._cycle(group):
                pass

    def watch(self) -> None:
        """Follow nodes and pods, beginning with those that are there."""
        self._ends = [
            self._server.subscribe(NODES, self._on_node),
            self._server.subscribe(PODS, self._on_pod),
        ]

    async def close(self) -> None:
        """Stop watching and close the extender's connections."""
        for end in self._ends:
            end()
        self._ends = []
        if self.extender is not None:
            await self.extender.close()

    @property
    def waiting(self) -> int:
        """Pods that have no node yet."""
        return len(self.queue.waiting)

    def untried(self) -> tuple[int, float]:
        """Pods that no cycle has reached yet, and for how long the oldest has waited: how far we are behind."""
        since_mono_s = self.queue.untried_since_mono_s()
        oldest_mono_s = min(since_mono_s, default=None)
        return len(since_mono_s), 0.0 if oldest_mono_s is None else self._clock.mono_s() - oldest_mono_s

    # One cycle.

    async def _cycle(self, group: asyncio.TaskGroup) -> bool:
        """Try one pod; False if none is active."""
        entry = self.queue.pop(self._clock.mono_s())
        if entry is None:
            return False
        self.counts.attempts += 1
        needs = PodNeeds.of(entry.pod)
        # 1. In-tree filters.
        feasible, lost = self._nodes.fits(needs)
        refused_by = set(lost)
        reasons: Counter[str] = Counter({reason: int(rows.sum()) for reason, rows in lost.items()})
        rows = self._sampled(np.flatnonzero(feasible))
        names = [self._nodes.name(row) for row in rows]
        # 2. The extender's filter, on what is left.
        extender = self._managing(needs)
        if names and extender is not None:
            try:
                answer = await extender.filter(entry.raw, names)
            except ExtenderFailed as error:
                self.counts.extender_errors += 1
                if not extender.config.ignorable:
                    self._failed(entry, frozenset(), str(error))
                    return True
            else:
                if not answer.names:
                    refused_by.add(EXTENDER)
                    reasons.update(answer.failed.values())
                # A node may have gone meanwhile.
                names = [name for name in answer.names if name in self._nodes.rows]
        if not names:
            self._refused(entry, frozenset(refused_by), reasons)
            return True
        # 3. Scores, unless one node is left.
        chosen = names[0] if len(names) == 1 else await self._best(entry, needs, names, extender)
        # 4. The pod may have gone, or its node, while the extender was thinking.
        if entry.key not in self.queue.waiting:
            return True
        # 5. Assume, and bind beside the next cycle.
        self._nodes.hold(entry.key, chosen, needs.amounts)
        group.create_task(self._bind(entry, chosen), name=f"kubescheduler.bind[{entry.key}]")
        return True

    def _managing(self, needs: PodNeeds) -> ExtenderClient | None:
        if self.extender is not None and self.extender.config.manages(needs.amounts):
            return self.extender
        return None

    async def _best(
        self, entry: Waiting, needs: PodNeeds, names: list[str], extender: ExtenderClient | None
    ) -> str:
        rows = np.array([self._nodes.rows.get(name, -1) for name in names], np.intp)
        total = self._nodes.scores(needs, rows)
        if extender is not None and extender.config.prioritize_verb:
            try:
                scores = await extender.prioritize(entry.raw, names)
            except ExtenderFailed:
                # Swallowed, whatever `ignorable` says: the pod is placed without the extender's opinion.
                self.counts.extender_errors += 1
            else:
                total += np.array([scores.get(name, 0) for name in names], np.float64)
        best = np.flatnonzero(total == total.max())
        return names[int(best[self._random.integers(len(best))])]

    def _sampled(self, rows: np.ndarray[tuple[int], np.dtype[np.intp]]) -> list[int]:
        """The nodes that the search finds before it stops. Source: kube-scheduler, numFeasibleNodesToFind."""
        count = len(self._nodes.rows)
        pct = self.config.nodes_to_score_pct
        if pct is None:
            pct = max(5, 50 - count // 125)
        if pct >= 100 or count < 100:
            return list(map(int, rows))
        wanted = max(100, count * pct // 100)
        # The next search goes on where this one stopped.
        turned = np.concatenate((rows[rows >= self._search_from], rows[rows < self._search_from]))[:wanted]
        if len(turned):
            self._search_from = int(turned[-1]) + 1
        return list(map(int, turned))

    async def _bind(self, entry: Waiting, node: str) -> None:
        if self.config.bind_delay_s > 0:
            await asyncio.sleep(self.config.bind_delay_s)
        meta = entry.pod["metadata"]
        try:
            self._server.bind(meta["name"], meta["namespace"], node, uid=meta["uid"])
        except ClusterError as error:
            self.counts.bind_failures += 1
            self._release(entry.key)
            self._failed(entry, frozenset(), str(error))
            if self.config.rules is Rules.V1_32:
                self._happened(Happening(cause=Cause.POD_FREED))
            return
        self.counts.placed += 1

    def _refused(self, entry: Waiting, refused_by: frozenset[str], reasons: Counter[str]) -> None:
        self.counts.unschedulable.update(set(reasons))
        told = sorted(f"{count} {reason}" for reason, count in reasons.items())
        self._failed(entry, refused_by, f"0/{len(self._nodes.rows)} nodes are available: {', '.join(told)}.")

    def _failed(self, entry: Waiting, refused_by: frozenset[str], message: str) -> None:
        self.queue.fail(entry, refused_by, self._clock.mono_s())
        meta = entry.pod["metadata"]
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        if not refused_by:
            condition["reason"] = "SchedulerError"
        kept = [c for c in entry.pod["status"].get("conditions") or () if c["type"] != "PodScheduled"]
        patch = {"status": {"conditions": [*kept, condition]}, "metadata": {"uid": meta["uid"]}}
        # The same text again changes nothing, and so wakes nobody; a pod that is gone needs none.
        with contextlib.suppress(ClusterError):
            self._server.patch(PODS, meta["name"], meta["namespace"], patch, status=True)

    # What the watches tell.

    def _on_node(self, event: Event) -> None:
        node = event.object
        name = node["metadata"]["name"]
        before = self._seen_nodes.pop(name, None)
        if event.type == "DELETED":
            self._nodes.drop_node(name)
            return
        self._seen_nodes[name] = node
        cause = _node_cause(before, node)
        if cause is None:
            return
        self._nodes.set_node(node)

        def fits(needs: PodNeeds) -> bool:
            return self._nodes.fits_on(name, needs)

        self._happened(Happening(cause=cause, fits=fits))

    def _on_pod(self, event: Event) -> None:
        pod = event.object
        uid = pod["metadata"]["uid"]
        gone = event.type == "DELETED" or pod["status"].get("phase") in _FINISHED
        if pod["spec"].get("nodeName") or gone:
            self.queue.remove(uid)
            self._on_assigned(uid, pod, gone=gone)
        elif pod["metadata"].get("deletionTimestamp"):
            self.queue.remove(uid)
        elif not self._mine(pod):
            return
        elif uid not in self.queue.waiting:
            self._admit(uid, pod, event.data)
        else:
            before = self.queue.waiting[uid].pod
            now_mono_s = self._clock.mono_s()
            self.queue.changed(uid, pod, event.data, now_mono_s, beyond_status=_beyond_status(before, pod))
            self._wake.set()

    def _admit(self, uid: str, pod: JsonObject, raw: bytes) -> None:
        if pod["spec"].get("schedulingGates"):
            return
        now_mono_s = self._clock.mono_s()
        priority = pod["spec"].get("priority") or 0
        self.queue.add(Waiting(key=uid, pod=pod, raw=raw, priority=priority, since_mono_s=now_mono_s))
        self._wake.set()

    def _on_assigned(self, uid: str, pod: JsonObject, *, gone: bool) -> None:
        node = pod["spec"].get("nodeName", "")
        if gone:
            if self._release(uid):
                self._happened(Happening(cause=Cause.POD_FREED))
        elif uid in self._confirmed and self._nodes.node_of(uid) == node:
            self._happened(Happening(cause=Cause.POD_ASSIGNED_CHANGED))
        else:
            self._nodes.hold(uid, node, amounts(pod["spec"]))
            self._confirmed.add(uid)
            self._happened(Happening(cause=Cause.POD_ASSIGNED_ADDED))

    def _mine(self, pod: JsonObject) -> bool:
        return self.config.scheduler_name in (None, pod["spec"].get("schedulerName"))

    def _release(self, uid: str) -> dict[str, float]:
        self._confirmed.discard(uid)
        return self._nodes.release(uid)

    def _happened(self, happening: Happening) -> None:
        self.queue.happened(happening, self._clock.mono_s())
        self._wake.set()

    async def _wait(self) -> None:
        due_mono_s = self.queue.next_due_mono_s()
        left_s = _IDLE_MAX_S if due_mono_s is None else due_mono_s - self._clock.mono_s()
        try:
            async with asyncio.timeout(min(max(left_s, 0.001), _IDLE_MAX_S)):
                await self._wake.wait()
        except TimeoutError:
            pass


def _node_cause(before: JsonObject | None, after: JsonObject) -> Cause | None:
    """What a node's update means to waiting pods; None for a mere heartbeat."""
    if before is None:
        return Cause.NODE_ADDED

    def read(node: JsonObject) -> tuple[object, ...]:
        status, spec = node.get("status") or {}, node.get("spec") or {}
        conditions = {c["type"]: c.get("status") for c in status.get("conditions") or ()}
        labels = node["metadata"].get("labels")
        return spec.get("unschedulable"), status.get("allocatable"), labels, spec.get("taints"), conditions

    if read(before) != read(after):
        return Cause.NODE_CHANGED
    if before["metadata"].get("annotations") != after["metadata"].get("annotations"):
        return Cause.NODE_ANNOTATED
    return None


def _beyond_status(before: JsonObject, after: JsonObject) -> bool:
    def read(pod: JsonObject) -> JsonObject:
        meta = {key: value for key, value in pod["metadata"].items() if key != "resourceVersion"}
        return {**pod, "metadata": meta, "status": None}

    return read(before) != read(after)
