"""Prefer places with fewer of the pods that should be spread (topology spread, ScheduleAnyway).

Reads: topology_spread, compared.
Unknown: a node that lacks one of the labels is in no place, and scores 0.
As kube-scheduler's PodTopologySpread scores: how far a node's places are from the most crowded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest
from scheduler.policy import base

NAME = "topology-spread"


class Args(base.Args, frozen=True, kw_only=True):
    """Nothing to set: the weights are in the pod's spec."""


@dataclass(frozen=True, slots=True)
class TopologySpread:
    """See the module."""

    args: Args

    def applies(self, request: PodRequest, snapshot: Snapshot) -> bool:
        """Whether the pod is to be spread."""
        del request  # its own column says it
        return snapshot.topology_spread is not None

    def score(self, request: PodRequest, snapshot: Snapshot) -> base.ScoreArray:
        """1 for the least crowded node, less for others, by the most crowded."""
        del request  # likewise
        crowd = snapshot.topology_spread
        if crowd is None:
            return np.ones(snapshot.rows, np.float32)
        placed = crowd >= 0
        among = crowd[placed if snapshot.compared is None else placed & snapshot.compared]
        low, high = (float(among.min()), float(among.max())) if len(among) else (0.0, 0.0)
        score = (high + low - crowd).clip(0, high) / high if high > 0 else np.ones(snapshot.rows)
        # One that is more crowded than all that are compared, or less, is cut to their limits.
        return np.where(placed, score, 0).astype(np.float32)


def build(args: Args) -> TopologySpread:
    """Make the policy."""
    return TopologySpread(args)
