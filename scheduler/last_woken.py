"""When a pod was woken last, by whichever replica: the annotation that is changed for it says when.

So whoever leads next keeps the pace without having been told. What stands there may be anybody's.
"""

from __future__ import annotations

from math import inf
from typing import TypeVar

from scheduler.cluster.pods import PodFacts
from scheduler.core.clock import Clock
from scheduler.core.nouns import PREFIX

RETRY_ANNOTATION = PREFIX + "retry"
# Two replicas' clocks may differ by this, and the pace is kept all the same.
SKEW_S = 2.0
# Of whom it is remembered; as many as decisions are.
MOST_KEPT = 10_000
# Unix seconds until the year 2286; what is longer is none.
MOST_DIGITS = 10

T = TypeVar("T")


class LastWoken:
    """What stands on pods about it, and what we wrote there."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ours: dict[str, int] = {}
        """What we wrote last on each pod."""
        self._theirs: dict[str, tuple[str, float]] = {}
        """What somebody else wrote, and until when the pod is left alone for it."""

    def write(self, pod: PodFacts) -> str:
        """Say what to write on a pod that is woken now: when that is, and in any case something else than before."""
        value = max(int(self._clock.unix_s()), self._ours.get(pod.uid, 0) + 1)
        if str(value) == _said(pod):
            value += 1
        _keep(self._ours, pod.uid, value)
        return str(value)

    def rests_until_mono_s(self, pod: PodFacts, again_s: float) -> float:
        """Until when a pod is left alone since another replica has woken it; the past if it need not be.

        An instant that is still to come counts as the one at which we first saw it.
        """
        said = _said(pod)
        if not (said.isascii() and said.isdigit() and len(said) <= MOST_DIGITS):
            return -inf
        if int(said) == self._ours.get(pod.uid):
            return -inf
        seen, until_mono_s = self._theirs.get(pod.uid, ("", -inf))
        if seen == said:
            return until_mono_s
        left_s = again_s + SKEW_S - max(self._clock.unix_s() - int(said), 0.0)
        if left_s <= 0:
            return -inf
        until_mono_s = self._clock.mono_s() + left_s
        _keep(self._theirs, pod.uid, (said, until_mono_s))
        return until_mono_s


def _said(pod: PodFacts) -> str:
    return (pod.meta.annotations or {}).get(RETRY_ANNOTATION, "")


def _keep(kept: dict[str, T], uid: str, value: T) -> None:
    kept.pop(uid, None)
    kept[uid] = value
    if len(kept) > MOST_KEPT:
        del kept[next(iter(kept))]
