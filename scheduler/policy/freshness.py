"""Prefer nodes whose reading is young: what is known of them is true now.

Reads: reading_age_s, known_gpus, stale_s.
Unknown: a node that was never read, or is stale, scores 0; so does one whose samples tell of no GPU what it does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest
from scheduler.policy import base

NAME = "freshness"


class Args(base.Args, frozen=True, kw_only=True):
    """Nothing to set: the limit is telemetry.stale."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """See the module."""

    args: Args

    def score(self, request: PodRequest, snapshot: Snapshot) -> base.ScoreArray:
        """1 for a reading of this instant, falling to 0 at the limit."""
        age = snapshot.reading_age_s * np.float32(1 / snapshot.stale_s)
        # fmin: an age that is NaN or infinite is as old as can be.
        np.fmin(age, np.float32(1), out=age)
        np.maximum(age, 0, out=age)
        np.subtract(np.float32(1), age, out=age)
        age *= snapshot.known_gpus > 0
        return age


def build(args: Args) -> Freshness:
    """Make the policy."""
    return Freshness(args)
