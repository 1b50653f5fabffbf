"""A token bucket: so many at once, then so many a second. Pure: it is told the time."""

from __future__ import annotations


class TokenBucket:
    """Full at the beginning. In any span of t seconds it gives at most `burst + rate_per_s * t` tokens.

    Args:
        burst: How many it holds.
        rate_per_s: How fast it fills again.
        now_mono_s: The beginning.
    """

    __slots__ = ("_then_mono_s", "_tokens", "burst", "rate_per_s")

    def __init__(self, burst: int, rate_per_s: float, now_mono_s: float) -> None:
        self.burst = burst
        self.rate_per_s = rate_per_s
        self._tokens = float(burst)
        self._then_mono_s = now_mono_s

    def take(self, now_mono_s: float) -> bool:
        """Take a token; False if there is none."""
        self._fill(now_mono_s)
        taken = self._tokens >= 1.0
        self._tokens -= taken
        return taken

    def wait_s(self, now_mono_s: float) -> float:
        """How long until there is a token; 0 if there is one."""
        self._fill(now_mono_s)
        return max(1.0 - self._tokens, 0.0) / self.rate_per_s

    def _fill(self, now_mono_s: float) -> None:
        more = max(now_mono_s - self._then_mono_s, 0.0) * self.rate_per_s
        self._tokens = min(self._tokens + more, float(self.burst))
        self._then_mono_s = now_mono_s
