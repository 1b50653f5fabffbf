"""What is remembered of pods that wait for us: each by itself, and in groups that one judgement serves. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
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
