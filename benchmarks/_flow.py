"""Telemetry that flows into a benchmark's server, and the heartbeat that says how long its loop is held.

Samples take the daemon's way from the mailbox on: decoded, judged and applied in the drain's turns. What a broker's
client would add is not in it; benchmarks/telemetry.py has that.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence

import msgspec

from benchmarks._measure import percentile, tell
from scheduler.cluster.readings import StoreHandler
from scheduler.cluster.store import Store
from scheduler.core.clock import Clock
from scheduler.telemetry.drain import Drain
from scheduler.telemetry.intake import Intake
from scheduler.telemetry.mailbox import Mailbox
from scheduler.telemetry.sample import Inventory, Sample, encode, inventory_hash
from scheduler.telemetry.topics import INVENTORY, SAMPLES, node_topic

CLUSTER = "bench"
# Each node once a second, in as many bursts.
BURSTS_PER_S = 50
BEAT_S = 0.001
# Beats around a call that are left out: its body may arrive in the two before, its answer leave in the one after.
BEFORE, AFTER = 2, 1
# Where a payload is cut, so that a burst costs no encoding in the process that is measured.
_CUT = b'"seq":987654321,"unix_s":0.5,'


class Flow:
    """Samples of all nodes, each once a second, into a store."""

    def __init__(self, store: Store, clock: Clock, nodes: Sequence[tuple[Inventory, Sample]]) -> None:
        self.handler = StoreHandler(store)
        self._mailbox = Mailbox(CLUSTER, clock)
        self._drain = Drain(self._mailbox, Intake(), self.handler, clock)
        self._parts: list[tuple[str, bytes, bytes]] = []
        for inventory, sample in nodes:
            payload = encode(inventory)
            self._mailbox.put(node_topic(CLUSTER, inventory.node, INVENTORY), payload, retained=True)
            known = inventory_hash(payload)
            cut = msgspec.structs.replace(sample, seq=987654321, unix_s=0.5, inventory=known)
            head, tail = encode(cut).split(_CUT)
            self._parts.append((node_topic(CLUSTER, inventory.node, SAMPLES), head, tail))

    @property
    def received(self) -> int:
        """Samples that the store took."""
        return self._drain.received

    async def run(self) -> None:
        """Let them flow until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._drain.run(), name="bench.drain")
            group.create_task(self._arrive(), name="bench.arrive")

    async def _arrive(self) -> None:
        turn = 0
        start_s = time.monotonic()
        while True:
            turn += 1
            await asyncio.sleep(max(0.0, start_s + turn / BURSTS_PER_S - time.monotonic()))
            now = b'"seq":%d,"unix_s":%.3f,' % (turn, time.time())
            for topic, head, tail in self._parts[turn % BURSTS_PER_S :: BURSTS_PER_S]:
                self._mailbox.put(topic, head + now + tail, retained=False)


class Heartbeat:
    """CPU time of the loop's thread between two beats of 1 ms, and the calls that were answered meanwhile."""

    def __init__(self, calls: Callable[[], int]) -> None:
        self._calls = calls
        self._beats: list[tuple[float, int]] = []
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, with nothing remembered."""
        self._beats.clear()
        self._beat(None)

    def stop(self) -> list[float]:
        """End; give the time held between beats with no call near."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        calls = [self._beats[0][1] if self._beats else 0, *(count for _, count in self._beats)]
        busy = {
            near
            for at, (before, after) in enumerate(itertools.pairwise(calls))
            if after != before
            for near in range(at - BEFORE, at + AFTER + 1)
        }
        return [held_s for at, (held_s, _) in enumerate(self._beats) if at not in busy]

    def _beat(self, before_s: float | None) -> None:
        # A plain timer: a sleeping task would be woken one turn of the loop later than its time.
        now_s = time.thread_time()
        if before_s is not None:
            self._beats.append((now_s - before_s, self._calls()))
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._beat, now_s)


async def answer_words(flow: Flow, heartbeat: Heartbeat) -> None:
    """Read lines: `beat` starts the heartbeat, `end` ends it; each is answered with what was seen."""
    while True:
        word = await asyncio.to_thread(input)
        if word == "beat":
            heartbeat.start()
            tell(received=flow.received, dropped=sum(flow.handler.drops.values()))
            continue
        held_s = heartbeat.stop()
        tell(
            received=flow.received,
            dropped=sum(flow.handler.drops.values()),
            beats=len(held_s),
            p50_s=percentile(held_s, 0.5),
            p999_s=percentile(held_s, 0.999),
            most_s=max(held_s),
        )
