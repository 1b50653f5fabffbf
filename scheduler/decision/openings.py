"""What has opened in the store since the last look: rows where something changed that may end a refusal. Pure."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from scheduler.decision.cycle import Mask
from scheduler.decision.decider import Decider

# These order nodes and rule none out, or change with each sample; `name_hash` is looked at by itself. A filter that
# reads one of them all the same is served by the round that judges everything.
NOT_LOOKED_AT = frozenset(
    {
        "bound_gpus",
        "bound_units",
        "capability",
        "cordoned",
        "fresh",
        "image_bytes",
        "known_gpus",
        "load_sum",
        "name_hash",
        "neighbours",
        "pending_load",
        "reading_age_s",
        "reserved_gpus",
        "reserved_units",
    }
)
# Of these only more is news: less of them opens nothing, and each pod that is placed takes some.
MORE_IS_NEWS = frozenset({"free_gpus", "free_units", "unit_memory_bytes"})
# What a pool has for a pod, which need not wait for it once that has gone: less of these, and of those others.
LESS_MAY_OPEN, OTHERS_MAY_OPEN = (
    frozenset({"present", "units"}),
    frozenset({"in_two_pools", "models", "pool"}),
)

# Of whatever type it is in truth: all are compared alike.
Column = NDArray[np.float64]


def widened(mask: Mask, rows: int) -> Mask:
    """The mask with as many rows as there are now; the same array if it has them."""
    if len(mask) >= rows:
        return mask
    wide = np.zeros(rows, bool)
    wide[: len(mask)] = mask
    return wide


class Openings:
    """Compares the store with what it was at the last look."""

    def __init__(self, decider: Decider) -> None:
        self._store = decider.store
        self._columns: dict[str, Column] = {}
        self._generation = -1
        self._names: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._present: Mask = np.zeros(0, bool)

    def look(self) -> Mask | None:
        """Rows where something may have opened since the last look; None if nowhere."""
        snapshot = self._store.snapshot
        opened = np.zeros(snapshot.rows, bool)
        present = self._columns.get("present")
        for each in fields(snapshot):
            name, now = each.name, getattr(snapshot, each.name)
            if name in NOT_LOOKED_AT or not isinstance(now, np.ndarray):
                continue
            before = self._columns.get(name)
            if before is not None and before.shape == now.shape and np.array_equal(before, now):
                continue
            opened |= _news(name, before, now) | _goes(name, before, now, present)
            self._columns[name] = now.copy()
        return opened if opened.any() else None

    def changed_rows(self) -> Mask | None:
        """Rows that stand for another node than at the last call, all of them new at the first; None if none does."""
        if self._store.generation == self._generation:
            return None
        self._generation = self._store.generation
        snapshot = self._store.snapshot
        names, present = self._names, widened(self._present, snapshot.rows)
        changed: Mask = present != snapshot.present
        changed[: len(names)] |= names != snapshot.name_hash[: len(names)]
        self._names, self._present = snapshot.name_hash.copy(), snapshot.present.copy()
        return changed


def _goes(name: str, before: Column | None, now: Column, present: Column | None) -> bool:
    """Whether a node has lost what a pod may have waited for, so that another pool's may take it."""
    if before is None or present is None or before.shape != now.shape or len(present) != now.shape[-1]:
        return False
    if name in LESS_MAY_OPEN:
        return bool((now < before).any())
    return name in OTHERS_MAY_OPEN and bool(((now != before) & (present > 0)).any())


def _news(name: str, before: Column | None, now: Column) -> Mask:
    rows = now.shape[-1]
    if before is None or before.shape != now.shape:
        return np.ones(rows, bool)
    news = now > before if name in MORE_IS_NEWS else now != before
    # Of units there is a row of these a kind.
    return np.asarray(news.any(axis=0)) if news.ndim > 1 else news
