"""Prefer nodes whose GPUs are measured to be doing little.

Reads: load_sum, pending_load, gpu_count, capability, unit_gpus.
Unknown: the store's fold has counted an unknown GPU that is allocated as fully loaded, and a free one at the neutral
load or its last reading, so an unread node looks neither idle nor full; one that is lost or hung counts as fully
loaded, so that a node never gains by what breaks in it.
Source: docs/benchmarks.md, balance; without pending load a burst herds at 2 s of lag (0.88 instead of 0.46 of random's
spread).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest
from scheduler.policy import base

NAME = "least-loaded"


class Args(base.Args, frozen=True, kw_only=True):
    """Nothing to set: half-life and neutral load belong to telemetry, the expected load to the profile."""


@dataclass(frozen=True, slots=True)
class LeastLoaded:
    """See the module."""

    args: Args

    def score(self, request: PodRequest, snapshot: Snapshot) -> base.ScoreArray:
        """(1 - load after placing) x relative capability."""
        # Count the pod itself: without it a 2-GPU node looks as idle as an 8-GPU one and gets as many pods.
        load = snapshot.load_sum + snapshot.pending_load
        load += snapshot.asked_gpus(request) * np.float32(request.expected_load)
        load /= np.maximum(snapshot.gpu_count, np.float32(1))
        load.clip(0, 1, out=load)
        np.subtract(np.float32(1), load, out=load)
        load *= snapshot.capability
        load *= np.float32(1 / snapshot.capability_max)
        return load


def build(args: Args) -> LeastLoaded:
    """Make the policy."""
    return LeastLoaded(args)
