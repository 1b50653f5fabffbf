"""Prefer the node that the pod fills best, so that whole nodes stay free for large jobs.

Reads: free_gpus, gpu_count, healthy_gpus, unit_gpus.
Unknown: a GPU without a reading is free, if Kubernetes says so. One that is lost or hung is neither free nor used, so
that it does not make its node look fuller, and thus better, than before it broke.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest
from scheduler.policy import base

NAME = "pack"


class Args(base.Args, frozen=True, kw_only=True):
    """Nothing to set."""


@dataclass(frozen=True, slots=True)
class Pack:
    """See the module."""

    args: Args

    def score(self, request: PodRequest, snapshot: Snapshot) -> base.ScoreArray:
        """1 where no GPU would be left unused, falling to 0 where a whole largest node would."""
        # Unused by pods: what is free, and what is broken. Healthy counts may be infinite: nobody has told.
        left = snapshot.gpu_count - np.minimum(snapshot.healthy_gpus, snapshot.gpu_count)
        left += snapshot.free_gpus
        left -= snapshot.asked_gpus(request)
        left *= np.float32(1 / snapshot.gpu_count_max)
        left.clip(0, 1, out=left)
        np.subtract(np.float32(1), left, out=left)
        return left


def build(args: Args) -> Pack:
    """Make the policy."""
    return Pack(args)
