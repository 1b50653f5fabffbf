"""What is remembered of pods that wait for us: each by itself, and in groups that one judgement serves. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf

from scheduler.cluster.pods import PodFacts
from scheduler.core.nouns import PodRequest
from scheduler.decision.cycle import Mask

Rank = tuple[int, float, int]
Key = tuple[PodRequest, bytes, bool, bool]


@dataclass(slots=True, eq=False)
class Group:
    """Pods that one judgement serves."""

    key: Key
    offered: Mask
    pods: set[str] = field(default_factory=set)
    queue: list[tuple[Rank, str]] = field(default_factory=list)
    """A heap of its pods; those that left it stay until they come up."""
    dirty: bool = True
    fits: Mask | None = None
    """Where one more would fit; None if nowhere."""
    choice: int = -1
    against: Mask | None = None
    """Where a reason of ours was against them; only of those that were refused elsewhere."""

    @property
    def request(self) -> PodRequest:
        """What they ask for, without what is a pod's own."""
        return self.key[0]

    @property
    def new_nodes(self) -> bool:
        """Some nodes that were offered were not known to us: what comes to be known may be one of them."""
        return self.key[2]

    @property
    def elsewhere(self) -> bool:
        """Somebody else refused them."""
        return self.key[3]

    def head(self, rests: Mapping[str, float], now_mono_s: float) -> tuple[Rank, str] | None:
        """The first of its queue that may be woken; `rests` says until when pods may not be."""
        resting, found = [], None
        while self.queue:
            found = self.queue[0]
            if found[1] in self.pods:
                if rests.get(found[1], -inf) <= now_mono_s:
                    break
                resting.append(found)
            heappop(self.queue)
            found = None
        for each in resting:
            heappush(self.queue, each)
        return found

    def before(self, rank: Rank, rests: Mapping[str, float], now_mono_s: float) -> set[str]:
        """Those that may be woken and whose turn is before this one."""
        ahead = {uid for each, uid in self.queue if each < rank and uid in self.pods}
        return {uid for uid in ahead if rests.get(uid, -inf) <= now_mono_s}


@dataclass(slots=True, eq=False)
class Waiter:
    """One pod that waits for us."""

    request: PodRequest
    created_mono_s: float
    refused_mono_s: float
    order: int
    """By which pods of one second keep their order."""
    offered: Mask | None
    """None: every node that there is. Of a pod that was refused elsewhere: where it is to be woken for."""
    new_nodes: bool
    elsewhere: bool
    group: Group | None = None
    facts: PodFacts | None = None
    """What was known of it when it was put into its group."""
    voices: tuple[str, ...] = ()
    """Whose words counted then, beside its own."""
    older_mono_s: float = inf
    """When the next pool opens to it by its age alone, as it was noted last."""

    @property
    def rank(self) -> Rank:
        """Its place in the queue: by priority, then by age."""
        return -self.request.priority, round(self.created_mono_s), self.order


@dataclass(frozen=True, slots=True)
class Choice:
    """A pod to wake, and where it would fit."""

    pod: PodFacts
    node: str
    waited_s: float
    refused_mono_s: float
    """Which refusal it ends."""
    against: Mask | None = field(default=None, compare=False)
    """Of a pod that was refused elsewhere: where it may come to fit yet."""
