"""What is kept of a pod whose place was left to kube-scheduler, and how many there are. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.core.nouns import PodRequest


@dataclass(slots=True, kw_only=True)
class Followed:
    """A pod whose place was left to kube-scheduler."""

    request: PodRequest
    asked_mono_s: float
    pools: frozenset[int]
    """Where it was offered nodes."""
    node: str = ""
    """Where it stands with us; empty: it waits."""
    real: str = ""
    """Where it runs; empty: it is not bound yet."""
    reason: str = ""
    """Why it waits."""
    waits_since_mono_s: float = 0.0
    has_waited: bool = False
    waited_s: float = 0.0
    """How much longer than really, until it stood somewhere."""
    slot: int = -1
    """In Shadow.moved; -1 where it stands in both worlds alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many pods, now and so far."""

    asked: int
    """Asked about, and not bound yet."""
    same: int
    elsewhere: int
    waiting: int
    """Run, and would wait with us."""
    so_far: int
    waited_so_far: int
    """Would have waited longer, if only for a while; those that wait still, too."""
    waited_so_far_s: float
    """All of these together, up to now."""
    left_out: int
    """Beyond MOST_FOLLOWED."""
