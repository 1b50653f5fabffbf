"""Keep pods on GPUs with as much memory as they ask for.

Reads: gpu_memory_bytes.
Unknown: a GPU of which nobody tells the memory is not known to have enough.
The smallest GPU of a node counts, since the device plugin chooses among them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest, Reason
from scheduler.policy import base

NAME = "memory"


class Args(base.Args, frozen=True, kw_only=True):
    """Nothing to set: what is asked for stands on the pod."""


@dataclass(frozen=True, slots=True)
class Memory:
    """See the module."""

    args: Args

    def filter(self, request: PodRequest, snapshot: Snapshot) -> base.CodeArray:
        """`not enough GPU memory`, or `GPU memory unknown`."""
        codes: base.CodeArray = np.zeros(snapshot.rows, np.uint8)
        if request.gpu_memory_bytes:
            codes[snapshot.gpu_memory_bytes < request.gpu_memory_bytes] = Reason.TOO_LITTLE_MEMORY
            codes[snapshot.gpu_memory_bytes == 0] = Reason.UNKNOWN_MEMORY
        return codes


def build(args: Args) -> Memory:
    """Make the policy."""
    return Memory(args)
