"""A profile: which scores count how much for one class of work, and how its pods are placed."""

from __future__ import annotations

from dataclasses import dataclass, field

from scheduler.core.nouns import Placement, Workload
from scheduler.policy.base import Conditional, Filter, Score


@dataclass(frozen=True, slots=True)
class Weighted:
    """One score policy in a profile."""

    name: str
    weight: float
    policy: Score
    conditional: Conditional | None = field(init=False, compare=False)
    """The policy, if it may not apply; kept, since to find out costs more than to score."""

    def __post_init__(self) -> None:
        """Find out."""
        conditional = self.policy if isinstance(self.policy, Conditional) else None
        object.__setattr__(self, "conditional", conditional)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How pods of one class of work are judged. Filters are the same for all profiles."""

    name: str
    workload: Workload
    placement: Placement
    expected_load: float
    """What one GPU of such a pod is expected to be busy, 0..1 (a share of one GPU)."""
    scores: tuple[Weighted, ...]


@dataclass(frozen=True, slots=True)
class NamedFilter:
    """One filter policy under its name."""

    name: str
    policy: Filter
