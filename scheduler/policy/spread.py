"""Prefer nodes with fewer pods of the same owner, so that one node's end takes few replicas with it.

Reads: neighbours.
Unknown: cannot be; a pod whose owner nobody has told counts by its controller.
Does not apply, and is left out, where none of the owner's pods is on a node or promised one: all nodes are alike then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest
from scheduler.policy import base

NAME = "spread"


class Args(base.Args, frozen=True, kw_only=True):
    """Nothing to set."""


@dataclass(frozen=True, slots=True)
class Spread:
    """See the module."""

    args: Args

    def applies(self, request: PodRequest, snapshot: Snapshot) -> bool:
        """Whether the owner has pods anywhere."""
        del request  # its own column says it
        return snapshot.neighbours is not None

    def score(self, request: PodRequest, snapshot: Snapshot) -> base.ScoreArray:
        """1 where none of them is, 1/2 beside one, 1/3 beside two: the second on a node hurts most."""
        del request  # likewise
        if snapshot.neighbours is None:
            return np.ones(snapshot.rows, np.float32)
        return np.float32(1) / (np.float32(1) + snapshot.neighbours)


def build(args: Args) -> Spread:
    """Make the policy."""
    return Spread(args)
