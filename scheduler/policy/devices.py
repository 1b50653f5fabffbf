"""Keep pods off nodes that have fewer GPUs not known to be broken than the pod asks for.

Reads: healthy_gpus.
Unknown: a GPU without a reading is not broken; a node whose agent has said nothing counts as healthy.
kube-scheduler counts GPUs, not which of them fell off the bus, so only we can see this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest, Reason
from scheduler.policy import base

NAME = "devices"


class Args(base.Args, frozen=True, kw_only=True):
    """Nothing to set."""


@dataclass(frozen=True, slots=True)
class Devices:
    """See the module."""

    args: Args

    def filter(self, request: PodRequest, snapshot: Snapshot) -> base.CodeArray:
        """`not enough healthy GPUs` where too many are lost or hung."""
        return (snapshot.healthy_gpus < request.gpus) * np.uint8(Reason.BROKEN_GPUS)


def build(args: Args) -> Devices:
    """Make the policy."""
    return Devices(args)
