"""Prefer the node that the pod fills best, so that whole nodes stay free for large jobs.

Reads: free_gpus.
Unknown: a GPU that is lost or hung is not free; one without a reading is, if Kubernetes says so.
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
        """1 where nothing would be left free, falling to 0 where a whole largest node would."""
        left = snapshot.free_gpus - np.float32(request.gpus)
        left *= np.float32(1 / snapshot.gpu_count_max)
        left.clip(0, 1, out=left)
        np.subtract(np.float32(1), left, out=left)
        return left


def build(args: Args) -> Pack:
    """Make the policy."""
    return Pack(args)
