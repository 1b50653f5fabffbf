"""Units as people say them, by what they are where they are offered: `nvidia.com/gpu` may be a part of a GPU. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.pods import PodFacts
from scheduler.cluster.shares import MIG_PREFIX, SHARED_SUFFIX, noun, words
from scheduler.cluster.snapshot import Snapshot
from scheduler.cluster.store import Store
from scheduler.core.nouns import Units


def said(
    store: Store, units: Units, rows: NDArray[np.bool_] | None = None, snapshot: Snapshot | None = None
) -> str:
    """Units by what they are on some nodes.

    Args:
        store: That knows the nodes.
        units: What is asked for, held or lacking.
        rows: The nodes; None: all.
        snapshot: Whose rows these are, if it is not the store's own.
    """
    snapshot = store.snapshot if snapshot is None else snapshot
    nouns = {}
    for name, _ in units:
        index = snapshot.resources.get(name)
        # Of others their name tells.
        if index is None or name.endswith(SHARED_SUFFIX) or name.startswith(MIG_PREFIX):
            continue
        offered = snapshot.units[index] > 0
        if rows is not None:
            offered &= rows
        parts = offered & (snapshot.unit_gpus[index] < 1)
        if parts.any():
            what = f"{noun(name)} {_part(store, name, int(parts.argmax()))}"
            nouns[name] = what if parts[offered].all() else f"{noun(name)} or {what}"
    return words(units, nouns)


def said_of(store: Store, facts: PodFacts) -> str:
    """What a pod asks for, by what it is on its node; while it waits, on all that have it."""
    row = store.rows.get(facts.node)
    return said(store, facts.units, None if row is None else np.arange(store.snapshot.rows) == row)


def _part(store: Store, name: str, row: int) -> str:
    """What a unit is of its GPU on a node; of one that is not known, most probably."""
    record = store.nodes.get(store.names[row] or "") if row < len(store.names) else None
    offer = record.offers.get(name) if record is not None else None
    is_slice = offer is not None and offer.memory_bytes > 0 and not offer.shared and offer.memory_frac == 1
    return "slice" if is_slice else "replica"
