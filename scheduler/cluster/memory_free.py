"""What is left of memory that units share: the arithmetic over columns, one for all who ask. Pure; the store's own.

Two bounds hold at once. What pods of a node have asked for does not come to more than it has, whoever has taken it; and
what is measured leaves room for all that was asked for and cannot be in that measurement yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scheduler.cluster.columns import Columns, Rows

Bytes = NDArray[np.float64]


def fold_shared_memory(columns: Columns, rows: Rows) -> None:
    """Fold what is asked for and what is measured into what units have; of nodes with units that share a GPU."""
    reserved = columns.memory_reserved_bytes[:, rows]
    asked = together(columns.memory_bound_bytes[:, rows], reserved)
    # Nobody has taken anything on a promise.
    untaken = together(columns.memory_untaken_bytes[:, rows], reserved)
    free = free_bytes(columns, rows, asked, untaken)
    kept = columns.unit_memory_bytes[:, rows]
    columns.unit_memory_bytes[:, rows] = np.where(columns.unit_shared[:, rows], free, kept)


def together(some: Bytes, others: Bytes) -> Bytes:
    """Two sums of asks as one: in all, and the most for one unit."""
    return np.array([some[0] + others[0], np.maximum(some[1], others[1])])


def free_bytes(
    columns: Columns,
    rows: Rows,
    asked_bytes: Bytes,
    untaken_bytes: Bytes,
    *,
    ended_bytes: Bytes | float = 0.0,
    own_bytes: Bytes | float = 0.0,
) -> Bytes:
    """What the fullest GPU of each node has free, shape (nodes,); 0 where that is not known.

    The device plugin chooses the GPU, so none of them may have less. However asks lie, the fullest GPU has at least as
    much of them as the largest unit, and as a GPU would if all had the same.

    Args:
        columns: The store's.
        rows: The nodes'.
        asked_bytes: What is asked for, as `Columns.memory_asked_bytes` adds it up, shape (2, nodes).
        untaken_bytes: As much of it as may not be measured yet, likewise.
        ended_bytes: What has been taken by pods that are taken to have ended, shape (nodes,). On which GPUs they
            were nobody tells: the fullest has at most what is left on all of them together.
        own_bytes: What the pod that is asked about has taken of the GPU that it would come back to, likewise.
    """
    slot, whole_bytes = columns.slot[rows], columns.gpu_memory_bytes[rows]
    sound = columns.sound(rows)
    used = np.where(sound, columns.memory_used_bytes[rows], 0)
    told = columns.fresh[rows] & (whole_bytes > 0) & sound.any(1) & ~np.isnan(used).any(1)
    # Those that have ended may have been on a broken one.
    left = used.sum(1) + (slot & ~sound).sum(1) * whole_bytes - ended_bytes
    fullest = np.minimum(used.max(1, initial=0) - own_bytes, left)
    gpus = columns.sharing_gpus(rows)
    free = whole_bytes - np.maximum(_on_one(asked_bytes, gpus), fullest + _on_one(untaken_bytes, gpus))
    # A full one is known: not 0, which is unknown.
    return np.where(told, np.maximum(free, 1), 0)


def _on_one(asked_bytes: Bytes, gpus: NDArray[np.float32]) -> Bytes:
    most: Bytes = np.maximum(asked_bytes[0] / gpus, asked_bytes[1])
    return most
