"""What lives in the demo's cluster: pods that come, run on simulated GPUs once they are bound, and end."""

from __future__ import annotations

import asyncio
import heapq

import numpy as np

from scheduler.core.clock import Clock
from scheduler.core.errors import ApiNotFound
from scheduler.simulate.apiserver import ApiServer
from scheduler.simulate.apiserver_rules import NAMESPACES, NODES, PODS
from scheduler.simulate.apiserver_store import Event
from scheduler.simulate.manifests import HOME, NAMESPACE, node_object, pod_object, site_of
from scheduler.simulate.scoreboard import RandomShadow, Scoreboard
from scheduler.simulate.utilisation import LoadModel
from scheduler.simulate.workload import Arrival, WorkloadModel

TURN_S = 0.02
LOOK_EVERY_S = 1.0
# docs/model.md: mean run times until what was drawn by random choice at the start no longer shows.
SETTLE_RUNS = 3.0


class World:
    """Plays users and kubelets: creates pods, runs what was bound, removes what has ended."""

    def __init__(self, model: WorkloadModel, server: ApiServer, clock: Clock, *, seed: int) -> None:
        self.model = model
        self.server = server
        self.clock = clock
        self._seed = seed
        nodes = model.trace.nodes
        self.load = LoadModel(nodes, np.random.default_rng([seed, 4]))
        self._rows = {node.name: row for row, node in enumerate(nodes)}
        self._filled = model.fill()
        self._pending: dict[str, Arrival] = {}
        self._ends: list[tuple[float, int, Arrival, int, tuple[int, ...]]] = []
        self._turn = 0
        self._board: Scoreboard | None = None
        self.late_s = 0.0
        """How much later than due the last arrivals were created."""

    def fill(self) -> None:
        """Create nodes, and the pods that run already; call it before the daemon starts."""
        for name in (NAMESPACE, HOME):
            self.server.create(
                NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            )
        for node in self.model.trace.nodes:
            self.server.create(NODES, node_object(node))
        now_mono_s = self.clock.mono_s()
        for placed in self._filled:
            self.server.create(PODS, pod_object(placed.arrival, node=placed.node))
            self._start(placed.arrival, placed.node, now_mono_s)

    def begin(self) -> Scoreboard:
        """Begin to count; from now on pods may come."""
        shadow_load = LoadModel(self.model.trace.nodes, np.random.default_rng([self._seed, 5]))
        start_mono_s = self.clock.mono_s()
        # The fill's run times count from here, for the shadow as for us.
        self._ends = [
            (start_mono_s + p.arrival.run_s, *end[1:])
            for p, end in zip(self._filled, self._ends, strict=True)
        ]
        heapq.heapify(self._ends)
        self._board = Scoreboard(
            load=self.load,
            node_names=tuple(self._rows),
            speed_per_s=self.model.speed_per_s,
            settle_s=SETTLE_RUNS * self.model.mean_run_s,
            sites=tuple(site_of(node) for node in self.model.trace.nodes),
            start_mono_s=start_mono_s,
            counted=self.model.counted,
            shadow=RandomShadow(self.model, shadow_load, self._filled, self._seed),
        )
        return self._board

    def on_call(self, verb: str, duration_s: float) -> None:
        """An extender call was answered."""
        if self._board is not None:
            self._board.on_call(verb, duration_s)

    async def run(self) -> None:
        """Let pods come and end, for ever."""
        board = self._board if self._board is not None else self.begin()
        end_watch = self.server.subscribe(PODS, self._on_pod, replay=False)
        arrivals = self.model.arrivals()
        coming = next(arrivals)
        looked_mono_s = board.start_mono_s
        try:
            while True:
                now_mono_s = self.clock.mono_s()
                self.late_s = max(now_mono_s - board.start_mono_s - coming.at_s - TURN_S, 0.0)
                while board.start_mono_s + coming.at_s <= now_mono_s:
                    self._pending[coming.name] = coming
                    board.on_arrival(coming, now_mono_s)
                    self.server.create(PODS, pod_object(coming))
                    coming = next(arrivals)
                self._end_until(now_mono_s, board)
                if now_mono_s - looked_mono_s >= LOOK_EVERY_S:
                    looked_mono_s = now_mono_s
                    board.tick(now_mono_s)
                await asyncio.sleep(TURN_S)
        finally:
            end_watch()

    def _on_pod(self, event: Event) -> None:
        if not self._pending or event.type == "DELETED":
            return
        pod = event.object
        name, node = pod["metadata"]["name"], pod["spec"].get("nodeName")
        if not node or name not in self._pending:
            return
        arrival = self._pending.pop(name)
        self._start(arrival, node, self.clock.mono_s())
        if self._board is not None:
            self._board.on_placed(arrival)

    def _start(self, arrival: Arrival, node: str, now_mono_s: float) -> None:
        row = self._rows[node]
        indices = self.load.start(row, arrival.gpus, arrival.mean_util_frac)
        self._turn += 1
        # In the order of the fill until `begin`, a heap from then on.
        end = (now_mono_s + arrival.run_s, self._turn, arrival, row, indices)
        if self._board is None:
            self._ends.append(end)
        else:
            heapq.heappush(self._ends, end)

    def _end_until(self, now_mono_s: float, board: Scoreboard) -> None:
        while self._ends and self._ends[0][0] <= now_mono_s:
            _, _, arrival, row, indices = heapq.heappop(self._ends)
            self.load.stop(row, indices, arrival.mean_util_frac)
            board.on_finished()
            try:
                self.server.delete(PODS, arrival.name, NAMESPACE, grace_s=0)
            except ApiNotFound:
                continue
