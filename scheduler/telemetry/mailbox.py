"""What came in and has not been looked at: the newest payload per topic, bounded, counted."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from scheduler.telemetry.complaints import MOST_NAME
from scheduler.telemetry.sample import MOST_PAYLOAD_BYTES
from scheduler.telemetry.topics import SAMPLES, parse_topic

if TYPE_CHECKING:
    from scheduler.core.clock import Clock

# 10,000 inventories of 3 KB make 30 MB; a loop that is blocked for seconds must not take much more than that.
MOST_WAITING_BYTES = 64 * 2**20
# What an entry weighs beside its payload: key, tuple and slot.
_ENTRY_BYTES = 400
# More than are named in the log anyway.
MOST_COUNTS = 1000


class Mailbox:
    """The newest payload of each topic. What is overwritten keeps its place in line: no node starves."""

    def __init__(self, cluster: str, clock: Clock, most_bytes: int = MOST_WAITING_BYTES) -> None:
        self._cluster = cluster
        self._clock = clock
        self._most_bytes = most_bytes
        # Ordered, since taking the first of a plain dict steps over all that was taken before.
        self._state: OrderedDict[tuple[str, str], tuple[bytes, float]] = OrderedDict()
        self._samples: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._counts: Counter[tuple[str, str, str]] = Counter()
        """By reason, node and kind; without these two where the topic does not tell, or too many were told."""
        self._filled = asyncio.Event()
        self._bytes = 0

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._samples or self._state)

    @property
    def has_state(self) -> bool:
        """Whether an inventory or a status waits."""
        return bool(self._state)

    @property
    def waiting(self) -> int:
        """Samples that wait."""
        return len(self._samples)

    def put(self, topic: str, payload: object, *, retained: bool) -> None:
        """Take in one message; never waits."""
        self._filled.set()
        parsed = parse_topic(topic, self._cluster)
        if parsed is None or not isinstance(payload, (bytes, bytearray)):
            self.count("garbage")
            return
        node, kind = parsed
        if len(payload) > MOST_PAYLOAD_BYTES:
            self.count("too_large", node, kind)
            return
        entry = (bytes(payload), self._clock.mono_s())
        if kind == SAMPLES:
            if retained:
                # Nobody of ours retains a sample: its age is unknown, so it is not a reading of now.
                self.count("old_sequence", node, kind)
                return
            if self._fits(len(payload), self._samples.get(node)):
                self._samples[node] = entry
        elif self._fits(len(payload), self._state.get((node, kind))):
            self._state[node, kind] = entry

    def _fits(self, size_bytes: int, before: tuple[bytes, float] | None) -> bool:
        grows_bytes = size_bytes - len(before[0]) if before else size_bytes + _ENTRY_BYTES
        if before is not None or self._bytes + grows_bytes > self._most_bytes:
            self.count("overwritten")
        if self._bytes + grows_bytes > self._most_bytes:
            return False
        self._bytes += grows_bytes
        return True

    def take_state(self) -> tuple[str, str, bytes, float] | None:
        """Take the inventory or status that has waited longest: (node, kind, payload, instant of receipt)."""
        if not self._state:
            return None
        (node, kind), (payload, at_mono_s) = self._state.popitem(last=False)
        self._bytes -= len(payload) + _ENTRY_BYTES
        return node, kind, payload, at_mono_s

    def take_sample(self) -> tuple[str, bytes, float] | None:
        """Take the sample that has waited longest: (node, payload, instant of receipt)."""
        if not self._samples:
            return None
        node, (payload, at_mono_s) = self._samples.popitem(last=False)
        self._bytes -= len(payload) + _ENTRY_BYTES
        return node, payload, at_mono_s

    def count(self, reason: str, node: str = "", kind: str = "") -> None:
        """Count a message that was dropped; the drops are told with the next turn. Name the node that is at fault."""
        if len(self._counts) >= MOST_COUNTS:
            node = kind = ""
        self._counts[reason, node[:MOST_NAME], kind] += 1
        self._filled.set()

    def take_counts(self) -> list[tuple[str, str, str, int]]:
        """Take the counts since the last call: (reason, node, kind, count); node is empty where nobody is named."""
        counts = [(*key, count) for key, count in self._counts.items()]
        self._counts.clear()
        return counts

    async def wait(self) -> None:
        """Wait until something came in since the last call."""
        await self._filled.wait()
        if not self:
            self._filled.clear()
