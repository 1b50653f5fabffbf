"""What bind is answered with where we do not bind, though kube-scheduler leaves it to us: its pods wait for ever.

Two configurations contradict each other, and only people can tell which of them is meant: so they are told.
"""

from __future__ import annotations

import logging
from collections import Counter
from math import inf

from scheduler.cluster.pod_status import BIND_IS_OFF
from scheduler.core.clock import Clock
from scheduler.core.log import kv
from scheduler.extender.wire import BindArgs

_log = logging.getLogger(__name__)

TOLD_AGAIN_S = 60.0
# kube-scheduler tries each pod again after five minutes at the latest.
ASKED_LATELY_S = 360.0


class NoBinder:
    """Answers with what to change, and says so to people.

    Args:
        clock: for how long ago.
        observe: whether it is off since nothing is done at all, whatever `extender.bind` says.
    """

    def __init__(self, clock: Clock, *, observe: bool = False) -> None:
        self.results: Counter[str] = Counter()
        """off"""
        off, on = ("extender.bind is off", "set extender.bind: true")
        if observe:
            off, on = ("mode is observe", "bind in mode act with extender.bind: true")
        self._error = (
            f"{BIND_IS_OFF}{off}, and kube-scheduler leaves binding to wattbalance: take bindVerb out of its extender "
            f"configuration, or {on} in wattbalance's and restart it"
        )
        self._clock = clock
        self._asked_mono_s = self._told_mono_s = -inf

    def bind(self, args: BindArgs) -> str:
        """What to tell kube-scheduler."""
        self.results["off"] += 1
        now_mono_s = self._asked_mono_s = self._clock.mono_s()
        if now_mono_s - self._told_mono_s >= TOLD_AGAIN_S:
            self._told_mono_s = now_mono_s
            pod, asked = f"{args.namespace}/{args.name}", self.results["off"]
            _log.warning("no pod is bound: %s", self._error, extra=kv(pod=pod, asked=asked))
        return self._error

    def is_missed(self) -> bool:
        """Whether we were asked to bind lately."""
        return self._clock.mono_s() - self._asked_mono_s < ASKED_LATELY_S
