"""Tells of bad annotations of pods that wait, and about which kube-scheduler never asks us.

In a full cluster its own filters leave no node, and there is nothing to ask.

Composition: what the watch shows in, the notices of app.py out. The leader judges each pod once for what it says,
shortly after it was seen; a change of its own annotations is judged anew, one of its owners or namespace when we are
asked. Counting, series and limits are those of all other events (docs/adr/0016).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from scheduler.cluster.intent import Fault
from scheduler.cluster.objects import Meta
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.store import Store
from scheduler.core.clock import Clock

# A pod may be seen before its owners are, which other watches bring; and most are asked about and bound by then.
SETTLE_S = 2.0
LOOK_S = 0.5
# The loop is held so long at a time and one pod more (0.05 ms), as in waking pods.
TURN_S = 0.0003


class Unasked:
    """Hears of pods without a node; `run` judges them.

    Args:
        store: who knows them, and what was said of them.
        clock: for how long ago they were seen.
        may_tell: whether this replica leads and acts, and knows enough.
        is_ours: whether kube-scheduler should ask us about a pod.
        tell: takes a pod and what is wrong with it.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        may_tell: Callable[[], bool],
        is_ours: Callable[[PodFacts], bool],
        tell: Callable[[Meta, tuple[Fault, ...]], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._may_tell = may_tell
        self._is_ours = is_ours
        self._tell = tell
        # Of a dict the first one is found behind all that were taken from it: for 50,000 pods that is half a second.
        self._seen: OrderedDict[str, float] = OrderedDict()
        """Uids of pods to be judged, and when they were seen; the oldest first."""

    def __len__(self) -> int:
        """How many are still to be judged."""
        return len(self._seen)

    def see(self, uid: str, before: PodFacts | None, now_mono_s: float) -> None:
        """A pod was seen; `before` is what waited under its uid until then. Called for each event of each pod."""
        facts = self._store.waiting.get(uid)
        if facts is None:
            self._seen.pop(uid, None)
        elif before is None or before.meta.annotations != facts.meta.annotations:
            self._seen.pop(uid, None)
            self._seen[uid] = now_mono_s

    def keep(self, uids: AbstractSet[str]) -> None:
        """A whole list was taken: who is not in it is gone."""
        for uid in [uid for uid in self._seen if uid not in uids]:
            del self._seen[uid]

    async def run(self) -> None:
        """Judge for ever; costs next to nothing while no new pod waits."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.judge()

    async def judge(self) -> None:
        """Judge who has been seen long enough ago, in turns; who is not ours, or bound meanwhile, falls away."""
        if not self._seen or not self._may_tell():
            return
        began_mono_s = now_mono_s = self._clock.mono_s()
        while self._seen:
            uid = next(iter(self._seen))
            seen_mono_s = self._seen[uid]
            if now_mono_s - seen_mono_s < SETTLE_S:
                return
            del self._seen[uid]
            facts = self._store.waiting.get(uid)
            if facts is not None and self._is_ours(facts):
                faults = self._store.intents.faults(facts.meta, facts.priority_class)
                if faults:
                    self._tell(facts.meta, faults)
            now_mono_s = self._clock.mono_s()
            if now_mono_s - began_mono_s > TURN_S:
                await asyncio.sleep(0)
                if not self._may_tell():
                    return
                began_mono_s = now_mono_s = self._clock.mono_s()
