"""Joules of one GPU as (epoch, joules): from its counter, else integrated from its power.

Within an epoch the joules never fall, and a difference of two readings is energy that was used. Whatever breaks that
(a driver reload, a counter that jumps, a gap too long to guess over) begins a new epoch instead of a wrong number.
"""

from __future__ import annotations

# No single device draws more: GB300 modules take 2,900 W. Used where the device does not tell its highest limit.
MOST_POWER_W = 10_000.0
# A GPU may overshoot its limit for moments; 1.5 times the highest limit over a whole step is a broken counter.
OVERSHOOT = 1.5
# Counters move in steps of 10 ms or more and the instant of a reading is ours, not the counter's.
SLACK_S = 1.0
# Power between two readings further apart than this is anybody's guess.
LONGEST_GAP_S = 10.0


class EnergyMeter:
    """Keeps the last energy of one GPU and decides when an epoch ends."""

    def __init__(self, limit_max_w: float | None = None) -> None:
        self.epoch = 0
        self.energy_j: float | None = None
        self._most_w = MOST_POWER_W
        self.bound(limit_max_w)
        self._mono_s = 0.0
        self._power_w: float | None = None
        self._counts = False

    def bound(self, limit_max_w: float | None) -> None:
        """Say what the device may draw at most; None: it does not tell."""
        self._most_w = OVERSHOOT * limit_max_w if limit_max_w else MOST_POWER_W

    def counted(self, counter_j: float, mono_s: float) -> float:
        """Take a counter's value and return the joules of the present epoch."""
        if self.energy_j is not None:
            step_j = counter_j - self.energy_j
            most_j = self._most_w * (mono_s - self._mono_s + SLACK_S)
            if not self._counts or step_j < 0 or step_j > most_j:
                self.epoch += 1
        self._counts, self.energy_j, self._mono_s = True, counter_j, mono_s
        return counter_j

    def integrated(self, power_w: float | None, mono_s: float) -> float | None:
        """Add a trapezoid of power and return the joules of the present epoch; None while power is unknown."""
        if self._counts:
            self.epoch += 1
            self._counts, self.energy_j, self._power_w = False, None, None
        if power_w is None:
            return None
        power_w = min(power_w, self._most_w)
        if self.energy_j is None or self._power_w is None:
            self.energy_j = 0.0
        elif mono_s - self._mono_s > LONGEST_GAP_S:
            self.epoch += 1
            self.energy_j = 0.0
        else:
            self.energy_j += 0.5 * (self._power_w + power_w) * max(0.0, mono_s - self._mono_s)
        self._power_w, self._mono_s = power_w, mono_s
        return self.energy_j
