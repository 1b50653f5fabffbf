"""Keep pods on GPUs with as much memory as they ask for.

Reads: unit_memory_bytes.
Unknown: a GPU of which nobody tells the memory, or a shared one of which nobody measures it, is not known to have
enough.
The smallest GPU of a node counts, and of shared ones that with least memory free, since the device plugin chooses
among them. A slice has its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
        if not request.gpu_memory_bytes:
            return codes
        for name, _ in request.units:
            index = snapshot.resources.get(name)
            if index is not None:
                memory_bytes = snapshot.unit_memory_bytes[index]
                codes[memory_bytes < request.gpu_memory_bytes] = Reason.TOO_LITTLE_MEMORY
                codes[memory_bytes == 0] = Reason.UNKNOWN_MEMORY
        return codes

    def could(self, request: PodRequest, snapshot: Snapshot) -> NDArray[np.bool_]:
        """False where whole GPUs have less; what is free of shared ones changes, and slices are cut anew."""
        could = np.ones(snapshot.rows, np.bool_)
        for name, _ in request.units:
            index = snapshot.resources.get(name)
            if index is not None:
                memory_bytes = snapshot.unit_memory_bytes[index]
                lacking = (memory_bytes > 0) & (memory_bytes < request.gpu_memory_bytes)
                could &= ~lacking | (snapshot.unit_gpus[index] < 1)
        return could


def build(args: Args) -> Memory:
    """Make the policy."""
    return Memory(args)
