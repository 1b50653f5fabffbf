"""What a policy is: a module with NAME, Args and build(args), giving an object with filter, score, or both."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest

CodeArray = NDArray[np.uint8]
"""(rows,): 0 fits, else a Reason; from POOL_CODES on, `waiting for` the pool of index code - POOL_CODES."""
ScoreArray = NDArray[np.float32]
"""(rows,): finite, in [0, 1], higher is better."""

POOL_CODES = 32


class Args(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every policy's arguments."""


@runtime_checkable
class Filter(Protocol):
    """Rules nodes out."""

    def filter(self, request: PodRequest, snapshot: Snapshot) -> CodeArray:
        """Reason code for each row."""
        ...


@runtime_checkable
class Lasting(Protocol):
    """A filter that also says which of its answers neither time nor a pod that ends will change."""

    def could(self, request: PodRequest, snapshot: Snapshot) -> NDArray[np.bool_]:
        """False for each row that has not the hardware; True where that is unknown."""
        ...


@runtime_checkable
class Score(Protocol):
    """Prefers nodes."""

    def score(self, request: PodRequest, snapshot: Snapshot) -> ScoreArray:
        """Score for each row."""
        ...


@runtime_checkable
class Conditional(Protocol):
    """A score that says nothing of some pods: it is left out then, and the others share the whole weight."""

    def applies(self, request: PodRequest, snapshot: Snapshot) -> bool:
        """Whether it tells nodes apart for this pod."""
        ...


def stretched(
    values: NDArray[np.float64], among: NDArray[np.bool_] | None, *, least: float | None = None
) -> ScoreArray:
    """Stretch values so that the largest of some rows is 1 and the least 0, shape (rows,); all 0 if they are equal.

    Args:
        values: What to stretch; other rows than those compared are cut to the same limits.
        among: The rows that are compared; None: all.
        least: What scores 0; None: the least of them.
    """
    compared = values if among is None else values[among]
    if not len(compared):
        return np.zeros(len(values), np.float32)
    low, high = float(compared.min()) if least is None else least, float(compared.max())
    if high <= low:
        return np.zeros(len(values), np.float32)
    score: ScoreArray = ((values - low) / (high - low)).clip(0, 1).astype(np.float32)
    return score
