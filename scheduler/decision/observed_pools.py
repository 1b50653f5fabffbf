"""Pools that are only observed: which nodes are theirs, and when they are left to kube-scheduler. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PoolSpec
from scheduler.decision.cycle import Judgement, Mask, Rows


class ObservedPools:
    """As the configuration has them; see docs/adr/0010."""

    def __init__(self, pools: Sequence[PoolSpec]) -> None:
        observed = [pool.observe for pool in pools]
        # Beside them `default`, which follows the file's mode.
        self._observed = np.array([*observed, False]) if any(observed) else None

    def rows(self, snapshot: Snapshot) -> Mask:
        """Rows of their nodes."""
        if self._observed is None:
            return np.zeros(snapshot.rows, bool)
        return self._observed[snapshot.pool]

    def left_alone(self, judgement: Judgement) -> Rows:
        """All of their nodes that were offered, where kube-scheduler is to choose among them.

        That is where our own choice would be one of them, or where nothing that we act on fits: what keeps a pod off
        a node of ours does not keep it off an observed one.
        """
        if self._observed is None:
            return np.empty(0, np.intp)
        observed = self.rows(judgement.snapshot)
        if judgement.choice >= 0 and not observed[judgement.choice]:
            return np.empty(0, np.intp)
        return np.flatnonzero(judgement.offered & observed)
