"""Pods that stand elsewhere with us than they really do, as columns: from which row to which, and what they measure.

Rows are of two stores: `real` of the one that knows where pods run, `ours` of the one that knows where they would.
-1 is nowhere: a node that has gone, or a pod that would wait. Pure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
GROWTH = 256


class Moved:
    """A slot a pod; what is not in use has 0 GPUs and is nowhere."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self.real: Rows = np.zeros(0, np.intp)
        self.ours: Rows = np.zeros(0, np.intp)
        self.gpus: Floats = np.zeros(0)
        self.load: Floats = np.zeros(0)
        """Mean measured load, in GPUs, since it was moved; NaN is unknown."""
        self.power_w: Floats = np.zeros(0)
        """Mean measured watts above what its GPUs draw at rest; NaN is unknown."""
        self.load_now: Floats = np.zeros(0)
        """The last reading of it; NaN is unknown."""
        self.load_times: Floats = np.zeros(0)
        self.power_times: Floats = np.zeros(0)

    def __len__(self) -> int:
        return len(self.gpus) - len(self._free)

    def add(self, real: int, ours: int, gpus: float) -> int:
        """Give a pod its slot."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self.real[slot], self.ours[slot], self.gpus[slot] = real, ours, gpus
        self.load[slot] = self.power_w[slot] = self.load_now[slot] = np.nan
        self.load_times[slot] = self.power_times[slot] = 0
        return slot

    def free(self, slot: int) -> None:
        """Take it back."""
        self.real[slot] = self.ours[slot] = -1
        self.gpus[slot] = 0
        self._free.append(slot)

    def _grow(self) -> None:
        old = len(self.gpus)
        more = max(GROWTH, old // 2)
        self.real = np.append(self.real, np.full(more, -1))
        self.ours = np.append(self.ours, np.full(more, -1))
        for name in ("gpus", "load", "power_w", "load_now", "load_times", "power_times"):
            setattr(self, name, np.append(getattr(self, name), np.zeros(more)))
        self._free.extend(range(old + more - 1, old - 1, -1))

    def measure(self, load_each: Floats, power_each_w: Floats) -> None:
        """Take one reading, into the means too: what a bound GPU of each real row does now; NaN is unknown."""
        self.load_now = self.shares(load_each)
        for now, mean, times in (
            (self.load_now, self.load, self.load_times),
            (self.shares(power_each_w), self.power_w, self.power_times),
        ):
            known = ~np.isnan(now)
            times[known] += 1
            before = np.where(np.isnan(mean[known]), 0, mean[known])
            mean[known] = before + (now[known] - before) / times[known]

    def shares(self, each: Floats) -> Floats:
        """What each slot does, by what a bound GPU of each real row does; shape (slots,), NaN is unknown."""
        shares = np.full(len(self.gpus), np.nan)
        there = self.real >= 0
        shares[there] = each[self.real[there]] * self.gpus[there]
        return shares

    def sums(self, at: Rows, values: Floats, rows: int) -> Floats:
        """Add up what is known, per row of `at` (self.real or self.ours); shape (rows,)."""
        used = (at >= 0) & ~np.isnan(values)
        return np.bincount(at[used], values[used], minlength=rows).astype(np.float64)
