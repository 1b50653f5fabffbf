"""The API server's clock, by the `Date` of its answers: by it pods were created.

A pod's age decides when it spills to another pool: with a clock of ours that is an hour ahead, at once.
"""

from __future__ import annotations

import logging
from collections import deque
from datetime import UTC
from email.utils import parsedate_to_datetime
from statistics import median
from typing import TYPE_CHECKING

from scheduler.core.log import kv

if TYPE_CHECKING:
    from scheduler.core.clock import Clock

log = logging.getLogger(__name__)

# As of agents' clocks: worth a person's attention.
MOST_SKEW_S = 5.0
# `Date` is in whole seconds, and several servers' clocks are never the same: what is less is no difference.
LEAST_OFFSET_S = 2.0
# A `Date` is cut off to whole seconds.
RESOLUTION_S = 1.0
# The leader renews its Lease every 2 s: a step is known within six. One or two wrong answers say nothing.
ANSWERS = 5
ENOUGH = 3


class ServerClock:
    """A Clock that tells the server's wall time where it is known to be another than ours.

    What is kept is by how much the server's wall time is ahead of our monotonic clock, so that a step of our own wall
    clock changes nothing.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead_s: deque[float] = deque(maxlen=ANSWERS)
        self._server_ahead_s: float | None = None
        self._told = False

    def mono_s(self) -> float:
        """Our own."""
        return self._clock.mono_s()

    def unix_s(self) -> float:
        """The server's wall time where it is known to differ from ours, else ours."""
        unix_s = self._clock.unix_s()
        if self._server_ahead_s is None:
            return unix_s
        server_unix_s = self._clock.mono_s() + self._server_ahead_s
        return server_unix_s if abs(server_unix_s - unix_s) > LEAST_OFFSET_S else unix_s

    @property
    def offset_s(self) -> float | None:
        """How far the server's clock is ahead of ours, at least; None while too few answers have told."""
        if self._server_ahead_s is None:
            return None
        return self._clock.mono_s() + self._server_ahead_s - self._clock.unix_s()

    def is_off(self) -> bool:
        """Whether the clocks differ by so much that a person should know."""
        return abs(self.offset_s or 0.0) > MOST_SKEW_S

    def see(self, date: str, asked_mono_s: float) -> None:
        """Take the `Date` of an answer.

        The server wrote it between our question and now, so a slow answer tells less, and nothing wrong: what counts
        of all that it may mean is what is nearest to our own clock.

        Args:
            date: The header; what is none is ignored.
            asked_mono_s: When the request was sent.
        """
        try:
            written = parsedate_to_datetime(date)
            date_unix_s = written.replace(tzinfo=written.tzinfo or UTC).timestamp()
        except (ValueError, OverflowError):
            return
        now_mono_s = self._clock.mono_s()
        least_s, most_s = date_unix_s - now_mono_s, date_unix_s + RESOLUTION_S - asked_mono_s
        ours_s = self._clock.unix_s() - now_mono_s
        self._ahead_s.append(min(max(ours_s, least_s), most_s))
        if len(self._ahead_s) >= ENOUGH:
            self._server_ahead_s = median(self._ahead_s)
            self._tell()

    def _tell(self) -> None:
        if self.is_off() is self._told:
            return
        self._told = not self._told
        offset_s = self.offset_s or 0.0
        about = kv(offset_s=round(offset_s, 1))
        if self._told:
            way = "behind" if offset_s > 0 else "ahead of"
            text = (
                "our clock is %.0f s %s the API server's, whose counts for the age of pods: set the time here"
            )
            log.warning(text, abs(offset_s), way, extra=about)
        else:
            log.info("our clock agrees with the API server's again", extra=about)
