"""Keep later pools closed while the pod should still wait for an earlier one.

Reads: pool, pool_sizes, in_two_pools.
Unknown: cannot be; a node that no selector takes is in the last pool, `default`.
A pod that names its pools goes to no other, and prefers them in its own order.
A pool's `spill.after` is how long a pod, counted from its creation, waits for that pool before later ones open.
A pool without a node that could ever take the pod holds it back from none.
A node that several selectors take is in two pools, and gets nothing: who pays for it, or who may use it, is not clear.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest, Reason
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
        """Why not, for every node that is in two pools or in one that is not open to the pod."""
        codes = self._closed(request, snapshot)
        if snapshot.in_two_pools is None:
            return codes
        return np.where(snapshot.in_two_pools, np.uint8(Reason.IN_TWO_POOLS), codes)

    def _closed(self, request: PodRequest, snapshot: Snapshot) -> base.CodeArray:
        """`waiting for pool P` on every node of a pool later than the first P that still holds the pod."""
        if request.pools:
            return self._by_pool(request, snapshot)[snapshot.pool]
        for index, spill_after_s in enumerate(self.args.spill_after_s):
            if spill_after_s > request.waited_s and snapshot.pool_sizes[index] > 0:
                return (snapshot.pool > index) * np.uint8(base.POOL_CODES + index)
        return np.zeros(snapshot.rows, np.uint8)

    def _by_pool(self, request: PodRequest, snapshot: Snapshot) -> base.CodeArray:
        """The code of each pool, for a pod that names its pools: shape (pools,)."""
        codes: base.CodeArray = np.full(len(snapshot.pool_sizes), Reason.OTHER_POOL, np.uint8)
        code = np.uint8(Reason.FITS)
        for index in request.pools:
            codes[index] = code
            # The last pool, `default`, has no patience of its own.
            spill_after_s = self.args.spill_after_s[index] if index < len(self.args.spill_after_s) else 0.0
            if code == Reason.FITS and spill_after_s > request.waited_s and snapshot.pool_sizes[index] > 0:
                code = np.uint8(base.POOL_CODES + index)
        return codes


def build(args: Args) -> Pools:
    """Make the policy."""
    return Pools(args)
