"""Prefer the nodes that the pod's preferred node affinity names.

Reads: node_affinity, compared.
Unknown: cannot be; labels are known, and a label that a node lacks is a label that it lacks.
As kube-scheduler's NodeAffinity scores: the weights of the terms that a node meets, by the most that any one meets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest
from scheduler.policy import base

NAME = "node-affinity"


class Args(base.Args, frozen=True, kw_only=True):
    """Nothing to set: the weights are in the pod's spec."""


@dataclass(frozen=True, slots=True)
class NodeAffinity:
    """See the module."""

    args: Args

    def applies(self, request: PodRequest, snapshot: Snapshot) -> bool:
        """Whether the pod prefers some nodes."""
        del request  # its own column says it
        return snapshot.node_affinity is not None

    def score(self, request: PodRequest, snapshot: Snapshot) -> base.ScoreArray:
        """1 for the node that meets most, 0 for one that meets no term."""
        del request  # likewise
        met = snapshot.node_affinity
        if met is None:
            return np.ones(snapshot.rows, np.float32)
        return base.stretched(met, snapshot.compared, least=0)


def build(args: Args) -> NodeAffinity:
    """Make the policy."""
    return NodeAffinity(args)
