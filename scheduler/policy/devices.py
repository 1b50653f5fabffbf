"""Keep pods off nodes that have too few GPUs left for them, once the broken ones are taken off.

Reads: healthy_gpus, gpu_count, bound_gpus.
Unknown: a GPU without a reading is not broken; a node whose agent has said nothing counts as healthy. Which GPUs the
pods there hold only the device plugin knows: a broken one is taken to be free, since what ran on it has mostly ended.
Otherwise a node whose last free GPU fell off the bus would take one pod after the other, and none would run.
kube-scheduler counts GPUs, not which of them fell off the bus, so only we can see this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest, Reason
from scheduler.policy import base

NAME = "devices"
# Slices are sevenths: sums of them round.
TOLERANCE = np.float32(1e-3)


class Args(base.Args, frozen=True, kw_only=True):
    """Nothing to set."""


@dataclass(frozen=True, slots=True)
class Devices:
    """See the module."""

    args: Args

    def filter(self, request: PodRequest, snapshot: Snapshot) -> base.CodeArray:
        """`not enough healthy GPUs` where it is the broken ones that the pod lacks."""
        asked = snapshot.asked_gpus(request) - TOLERANCE
        lacking = snapshot.healthy_gpus < asked
        broken = snapshot.healthy_gpus < snapshot.gpu_count
        if np.count_nonzero(broken):
            # Where there would be too few even if none were broken, kube-scheduler knows of pods that end: trusted.
            unheld = snapshot.gpu_count - snapshot.bound_gpus
            spare = snapshot.healthy_gpus - snapshot.bound_gpus
            lacking |= broken & (spare < asked) & (unheld >= asked)
        return lacking * np.uint8(Reason.BROKEN_GPUS)


def build(args: Args) -> Devices:
    """Make the policy."""
    return Devices(args)
