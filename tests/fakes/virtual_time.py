"""An event loop whose time jumps to the next timer, so that minutes of waiting pass in milliseconds."""

from __future__ import annotations

import asyncio
import selectors

# What a turn takes at least. Without it a sleep shorter than a clock's last digit would be slept for ever.
TURN_S = 1e-6


class _Jumping(selectors.SelectSelector):
    """Sleeps by moving the loop's time."""

    def __init__(self) -> None:
        super().__init__()
        self.now_mono_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("nothing is scheduled: this loop would wait for ever")
        self.now_mono_s += max(timeout, TURN_S)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """For work without sockets: `asyncio.Runner(loop_factory=VirtualLoop)`."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_mono_s


class SkewedClock:
    """A machine's own clocks: both run at a rate of their own, and neither knows the other machine's zero."""

    def __init__(
        self, *, zero_mono_s: float = 0.0, rate: float = 1.0, unix_s: float = 1_700_000_000.0
    ) -> None:
        self._zero_mono_s, self._rate, self._unix_s = zero_mono_s, rate, unix_s

    def mono_s(self) -> float:
        """Needs a running VirtualLoop."""
        return self._zero_mono_s + self._rate * asyncio.get_running_loop().time()

    def unix_s(self) -> float:
        """Likewise."""
        return self._unix_s + self._rate * asyncio.get_running_loop().time()
