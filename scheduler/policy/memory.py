"""Keep pods on GPUs with as much memory as they ask for.

Reads: unit_memory_bytes.
Unknown: a GPU of which nobody tells the memory, or a shared one of which nobody measures it, is not known to have
enough.
The smallest GPU of a node counts, and of shared ones that with least memory free, since the device plugin chooses
among them. A slice has its own. Of one without a label only its name tells: what it surely has fits, what is more than
the name says does not, and what lies between is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.shares import named_memory_bytes
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
                codes[_is_unknown(name, memory_bytes, request)] = Reason.UNKNOWN_MEMORY
        return codes

    def could(self, request: PodRequest, snapshot: Snapshot) -> NDArray[np.bool_]:
        """False where whole GPUs have less; what is free of shared ones changes, and slices are cut anew."""
        could = np.ones(snapshot.rows, np.bool_)
        for name, _ in request.units:
            index = snapshot.resources.get(name)
            if index is not None:
                memory_bytes = snapshot.unit_memory_bytes[index]
                unknown = _is_unknown(name, memory_bytes, request)
                enough = memory_bytes >= request.gpu_memory_bytes
                could &= unknown | enough | (snapshot.unit_gpus[index] < 1)
        return could


def _is_unknown(name: str, memory_bytes: NDArray[np.float64], request: PodRequest) -> NDArray[np.bool_]:
    """Where nobody tells whether a unit has as much as is asked for."""
    unknown: NDArray[np.bool_] = memory_bytes == 0
    surely_bytes, most_bytes = named_memory_bytes(name)
    if surely_bytes < request.gpu_memory_bytes <= most_bytes:
        # Exactly this has only what nobody tells more of: labels and drivers count in MiB.
        unknown |= memory_bytes == surely_bytes
    return unknown


def build(args: Args) -> Memory:
    """Make the policy."""
    return Memory(args)
