"""The end that nothing can hold up: what has not ended within the grace is left where it stands.

A task that swallows its cancellation, a call that blocks the loop and an executor's thread would each keep the process
until Kubernetes kills it, and say nothing. Hence a thread, and the last line says which tasks it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable

from scheduler.core.log import kv

log = logging.getLogger(__name__)

NOT_ENDED = 1


class HardEnd:
    """Ends the process some time after `begin`, unless `call_off` comes first.

    Args:
        grace_s: how long an orderly end may take.
        flush: writes the log's last lines; must return by itself.
    """

    def __init__(self, grace_s: float, flush: Callable[[], None]) -> None:
        self._grace_s = grace_s
        self._flush = flush
        self._timer: threading.Timer | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stopping begins; again is nothing new."""
        if self._timer is None:
            self._timer = threading.Timer(self._grace_s, self._end, (loop,))
            self._timer.daemon = True
            self._timer.start()

    def call_off(self) -> None:
        """Everything has ended."""
        if self._timer is not None:
            self._timer.cancel()

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        left: list[str] = []
        # It is another thread's loop: a set that changes meanwhile is not worth the end.
        with contextlib.suppress(Exception):
            left = sorted(task.get_name() for task in asyncio.all_tasks(loop))
        log.critical("not ended within the grace: leaving", extra=kv(grace_s=self._grace_s, tasks=left))
        self._flush()
        os._exit(NOT_ENDED)
