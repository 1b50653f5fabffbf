"""Names nodes whose messages are dropped: one warning for a node and a reason, at most once a minute. Told the time.

A node that sends garbage each second must not fill the log, and made-up names must not fill the memory.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass

from scheduler.core.log import kv

_log = logging.getLogger(__name__)

# A name is that of a topic, which may be 64 KiB; Kubernetes knows none above this.
MOST_NAME = 253
MOST_DETAIL = 200
QUIET_S = 60.0
# Pairs of node and reason that are named within a minute: more than a person reads.
MOST_NAMED = 100


@dataclass(slots=True)
class _Named:
    kind: str
    until_mono_s: float
    count: int = 0
    """Since the last line."""
    detail: str = ""


class Complaints:
    """What was said of whom lately. A first message is told at once, those of the next minute in one line after it."""

    def __init__(self) -> None:
        # Who was named longest ago comes first.
        self._named: OrderedDict[tuple[str, str], _Named] = OrderedDict()
        self._unnamed = 0
        self._unnamed_until_mono_s = 0.0

    def __len__(self) -> int:
        return len(self._named)

    def note(
        self, node: str, kind: str, reason: str, detail: str, now_mono_s: float, *, count: int = 1
    ) -> None:
        """Take in that messages of a node were dropped.

        Args:
            node: As the topic says; whoever may write that topic chose it.
            kind: What was sent: samples, inventory or status.
            reason: As it is counted.
            detail: What was wrong with the newest one.
            now_mono_s: Instant of receipt.
            count: How many messages.
        """
        key = node[:MOST_NAME], reason
        named = self._named.get(key)
        if named is not None:
            named.count += count
            named.kind, named.detail = kind, detail[:MOST_DETAIL]
            return
        self.tell(now_mono_s)
        if len(self._named) >= MOST_NAMED:
            if not self._unnamed:
                self._unnamed_until_mono_s = now_mono_s + QUIET_S
            self._unnamed += count
            return
        self._say(key, _Named(kind, now_mono_s + QUIET_S, count, detail[:MOST_DETAIL]))

    def tell(self, now_mono_s: float) -> None:
        """Say what has gathered for a minute; forget who was silent as long."""
        while self._named:
            key, named = next(iter(self._named.items()))
            if now_mono_s < named.until_mono_s:
                break
            del self._named[key]
            if named.count:
                named.until_mono_s = now_mono_s + QUIET_S
                self._say(key, named)
        if self._unnamed and now_mono_s >= self._unnamed_until_mono_s:
            _log.warning("dropped messages of more nodes than are named", extra=kv(count=self._unnamed))
            self._unnamed = 0

    def _say(self, key: tuple[str, str], named: _Named) -> None:
        node, reason = key
        _log.warning(
            "dropped messages of a node",
            extra=kv(
                node=_printable(node),
                kind=named.kind,
                reason=reason,
                count=named.count,
                detail=_printable(named.detail),
            ),
        )
        named.count, named.detail = 0, ""
        self._named[key] = named


def _printable(text: str) -> str:
    # Control characters would have their way with a terminal.
    return text if text.isprintable() else ascii(text)
