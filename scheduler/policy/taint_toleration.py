"""Avoid nodes with taints of the effect PreferNoSchedule that the pod does not tolerate.

Reads: untolerated_taints, compared.
Unknown: cannot be; a node without taints has none.
As kube-scheduler's TaintToleration scores: by how many there are, against the most that any node has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest
from scheduler.policy import base

NAME = "taint-toleration"


class Args(base.Args, frozen=True, kw_only=True):
    """Nothing to set: the weights are in the pod's spec."""


@dataclass(frozen=True, slots=True)
class TaintToleration:
    """See the module."""

    args: Args

    def applies(self, request: PodRequest, snapshot: Snapshot) -> bool:
        """Whether a node that is large enough has such a taint."""
        del request  # its own column says it
        return snapshot.untolerated_taints is not None

    def score(self, request: PodRequest, snapshot: Snapshot) -> base.ScoreArray:
        """1 without such a taint, 0 with the most."""
        del request  # likewise
        taints = snapshot.untolerated_taints
        if taints is None:
            return np.ones(snapshot.rows, np.float32)
        return np.float32(1) - base.stretched(taints, snapshot.compared, least=0)


def build(args: Args) -> TaintToleration:
    """Make the policy."""
    return TaintToleration(args)
