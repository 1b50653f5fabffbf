"""Prefer nodes near the pods that the pod would be near to, and far from those that it would be far from.

Reads: pod_affinity, compared.
Unknown: a pod whose binding has not been seen counts where it is promised to be, if the promise is ours.
As kube-scheduler's InterPodAffinity scores, between the worst and the best node. But for what other pods say of this
one (their preferences and requirements in the other direction): this pod's spec does not state it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest
from scheduler.policy import base

NAME = "pod-affinity"


class Args(base.Args, frozen=True, kw_only=True):
    """Nothing to set: the weights are in the pod's spec."""


@dataclass(frozen=True, slots=True)
class PodAffinity:
    """See the module."""

    args: Args

    def applies(self, request: PodRequest, snapshot: Snapshot) -> bool:
        """Whether the pod would be near others, or far from them."""
        del request  # its own column says it
        return snapshot.pod_affinity is not None

    def score(self, request: PodRequest, snapshot: Snapshot) -> base.ScoreArray:
        """1 for the best node, 0 for the worst; 0 where they are alike."""
        del request  # likewise
        near = snapshot.pod_affinity
        if near is None:
            return np.ones(snapshot.rows, np.float32)
        return base.stretched(near, snapshot.compared)


def build(args: Args) -> PodAffinity:
    """Make the policy."""
    return PodAffinity(args)
