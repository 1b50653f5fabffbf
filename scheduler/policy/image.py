"""Prefer nodes that have the pod's images already, as kube-scheduler's ImageLocality would.

Reads: image_bytes.
Unknown: a node that lists no image scores 0, like one that lacks these.
Does not apply, and is left out, where no node has any of the images: all nodes are alike then.
An image counts by its size times the share of nodes that have it: where few have it, they would draw every pod.
Source: kube-scheduler's ImageLocality, Kubernetes 1.30 and later, which counts init containers too; its score is
rounded to hundredths, this one is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest
from scheduler.policy import base

NAME = "image"

# ImageLocality's own: what is smaller is pulled in no time, and no image counts as larger.
LEAST_BYTES = 23 * 2**20
MOST_BYTES_A_CONTAINER = 1000 * 2**20


class Args(base.Args, frozen=True, kw_only=True):
    """Nothing to set."""


@dataclass(frozen=True, slots=True)
class Image:
    """See the module."""

    args: Args

    def applies(self, request: PodRequest, snapshot: Snapshot) -> bool:
        """Whether any node has any of the images."""
        del request  # its own column says it
        return snapshot.image_bytes is not None

    def score(self, request: PodRequest, snapshot: Snapshot) -> base.ScoreArray:
        """0 up to 23 MiB that are there, rising to 1 at 1000 MiB a container."""
        if snapshot.image_bytes is None:
            return np.zeros(snapshot.rows, np.float32)
        most_bytes = MOST_BYTES_A_CONTAINER * max(len(request.images), 1)
        score = snapshot.image_bytes - np.float32(LEAST_BYTES)
        score *= np.float32(1 / (most_bytes - LEAST_BYTES))
        score.clip(0, 1, out=score)
        return score


def build(args: Args) -> Image:
    """Make the policy."""
    return Image(args)
