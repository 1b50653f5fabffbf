"""What metrics are read from: one callable per figure, asked when a page is scraped, never before.

Rooms below keep plain counters; app.py ties them in here. A source that is not tied in reads as nothing counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from scheduler.extender.server import BUCKETS_S

Count = Callable[[], int]
CountBy = Callable[[], Mapping[str, int]]


class Histogram(Protocol):
    """A plain histogram, as extender.server.Latency is."""

    @property
    def counts(self) -> Sequence[int]:
        """By bucket, not cumulated; one more than there are bounds."""
        ...

    @property
    def sum_s(self) -> float:
        """Sum of what was observed."""
        ...


def none() -> int:
    """Nothing counted."""
    return 0


def nothing() -> Mapping[str, int]:
    """Nothing counted under any label."""
    return {}


def _pairs() -> Mapping[tuple[str, str], int]:
    return {}


def _triples() -> Mapping[tuple[str, str, str], int]:
    return {}


def _histograms() -> Mapping[str, Histogram]:
    return {}


def _flags() -> Mapping[str, bool]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Each field is a callable; label values come from closed sets of the room that counts."""

    version: str = ""
    # decision and policy
    decisions: Callable[[], Mapping[tuple[str, str, str], int]] = _triples
    """By verb, profile and result."""
    policy_failures: CountBy = nothing
    """By policy."""
    disagreements: Count = none
    waiting_pods: Count = none
    reservations: Count = none
    reservations_lost: CountBy = nothing
    """Reservations that ended without their pod's binding, by reason (expired, evicted)."""
    bypassed_pods: CountBy = nothing
    """By reason (no_decision, other_node, other_scheduler)."""
    annotation_errors: CountBy = nothing
    """By annotation key, without the prefix; keys are ours, never a user's text."""
    # extender
    extender_requests: Callable[[], Mapping[tuple[str, str], int]] = _pairs
    """By verb and result."""
    extender_refused: CountBy = nothing
    """By reason."""
    extender_full_nodes: Count = none
    request_seconds: Callable[[], Mapping[str, Histogram]] = _histograms
    """By verb."""
    request_bounds_s: tuple[float, ...] = field(default=BUCKETS_S)
    # telemetry
    samples: Count = none
    samples_dropped: CountBy = nothing
    """By reason."""
    clocks_skewed: Count = none
    broker_connected: Callable[[], bool] = bool
    # cluster
    api_requests: CountBy = nothing
    """By verb."""
    api_errors: Callable[[], Mapping[tuple[str, str, str], int]] = _triples
    """By verb, resource and status."""
    api_throttled: Count = none
    watch_restarts: CountBy = nothing
    """By kind, as the next three."""
    relists: CountBy = nothing
    watch_events: CountBy = nothing
    undecodable: CountBy = nothing
    events_written: Count = none
    events_dropped: CountBy = nothing
    """By reason."""
    # this replica
    leader: Callable[[], bool] = bool
    observing: Callable[[], bool] = bool
    degraded: Callable[[], Mapping[str, bool]] = _flags
    """Every reason there can be, true where it holds now: a series that comes and goes cannot be alerted on."""
