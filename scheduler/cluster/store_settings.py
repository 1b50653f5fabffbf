"""What the store needs of the configuration. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, field

from scheduler.core.nouns import PoolSpec, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """What the store needs of the configuration."""

    pools: tuple[PoolSpec, ...] = ()
    half_life_s: float = 5.0
    stale_s: float = 10.0
    neutral_load: float = 0.5
    reservation_s: float = 30.0
    capabilities: dict[str, float] = field(default_factory=dict)
    """GPU model glob -> relative capability; the first that matches counts, default 1."""
    expected_loads: dict[Workload, float] = field(default_factory=dict)
    """What one GPU of a pod of this class is expected to be busy."""
    gpu_resources: frozenset[str] = frozenset()
    """Further names under which nodes offer GPUs; those that a store began with hold."""
