"""The only place that reads a clock. Everything else is handed `now`."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings, never mixed: intervals are monotonic, only people and other machines see wall time."""

    def mono_s(self) -> float:
        """Seconds on a clock that never steps."""
        ...

    def unix_s(self) -> float:
        """Wall seconds since 1970; may step."""
        ...


class SystemClock:
    """The machine's clocks."""

    def mono_s(self) -> float:
        """CLOCK_BOOTTIME where there is one: it goes on while a VM is suspended, so leases do expire."""
        return (
            time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
        )

    def unix_s(self) -> float:
        """Wall time."""
        return time.time()


class ManualClock:
    """A clock that moves when told; for simulations and tests."""

    def __init__(self, mono_s: float = 1000.0, unix_s: float = 1_700_000_000.0) -> None:
        self._mono_s = mono_s
        self._unix_s = unix_s

    def mono_s(self) -> float:
        """The set monotonic instant."""
        return self._mono_s

    def unix_s(self) -> float:
        """The set wall instant."""
        return self._unix_s

    def advance(self, by_s: float) -> None:
        """Move both clocks forward."""
        self._mono_s += by_s
        self._unix_s += by_s
