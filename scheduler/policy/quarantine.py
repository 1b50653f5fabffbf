"""Keep pods off nodes in quarantine (label `wattbalance.io/quarantine`, presence counts).

Reads: quarantined.
Unknown: cannot be; a label is there or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest, Reason
from scheduler.policy import base

NAME = "quarantine"


class Args(base.Args, frozen=True, kw_only=True):
    """Nothing to set."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """See the module."""

    args: Args

    def filter(self, request: PodRequest, snapshot: Snapshot) -> base.CodeArray:
        """`node in quarantine` where the label is."""
        return snapshot.quarantined * np.uint8(Reason.QUARANTINED)


def build(args: Args) -> Quarantine:
    """Make the policy."""
    return Quarantine(args)
