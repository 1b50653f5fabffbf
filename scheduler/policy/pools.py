"""Keep later pools closed while the pod should still wait for an earlier one.

Reads: pool, pool_sizes.
Unknown: cannot be; a node that no selector takes is in the last pool, `default`.
A pool's `spill.after` is how long a pod, counted from its creation, waits for that pool before later ones open.
A pool without a single node holds nobody back.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest
from scheduler.policy import base

NAME = "pools"


class Args(base.Args, frozen=True, kw_only=True):
    """`spill_after_s` is filled in from the configuration's pools, in their order."""

    spill_after_s: tuple[float, ...] = msgspec.field(default=())


@dataclass(frozen=True, slots=True)
class Pools:
    """See the module."""

    args: Args

    def filter(self, request: PodRequest, snapshot: Snapshot) -> base.CodeArray:
        """`waiting for pool P` on every node of a pool later than the first P that still holds the pod."""
        for index, spill_after_s in enumerate(self.args.spill_after_s):
            if spill_after_s > request.waited_s and snapshot.pool_sizes[index] > 0:
                return (snapshot.pool > index) * np.uint8(base.POOL_CODES + index)
        return np.zeros(snapshot.rows, np.uint8)


def build(args: Args) -> Pools:
    """Make the policy."""
    return Pools(args)
